"""Planning: the published tables of power, detectable differences and equivalence, and what follows from them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib import planning
from lib.planning import designs, detectable, hours_of_cell, patients_needed, pilot_spread, power, power_of_equivalence


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (0.010, [0.61, 0.91, 0.95, 0.97, 0.97, 1.00, 1.00, 1.00]),
        (0.015, [0.33, 0.60, 0.66, 0.71, 0.73, 0.92, 0.95, 0.97]),
        (0.020, [0.21, 0.38, 0.43, 0.47, 0.49, 0.72, 0.77, 0.81]),
        (0.030, [0.12, 0.20, 0.22, 0.24, 0.25, 0.40, 0.44, 0.47]),
        (0.040, [0.09, 0.13, 0.14, 0.16, 0.16, 0.25, 0.27, 0.30]),
    ],
)
def test_power_of_a_difference_of_2_points(spread, expected):
    found = [power(0.02, spread, *design) for design in planning.DESIGNS]
    assert found == pytest.approx(expected, abs=0.006)


def test_detectable_differences_in_standard_deviations():
    found = np.array([detectable(1.0, *design) for design in planning.DESIGNS])
    published = np.array([2.53, 1.70, 1.58, 1.49, 1.45, 1.11, 1.04, 0.99])  # rounded up
    assert ((published - found >= 0) & (published - found < 0.01)).all()
    assert power(detectable(1.0, 1, 2), 1.0, 1, 2) == pytest.approx(0.8)  # two cells find little
    assert detectable(0.02, 5, 5) == pytest.approx(0.02 * detectable(1.0, 5, 5))


@pytest.mark.parametrize(
    ("margin", "spread", "five", "ten"),
    [(0.01, 0.010, 0.16, 0.77), (0.01, 0.015, 0.00, 0.20), (0.02, 0.010, 0.95, 1.00), (0.02, 0.015, 0.55, 0.97),
     (0.02, 0.020, 0.16, 0.77), (0.03, 0.020, 0.71, 0.99), (0.03, 0.030, 0.16, 0.77)],
)  # fmt: skip
def test_probability_to_show_equivalence(margin, spread, five, ten):
    assert power_of_equivalence(margin, spread, 5, 5) == pytest.approx(five, abs=0.015)
    assert power_of_equivalence(margin, spread, 10, 10) == pytest.approx(ten, abs=0.015)


@settings(max_examples=5, deadline=None)
@given(effect=st.floats(0.005, 0.05), spread=st.floats(0.005, 0.05))
def test_more_repeats_and_larger_effects_never_hurt(effect, spread):
    table = designs(effect, spread, 0.01, 2.0)
    for folds in (5, 10):
        rows = table.loc[[f"{repeats} × {folds}" for repeats in (1, 3, 5, 10)]]
        assert (np.diff(rows.power) >= -1e-9).all() and (np.diff(rows.detectable) <= 1e-12).all()
    assert (table.hours == 2 * table.cells).all()
    assert power(2 * effect, spread, 3, 5) >= power(effect, spread, 3, 5)


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
    assert hours_of_cell(manifest, metrics, cells=2) == pytest.approx((3600 + 7200 + 1800 + 1800) / 2 / 3600)


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
    several = pd.concat([splits, splits.assign(fold=1), splits.assign(fold=2)])
    assert pilot_spread(metrics, several, equal)[0] == pytest.approx(np.std([0.02, 0.0, 0.04], ddof=1))
    spread, where = pilot_spread(metrics[metrics.fold == 0], splits, equal)
    assert spread == pytest.approx(0.02 * np.sqrt(3 / 2)) and "floor" in where
    assert np.isnan(pilot_spread(metrics, splits, equal[equal.question == "control"])[0])
