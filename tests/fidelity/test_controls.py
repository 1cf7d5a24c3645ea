"""Controls: each is what its name says."""

import numpy as np
import pandas as pd
import pytest

from lib.data.phantom import Phantom
from lib.data.splits import keep_aff, make_splits
from lib.fidelity import controls
from lib.run.folder import Run
from lib.study import Study

PHANTOM = Phantom(patients=40, size=32, aff_share=0.4, seed=3)


@pytest.fixture(scope="module")
def cohort():
    return PHANTOM.cohort()


@pytest.fixture(scope="module")
def fold(cohort, tmp_path_factory):
    return Study(Run(tmp_path_factory.mktemp("run")), cohort, make_splits(cohort.patients, 1, 1, 0), PHANTOM).fold()


@pytest.fixture(scope="module")
def training(fold):
    return fold.train


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


def test_the_oracle_of_the_phantom_draws_the_other_fracture(fold, training):
    sources = training.select(label="NFF").first(5)
    made = controls.oracle(sources, fold.unused, PHANTOM, 0)
    np.testing.assert_array_equal(made.pixels, PHANTOM.counterfactual(sources).pixels)
    assert set(made.table.label) == {"AFF"} and set(made.table.method) == {"oracle"}
    assert list(made.table.patient_id) == list(sources.table.patient_id)


def test_the_oracle_of_real_radiographs_shows_hidden_patients_only(cohort, fold, training):
    sources = training.select(label="NFF").first(25)
    with pytest.raises(ValueError, match="set training_aff_share below 1"):
        controls.oracle(sources, fold.unused.select(label="AFF"), None, 0)
    fewer = keep_aff(fold.splits, cohort.patients, 0.4, 0)
    hidden = Study(fold.run, cohort, fewer).fold().unused.select(label="AFF")
    made = controls.oracle(sources, hidden, None, 0)
    assert len(made) == len(sources) and set(made.table.label) == {"AFF"}
    gone = set(fold.splits.patient_id) - set(fewer.patient_id)
    assert set(made.table.patient_id) <= gone and set(hidden.patients.index) == gone
    assert not set(fewer.patient_id) & gone


def test_shuffled_labels_belong_to_patients_and_keep_their_numbers(fold):
    parts = fold.parts
    before, draws = pd.concat([part.patients for part in parts]), []
    for seed in range(100):
        shuffled = controls.permuted_labels(parts, seed)
        after = pd.concat([part.patients for part in shuffled])
        assert all((part.table.groupby("patient_id").label.nunique() == 1).all() for part in shuffled)
        assert all(part.table.label.nunique() == 2 for part in shuffled)
        assert after.value_counts().to_dict() == before.value_counts().to_dict()
        draws.append((after == before).mean())
    assert shuffled[0].pixels is parts[0].pixels
    share = (before == "AFF").mean()
    assert np.mean(draws) == pytest.approx(share**2 + (1 - share) ** 2, abs=0.03)  # as by chance


def test_shuffled_labels_still_show_a_leak(fold):
    """One label a patient in every part: who finds test patients again among those it trained on is right."""
    training, validation, test = fold.parts
    leaky, _, tested = controls.permuted_labels([training.join(test), validation, test], 0)
    label = leaky.table.set_index("image_id").label
    assert (label[tested.table.image_id].to_numpy() == tested.table.label.to_numpy()).all()


def test_a_small_part_keeps_two_patients_of_each_label(cohort):
    few = [cohort.patients.index[cohort.patients == label][:2] for label in ("AFF", "NFF")]
    small = cohort.select(patient_id=[*few[0], *few[1]])
    rest = cohort.take(~cohort.table.patient_id.isin(small.table.patient_id))
    for seed in range(20):
        assert set(controls.permuted_labels([rest, small], seed)[1].patients.value_counts()) == {2}


def test_controls_are_known_by_their_names():
    assert all(controls.is_control(name) for name in ("again", "fake@0.5", "useless", "permuted"))
    assert not any(controls.is_control(name) for name in ("real", "standard", "cyclegan@0.5", "oversampling+standard"))


def test_controls_are_left_out_unless_there_are_only_controls():
    mixed = pd.DataFrame({"condition": ["real", "again", "cyclegan", "fake@0.5"]})
    assert list(controls.without_controls(mixed).condition) == ["real", "cyclegan"]
    alone = pd.DataFrame({"condition": ["again", "permuted"]})
    assert controls.without_controls(alone) is alone
