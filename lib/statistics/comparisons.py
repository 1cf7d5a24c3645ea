"""The declared comparisons: which questions are asked, and what the data say to each.

Every difference is a − b: a is the method in question, b its reference.
"""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pandas as pd

from lib.statistics.bootstrap import patient_bootstrap, sample_metrics
from lib.statistics.inference import (
    auc_test_of_seeds,
    bayes_factor,
    clustered_auc_test,
    clustered_mcnemar_test,
    corrected_t_test,
    holm,
    mcnemar_test,
    rope,
    tost,
)
from lib.statistics.metrics import by_patient, recalibrated

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
PATIENT, IMAGE = ["patient_id", "y"], ["image_id", "patient_id", "y"]  # what a unit is known by; y is 1 for AFF
CONTROLS = (  # family, a, b; what must show nothing stands alone: an adjustment would make an alarm harder
    ("controls", "oracle", "real"),
    ("controls", "oracle", "oversampling"),
    ("controls", "useless", "real"),
    ("same", "again", "real"),
    ("copies", "fake", "oversampling"),
    ("shuffled", "permuted", "chance"),  # chance: a probability of 0.5 for everybody
)


def declared(translators: Iterable[str]) -> pd.DataFrame:
    """Return the questions that are asked of these translators, fixed before looking.

    RQ1 compares each translator with those before it, RQ2 with real images, RQ3 with standard augmentation. Columns:
    `family` (of the Holm adjustment), `question, a, b`.
    """
    names = list(translators)
    rows = [("thesis", "RQ1", a, b) for b, a in combinations(names, 2)]
    against = {"RQ2": ("thesis", "real"), "RQ3": ("thesis", "standard"), "oversampling": ("oversampling",) * 2}
    rows += [(family, question, a, b) for question, (family, b) in against.items() for a in names]
    rows += [(family, "control", a, b) for family, a, b in CONTROLS]
    return pd.DataFrame(rows, columns=["family", "question", "a", "b"])


def in_thesis(questions: pd.DataFrame) -> int:
    """Return how many comparisons RQ1 to RQ3 make; Holm's first step tests at 0.05 / this."""
    return int((questions.family == "thesis").sum())


def compare(
    predictions: pd.DataFrame,
    metrics: pd.DataFrame,
    splits: pd.DataFrame,
    questions: pd.DataFrame,
    margin: float = MARGIN,
    draws: int = 10_000,
    seed: int = 0,
    extra: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Make every declared comparison of which both conditions were run.

    One fold (a hold-out), conditional on its generators: `auroc` by DeLong on patients, whose probabilities are
    averaged over images; `image_auroc` by the clustered test; both of the mean AUC over seeds, with the spread between
    them (`with_training_seeds`); the other metrics by patient bootstrap.
    Several folds: the corrected t-test on the folds' differences, seeds averaged first. In support, where every repeat
    tests the same images once, `image_auroc` by the clustered test on out-of-fold predictions: averaged over seeds and
    repeats (an ensemble), of folds that different networks scored.

    Parameters
    ----------
    predictions : `condition, repeat, fold, seed, image_id, patient_id, label, probability` of real test images
    metrics : `condition, repeat, fold, seed, metric, value`, of which the rows "threshold" are used, and
        "recalibration" for `brier`: of probabilities as trained, a Brier score would compare shares of AFF, not images
    splits : `repeat, fold, patient_id, part`; only "train" counts as training patients, the careful side
    questions : of `declared`
    margin : AUROC differences within ±margin are of no consequence; `MARGINS` says it for the other metrics
    draws, seed : of the bootstrap
    extra : rows of the same columns from elsewhere (RQ1: metric "kid" or "kid NFF→AFF"), a family of their own

    Returns
    -------
    DataFrame of `COLUMNS`. `n` is the number of folds (corrected t-test), patients, or images (clustered test);
    `patients` are test patients. `p_holm` is adjusted within family and metric over all declared pairs, run or not
    (extra: over its rows). `effect_size` is d_z of the corrected t-test, the difference of d′ for AUCs, Cohen's h for
    bootstrapped proportions; `bf10` belongs to the corrected t-test alone.

    `verdict` is on a. "better" and "worse": p_holm < 0.05. Else "equivalent": the 90 % interval lies within the margin
    (two one-sided tests at 5 %, not adjusted for multiplicity). Else "undecided". It is also "undecided" where nothing
    varies, for then there is nothing to judge by.
    """
    asked, predictions, patients, scores = _prepared(predictions, metrics, splits, questions)
    rows = []
    for family, question, a, b in asked:
        of_pair = _paired(patients, a, b)
        if _several(of_pair):
            results = _several_folds(_paired(predictions, a, b), _fold_differences(scores, a, b), splits)
        else:
            results = _one_fold(_paired(predictions, a, b), of_pair, draws, seed)
        key = {"family": family, "question": question, "a": a, "b": b, "patients": of_pair.patient_id.nunique()}
        rows += [key | result for result in results]
    table = pd.DataFrame(rows, columns=["family", "ci90_low", "ci90_high", *COLUMNS])
    if extra is not None and len(extra):
        extra = extra.reindex(columns=table.columns).assign(family="extra")
        table = pd.concat([table, extra], ignore_index=True) if len(table) else extra
    if len(table):
        within = table.metric.where(table.family != "extra", "")
        for (family, _), p in table.groupby(["family", within]).p:
            not_run = [1.0] * ((questions.family == family).sum() - len(p))
            table.loc[p.index, "p_holm"] = holm([*p, *not_run])[: len(p)]
        table["verdict"] = [_verdict(row, margin) for row in table.itertuples()]
    return table[list(COLUMNS)].astype({"n": int, "patients": int}).reset_index(drop=True)


def equivalence(
    predictions: pd.DataFrame, metrics: pd.DataFrame, splits: pd.DataFrame, questions: pd.DataFrame, margin: float
) -> pd.DataFrame:
    """Test whether the AUROC of patients is practically the same, in each comparison of `compare`; not adjusted.

    Returns
    -------
    DataFrame `question, a, b, difference, standard_error, df, ci90_low, ci90_high, margin, p_equivalence` (`tost`), and
    over several folds the probabilities that a is `worse`, `same` (within the margin) or `better` (`rope`), the number
    of `folds` of all repeats and their `test_train_ratio`
    """
    asked, _, patients, scores = _prepared(predictions, metrics, splits, questions)
    rows = []
    for _, question, a, b in asked:
        of_pair, row = _paired(patients, a, b), {"question": question, "a": a, "b": b, "margin": margin}
        if _several(of_pair):
            differences = _fold_differences(scores, a, b).auroc
            ratio = _test_train_ratio(splits, differences.index)
            result = corrected_t_test(differences, ratio)
            row |= dict(zip(("worse", "same", "better"), rope(differences, ratio, margin), strict=True))
            row |= {"folds": len(differences), "df": len(differences) - 1, "test_train_ratio": ratio}
        else:
            result = _patient_auroc(of_pair)
        p = tost(result.difference, result.standard_error, margin, result.df)
        rows.append({**result, **row, "p_equivalence": p})
    columns = ["question", "a", "b", "difference", "standard_error", "df", "ci90_low", "ci90_high", "margin",
               "p_equivalence", "worse", "same", "better", "folds", "test_train_ratio"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def decisions(
    predictions: pd.DataFrame, metrics: pd.DataFrame, splits: pd.DataFrame, questions: pd.DataFrame
) -> pd.DataFrame:
    """Test whether more decisions are right, in each comparison of `compare`; in support, not adjusted.

    AFF is decided where the probability, averaged over seeds (and repeats), reaches the average threshold. One decision
    a patient: McNemar's exact test; one an image: Durkalski's, with patients as clusters. Both take networks and
    thresholds as given: by them a method trained again differs from itself far too often (`lib.statistics.simulation`).

    Returns
    -------
    DataFrame `question, a, b, unit, n, only_a, only_b` (units that one alone gets right), `difference` of accuracies
    (of images: mean over patients), `test, p`
    """
    asked, predictions, patients, _ = _prepared(predictions, metrics, splits, questions)
    thresholds = patients[["condition", *TRIAL, "threshold"]].drop_duplicates()
    images = predictions.merge(thresholds, on=["condition", *TRIAL])
    rows = []
    for _, question, a, b in asked:
        if b == "chance":
            continue
        for unit, table, ids in (("patients", patients, PATIENT), ("images", images, IMAGE)):
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


def across_folds(tests: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """Compare generators over folds, one row a metric and pair; a single fold's tests are returned as they are.

    Each fold has generators of its own, so over several folds the corrected t-test is about methods, not two trainings.
    `tests` are rows of `lib.fidelity.measures.kid_comparisons` with `repeat` and `fold`, `splits` those of `compare`.
    """
    folds = pd.MultiIndex.from_frame(tests[["repeat", "fold"]].drop_duplicates())
    if len(folds) < 2:
        return tests.drop(columns=["repeat", "fold"])
    ratio, rows = _test_train_ratio(splits, folds), []
    for (metric, a, b), group in tests.groupby(["metric", "a", "b"], sort=False):
        result = corrected_t_test(group.difference, ratio)[["difference", "ci_low", "ci_high", "statistic", "p"]]
        patients = group.patients.sum() // group.repeat.nunique()
        key = {"question": "RQ1", "metric": metric, "a": a, "b": b, "n": len(group), "patients": patients}
        rows.append({**key, "test": "corrected t", **result})
    return pd.DataFrame(rows)


def same_against_itself(predictions: pd.DataFrame, divisions: int = 200, seed: int = 0) -> pd.Series:
    """Count how often the test of one hold-out finds that a method differs from itself.

    All trainings of one fold on the real images (`real` and `again`), which differ by their seeds alone, are divided at
    random into two groups of equal size, as if they were two methods. Divisions of the same trainings are not
    independent, so the shares have no interval.

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
        alone, widened = auc_test_of_seeds(labels, scores[order[:half]], scores[order[half : 2 * half]], patients)
        p.append((alone.p, widened.p))
    alone, widened = (np.array(p) < 0.05).mean(0)
    return pd.Series({"DeLong alone": alone, "with the spread between seeds": widened, "divisions": divisions})


def descriptive_tests(metrics: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Return what pingouin says of the AUROCs: to describe them, not to confirm anything.

    Folds share training patients, so that Wilcoxon's and Friedman's p are too small for a claim (`corrected_t_test`).
    Over several seeds the intraclass correlation says how much of the spread between folds and conditions a single
    training shows. Over at least three folds come Shapiro and Wilk's normality of paired differences, Wilcoxon's test
    of them, and Friedman's test of all conditions. Columns: `test, of, statistic, p`.
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
    folds = aurocs.groupby(["condition", "repeat", "fold"]).value.mean().unstack(0)
    if len(folds) >= 3:
        for a, b in questions[["a", "b"]].itertuples(index=False):
            if {a, b} <= set(folds) and (folds[a] - folds[b]).std() > 0:
                d, of = folds[a] - folds[b], f"{a} − {b}"
                shapiro, wilcoxon = pingouin.normality(d).iloc[0], pingouin.wilcoxon(d).iloc[0]
                rows.append(("Shapiro–Wilk", of, shapiro.W, shapiro.pval))
                rows.append(("Wilcoxon", of, wilcoxon.W_val, wilcoxon.p_val))
        if folds.shape[1] > 2:
            friedman = pingouin.friedman(folds.reset_index(drop=True)).iloc[0]
            rows.append(("Friedman", "all conditions", friedman.Q, friedman.p_unc))
    return pd.DataFrame(rows, columns=["test", "of", "statistic", "p"])


def _prepared(predictions: pd.DataFrame, metrics: pd.DataFrame, splits: pd.DataFrame, questions: pd.DataFrame) -> tuple:
    """Return the questions that can be asked, and the predictions, patients and scores that they need.

    `permuted` gets a twin, `chance`, whose probabilities and thresholds are 0.5. Patients come with each trial's
    `threshold` and with `recalibrated` probabilities; scores have a row for each trial.
    """
    trial = ["condition", *TRIAL]
    _require(predictions, "predictions", *trial, "image_id", "patient_id", "label", "probability")
    _require(metrics, "metrics", *trial, "metric", "value")
    _require(splits, "splits", "repeat", "fold", "patient_id", "part")
    if unknown := sorted(set(predictions.label) - {"AFF", "NFF"}):
        raise ValueError(f"predictions: unknown label {unknown[0]!r}; labels are AFF and NFF")
    if (invalid := ~predictions.probability.between(0, 1)).any():
        row = predictions[invalid].iloc[0]
        raise ValueError(f"predictions: probability {row.probability} of image {row.image_id} ({row.condition})")
    if (shuffled := predictions.condition == "permuted").any():
        thresholds = metrics[(metrics.condition == "permuted") & (metrics.metric == "threshold")]
        metrics = pd.concat([metrics, thresholds.assign(condition="chance", value=0.5)], ignore_index=True)
        chance = predictions[shuffled].assign(condition="chance", probability=0.5)
        predictions = pd.concat([predictions, chance], ignore_index=True)
    conditions = set(predictions.condition)
    asked = [question for question in questions.itertuples(index=False) if {question.a, question.b} <= conditions]
    predictions = predictions[predictions.condition.isin({c for question in asked for c in question[2:]})]

    patients = by_patient(predictions)
    of_trial = pd.MultiIndex.from_frame(patients[trial])
    found = {
        metric: metrics[metrics.metric == metric].set_index(trial).value.reindex(of_trial).to_numpy()
        for metric in ("threshold", "recalibration")
    }
    if (missing := np.isnan(found["threshold"])).any():
        raise ValueError("metrics lack the threshold of condition {}, repeat {}, fold {}, seed {}".format(
            *of_trial[missing][0]))  # fmt: skip
    certain = recalibrated(patients.probability, np.nan_to_num(found["recalibration"]))
    patients = patients.assign(threshold=found["threshold"], recalibrated=certain)
    for fold, labels in patients.groupby(["repeat", "fold"]).label:
        if missing := {"AFF", "NFF"} - set(labels):
            raise ValueError("the test part of repeat {}, fold {} has no {} patient".format(*fold, *missing))
    scores = {
        trial: sample_metrics(of.label == "AFF", of.probability, of.threshold.iloc[0], of.recalibrated)
        for trial, of in patients.groupby(trial)
    }
    return asked, predictions, patients, pd.DataFrame.from_dict(scores, orient="index")


def _require(table: pd.DataFrame, name: str, *columns: str) -> None:
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{name} lack the column {', '.join(missing)}")


def _paired(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return `probability_a` and `probability_b` of the same images or patients in the trials that both have."""
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


def _several(paired: pd.DataFrame) -> bool:
    return len(paired[["repeat", "fold"]].drop_duplicates()) > 1


def _fold_differences(scores: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return the differences of each metric in the folds that both ran in, averaged over seeds (no replicates)."""
    return (scores.loc[a] - scores.loc[b]).dropna().groupby(level=[0, 1]).mean()


def _several_folds(images: pd.DataFrame, differences: pd.DataFrame, splits: pd.DataFrame) -> list[dict]:
    """Return corrected t-tests of `differences` (a row a fold, a column a metric), and of the out-of-fold images."""
    ratio = _test_train_ratio(splits, differences.index)
    n, rows = len(differences), []
    for metric in differences:
        result = corrected_t_test(differences[metric], ratio)
        bf10 = bayes_factor(result.statistic, n - 1, 1 / (1 / n + ratio))
        rows.append({"metric": metric, "test": "corrected t", "n": n, **result, "bf10": bf10})
    tested = images.groupby(["image_id", "repeat"]).fold.nunique().unstack()
    if (tested == 1).all(axis=None):
        mean = images.groupby(IMAGE, as_index=False)[["probability_a", "probability_b"]].mean()
        result = clustered_auc_test(mean.y, mean.probability_a, mean.probability_b, mean.patient_id)
        rows.append({"metric": "image_auroc", "test": "clustered AUC, ensemble out of fold", "n": len(mean), **result})
    return rows


def _one_fold(images: pd.DataFrame, patients: pd.DataFrame, draws: int, seed: int) -> list[dict]:
    """Return DeLong's test of patients, the clustered one of images, and the bootstrap of the other metrics."""
    values = ["probability_a", "probability_b", "recalibrated_a", "recalibrated_b"]
    wide = patients.pivot(index="seed", columns=["patient_id", "y"], values=values)
    a, b, *certain = (wide[value] for value in values)
    thresholds = patients.groupby("seed")[["threshold_a", "threshold_b"]].first()
    of_patients, y = (a.columns.get_level_values(level) for level in ("patient_id", "y"))
    bootstrap = patient_bootstrap(
        y, a, b, thresholds.threshold_a, thresholds.threshold_b, of_patients, draws, seed, certain
    )
    others = bootstrap.drop(index="auroc").iterrows()
    return [
        {"metric": "auroc", **_patient_auroc(patients)},
        {"metric": "image_auroc", **_auroc(images, IMAGE, "clustered AUC")},
        *({"metric": metric, "test": "patient bootstrap", "n": len(y), **row} for metric, row in others),
    ]


def _patient_auroc(patients: pd.DataFrame) -> pd.Series:
    """Test patients by DeLong; where one has an AFF and an NFF, two rows, it is the clustered test."""
    twice = patients.duplicated(["seed", "patient_id"]).any()
    return _auroc(patients, PATIENT, "clustered AUC, patients" if twice else "DeLong, patients")


def _auroc(pairs: pd.DataFrame, unit: list[str], test: str) -> pd.Series:
    """Return the AUC test with the spread between seeds, its name and the number of units."""
    wide = pairs.pivot(index="seed", columns=unit, values=["probability_a", "probability_b"])
    units = wide["probability_a"].columns
    labels, patients = units.get_level_values("y"), units.get_level_values("patient_id")
    _, widened = auc_test_of_seeds(labels, wide["probability_a"].to_numpy(), wide["probability_b"].to_numpy(), patients)
    return pd.concat([widened, pd.Series({"test": test + " and seeds" * (len(wide) > 1), "n": len(units)})])


def _test_train_ratio(splits: pd.DataFrame, folds: pd.MultiIndex) -> float:
    """Return test patients / training patients, averaged over these (repeat, fold)."""
    counts = splits.groupby(["repeat", "fold", "part"]).patient_id.nunique().unstack()
    counts = counts.reindex(index=folds, columns=["train", "test"])
    if (missing := counts.isna().any(axis=1)).any():
        raise ValueError("splits name no train or no test patients of repeat {}, fold {}".format(*folds[missing][0]))
    return float((counts.test / counts.train).mean())


def _verdict(row, margin: float) -> str:
    if row.ci_low == row.ci_high:
        return "undecided"
    if row.p_holm < 0.05:
        return "better" if (row.difference < 0) == (row.metric.split()[0] in LOWER_IS_BETTER) else "worse"
    bound = margin if row.metric in ("auroc", "image_auroc") else MARGINS.get(row.metric, -np.inf)
    return "equivalent" if -bound < row.ci90_low and row.ci90_high < bound else "undecided"
