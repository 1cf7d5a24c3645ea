import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.statistics.metrics import (
    by_patient,
    calibration,
    calibration_intercept,
    choose_threshold,
    evaluate,
    net_benefit,
    recalibrated,
    recalibrated_patients,
    sensitivity_at_specificity,
    subgroups,
)

# 4 AFF, 6 NFF; at 0.5: 3 true positives, 1 false negative, 2 false positives, 4 true negatives
LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.5, 0.4, 0.2, 0.1, 0.0])

samples = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=40).map(
    lambda rows: (np.array([1, 0, *(y for y, _ in rows)]), np.array([4, 7, *(p for _, p in rows)]) / 20)
)


def test_metrics_counted_by_hand():
    values = evaluate(LABELS, PROBABILITIES, 0.5)
    assert values["auroc"] == pytest.approx((6 + 6 + 5 + 3) / 24)
    assert values["sensitivity_at_90_specificity"] == pytest.approx(2 / 4)  # one false positive is 1/6 already
    assert values["auprc"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 7) / 4)
    assert values["accuracy"] == pytest.approx(7 / 10)
    assert values["f1"] == pytest.approx(6 / 9)
    assert values["sensitivity"] == pytest.approx(3 / 4)
    assert values["specificity"] == pytest.approx(4 / 6)
    assert values["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert values["mcc"] == pytest.approx((3 * 4 - 2 * 1) / np.sqrt(5 * 4 * 6 * 5))
    assert values["brier"] == pytest.approx((0.01 + 0.04 + 0.16 + 0.49 + 0.49 + 0.25 + 0.16 + 0.04 + 0.01) / 10)


def test_a_probability_on_the_threshold_is_decided_as_aff():
    assert evaluate([1, 0], [0.5, 0.1], 0.5)["sensitivity"] == 1


def test_sensitivity_at_specificity_allows_exactly_the_given_share_of_false_positives():
    labels = np.array([1] * 4 + [0] * 10)
    probabilities = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.5, *np.linspace(0.01, 0.1, 8)])
    assert sensitivity_at_specificity(labels, probabilities, 0.9) == 0.75
    assert sensitivity_at_specificity(labels, probabilities, 0.95) == 0.5


def test_by_patient_averages_images_and_keeps_trials_apart():
    predictions = pd.DataFrame(
        [
            ("real", 0, "p1", "AFF", 0.9), ("real", 0, "p1", "AFF", 0.5), ("real", 0, "p2", "NFF", 0.1),
            ("real", 1, "p1", "AFF", 0.2), ("real", 0, "p1", "NFF", 0.3),
        ],
        columns=["condition", "seed", "patient_id", "label", "probability"],
    )  # fmt: skip
    patients = by_patient(predictions).set_index(["condition", "seed", "patient_id", "label"]).probability
    assert patients["real", 0, "p1", "AFF"] == pytest.approx(0.7)
    assert patients["real", 1, "p1", "AFF"] == pytest.approx(0.2)
    assert patients["real", 0, "p1", "NFF"] == pytest.approx(0.3)  # the other femur counts for itself
    assert len(patients) == 4


def test_chosen_threshold_lies_halfway_between_neighbours():
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.8])) == pytest.approx(0.4)


@settings(deadline=None, max_examples=40)
@given(samples)
def test_no_threshold_is_better_balanced_than_the_chosen_one(sample):
    labels, probabilities = sample

    def balanced_accuracy(threshold):
        decisions = probabilities >= threshold
        return (decisions[labels == 1].mean() + 1 - decisions[labels == 0].mean()) / 2

    threshold = choose_threshold(labels, probabilities)
    assert 0 <= threshold <= 1
    best = max(balanced_accuracy(t) for t in np.linspace(-0.025, 1.025, 22))
    assert balanced_accuracy(threshold) == pytest.approx(best)


@settings(deadline=None, max_examples=40)
@given(samples)
def test_metrics_stay_in_range_and_do_not_depend_on_order(sample):
    labels, probabilities = sample
    values = evaluate(labels, probabilities, 0.5)
    assert all((-1 if metric == "mcc" else 0) <= value <= 1 for metric, value in values.items())
    assert evaluate(labels[::-1], probabilities[::-1], 0.5) == pytest.approx(values)


@settings(deadline=None, max_examples=40)
@given(samples)
def test_ranking_metrics_do_not_change_under_a_monotone_transformation(sample):
    labels, probabilities = sample
    one, other = (evaluate(labels, p, 0.5) for p in (probabilities, probabilities**3 / 2))
    for metric in ("auroc", "auprc", "sensitivity_at_90_specificity"):
        assert one[metric] == pytest.approx(other[metric])


def grouped(*groups):
    """Labels and probabilities of groups (probability, share of AFF) of 100 each."""
    labels = [np.repeat([1, 0], [round(100 * share), round(100 - 100 * share)]) for _, share in groups]
    return np.concatenate(labels), np.repeat([p for p, _ in groups], 100)


@pytest.mark.parametrize(
    ("groups", "intercept", "slope"),
    [
        ([(0.2, 0.2), (0.8, 0.8)], 0.0, 1.0),
        ([(1 / 17, 0.2), (16 / 17, 0.8)], 0.0, 0.5),  # logits twice as far out as they should be
        ([(0.2, 0.5), (0.5, 0.8)], np.log(4), 1.0),  # logits too low by log 4
    ],
)
def test_calibration_where_it_can_be_told_by_hand(groups, intercept, slope):
    found = calibration(*map(pd.Series, grouped(*groups)))
    assert found["intercept"] == pytest.approx(intercept, abs=1e-6)
    assert found["slope"] == pytest.approx(slope, abs=1e-3)
    assert found["brier"] == pytest.approx(evaluate(*grouped(*groups), 0.5)["brier"])


def test_certain_and_wrong_probabilities_have_a_finite_calibration():
    found = calibration(np.array([1, 0, 1, 0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert np.isfinite(list(found.values())).all() and found["slope"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("probabilities", [np.linspace(0.9, 0.9999, 100), np.full(100, 1e-4), np.full(100, 1.0)])
def test_far_shifted_probabilities_have_a_finite_intercept_that_mends_them(probabilities):
    labels = np.arange(100) < 15
    intercept = calibration_intercept(labels, probabilities)
    assert abs(intercept) < 20
    assert recalibrated(probabilities, intercept).mean() == pytest.approx(0.15)


@settings(deadline=None, max_examples=40)
@given(samples, st.floats(-5, 5))
def test_recalibration_keeps_ranks_and_is_undone_by_its_opposite(sample, shift):
    labels, probabilities = sample
    probabilities = 0.01 + 0.98 * probabilities
    moved = recalibrated(probabilities, shift)
    assert evaluate(labels, moved, 0.5)["auroc"] == pytest.approx(evaluate(labels, probabilities, 0.5)["auroc"])
    np.testing.assert_allclose(recalibrated(moved, -shift), probabilities)


def test_each_trial_is_recalibrated_by_its_own_shift_before_patients_are_averaged():
    trial = {"condition": "real", "repeat": 0, "fold": 0}
    rows = [trial | {"seed": seed, "patient_id": "a", "label": "AFF", "probability": 0.5} for seed in (0, 1)]
    shifts = [
        trial | {"seed": seed, "metric": "recalibration", "value": np.log(odds)} for seed, odds in ((0, 3), (1, 1 / 4))
    ]
    found = recalibrated_patients(pd.DataFrame(rows), pd.DataFrame(shifts)).iloc[0]
    assert found.probability == 0.5 and found.aff == 1
    assert found.recalibrated == pytest.approx((0.75 + 0.2) / 2)


def test_net_benefit_counted_by_hand():
    # at 0.5: 3 found, 2 false alarms; at 0.2: 4 and 4, of which each costs a quarter
    np.testing.assert_allclose(net_benefit(LABELS, PROBABILITIES, np.array([0.5, 0.2])), [0.3 - 0.2, 0.4 - 0.4 / 4])
    everybody = net_benefit(LABELS, np.ones(10), np.array([0.4]))  # its zero is at the prevalence
    assert everybody[0] == pytest.approx(0)


def test_subgroups_are_scored_on_their_images_alone():
    rows = [("a", 1, "AFF", "AP", 0.9), ("a", 2, "AFF", "lateral", 0.1), ("b", 3, "NFF", "AP", 0.2),
            ("b", 4, "NFF", "lateral", 0.4), ("c", 5, "NFF", "AP", 0.3), ("d", 6, "AFF", "oblique", 0.5)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["patient_id", "image_id", "label", "view", "probability"]).assign(side="left")
    predictions = pd.concat(table.drop(columns=["view", "side"]).assign(condition="real", seed=s) for s in (0, 1))
    found = subgroups(predictions, table)
    of = found.set_index(["column", "value"])
    assert of.auroc["view", "AP"] == 1 and of.auroc["view", "lateral"] == 0
    assert ("view", "oblique") not in of.index  # nobody to tell apart
    assert (of.patients["view", "AP"], of.aff_patients["view", "AP"]) == (3, 1) and of.patients["side", "left"] == 4
    assert found.auroc.is_monotonic_increasing
