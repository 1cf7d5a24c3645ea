import pytest

from lib.phantom import Phantom
from lib.training import cohort_hash
from lib.translator import check_trained_on


def test_weights_of_another_training_part_are_refused():
    cohort = Phantom(patients=6, size=16, aff_share=0.3).cohort()
    metadata = {"method": "cyclegan", "cohort_hash": cohort_hash(cohort)}
    check_trained_on(metadata, cohort)
    with pytest.raises(ValueError, match=r"cyclegan was trained on other images .* run its notebook again"):
        check_trained_on(metadata, cohort.first(len(cohort) - 1))
