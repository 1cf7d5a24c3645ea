"""Controls: each is what its name says."""

import numpy as np
import pandas as pd
import pytest

from lib import controls
from lib.cohort import Cohort
from lib.phantom import Phantom
from lib.splits import keep_aff, make_splits

PHANTOM = Phantom(patients=40, size=32, aff_share=0.4, seed=3)


@pytest.fixture(scope="module")
def cohort():
    return PHANTOM.cohort()


@pytest.fixture(scope="module")
def splits(cohort):
    return make_splits(cohort.patients, 1, 1, 0)


@pytest.fixture(scope="module")
def training(cohort, splits):
    return cohort.part(splits, 0, 0, "train")


def pixels_by_id(cohort):
    return dict(zip(cohort.table.image_id, cohort.pixels, strict=True))


def test_fake_images_are_copies_of_training_aff(training):
    made = controls.fake(training, 31, 0)
    real = pixels_by_id(training)
    assert all(
        (real[row.source_image_id] == p).all() for row, p in zip(made.table.itertuples(), made.pixels, strict=True)
    )
    counts = made.table.source_image_id.value_counts().reindex(
        training.select(label="AFF").table.image_id, fill_value=0
    )
    assert len(made) == 31 and counts.max() - counts.min() <= 1
    assert set(made.table.label) == set(made.table.source_label) == {"AFF"}
    assert not made.table.image_id.duplicated().any()


def test_useless_images_are_nff_called_aff(training):
    sources = training.select(label="NFF").first(5)
    made = controls.useless(sources)
    np.testing.assert_array_equal(made.pixels, sources.pixels)
    assert set(made.table.label) == {"AFF"} and list(made.table.source_image_id) == list(sources.table.image_id)


def test_the_oracle_of_the_phantom_draws_the_other_fracture(cohort, splits, training):
    sources = training.select(label="NFF").first(5)
    made = controls.oracle(sources, controls.hidden_aff(cohort, splits, (0, 0)), PHANTOM, 0)
    np.testing.assert_array_equal(made.pixels, PHANTOM.counterfactual(sources).pixels)
    assert set(made.table.label) == {"AFF"} and set(made.table.method) == {"oracle"}
    assert list(made.table.patient_id) == list(sources.table.patient_id)


def test_the_oracle_of_real_radiographs_shows_hidden_patients_only(cohort, splits, training):
    sources = training.select(label="NFF").first(25)
    with pytest.raises(ValueError, match="set training_aff_share below 1"):
        controls.oracle(sources, controls.hidden_aff(cohort, splits, (0, 0)), None, 0)
    fewer = keep_aff(splits, cohort.patients, 0.4, 0)
    hidden = controls.hidden_aff(cohort, fewer, (0, 0))
    made = controls.oracle(sources, hidden, None, 0)
    assert len(made) == len(sources) and set(made.table.label) == {"AFF"}
    gone = set(splits.patient_id) - set(fewer.patient_id)
    assert set(made.table.patient_id) <= gone and set(hidden.patients.index) == gone
    assert not set(fewer.patient_id) & gone


def test_shuffled_labels_belong_to_patients_and_keep_their_numbers(cohort):
    shuffled = controls.permuted_labels(cohort, 0)
    assert (shuffled.table.groupby("patient_id").label.nunique() == 1).all()
    pd.testing.assert_series_equal(
        shuffled.patients.value_counts().sort_index(), cohort.patients.value_counts().sort_index()
    )
    assert (shuffled.patients != cohort.patients).any() and shuffled.pixels is cohort.pixels
    agreement = [(controls.permuted_labels(cohort, seed).patients == cohort.patients).mean() for seed in range(200)]
    share = (cohort.patients == "AFF").mean()
    assert np.mean(agreement) == pytest.approx(share**2 + (1 - share) ** 2, abs=0.02)  # as by chance
    assert isinstance(shuffled, Cohort)
