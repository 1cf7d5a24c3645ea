"""Memorisation: planted copies are found, real patients are none."""

import numpy as np
import pytest

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.fidelity import controls
from lib.fidelity.judge import Judge
from lib.fidelity.memorisation import (
    closest_pairs,
    distances_of,
    memorisation,
    memorisation_table,
    nearest,
    planted,
    sees_copies,
)

PHANTOM = Phantom(patients=90, size=64, aff_share=0.5, seed=4)


@pytest.fixture(scope="module")
def parts():
    """AFF of training and of test patients, and what an oracle makes of other patients' NFF."""
    cohort = PHANTOM.cohort()
    aff, patients = cohort.select(label="AFF"), sorted(cohort.patients.index[cohort.patients == "AFF"])
    training, test = (aff.select(patient_id=half) for half in (patients[::2], patients[1::2]))
    oracle = controls.oracle(cohort.select(label="NFF").first(100), training.first(0), PHANTOM, 0)
    return training, test, oracle


@pytest.fixture(scope="module")
def pixels():
    return distances_of(Judge())["pixels"]


def test_new_patients_are_no_copies_and_copies_are(parts, pixels):
    training, test, oracle = parts
    honest = memorisation(oracle, training, test, pixels)
    assert honest["copies"] < 0.05 and abs(honest["C_T"]) < 3 and honest["authentic"] > 0.4
    fake = memorisation(controls.fake(training, 60, 0), training, test, pixels)
    assert fake["copies"] == 1 and fake["authentic"] == 0 and fake["C_T"] < -8


def test_as_many_copies_are_found_as_were_planted(parts, pixels):
    training, test, oracle = parts
    found = [memorisation(planted(oracle, training, share), training, test, pixels) for share in (0, 0.05, 0.1, 0.2)]
    rise = np.array([f["copies"] for f in found]) - found[0]["copies"]
    np.testing.assert_allclose(rise, [0, 0.05, 0.1, 0.2], atol=0.021)
    assert np.all(np.diff([f["C_T"] for f in found]) < 0)


def test_planting_replaces_that_share_and_leaves_the_rest(parts):
    training, _, oracle = parts
    changed = (planted(oracle, training, 0.2).pixels != oracle.pixels).any((1, 2))
    assert changed.sum() == 20
    np.testing.assert_array_equal(planted(oracle, training, 0.0).pixels, oracle.pixels)


def test_distances_do_not_mind_mirrors_and_small_shifts(parts, pixels):
    training = parts[0].first(12)
    apart = pixels(training.pixels, training.pixels)
    np.testing.assert_allclose(apart, apart.T, atol=0.02)
    np.testing.assert_allclose(np.diag(apart), 0, atol=1e-3)
    for change in (lambda p: p[:, :, ::-1], lambda p: np.roll(p, (1, -1), (1, 2)), lambda p: p // 2 + 30):
        assert np.diag(pixels(change(training.pixels), training.pixels)).max() < 0.1 < apart[apart > 0.01].min()


def test_ones_own_patient_counts_for_copies_alone(parts, pixels):
    training = parts[0]
    of_training, position = nearest(training, training, pixels)
    patients = training.table.patient_id.to_numpy()
    assert of_training.min() > 0 and (patients[position] != patients).all()
    copies = controls.fake(training, len(training), 0)
    assert nearest(copies, training, pixels)[0].max() < 5e-3
    translated = Cohort(copies.table.assign(source_label="NFF"), copies.pixels)
    assert nearest(translated, training, pixels)[0].min() > 0


def test_the_table_says_which_distance_sees_planted_copies(parts):
    training, test, oracle = parts
    table = memorisation_table({"oracle": oracle}, training, test, Judge(), shares=(0.0, 0.2))
    assert list(table) == ["method", "distance", "planted", "copies", "authentic", "C_T", "n"] and len(table) == 4
    assert sees_copies(table)["oracle", "pixels"] == pytest.approx(1, abs=0.1)
    assert not len(sees_copies(table[table.method == "nothing"]).groupby("distance").mean())


def test_the_gallery_begins_with_the_closest_pair(parts, pixels):
    training, _, oracle = parts
    mixed = planted(oracle, training, 0.05)
    generated, real = closest_pairs(mixed, training, pixels, 8)
    apart = np.diag(pixels(generated.pixels, real.pixels))
    assert len(generated) == len(real) == 8 and (np.diff(apart) >= -1e-6).all()
    changed = set(mixed.table.image_id[(mixed.pixels != oracle.pixels).any((1, 2))])
    assert set(generated.table.image_id[:5]) == changed
