import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.planning import power
from lib.simulation import cohort, equicorrelated_cells, rejections, simulated_cohorts, simulated_seeds


def test_cohorts_have_patients_with_several_alike_images():
    X, y, patient = cohort(4000, 0.35, np.random.default_rng(0))
    images = np.bincount(patient)
    assert images.min() == 1
    assert images.mean() == pytest.approx(3.6, abs=0.1)
    assert (pd.Series(y).groupby(patient).nunique() == 1).all()
    assert y.mean() == pytest.approx(0.15, abs=0.02)
    assert X[y == 1].mean() - X[y == 0].mean() == pytest.approx(0.35, abs=0.03)
    first = np.flatnonzero(np.diff(patient, prepend=-1))
    pairs = first[images > 1]
    assert np.corrcoef(X[pairs, 0], X[pairs + 1, 0])[0, 1] == pytest.approx(0.6, abs=0.05)


def test_the_corrected_t_keeps_its_level_where_its_assumption_holds():
    found = rejections(equicorrelated_cells(1500, 5, 5))["rejected"]
    assert found["corrected t"] == pytest.approx(0.05, abs=0.02)
    assert found["naive t"] == pytest.approx(0.451, abs=0.05)  # closed form: t inflated by √(1 + 25/4)


def test_holm_keeps_the_error_of_the_family():
    found = rejections(equicorrelated_cells(600, 3, 5, effects=[0] * 5))["rejected"]
    assert found["any, Holm"] <= 0.065 + 2 * np.sqrt(0.05 * 0.95 / 600)


def test_power_agrees_with_simulation():
    found = rejections(equicorrelated_cells(1500, 3, 5, effects=[1.0]))["rejected"]
    assert found["corrected t"] == pytest.approx(power(1.0, 1.0, 3, 5), abs=0.04)
    assert power(0, 1, 3, 5) == pytest.approx(0.05, abs=1e-4)


def test_simulated_studies_are_repeatable_and_tell_a_better_learner():
    none = simulated_cohorts(3, patients=150, repeats=1)
    pd.testing.assert_frame_equal(none, simulated_cohorts(3, patients=150, repeats=1))
    assert none.to_numpy().min() >= 0
    strong = simulated_cohorts(3, patients=300, repeats=1, shift_b=1.5)
    assert (strong["clustered AUC"] < 0.01).all()


def test_rejections_with_their_interval():
    table = rejections(pd.DataFrame({"x": [0.01] * 3 + [0.5] * 7}))
    assert table.loc["x", "rejected"] == 0.3
    assert table.loc["x", "ci_low"] == pytest.approx(stats.beta.ppf(0.025, 3, 8))


def test_another_training_of_the_same_is_found_to_differ_without_the_spread_between_seeds():
    found = rejections(simulated_seeds(120, patients=300, seeds=3))["rejected"]
    assert found["DeLong, patients and seeds"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 120)
    assert found["DeLong, patients"] > found["DeLong, patients and seeds"]
