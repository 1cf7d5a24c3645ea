"""Planning: the published tables of power, detectable differences and equivalence, and what follows from them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib.data.splits import make_splits
from lib.statistics.comparisons import _test_train_ratio, declared, in_thesis
from lib.statistics.planning import (
    designs,
    detectable,
    errors_to_detect,
    hours_of_fold,
    patients_needed,
    pilot_spread,
    power,
    power_of_equivalence,
    ratio_of_fold,
    validation_share,
)

MANY = 10**7  # folds
PUBLISHED = [(n, 1 / (folds - 1)) for folds, row in ((5, (5, 15, 25, 50, MANY)), (10, (10, 30, 50, 100, MANY)))
             for n in row]  # fmt: skip


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (0.010, [0.61, 0.91, 0.95, 0.97, 0.98, 0.97, 1.00, 1.00, 1.00, 1.00]),
        (0.015, [0.33, 0.60, 0.66, 0.71, 0.76, 0.73, 0.92, 0.95, 0.97, 0.98]),
        (0.020, [0.21, 0.38, 0.43, 0.47, 0.52, 0.49, 0.72, 0.77, 0.81, 0.85]),
        (0.030, [0.12, 0.20, 0.22, 0.24, 0.27, 0.25, 0.40, 0.44, 0.47, 0.52]),
        (0.040, [0.09, 0.13, 0.14, 0.16, 0.17, 0.16, 0.25, 0.27, 0.30, 0.32]),
    ],
)
def test_power_of_a_difference_of_2_points(spread, expected):
    assert [power(0.02, spread, *design) for design in PUBLISHED] == pytest.approx(expected, abs=0.006)


def test_detectable_differences_in_standard_deviations():
    found = np.array([detectable(1.0, *design) for design in PUBLISHED])
    published = np.array([2.53, 1.70, 1.58, 1.49, 1.41, 1.45, 1.11, 1.04, 0.99, 0.94])  # rounded up, but for 1.41
    assert found == pytest.approx(published, abs=0.01)
    assert power(detectable(1.0, 2, 1.0), 1.0, 2, 1.0) == pytest.approx(0.8)  # two folds find little
    assert detectable(0.02, 25, 0.25) == pytest.approx(0.02 * detectable(1.0, 25, 0.25))


@pytest.mark.parametrize(("folds", "ceiling"), [(5, 0.0143), (10, 0.0214)])
def test_no_number_of_repeats_helps_where_folds_spread_more(folds, ceiling):
    ratio = 1 / (folds - 1)
    assert 0.02 / detectable(1.0, np.inf, ratio) == pytest.approx(ceiling, abs=5e-5)
    assert detectable(1.0, np.inf, ratio) == pytest.approx(detectable(1.0, MANY, ratio), rel=1e-3)


def test_power_is_that_of_scipys_noncentral_t():
    for effect, n, ratio, alpha in ((1.0, 15, 0.3125, 0.05), (0.5, 5, 0.25, 0.01)):
        shift, bound = effect / np.sqrt(1 / n + ratio), stats.t(n - 1).ppf(1 - alpha / 2)
        exact = stats.nct(n - 1, shift).sf(bound) + stats.nct(n - 1, shift).cdf(-bound)
        assert power(effect, 1.0, n, ratio, alpha) == pytest.approx(exact, abs=1e-3)
    assert errors_to_detect(np.inf) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-4)


@pytest.mark.parametrize(
    ("margin", "spread", "five", "ten"),
    [(0.01, 0.010, 0.16, 0.77), (0.01, 0.015, 0.00, 0.20), (0.02, 0.010, 0.95, 1.00), (0.02, 0.015, 0.55, 0.97),
     (0.02, 0.020, 0.16, 0.77), (0.03, 0.020, 0.71, 0.99), (0.03, 0.030, 0.16, 0.77)],
)  # fmt: skip
def test_probability_to_show_equivalence(margin, spread, five, ten):
    assert power_of_equivalence(margin, spread, 25, 1 / 4) == pytest.approx(five, abs=0.015)
    assert power_of_equivalence(margin, spread, 100, 1 / 9) == pytest.approx(ten, abs=0.015)


def test_the_ratio_is_that_of_the_study_s_test():
    labels = pd.Series(["AFF"] * 100 + ["NFF"] * 400, [f"P{i:03}" for i in range(500)])
    splits = make_splits(labels, 2, 5, seed=0, validation_share=0.2)
    folds = pd.MultiIndex.from_frame(splits[["repeat", "fold"]].drop_duplicates())
    assert ratio_of_fold(5, 0.2) == 0.3125 == pytest.approx(_test_train_ratio(splits, folds))
    assert validation_share(splits) == pytest.approx(0.2)
    assert ratio_of_fold(5, 0) == 1 / 4


def test_designs_are_comparable_and_know_holm():
    """Ten folds of a pilot of ten, and of one of five: the spread grows by √2, whatever the pilot was."""
    five, ten = (designs(0.02, 0.02, 5, 0.01, 1.0, 5, 0.2), designs(0.02, 0.02 * np.sqrt(2), 10, 0.01, 1.0, 5, 0.2))
    pd.testing.assert_frame_equal(five, ten)
    row = five.loc["3 × 10"]
    assert row.spread == pytest.approx(0.02 * np.sqrt(2))
    assert row.power == power(0.02, row.spread, 30, ratio_of_fold(10, 0.2))
    assert in_thesis(declared(["cyclegan", "cyclediff"])) == 5
    assert row.power_holm == power(0.02, row.spread, 30, ratio_of_fold(10, 0.2), alpha=0.01)
    assert (five.power_holm < five.power).all()
    assert detectable(1, MANY, 0.25, alpha=0.01) / detectable(1, MANY, 0.25) == pytest.approx(1.22, abs=0.005)


@settings(max_examples=5, deadline=None)
@given(effect=st.floats(0.005, 0.05), spread=st.floats(0.005, 0.05))
def test_more_repeats_and_larger_effects_never_hurt(effect, spread):
    table = designs(effect, spread, 5, 0.01, 2.0, 5, 0.2)
    for folds in (5, 10):
        rows = table.loc[[f"{repeats} × {folds}" for repeats in (1, 3, 5, 10)]]
        assert (np.diff(rows.power) >= -1e-9).all() and (np.diff(rows.detectable) <= 1e-12).all()
    assert (table.hours == 2 * table.folds).all()
    assert power(2 * effect, spread, 15, 0.25) >= power(effect, spread, 15, 0.25)


def test_patients_needed_give_that_power():
    """With the patients it asks for, a z-test of the difference has 80 % power, and two one-sided tests too."""
    needed = patients_needed(120, 0.02, 0.03, 0.01)
    error = 0.02 * np.sqrt(120 / needed["difference"])
    assert stats.norm.sf(1.959964 - 0.03 / error) == pytest.approx(0.8, abs=1e-3)
    error = 0.02 * np.sqrt(120 / needed["equivalence"])
    assert 2 * stats.norm.cdf(0.01 / error - 1.644854) - 1 == pytest.approx(0.8, abs=1e-3)
    assert patients_needed(120, 0.02, 0.0, 0.01)["difference"] == np.inf


def test_hours_are_those_of_the_manifest_and_the_trials():
    manifest = {"notebooks": {"01_data_exploration": {"seconds": 999}, "02_cyclegan": {"seconds": 3600},
                              "03_cyclediff": {"seconds": 7200}, "04_synthesis": {"seconds": 1800}}}  # fmt: skip
    metrics = pd.DataFrame({"metric": ["seconds", "auroc", "seconds"], "value": [1000.0, 0.9, 800.0]})
    notebooks = ["02_cyclegan", "03_cyclediff", "04_synthesis"]
    assert hours_of_fold(manifest, notebooks, metrics, folds=2) == pytest.approx((3600 + 7200 + 1800 + 1800) / 2 / 3600)


def test_the_pilot_is_this_run():
    equal = pd.DataFrame({"question": ["RQ2", "RQ2", "control"], "a": ["cyclegan", "cyclediff", "fake"],
                          "b": ["real", "real", "real"], "standard_error": [0.01, 0.02, 0.5]})  # fmt: skip
    aurocs = {"real": (0.8, 0.9, 0.7), "cyclegan": (0.82, 0.9, 0.74), "cyclediff": (0.8, 0.91, 0.7)}
    metrics = pd.DataFrame(
        [(name, 0, fold, seed, "auroc", value + (seed - 0.5) * 0.1)
         for name, values in aurocs.items() for fold, value in enumerate(values) for seed in (0, 1)],
        columns=["condition", "repeat", "fold", "seed", "metric", "value"],
    )  # fmt: skip
    parts = ["train"] * 6 + ["validation"] + ["test"] * 3
    splits = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": list("abcdefghij"), "part": parts})
    several = pd.concat([splits.assign(fold=fold) for fold in range(3)])
    spread, folds, _ = pilot_spread(metrics, several, equal)
    assert spread == pytest.approx(np.std([0.02, 0.0, 0.04], ddof=1))
    assert folds == pytest.approx(10 / 3)  # three of ten patients are tested
    spread, folds, where = pilot_spread(metrics[metrics.fold == 0], splits, equal)
    assert (spread, folds) == (0.02, pytest.approx(10 / 3)) and "floor" in where
    assert np.isnan(pilot_spread(metrics, splits, equal[equal.question == "control"])[0])
