import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.statistics import simulation
from lib.statistics.comparisons import _test_train_ratio
from lib.statistics.planning import power, power_of_equivalence, ratio_of_fold
from lib.statistics.simulation import (
    METRICS,
    WANTED,
    all_rejections,
    cohort,
    equicorrelated_folds,
    p_values_of_cohort,
    p_values_of_fixed,
    p_values_of_generators,
    p_values_of_seeds,
    rejections,
    simulated,
    verdicts,
)


def chance(level, n):
    """How far above its level a share of n may lie by chance."""
    return level + 2.5 * np.sqrt(level * (1 - level) / n)


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


@pytest.mark.parametrize(
    ("n", "ratio", "naive"),
    [(5, 1 / 4, 0.138), (15, 1 / 4, 0.342), (25, 1 / 4, 0.451), (100, 1 / 9, 0.570), (15, 0.3125, None)],
)
def test_the_corrected_t_keeps_its_level_where_its_assumption_holds(n, ratio, naive):
    found = rejections(equicorrelated_folds(800, n, ratio))["rejected"]
    assert found["corrected t"] == pytest.approx(0.05, abs=0.022)
    if naive:  # closed form: t inflated by √(1 + n · ratio)
        assert found["naive t"] == pytest.approx(naive, abs=0.05)


def test_holm_keeps_the_error_of_the_family():
    found = rejections(equicorrelated_folds(300, 15, 0.3125, effects=[0] * 5))["rejected"]
    assert found["any, Holm"] <= chance(0.05, 300)


def test_power_agrees_with_simulation():
    found = rejections(equicorrelated_folds(1000, 15, 0.3125, effects=[1.0]))["rejected"]
    assert found["corrected t"] == pytest.approx(power(1.0, 1.0, 15, 0.3125), abs=0.045)
    assert power(0, 1, 15, 0.3125) == pytest.approx(0.05, abs=1e-4)


def test_equivalence_is_claimed_of_methods_a_margin_apart_in_5_percent():
    apart = rejections(equicorrelated_folds(1000, 15, 0.3125, effects=[2.0], margin=2.0))["rejected"]
    assert apart["TOST"] == pytest.approx(0.05, abs=0.02)
    alike = rejections(equicorrelated_folds(1000, 15, 0.3125, margin=1.5))["rejected"]
    assert alike["TOST"] == pytest.approx(power_of_equivalence(1.5, 1.0, 15, 0.3125), abs=0.045)


def test_folds_are_the_study_s(monkeypatch):
    made, make_splits = [], simulation.make_splits

    def recorded(*arguments, **options):
        made.append(make_splits(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(simulation, "make_splits", recorded)
    simulated(p_values_of_cohort, 1, patients=400, repeats=1)
    assert set(made[0].part) == {"train", "validation", "test"}
    folds = pd.MultiIndex.from_frame(made[0][["repeat", "fold"]].drop_duplicates())
    assert _test_train_ratio(made[0], folds) == pytest.approx(ratio_of_fold(5, 0.2), rel=0.02)


def test_simulated_studies_are_repeatable_and_tell_a_better_learner():
    none = simulated(p_values_of_cohort, 12, patients=200, repeats=1)
    pd.testing.assert_frame_equal(none.head(2), simulated(p_values_of_cohort, 2, patients=200, repeats=1).head(2))
    assert none["corrected t"].nunique() == 12 and (none["corrected t"] > 0.05).sum() >= 9
    strong = simulated(p_values_of_cohort, 3, patients=300, repeats=2, shift_b=1.5)
    assert (strong["clustered AUC"] < 0.01).all() and (strong["corrected t"] < 0.05).all()


def test_fixed_classifiers_are_told_apart_at_the_level():
    found = rejections(simulated(p_values_of_fixed, 200))["rejected"]
    for test in ("DeLong, patients", "clustered AUC", "McNemar, patients", "Durkalski, images"):
        assert 0 < found[test] <= chance(0.06, 200), test
    for metric in METRICS:
        assert found[f"bootstrap, {metric}"] <= chance(WANTED["fixed", f"bootstrap, {metric}"][1], 200), metric


def test_another_training_of_the_same_is_found_to_differ_without_the_spread_between_seeds():
    found = rejections(simulated(p_values_of_seeds, 100, patients=600, seeds=3))["rejected"]
    for test in ("DeLong, patients and seeds", *(f"bootstrap, {metric}" for metric in METRICS)):
        assert found[test] <= chance(0.06, 100), test
    assert found["DeLong, patients"] > found["DeLong, patients and seeds"]
    assert found["McNemar, patients"] > 0.15  # networks and thresholds as given
    assert found["Durkalski, images"] > 0.15


def test_exchangeable_generators_differ_at_the_level():
    p = simulated(p_values_of_generators, 200, patients=40)["KID"]
    assert 0 < (p < 0.05).mean() <= chance(0.05, 200)
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_rejections_with_their_interval():
    table = rejections(pd.DataFrame({"x": [0.01] * 3 + [0.5] * 7}))
    assert table.loc["x", "rejected"] == 0.3
    assert table.loc["x", "ci_low"] == pytest.approx(stats.beta.ppf(0.025, 3, 8))


def test_verdicts_allow_for_chance():
    """No rejection of 10 does not speak against 2 %, of 1,000 it does; what is not in `WANTED` is left out."""
    found = pd.concat({
        "equally good": rejections(pd.DataFrame({"corrected t": [0.5] * 10, "naive t": [0.5] * 10})),
        "folds": rejections(pd.DataFrame({"corrected t": [0.5] * 1000, "unheard of": [0.5] * 1000})),
    })  # fmt: skip
    table = verdicts(found)
    assert table["as wanted"].to_dict() == {
        ("equally good", "corrected t"): True, ("equally good", "naive t"): True, ("folds", "corrected t"): False,
    }  # fmt: skip
    assert table.wanted["equally good", "corrected t"] == "0.02 to 0.065"


def test_every_test_that_is_wanted_is_simulated():
    found = all_rejections(2, patients=300)
    assert set(WANTED) <= set(found.index)
    assert len(verdicts(found)) == len(WANTED)
