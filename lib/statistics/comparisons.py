"""The declared comparisons: which questions are asked, and what the data say to each.

Every difference is a − b: a is the method in question, b its reference. The tests themselves stand in
`lib.statistics.inference`.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from lib.statistics.inference import (
    bayes_factor,
    clustered_auc_test,
    clustered_mcnemar_test,
    corrected_t_test,
    holm,
    mcnemar_test,
    patient_bootstrap,
    rope,
    tost,
    weighted_metrics,
    with_training_seeds,
)
from lib.statistics.metrics import by_patient, recalibrated

# The comparisons that were declared before looking: family of the Holm adjustment, question, a, b. Controls that must
# show nothing are families of their own: an adjustment would make an alarm harder.
QUESTIONS = (
    ("thesis", "RQ1", "cyclediff", "cyclegan"),
    ("thesis", "RQ2", "cyclegan", "real"),
    ("thesis", "RQ2", "cyclediff", "real"),
    ("thesis", "RQ3", "cyclegan", "standard"),
    ("thesis", "RQ3", "cyclediff", "standard"),
    ("oversampling", "oversampling", "cyclegan", "oversampling"),
    ("oversampling", "oversampling", "cyclediff", "oversampling"),
    ("controls", "control", "oracle", "real"),
    ("controls", "control", "oracle", "oversampling"),
    ("controls", "control", "useless", "real"),
    ("same", "control", "again", "real"),
    ("copies", "control", "fake", "oversampling"),
    ("shuffled", "control", "permuted", "chance"),  # chance: a probability of 0.5 for everybody, see `compare`
)
DECLARED = Counter(family for family, *_ in QUESTIONS)
LOWER_IS_BETTER = ("brier", "kid", "fid")
MARGIN = 0.01  # AUROC differences smaller than this are of no consequence
MARGINS = {  # the same for the other metrics; a metric without a margin is never called equivalent
    "auprc": 0.02, "accuracy": 0.02, "f1": 0.02, "balanced_accuracy": 0.02,
    "sensitivity": 0.05, "specificity": 0.05, "sensitivity_at_90_specificity": 0.05,
    "mcc": 0.04,  # runs from −1 to 1, twice as far as the others
    "brier": 0.01,
}  # fmt: skip
COLUMNS = (
    "question", "metric", "a", "b", "n", "patients", "difference", "ci_low", "ci_high",
    "test", "statistic", "p", "p_holm", "effect_size", "bf10", "verdict",
)  # fmt: skip
TRIAL = ["repeat", "fold", "seed"]


def compare(
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    splits: pd.DataFrame,
    margin: float = MARGIN,
    draws: int = 10_000,
    seed: int = 0,
    extra: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Every declared comparison (`QUESTIONS`) of which both conditions were run; `permuted` against `chance`, a
    probability of 0.5 for everybody.

    One cell (a hold-out): `auroc` by DeLong on patients, whose probabilities are averaged over images; `image_auroc`
    by the clustered test; both of the mean AUC over seeds, with the spread between them (`with_training_seeds`); the
    other metrics by patient bootstrap. The results are conditional on the generators that were trained in that cell.
    Several cells: the corrected t-test on the cells' differences, seeds averaged first, and in support `image_auroc` by
    the clustered test on out-of-fold predictions, where every repeat tests the same images once: of predictions
    averaged over seeds and repeats, an ensemble, and with folds pooled that are scored by different networks.

    Parameters
    ----------
    predictions : `condition, repeat, fold, seed, image_id, patient_id, label, probability` of real test images
    metrics : `condition, repeat, fold, seed, metric, value`, of which the rows "threshold" are used, and
        "recalibration" for `brier`: of probabilities as trained, a Brier score would compare shares of AFF, not images
    splits : `repeat, fold, patient_id, part`; only "train" counts as training patients, the careful side
    margin : AUROC differences within ±margin are of no consequence; `MARGINS` says it for the other metrics
    draws, seed : of the bootstrap
    extra : rows of the same columns from elsewhere (RQ1: metric "kid" or "kid (inception)", cyclediff against
        cyclegan), a family of their own

    Returns
    -------
    DataFrame of `COLUMNS`. `n` is the number of cells (corrected t-test), patients, or images (clustered test);
    `patients` are test patients. `p_holm` is adjusted within family and metric over all pairs that were declared, run
    or not (extra: over its rows). `effect_size` is d_z of the corrected t-test, the difference of d′ for AUCs
    (`auc_effect`), Cohen's h for bootstrapped proportions, else missing; `bf10` belongs to the corrected t-test alone.

    `verdict` on a: "better" or "worse" where p_holm < 0.05; else "equivalent" where the 90 % interval lies within
    the margin (two one-sided tests at 5 %, not adjusted for multiplicity); else "undecided", as also where nothing
    varies (interval of no width), for then there is nothing to judge by.
    """
    questions, predictions, patients, scores = _prepared(predictions, metrics, splits)
    rows = []
    for family, question, a, b in questions:
        images_of_pair, patients_of_pair = _paired(predictions, a, b), _paired(patients, a, b)
        if len(patients_of_pair[["repeat", "fold"]].drop_duplicates()) > 1:
            results = _several_folds(images_of_pair, _fold_differences(scores, a, b), splits)
        else:
            results = _one_fold(images_of_pair, patients_of_pair, draws, seed)
        people = patients_of_pair.patient_id.nunique()
        rows += [{"family": family, "question": question, "a": a, "b": b, "patients": people, **result}
                 for result in results]  # fmt: skip
    table = pd.DataFrame(rows, columns=["family", "ci90_low", "ci90_high", *COLUMNS])
    if extra is not None and len(extra):
        _require(extra, "extra rows", *(c for c in COLUMNS if c not in ("p_holm", "effect_size", "bf10", "verdict")))
        extra = extra.reindex(columns=table.columns).assign(family="extra")
        table = pd.concat([table, extra], ignore_index=True) if len(table) else extra
    if len(table):
        within = table.metric.where(table.family != "extra", "")
        for (family, _), p in table.groupby(["family", within]).p:
            not_run = [1.0] * (DECLARED[family] - len(p))
            table.loc[p.index, "p_holm"] = holm([*p, *not_run])[: len(p)]
        table["verdict"] = [_verdict(row, margin) for row in table.itertuples()]
    return table[list(COLUMNS)].astype({"n": int, "patients": int}).reset_index(drop=True)


def equivalence(
    predictions: pd.DataFrame, metrics: pd.DataFrame, splits: pd.DataFrame, margin: float = MARGIN
) -> pd.DataFrame:
    """Is the AUROC of patients practically the same? Beside each declared comparison that was run, not adjusted.

    Parameters
    ----------
    predictions, metrics, splits, margin : as of `compare`

    Returns
    -------
    DataFrame `question, a, b, difference, standard_error, df, ci90_low, ci90_high, margin, p_equivalence` (`tost`), and
    over several cells the probabilities that a is `worse`, `same` (within the margin) or `better` (`rope`), the number
    of `cells` and their `test_train_ratio`.
    """
    questions, predictions, patients, scores = _prepared(predictions, metrics, splits)
    rows = []
    for _, question, a, b in questions:
        patients_of_pair, row = _paired(patients, a, b), {"question": question, "a": a, "b": b}
        if len(patients_of_pair[["repeat", "fold"]].drop_duplicates()) > 1:
            differences = _fold_differences(scores, a, b).auroc
            ratio = _test_train_ratio(splits, differences.index)
            result, df = corrected_t_test(differences, ratio), len(differences) - 1
            row |= {"cells": len(differences), "test_train_ratio": ratio}
            row |= dict(zip(("worse", "same", "better"), rope(differences, ratio, margin), strict=True))
        else:
            result = _patient_auroc(patients_of_pair)
            df = result.df
        kept = result[["difference", "standard_error", "ci90_low", "ci90_high"]]
        p = tost(result.difference, result.standard_error, margin, df)
        rows.append({**row, **kept, "df": df, "margin": margin, "p_equivalence": p})
    columns = ["question", "a", "b", "difference", "standard_error", "df", "ci90_low", "ci90_high", "margin",
               "p_equivalence", "worse", "same", "better", "cells", "test_train_ratio"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def decisions(predictions: pd.DataFrame, metrics: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """Are more decisions right? In support of each declared comparison that was run, not adjusted.

    AFF is decided where the probability, averaged over seeds (and repeats), reaches the average threshold. One decision
    a patient: McNemar's exact test; one an image: Durkalski's test with patients as clusters. Both are about these
    networks and these thresholds: a method trained again, threshold and all, is found to differ from itself far too
    often (`lib.statistics.simulation`, "trained again").

    Returns
    -------
    DataFrame `question, a, b, unit, n, only_a, only_b` (units that one alone gets right), `difference` of accuracies
    (of images: mean over patients), `test, p`
    """
    questions, predictions, patients, _ = _prepared(predictions, metrics, splits)
    thresholds = patients[["condition", *TRIAL, "threshold"]].drop_duplicates()
    images = predictions.merge(thresholds, on=["condition", *TRIAL])
    rows = []
    for _, question, a, b in questions:
        if question == "control" and b == "chance":
            continue
        for unit, table in (("patients", patients), ("images", images)):
            ids = ["patient_id", "y"] if unit == "patients" else ["image_id", "patient_id", "y"]
            mean = _paired(table, a, b).groupby(ids, as_index=False).mean(numeric_only=True)
            right_a, right_b = ((mean[f"probability_{c}"] >= mean[f"threshold_{c}"]) == mean.y for c in "ab")
            if unit == "patients":
                result, test = mcnemar_test(right_a, right_b), "exact McNemar"
            else:
                result, test = clustered_mcnemar_test(right_a, right_b, mean.patient_id), "Durkalski"
            only_a, only_b = (right_a & ~right_b).sum(), (right_b & ~right_a).sum()
            rows.append((question, a, b, unit, len(mean), only_a, only_b, result.difference, test, result.p))
    columns = ["question", "a", "b", "unit", "n", "only_a", "only_b", "difference", "test", "p"]
    return pd.DataFrame(rows, columns=columns)


def same_against_itself(predictions: pd.DataFrame, divisions: int = 200, seed: int = 0) -> pd.Series:
    """How often does the test of one hold-out find that a method differs from itself?

    All trainings on the real images (`real` and `again`), which differ by their seeds alone, are divided at random into
    two groups of equal size, as if they were two methods. Divisions of the same trainings are not independent, so the
    shares have no interval.

    Parameters
    ----------
    predictions : as of `compare`, of one cell

    Returns
    -------
    Series, share of divisions with p < 0.05: `DeLong alone` (networks taken as given), `with the spread between seeds`
    (the study's); and `divisions`
    """
    trained = by_patient(predictions[predictions.condition.isin(["real", "again"])])
    wide = trained.pivot(index=["condition", "seed"], columns=["patient_id", "label"], values="probability")
    labels = (wide.columns.get_level_values("label") == "AFF").astype(int)
    patients, scores = wide.columns.get_level_values("patient_id"), wide.to_numpy()
    rng, half, p = np.random.default_rng(seed), len(scores) // 2, []
    for _ in range(divisions):
        order = rng.permutation(len(scores))
        a, b = scores[order[:half]], scores[order[half : 2 * half]]
        alone = clustered_auc_test(labels, a, b, patients)
        of_seeds = [clustered_auc_test(labels, *pair, patients).difference for pair in zip(a, b, strict=True)]
        p.append((alone.p, with_training_seeds(alone, of_seeds).p))
    alone, widened = (np.array(p) < 0.05).mean(0)
    return pd.Series({"DeLong alone": alone, "with the spread between seeds": widened, "divisions": divisions})


def descriptive_tests(metrics: pd.DataFrame) -> pd.DataFrame:
    """What pingouin says of the AUROCs: to describe them, not to confirm anything.

    Cells share training patients, so that Wilcoxon's and Friedman's p are too small for a claim (`corrected_t_test`).
    Over several seeds the intraclass correlation says how much of the spread between cells and conditions a single
    training shows; over at least three cells come the normality of paired differences (Shapiro and Wilk), Wilcoxon's
    test of them, and Friedman's test of all conditions.

    Returns
    -------
    DataFrame `test, of, statistic, p`; empty where there is one seed and fewer than three cells
    """
    import pingouin

    aurocs = metrics[(metrics.metric == "auroc") & (metrics.condition != "permuted")]
    trials = aurocs.assign(target=aurocs.condition + aurocs.repeat.astype(str) + " " + aurocs.fold.astype(str))
    wide = trials.pivot_table(index="target", columns="seed", values="value").dropna()
    rows = []
    if min(wide.shape) > 1 and len(wide) > 4:
        complete = trials[trials.target.isin(wide.index)]
        icc = pingouin.intraclass_corr(complete, targets="target", raters="seed", ratings="value").iloc[0]
        rows.append(("intraclass correlation", f"one of {wide.shape[1]} seeds", icc.ICC, icc.pval))
    cells = aurocs.groupby(["condition", "repeat", "fold"]).value.mean().unstack(0)
    if len(cells) >= 3:
        for _, _, a, b in QUESTIONS:
            if {a, b} <= set(cells) and (cells[a] - cells[b]).std() > 0:
                d, of = cells[a] - cells[b], f"{a} − {b}"
                shapiro, wilcoxon = pingouin.normality(d).iloc[0], pingouin.wilcoxon(d).iloc[0]
                rows += [
                    ("Shapiro–Wilk", of, shapiro.W, shapiro.pval),
                    ("Wilcoxon", of, wilcoxon.W_val, wilcoxon.p_val),
                ]
        if cells.shape[1] > 2:
            friedman = pingouin.friedman(cells.reset_index(drop=True)).iloc[0]
            rows.append(("Friedman", "all conditions", friedman.Q, friedman.p_unc))
    return pd.DataFrame(rows, columns=["test", "of", "statistic", "p"])


def _prepared(predictions: pd.DataFrame, metrics: pd.DataFrame, splits: pd.DataFrame) -> tuple:
    """The questions that can be asked; the predictions they need; those of patients, with thresholds; their scores."""
    _require(predictions, "predictions", "condition", *TRIAL, "image_id", "patient_id", "label", "probability")
    _require(metrics, "metrics", "condition", *TRIAL, "metric", "value")
    _require(splits, "splits", "repeat", "fold", "patient_id", "part")
    if unknown := sorted(set(predictions.label) - {"AFF", "NFF"}):
        raise ValueError(f"predictions: unknown label {unknown[0]!r}; labels are AFF and NFF")
    if (invalid := ~predictions.probability.between(0, 1)).any():
        row = predictions[invalid].iloc[0]
        raise ValueError(f"predictions: probability {row.probability} of image {row.image_id} ({row.condition})")
    if "permuted" in set(predictions.condition):
        predictions, metrics = _with_chance(predictions, metrics)
    questions = [question for question in QUESTIONS if set(question[2:]) <= set(predictions.condition)]
    predictions = predictions[predictions.condition.isin({c for question in questions for c in question[2:]})]
    patients = _with_thresholds(by_patient(predictions), metrics)
    for cell, labels in patients.groupby(["repeat", "fold"]).label:
        if missing := {"AFF", "NFF"} - set(labels):
            raise ValueError("the test part of repeat {}, fold {} has no {} patient".format(*cell, *missing))
    scores = pd.DataFrame.from_dict(
        {trial: _scores_of(group) for trial, group in patients.groupby(["condition", *TRIAL])}, orient="index"
    )
    return questions, predictions, patients, scores


def _with_chance(predictions: pd.DataFrame, metrics: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with a condition `chance`: that of `permuted`, but for a probability and threshold of 0.5."""
    chance = predictions[predictions.condition == "permuted"].assign(condition="chance", probability=0.5)
    thresholds = metrics[(metrics.condition == "permuted") & (metrics.metric == "threshold")]
    thresholds = thresholds.assign(condition="chance", value=0.5)
    return pd.concat([predictions, chance], ignore_index=True), pd.concat([metrics, thresholds], ignore_index=True)


def _scores_of(patients: pd.DataFrame) -> dict[str, float]:
    """`lib.statistics.metrics.evaluate` of one trial, the fast way."""
    labels, once = (patients.label == "AFF").astype(int), np.ones((1, len(patients)))
    metrics = weighted_metrics(labels, patients.probability, patients.threshold.iloc[0], once, patients.recalibrated)
    return {metric: float(value[0]) for metric, value in metrics.items()}


def _require(table: pd.DataFrame, name: str, *columns: str) -> None:
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{name} lack the column {', '.join(missing)}")


def _with_thresholds(patients: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    keys = ["condition", *TRIAL]
    thresholds = metrics.loc[metrics.metric == "threshold", [*keys, "value"]].rename(columns={"value": "threshold"})
    patients = patients.merge(thresholds, on=keys, how="left", validate="many_to_one")
    if (missing := patients.threshold.isna()).any():
        raise ValueError("metrics lack the threshold of condition {}, repeat {}, fold {}, seed {}".format(
            *patients.loc[missing, keys].iloc[0]))  # fmt: skip
    shifts = metrics[metrics.metric == "recalibration"].set_index(keys).value
    shift = shifts.reindex(pd.MultiIndex.from_frame(patients[keys])).fillna(0.0).to_numpy()
    return patients.assign(recalibrated=recalibrated(patients.probability, shift))


def _paired(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """`probability_a` and `probability_b` (`threshold_…`) of the same images or patients in the trials both have."""
    units = [*TRIAL, *(c for c in ("image_id", "patient_id", "label") if c in table)]
    columns = [*units, *(c for c in ("probability", "recalibrated", "threshold") if c in table)]
    of_a, of_b = (table.loc[table.condition == condition, columns] for condition in (a, b))
    trials = of_a[TRIAL].drop_duplicates().merge(of_b[TRIAL].drop_duplicates())
    if not len(trials):
        raise ValueError(f"predictions of {a} and {b} have no repeat, fold and seed in common")
    of_a, of_b = of_a.merge(trials), of_b.merge(trials)
    paired = of_a.merge(of_b, on=units, suffixes=("_a", "_b"), validate="one_to_one")
    if not len(paired) == len(of_a) == len(of_b):
        raise ValueError(f"predictions of {a} and {b} in the same trial must be of the same images and labels")
    return paired.assign(y=(paired.label == "AFF").astype(int))


def _fold_differences(scores: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Differences of each metric in the cells both ran in, averaged over seeds, which are no replicates."""
    return (scores.loc[a] - scores.loc[b]).dropna().groupby(level=[0, 1]).mean()


def _several_folds(images, differences, splits) -> list[dict]:
    """Corrected t-tests of `differences` (one row a cell, one column a metric), and the out-of-fold images."""
    ratio = _test_train_ratio(splits, differences.index)
    n, rows = len(differences), []
    for metric in differences:
        result = corrected_t_test(differences[metric], ratio)
        bf10 = bayes_factor(result.statistic, n - 1, 1 / (1 / n + ratio))
        rows.append({"metric": metric, "test": "corrected t", "n": n, **result, "bf10": bf10})
    tested = images.groupby(["image_id", "repeat"]).fold.nunique().unstack()
    if (tested == 1).all(axis=None):
        unit = ["image_id", "patient_id", "y"]
        mean = images.groupby(unit, as_index=False)[["probability_a", "probability_b"]].mean()
        result = clustered_auc_test(mean.y, mean.probability_a, mean.probability_b, mean.patient_id)
        rows.append({"metric": "image_auroc", "test": "clustered AUC, ensemble out of fold", "n": len(mean), **result})
    return rows


def _one_fold(images, patients, draws: int, seed: int) -> list[dict]:
    """DeLong on patients, the clustered test on images, and the bootstrap of the other metrics."""
    primary = _patient_auroc(patients)

    values = ["probability_a", "probability_b", "recalibrated_a", "recalibrated_b"]
    wide = patients.pivot(index="seed", columns=["patient_id", "y"], values=values)
    thresholds = patients.groupby("seed")[["threshold_a", "threshold_b"]].first()
    units = wide["probability_a"].columns
    bootstrap = patient_bootstrap(
        units.get_level_values("y"), wide["probability_a"], wide["probability_b"],
        thresholds.threshold_a, thresholds.threshold_b, units.get_level_values("patient_id"), draws, seed,
        (wide["recalibrated_a"], wide["recalibrated_b"]),
    )  # fmt: skip
    return [
        {"metric": "auroc", **primary},
        _image_auroc(images),
        *({"metric": metric, "test": "patient bootstrap", "n": primary.n, **row}
          for metric, row in bootstrap.drop(index="auroc").iterrows()),
    ]  # fmt: skip


def _patient_auroc(patients: pd.DataFrame) -> pd.Series:
    """DeLong's test of patients, with the spread between seeds."""
    # A patient with an AFF and an NFF has two rows here: then it is not DeLong's test, but the clustered one.
    test = "DeLong, patients" if not patients.duplicated(["seed", "patient_id"]).any() else "clustered AUC, patients"
    return _auroc(patients, ["patient_id", "y"], test)


def _image_auroc(images: pd.DataFrame) -> dict:
    """The clustered test of images, with the spread between seeds."""
    return {"metric": "image_auroc", **_auroc(images, ["image_id", "patient_id", "y"], "clustered AUC")}


def _auroc(pairs: pd.DataFrame, unit: list[str], test: str) -> pd.Series:
    """`clustered_auc_test` of the mean AUC over seeds, `with_training_seeds`; `test` and `n` with it."""
    wide = pairs.pivot(index="seed", columns=unit, values=["probability_a", "probability_b"])
    a, b = wide["probability_a"].to_numpy(), wide["probability_b"].to_numpy()
    units = wide["probability_a"].columns
    labels, patients = units.get_level_values("y"), units.get_level_values("patient_id")
    of_seeds = [clustered_auc_test(labels, *pair, patients).difference for pair in zip(a, b, strict=True)]
    result = with_training_seeds(clustered_auc_test(labels, a, b, patients), of_seeds)
    test += " and seeds" * (len(of_seeds) > 1)
    return pd.concat([result, pd.Series({"test": test, "n": len(units)})])


def _test_train_ratio(splits: pd.DataFrame, cells: pd.MultiIndex) -> float:
    """Test patients / training patients, averaged over these cells (repeat, fold)."""
    counts = splits.groupby(["repeat", "fold", "part"]).patient_id.nunique().unstack()
    counts = counts.reindex(index=cells, columns=["train", "test"])
    if (missing := counts.isna().any(axis=1)).any():
        raise ValueError("splits name no train or no test patients of repeat {}, fold {}".format(*cells[missing][0]))
    return float((counts.test / counts.train).mean())


def _verdict(row, margin: float) -> str:
    if row.ci_low == row.ci_high:
        return "undecided"
    if row.p_holm < 0.05:
        return "better" if (row.difference < 0) == (row.metric.split()[0] in LOWER_IS_BETTER) else "worse"
    bound = margin if row.metric in ("auroc", "image_auroc") else MARGINS.get(row.metric, -np.inf)
    return "equivalent" if -bound < row.ci90_low and row.ci90_high < bound else "undecided"


def across_folds(tests: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """Comparisons of generators made cell by cell, one row a metric: over several cells, a corrected t-test.

    Each cell has generators of its own, so over several cells the difference is one of methods, not of two trainings.

    Parameters
    ----------
    tests : rows of `lib.fidelity.measures.kid_comparison` with `repeat` and `fold`
    splits : `repeat, fold, patient_id, part`
    """
    cells = pd.MultiIndex.from_frame(tests[["repeat", "fold"]].drop_duplicates())
    if len(cells) == 1:
        return tests.drop(columns=["repeat", "fold"])
    ratio, rows = _test_train_ratio(splits, cells), []
    for (metric, a, b), group in tests.groupby(["metric", "a", "b"], sort=False):
        result = corrected_t_test(group.difference, ratio)
        patients = group.patients.sum() // group.repeat.nunique()
        rows.append(
            {"question": "RQ1", "metric": metric, "a": a, "b": b, "n": len(group), "patients": patients,
             "test": "corrected t", **result[["difference", "ci_low", "ci_high", "statistic", "p"]]}
        )  # fmt: skip
    return pd.DataFrame(rows)
