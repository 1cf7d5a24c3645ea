"""The declared comparisons: the right test for each, verdicts that follow planted truths."""

import itertools

import numpy as np
import pandas as pd
import pingouin
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lib.statistics.comparisons import (
    COLUMNS,
    across_folds,
    compare,
    decisions,
    declared,
    descriptive_tests,
    equivalence,
    in_thesis,
    same_against_itself,
)
from lib.statistics.inference import (
    bayes_factor,
    clustered_auc_test,
    clustered_mcnemar_test,
    corrected_t_test,
    delong_test,
    holm,
    mcnemar_test,
    tost,
    with_training_seeds,
)
from lib.statistics.metrics import evaluate, recalibrated

QUESTIONS = declared(["cyclegan", "cyclediff"])
GAINS = {"real": 0.0, "standard": 0.1, "oversampling": 0.0, "cyclegan": 1.5, "cyclediff": -0.8, "noise": 0.0}


def study(gains, repeats=1, folds=1, seeds=2, n=90, noise=0.5, seed=0):
    """Predictions, thresholds, splits and questions of a made-up study: `gains` move the scores of AFF patients."""
    rng = np.random.default_rng(seed)
    aff = rng.permutation(n) < n / 3
    patient = np.repeat(np.arange(n), 1 + rng.poisson(2, n))
    base = 1.2 * aff[patient] + rng.normal(size=n)[patient] + 0.5 * rng.normal(size=len(patient))
    predictions, thresholds, splits = [], [], []
    for repeat in range(repeats):
        parts = rng.permutation(n) % 5
        for fold in range(folds):
            part = np.select([parts == fold, parts == (fold + 1) % 5], ["test", "validation"], "train")
            splits.append(pd.DataFrame({"repeat": repeat, "fold": fold, "patient_id": np.arange(n), "part": part}))
            test = np.flatnonzero((part == "test")[patient]) if folds > 1 else np.arange(len(patient))
            for (condition, gain), s in itertools.product(gains.items(), range(seeds)):
                z = base[test] + gain * aff[patient[test]] + noise * rng.normal(size=len(test))
                trial = {"condition": condition, "repeat": repeat, "fold": fold, "seed": s}
                label = np.where(aff[patient[test]], "AFF", "NFF")
                predictions.append(pd.DataFrame({**trial, "image_id": test, "patient_id": patient[test], "label": label,
                                                 "probability": 1 / (1 + np.exp(0.6 - z))}))  # fmt: skip
                thresholds.append({**trial, "metric": "threshold", "value": 0.5})
    splits = pd.concat(splits, ignore_index=True)
    return pd.concat(predictions, ignore_index=True), pd.DataFrame(thresholds), splits, QUESTIONS


@pytest.fixture(scope="module")
def one_fold():
    return study(GAINS, seeds=4)


@pytest.fixture(scope="module")
def several_folds():
    return study({"real": 0.0, "cyclegan": 1.5}, repeats=2, folds=5, n=200)


@pytest.fixture(scope="module")
def comparisons(one_fold):
    return compare(*one_fold)


def test_questions_are_asked_of_however_many_methods_there_are():
    two, three = declared(["cyclegan", "cyclediff"]), declared(["cyclegan", "cyclediff", "identity"])
    assert two.head(7).apply(tuple, axis=1).tolist() == [
        ("thesis", "RQ1", "cyclediff", "cyclegan"),
        ("thesis", "RQ2", "cyclegan", "real"), ("thesis", "RQ2", "cyclediff", "real"),
        ("thesis", "RQ3", "cyclegan", "standard"), ("thesis", "RQ3", "cyclediff", "standard"),
        ("oversampling", "oversampling", "cyclegan", "oversampling"),
        ("oversampling", "oversampling", "cyclediff", "oversampling"),
    ]  # fmt: skip
    assert (in_thesis(two), in_thesis(three), in_thesis(declared(["cyclegan"]))) == (5, 9, 2)
    pairs = [("cyclediff", "cyclegan"), ("identity", "cyclegan"), ("identity", "cyclediff")]
    assert three[three.question == "RQ1"][["a", "b"]].apply(tuple, axis=1).tolist() == pairs
    pd.testing.assert_frame_equal(two.tail(6).reset_index(drop=True), three.tail(6).reset_index(drop=True))


def test_three_methods_are_compared_and_adjusted_for_all_nine():
    gains = {"real": 0.0, "standard": 0.1, "cyclegan": 1.5, "cyclediff": -0.8, "identity": 0.1}
    questions = declared(["cyclegan", "cyclediff", "identity"])
    table = compare(*study(gains)[:3], questions, draws=50)
    auroc = table[table.metric == "auroc"]
    assert len(auroc) == 9 and auroc.question.tolist() == ["RQ1"] * 3 + ["RQ2"] * 3 + ["RQ3"] * 3
    assert auroc.p_holm.to_numpy() == pytest.approx(holm(auroc.p))
    row = pick(compare(*study({"real": 0.0, "cyclegan": 0.5})[:3], questions, draws=50), "RQ2", "cyclegan")
    assert row.p_holm == pytest.approx(min(9 * row.p, 1))  # eight more were declared


def pick(table, question, a, metric="auroc"):
    return table[(table.question == question) & (table.a == a) & (table.metric == metric)].squeeze()


def test_comparisons_of_one_fold(comparisons):
    assert tuple(comparisons.columns) == COLUMNS
    pairs = comparisons[["question", "a", "b"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [
        ["RQ1", "cyclediff", "cyclegan"],
        ["RQ2", "cyclegan", "real"], ["RQ2", "cyclediff", "real"],
        ["RQ3", "cyclegan", "standard"], ["RQ3", "cyclediff", "standard"],
        ["oversampling", "cyclegan", "oversampling"], ["oversampling", "cyclediff", "oversampling"],
    ]  # fmt: skip
    assert set(comparisons.metric) == {"image_auroc", *evaluate([0, 1], [0.1, 0.2], 0.5)}
    assert not comparisons.duplicated(["question", "a", "metric"]).any()
    assert comparisons.p.between(0, 1).all()
    assert (comparisons.p_holm >= comparisons.p).all()
    assert comparisons.bf10.isna().all()
    assert (comparisons.patients == 90).all()
    assert pick(comparisons, "RQ2", "cyclegan").test == "DeLong, patients and seeds"
    assert pick(comparisons, "RQ2", "cyclegan", "f1").test == "patient bootstrap"


def test_verdicts_follow_the_planted_truth(comparisons):
    assert pick(comparisons, "RQ1", "cyclediff").verdict == "worse"
    for question in ("RQ2", "RQ3", "oversampling"):
        assert pick(comparisons, question, "cyclegan").verdict == "better"
        assert pick(comparisons, question, "cyclediff").verdict == "worse"


def test_a_lower_brier_score_is_better(comparisons):
    brier = pick(comparisons, "RQ2", "cyclegan", "brier")
    assert brier.difference < 0
    assert brier.verdict == "better"


@pytest.mark.parametrize("folds", [1, 5])
def test_brier_scores_are_compared_after_recalibration(folds):
    predictions, thresholds, splits, _ = study({"real": 0.0, "cyclegan": 0.5}, folds=folds, seeds=3)
    keys = ["condition", "repeat", "fold", "seed"]
    shift = {"real": -0.7, "cyclegan": 0.4}
    moved = thresholds.assign(metric="recalibration", value=thresholds.condition.map(shift))
    table = compare(predictions, pd.concat([thresholds, moved]), splits, QUESTIONS, draws=50)
    patients = predictions.groupby([*keys, "patient_id", "label"]).probability.mean().reset_index()
    certain = recalibrated(patients.probability, patients.condition.map(shift))
    error = (certain - (patients.label == "AFF")) ** 2
    brier = error.groupby([patients[key] for key in keys]).mean().groupby(level=[0, 1, 2]).mean()
    expected = (brier["cyclegan"] - brier["real"]).mean()
    assert pick(table, "RQ2", "cyclegan", "brier").difference == pytest.approx(expected)
    assert pick(table, "RQ2", "cyclegan").difference == pytest.approx(
        pick(compare(predictions, thresholds, splits, QUESTIONS, draws=50), "RQ2", "cyclegan").difference
    )


def test_one_fold_is_delong_on_patient_means(one_fold, comparisons):
    predictions, *_ = one_fold
    means = predictions.groupby(["condition", "seed", "patient_id", "label"]).probability.mean()
    a, b = (means[name].unstack("seed").T.to_numpy() for name in ("cyclegan", "real"))
    y = (means["real"].xs(0, level="seed").index.get_level_values("label") == "AFF").astype(int)
    of_seeds = [roc_auc_score(y, of_a) - roc_auc_score(y, of_b) for of_a, of_b in zip(a, b, strict=True)]
    expected = with_training_seeds(delong_test(y, a, b), of_seeds)
    assert expected.difference == pytest.approx(np.mean(of_seeds))
    row = pick(comparisons, "RQ2", "cyclegan")
    for key in ("difference", "ci_low", "ci_high", "statistic", "p", "effect_size"):
        assert row[key] == pytest.approx(expected[key])
    assert row.n == 90

    images = predictions.groupby(["condition", "seed", "image_id", "patient_id", "label"]).probability.mean()
    a, b = (images[name].unstack("seed").T for name in ("cyclegan", "real"))
    y = (a.columns.get_level_values("label") == "AFF").astype(int)
    index = a.columns
    expected = clustered_auc_test(y, a.to_numpy(), b.to_numpy(), index.get_level_values("patient_id"))
    row = pick(comparisons, "RQ2", "cyclegan", "image_auroc")
    assert row.difference == pytest.approx(expected.difference)
    assert row.ci_high - row.ci_low > expected.ci_high - expected.ci_low  # the spread between seeds
    assert row.n == len(index)


def test_holm_adjusts_within_the_family_and_metric(comparisons):
    # known answer from Demšar's kind of table
    assert holm([0.50, 0.003, 0.32, 0.054, 0.0003]) == pytest.approx([0.64, 0.012, 0.64, 0.162, 0.0015])
    for metric, group in comparisons.groupby("metric"):
        thesis = group.question.str.startswith("RQ")
        assert thesis.sum() == 5, metric
        for family in (group[thesis], group[~thesis]):
            assert family.p_holm.to_numpy() == pytest.approx(pingouin.multicomp(family.p, method="holm")[1])


def test_several_folds_are_the_corrected_t_test(several_folds):
    predictions, thresholds, splits, _ = several_folds
    table = compare(predictions, thresholds, splits, QUESTIONS)
    patients = predictions.groupby(["condition", "repeat", "fold", "seed", "patient_id", "label"]).probability.mean()
    scores = patients.groupby(level=[0, 1, 2, 3]).apply(
        lambda p: roc_auc_score(p.index.get_level_values("label") == "AFF", p)
    )
    scores = scores.groupby(level=[0, 1, 2]).mean()
    expected = corrected_t_test(scores["cyclegan"] - scores["real"], 40 / 120)  # 40 test, 40 validation, 120 train
    row = pick(table, "RQ2", "cyclegan")
    for key in ("difference", "ci_low", "ci_high", "statistic", "p", "effect_size"):
        assert row[key] == pytest.approx(expected[key])
    assert row.bf10 == pytest.approx(bayes_factor(expected.statistic, 9, 1 / (1 / 10 + 1 / 3)))
    assert (row.n, row.patients, row.test, row.verdict) == (10, 200, "corrected t", "better")

    images = pick(table, "RQ2", "cyclegan", "image_auroc")
    assert images.test == "clustered AUC, ensemble out of fold"
    assert images.n == predictions.image_id.nunique()
    assert set(table.metric) == {"image_auroc", *evaluate([0, 1], [0.1, 0.2], 0.5)}


def test_repeated_seeds_add_no_evidence(several_folds):
    predictions, thresholds, splits, _ = several_folds
    once = compare(predictions, thresholds, splits, QUESTIONS)
    more = (pd.concat([t, t.assign(seed=t.seed + 2)], ignore_index=True) for t in (predictions, thresholds))
    pd.testing.assert_frame_equal(compare(*more, splits, QUESTIONS), once)


def test_images_tested_more_than_once_a_repeat_are_not_pooled():
    predictions, thresholds, splits, _ = study({"real": 0, "cyclegan": 1}, repeats=3, folds=2)
    assert "image_auroc" not in set(compare(predictions, thresholds, splits, QUESTIONS).metric)  # two folds of five


def test_only_what_was_run_is_compared(one_fold):
    predictions, thresholds, splits, _ = one_fold
    some = compare(
        predictions[predictions.condition.isin(["real", "cyclegan"])], thresholds, splits, QUESTIONS, draws=50
    )
    assert some[["question", "a", "b"]].drop_duplicates().to_numpy().tolist() == [["RQ2", "cyclegan", "real"]]
    assert some.p_holm.to_numpy() == pytest.approx(np.minimum(5 * some.p, 1))  # four more were declared
    none = compare(predictions[predictions.condition == "real"], thresholds, splits, QUESTIONS)
    assert tuple(none.columns) == COLUMNS
    assert len(none) == 0


def test_equal_and_unvarying_conditions_are_told_apart():
    predictions, thresholds, splits, _ = study({"real": 0, "cyclegan": 0}, n=1500, noise=0.01)
    for margin, verdict in ((0.01, "equivalent"), (1e-5, "undecided")):
        table = compare(predictions, thresholds, splits, QUESTIONS, margin=margin, draws=50)
        assert pick(table, "RQ2", "cyclegan").verdict == verdict
    same = predictions[predictions.condition == "real"]
    same = pd.concat([same, same.assign(condition="cyclegan")])
    assert set(compare(same, thresholds, splits, QUESTIONS, draws=50).verdict) == {"undecided"}


def test_a_small_study_is_undecided():
    predictions, thresholds, splits, _ = study({"real": 0, "cyclegan": 0}, n=30, noise=1)
    assert pick(compare(predictions, thresholds, splits, QUESTIONS, draws=50), "RQ2", "cyclegan").verdict == "undecided"


def test_a_patient_with_both_labels_is_a_cluster(one_fold):
    predictions, thresholds, splits, _ = one_fold
    images = predictions[predictions.label == "AFF"].groupby("patient_id").image_id.unique()
    other_femur = images[images.str.len() > 1].iloc[0][0]
    predictions = predictions.assign(label=predictions.label.mask(predictions.image_id == other_femur, "NFF"))
    row = pick(compare(predictions, thresholds, splits, QUESTIONS, draws=50), "RQ2", "cyclegan")
    assert (row.test, row.n, row.patients) == ("clustered AUC, patients and seeds", 91, 90)


def test_extra_rows_are_a_family_of_their_own(one_fold):
    rows = [
        {"question": "RQ1", "metric": metric, "a": "cyclediff", "b": "cyclegan", "n": 60, "patients": 20, "test": "KID",
         "difference": -0.2, "ci_low": -0.3, "ci_high": -0.1, "statistic": -0.2, "p": p}
        for metric, p in (("kid", 0.001), ("kid (inception)", 0.04), ("precision", 0.03))
    ]  # fmt: skip
    table = compare(*one_fold, draws=50, extra=pd.DataFrame(rows))
    extra = table.tail(3)
    assert extra.p_holm.tolist() == pytest.approx([0.003, 0.06, 0.06])
    assert extra.verdict.tolist() == ["better", "undecided", "undecided"]  # a lower KID is better
    pd.testing.assert_frame_equal(table.head(-3), compare(*one_fold, draws=50))
    no_trials = one_fold[0].iloc[:0]
    assert compare(no_trials, *one_fold[1:], extra=pd.DataFrame(rows)).verdict.tolist() == extra.verdict.tolist()


def test_comparisons_refuse_bad_tables(one_fold):
    predictions, thresholds, splits, _ = one_fold
    with pytest.raises(ValueError, match="predictions lack the column label"):
        compare(predictions.drop(columns="label"), thresholds, splits, QUESTIONS)
    with pytest.raises(ValueError, match="unknown label 'aff'"):
        compare(predictions.replace({"label": {"AFF": "aff"}}), thresholds, splits, QUESTIONS)
    with pytest.raises(ValueError, match=r"probability nan of image \d+ \(real\)"):
        missing = predictions.probability.mask(predictions.index == 3)
        compare(predictions.assign(probability=missing), thresholds, splits, QUESTIONS)
    with pytest.raises(ValueError, match="threshold of condition cyclegan, repeat 0, fold 0, seed 1"):
        compare(
            predictions, thresholds[(thresholds.condition != "cyclegan") | (thresholds.seed != 1)], splits, QUESTIONS
        )
    with pytest.raises(ValueError, match="cyclegan and real in the same trial"):
        compare(predictions.drop(predictions.index[predictions.condition == "real"][0]), thresholds, splits, QUESTIONS)
    with pytest.raises(ValueError, match="test part of repeat 0, fold 0 has no AFF patient"):
        compare(predictions[predictions.label == "NFF"], thresholds, splits, QUESTIONS)
    with pytest.raises(ValueError, match="have no repeat, fold and seed in common"):
        shifted = (t.assign(seed=t.seed + 9 * (t.condition == "real")) for t in (predictions, thresholds))
        compare(*shifted, splits, QUESTIONS)


def test_comparisons_need_the_splits_of_every_fold(several_folds):
    predictions, thresholds, splits, _ = several_folds
    with pytest.raises(ValueError, match="repeat 1, fold 3"):
        compare(predictions, thresholds, splits[(splits.repeat != 1) | (splits.fold != 3)], QUESTIONS)


def test_comparisons_of_generators_across_folds():
    """One fold passes through; three folds become the corrected t-test of their differences."""
    rows = [
        {"question": "RQ1", "metric": "kid", "a": "cyclediff", "b": "cyclegan", "n": 10, "patients": 5, "difference": d,
         "ci_low": d - 1, "ci_high": d + 1, "test": "permutation", "statistic": d, "p": 0.5, "repeat": 0, "fold": fold}
        for fold, d in enumerate([1.0, 5.0, -3.0])
    ]  # fmt: skip
    tests = pd.DataFrame(rows)
    parts = np.array(["train", "train", "test"])
    fold, patient = np.divmod(np.arange(27), 9)
    ids = [f"p{i}" for i in patient]
    splits = pd.DataFrame({"repeat": 0, "fold": fold, "patient_id": ids, "part": parts[(patient + fold) % 3]})
    assert across_folds(tests.head(1), splits).p.tolist() == [0.5]
    row = across_folds(tests, splits).iloc[0]
    assert (row.difference, row.n, row.patients) == (1.0, 3, 15)
    assert row.statistic == pytest.approx(0.273861, abs=1e-6)  # KAT 1 of the corrected t-test: ratio ½, d = 1, 5, −3
    assert row.p == pytest.approx(0.809883, abs=1e-6)


# Beside the declared comparisons


def test_equivalence_is_tost_on_the_same_standard_error(one_fold, several_folds):
    table = equivalence(*one_fold, margin=0.02).set_index(["question", "a"])
    expected = compare(*one_fold, margin=0.02)
    for row in expected[expected.metric == "auroc"].itertuples():
        found = table.loc[row.question, row.a]
        assert found.difference == pytest.approx(row.difference)
        assert found.p_equivalence == pytest.approx(tost(found.difference, found.standard_error, 0.02, found.df))
        assert (row.verdict == "equivalent") == (found.p_equivalence < 0.05 and row.p_holm >= 0.05)
    assert table[["worse", "same", "better"]].isna().all(axis=None)

    row = equivalence(*several_folds, margin=0.02).squeeze()
    assert row.df == 9 and row.worse + row.same + row.better == pytest.approx(1)
    assert row.better > 0.95 and row.p_equivalence > 0.5  # a large true difference


def test_decisions_are_those_of_mean_probabilities(one_fold):
    predictions = one_fold[0]
    table = decisions(*one_fold).set_index(["question", "a", "unit"])
    mean = predictions.groupby(["condition", "patient_id", "label", "image_id"]).probability.mean()
    right = {}
    for unit, keys in (("images", ["image_id", "patient_id"]), ("patients", ["patient_id"])):
        p = mean.groupby(["condition", "label", *keys]).mean().reset_index()
        p["right"] = (p.probability >= 0.5) == (p.label == "AFF")
        right[unit] = p.set_index(keys).groupby("condition").right
    for unit, test in (("patients", "exact McNemar"), ("images", "Durkalski")):
        row, groups = table.loc["RQ2", "cyclegan", unit], right[unit]
        a, b = (groups.get_group(name).sort_index() for name in ("cyclegan", "real"))
        assert (row.n, row.test) == (len(a), test)
        assert (row.only_a, row.only_b) == ((a & ~b).sum(), (b & ~a).sum())
        if unit == "patients":
            expected = mcnemar_test(a, b)
        else:
            expected = clustered_mcnemar_test(a, b, a.index.get_level_values("patient_id"))
        assert row.p == pytest.approx(expected.p) and row.difference == pytest.approx(expected.difference)


def test_shuffled_labels_are_compared_with_chance():
    predictions, metrics, splits, _ = study({"real": 0.5, "permuted": -0.6}, n=150)
    row = compare(predictions, metrics, splits, QUESTIONS).set_index("metric").loc["auroc"]
    of_permuted = predictions[predictions.condition == "permuted"]
    p = of_permuted.groupby(["seed", "patient_id", "label"]).probability.mean().unstack("seed")
    y = p.index.get_level_values("label") == "AFF"
    auroc = np.mean([roc_auc_score(y, p[seed]) for seed in p])
    assert (row.question, row.a, row.b) == ("control", "permuted", "chance")
    assert row.difference == pytest.approx(auroc - 0.5) and row.ci_low < row.difference < row.ci_high


def test_descriptive_tests_are_pingouins():
    _, metrics, *_ = study({"real": 0.0, "cyclegan": 0.3, "standard": 0.1}, repeats=1, folds=5, n=200)
    trials = metrics[["condition", "repeat", "fold", "seed"]].drop_duplicates()
    rng = np.random.default_rng(0)
    aurocs = trials.assign(metric="auroc", value=rng.uniform(0.8, 0.9, len(trials)))
    table = descriptive_tests(aurocs, QUESTIONS).set_index(["test", "of"])
    means = aurocs.groupby(["condition", "repeat", "fold"]).value.mean().unstack(0)
    d = means["cyclegan"] - means["real"]
    assert table.p["Shapiro–Wilk", "cyclegan − real"] == pytest.approx(stats.shapiro(d).pvalue)
    assert table.p["Wilcoxon", "cyclegan − real"] == pytest.approx(stats.wilcoxon(d).pvalue)
    assert table.p["Friedman", "all conditions"] == pytest.approx(stats.friedmanchisquare(*means.T.to_numpy()).pvalue)
    assert -1 <= table.statistic["intraclass correlation", "one of 2 seeds"] <= 1
    assert not len(descriptive_tests(aurocs[(aurocs.fold == 0) & (aurocs.seed == 0)], QUESTIONS))


def test_the_same_against_itself_is_found_to_differ_by_delong_alone():
    # A lucky training is better on all patients alike, which a test that takes the networks as given does not know.
    lucky, unlucky = (study({"real": gain, "again": gain}, seeds=3)[0] for gain in (1.5, 0.0))
    share = same_against_itself(pd.concat([lucky, unlucky.assign(seed=unlucky.seed + 3)]))
    assert share["with the spread between seeds"] <= 0.1 and share["DeLong alone"] > 0.2


def test_friedman_of_demsar():
    """Demšar 2006, table 6: mean ranks 3.143, 2.000, 2.893, 1.964 of 14 sets give χ² = 9.28, F = 3.69."""
    rows = [3421, 4132, 4123, 3241, 3142, 1243, 3241, 3421, 4123, 4231, 4321, 1342, 3124]
    ranks = np.array([[float(rank) for rank in str(row)] for row in rows] + [[4, 1, 2.5, 2.5]])
    np.testing.assert_allclose(ranks.mean(0), [3.143, 2.000, 2.893, 1.964], atol=1e-3)
    of_ties = 1 - 6 / (14 * 60)  # Demšar does not correct for the tie
    chi2 = pingouin.friedman(pd.DataFrame(ranks)).Q.iloc[0] * of_ties
    assert chi2 == pytest.approx(9.28, abs=5e-3)
    f = 13 * chi2 / (14 * 3 - chi2)
    assert f == pytest.approx(3.69, abs=5e-3)
