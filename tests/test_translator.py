import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.phantom import Phantom
from lib.training import cohort_hash
from lib.translator import check_trained_on, preview_due


def test_weights_of_another_training_part_are_refused():
    cohort = Phantom(patients=6, size=16, aff_share=0.3).cohort()
    metadata = {"method": "cyclegan", "cohort_hash": cohort_hash(cohort)}
    check_trained_on(metadata, cohort)
    with pytest.raises(ValueError, match=r"cyclegan was trained on other images .* run its notebook again"):
        check_trained_on(metadata, cohort.first(len(cohort) - 1))


@given(st.integers(1, 500), st.integers(0, 20))
def test_as_many_previews_as_asked_for_where_there_are_so_many_steps(steps, previews):
    due = [step for step in range(steps) if preview_due(step, steps, previews)]
    assert len(due) == min(previews, steps)
    assert not due or due[-1] == steps - 1
