"""Simulation: do the tests of this room hold their level where the truth is known?

Cohorts of patients with several images each, two learners that are equally good by construction (or not), split as the
study splits (`lib.data.splits.make_splits`): thresholds come from a validation part, the unit is the patient. `WANTED`
says how often each test should reject, `verdicts` whether it does. Nothing here reads images.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lib.data.splits import fold_keys, make_splits
from lib.statistics.bootstrap import patient_bootstrap, sample_metrics
from lib.statistics.inference import (
    auc_test_of_seeds,
    clustered_auc_test,
    clustered_mcnemar_test,
    corrected_t_test,
    delong_test,
    holm,
    mcnemar_test,
    tost,
)
from lib.statistics.kid import kid_permutation_test
from lib.statistics.metrics import choose_threshold
from lib.statistics.planning import ratio_of_fold

SHARED, A, B = slice(0, 5), slice(5, 10), slice(10, 15)  # features both learners see, and those of one alone
SHIFT, AFF_SHARE, VALIDATION_SHARE = 0.35, 0.15, 0.2
METRICS = ("sensitivity_at_90_specificity", "auprc", "accuracy", "sensitivity", "brier")  # tested beside the AUROC
LEVEL = (0.0, 0.065)
WANTED = {  # truth, test: between which shares of studies p should be below 0.05
    ("equally good", "corrected t"): (0.02, 0.065),
    **{("equally good", f"corrected t, {metric}"): LEVEL for metric in METRICS},
    ("equally good", "clustered AUC"): (0.03, 0.09),  # out of fold; takes the networks as given
    ("equally good", "naive t"): (0.25, 1.0),  # why it is not used
    ("equally good", "DeLong, images"): (0.15, 1.0),  # likewise
    ("one is better", "corrected t"): (0.5, 1.0),
    ("one is better", "clustered AUC"): (0.5, 1.0),
    ("fixed", "DeLong, patients"): (0.03, 0.07),
    ("fixed", "clustered AUC"): (0.03, 0.08),
    ("fixed", "McNemar, patients"): (0.01, 0.06),  # exact, so on the careful side
    ("fixed", "Durkalski, images"): (0.03, 0.07),
    **{("fixed", f"bootstrap, {metric}"): (0.01, 0.08) for metric in METRICS},
    ("fixed", "bootstrap, auprc"): (0.01, 0.11),  # with 45 AFF patients; the fewer, the more liberal
    ("trained again", "DeLong, patients and seeds"): LEVEL,
    **{("trained again", f"bootstrap, {metric}"): LEVEL for metric in METRICS},
    ("trained again", "DeLong, patients"): (0.065, 1.0),  # takes the networks as given: why seeds are added
    ("trained again", "McNemar, patients"): (0.065, 1.0),  # likewise, and the thresholds: of these networks alone
    ("trained again", "Durkalski, images"): (0.065, 1.0),
    ("folds", "naive t"): (0.25, 1.0),
    ("folds", "corrected t"): (0.035, 0.065),
    ("folds", "any, Holm"): LEVEL,
    ("folds, a margin apart", "TOST"): LEVEL,
    ("generators alike", "KID"): (0.02, 0.07),
}


def cohort(patients: int, shift_b: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw features (n, 15), labels (n,), 1 for AFF, and the patient of each image (n,), in ascending order.

    A patient has 1 + Poisson(2.6) images and AFF with probability 0.15; features are normal with a correlation of
    0.6 between images of a patient, and shifted by 0.35 (block B: `shift_b`) where there is AFF.
    """
    patient = np.repeat(np.arange(patients), 1 + rng.poisson(2.6, patients))
    labels = (rng.random(patients) < AFF_SHARE).astype(int)[patient]
    shifts = np.full(15, SHIFT)
    shifts[B] = shift_b
    return _features_of(patient, 15, rng) + np.outer(labels, shifts), labels, patient


def _features_of(patient: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    between, within = rng.normal(size=(patient.max() + 1, size)), rng.normal(size=(len(patient), size))
    return np.sqrt(0.6) * between[patient] + np.sqrt(0.4) * within


def p_values_of_cohort(
    rng: np.random.Generator, patients: int = 1200, repeats: int = 3, folds: int = 5, shift_b: float = SHIFT
) -> dict[str, float]:
    """Return p of each test that learner B is as good as learner A, from one cohort in folds as the study's.

    Both are linear discriminants on the shared features and a block of their own. With `shift_b` = 0.35 the blocks are
    exchangeable, so the hypothesis is true for every training set.
    """
    X, y, patient = cohort(patients, shift_b, rng)
    labels = _mean(y, patient)
    splits = _split(labels, repeats, folds, rng)
    scores, pooled = [], np.zeros((2, len(y)))  # scores: a row a fold, of both learners a metric each
    for fold in fold_keys(splits):
        train, validation, test = _parts(splits, fold)
        images = [_learner(X, y, np.flatnonzero(train[patient]), block) for block in (A, B)]
        thresholds = [choose_threshold(labels[validation], _mean(p, patient)[validation]) for p in images]
        of_patients = [_mean(p, patient)[test] for p in images]
        scores.append([sample_metrics(labels[test], p, t) for p, t in zip(of_patients, thresholds, strict=True)])
        pooled += images * test[patient]  # averaged over repeats, as `lib.statistics.comparisons.compare` does
    differences = {metric: [b[metric] - a[metric] for a, b in scores] for metric in ("auroc", *METRICS)}
    ratio = ratio_of_fold(folds, VALIDATION_SHARE)
    return {
        "naive t": stats.ttest_1samp(differences["auroc"], 0).pvalue,
        "corrected t": corrected_t_test(differences["auroc"], ratio).p,
        **{f"corrected t, {metric}": corrected_t_test(differences[metric], ratio).p for metric in METRICS},
        "DeLong, images": delong_test(y, pooled[1], pooled[0]).p,
        "clustered AUC": clustered_auc_test(y, pooled[1], pooled[0], patient).p,
    }


def p_values_of_fixed(rng: np.random.Generator, patients: int = 300, draws: int = 300) -> dict[str, float]:
    """Return p of each test that two equally good classifiers, fixed beforehand, differ on a test set of new patients.

    Each is the best rule for the shared features and its block, AFF from the same probability on. This is what the
    tests of a hold-out promise; that a method was trained, and its threshold chosen, they do not see.
    """
    X, y, patient = cohort(patients, SHIFT, rng)
    logits = [
        SHIFT * X[:, np.r_[SHARED, block]].sum(1) - 5 * SHIFT**2 + np.log(AFF_SHARE / (1 - AFF_SHARE))
        for block in (A, B)
    ]
    a, b = (1 / (1 + np.exp(-logit[None])) for logit in logits)
    threshold = np.array([AFF_SHARE])
    p = _hold_out(y, a, b, threshold, threshold, patient, rng, draws)
    return {**p, "clustered AUC": clustered_auc_test(y, a, b, patient).p}


def p_values_of_seeds(
    rng: np.random.Generator, patients: int = 1200, seeds: int = 3, draws: int = 300
) -> dict[str, float]:
    """Return p of each test that a learner differs from itself, trained again with other seeds, on one hold-out.

    A seed is a bootstrap of the training patients, its threshold chosen on the validation patients. The tests with
    seeds should keep their level; DeLong's alone and those of decisions (McNemar, Durkalski) take networks and
    thresholds as given and find differences that another training does not have.
    """
    X, y, patient = cohort(patients, SHIFT, rng)
    labels = _mean(y, patient)
    train, validation, test = _parts(_split(labels, 1, 1, rng), (0, 0))
    of_patient = np.split(np.arange(len(y)), np.flatnonzero(np.diff(patient)) + 1)
    of_patient = [of_patient[i] for i in np.flatnonzero(train)]

    def trained():
        drawn = np.concatenate([of_patient[i] for i in rng.integers(len(of_patient), size=len(of_patient))])
        images = _learner(X, y, drawn, A)
        return images[test[patient]], choose_threshold(labels[validation], _mean(images, patient)[validation])

    (a, t_a), (b, t_b) = (map(np.array, zip(*(trained() for _ in range(seeds)), strict=True)) for _ in range(2))
    tested = test[patient]
    return _hold_out(y[tested], a, b, t_a, t_b, np.unique(patient[tested], return_inverse=True)[1], rng, draws)


def p_values_of_generators(rng: np.random.Generator, patients: int = 60, permutations: int = 399) -> dict[str, float]:
    """Return p of KID that two generators differ which translate the same images, each with errors of its own."""
    patient = np.repeat(np.arange(patients), 1 + rng.poisson(2.6, patients))
    source = _features_of(patient, 16, rng)
    a, b = (source + 0.5 + 0.5 * _features_of(patient, 16, rng) for _ in range(2))
    reference = rng.normal(size=(patients, 16)) + 0.7
    return {"KID": kid_permutation_test(a, b, reference, patient, permutations, int(rng.integers(2**31))).p}


def simulated(p_values: Callable[..., dict[str, float]], number: int, seed: int = 0, **sizes) -> pd.DataFrame:
    """Return p of each test, one row a simulated study: `simulated(p_values_of_seeds, 100, patients=600)`."""
    return pd.DataFrame([p_values(rng, **sizes) for rng in np.random.default_rng(seed).spawn(number)])


def _hold_out(y, a, b, t_a, t_b, patient, rng, draws: int) -> dict[str, float]:
    """Return p of the tests of one hold-out.

    `y, patient`: (n,) labels and patients 0, 1, … of the images; `a, b`: (S, n) probabilities of the images; `t_a,
    t_b`: (S,) thresholds.
    """
    labels, mean_a, mean_b = _mean(y, patient), *(np.array([_mean(p, patient) for p in c]) for c in (a, b))
    patients = np.arange(len(labels))
    plain, with_seeds = auc_test_of_seeds(labels, mean_a, mean_b, patients)
    bootstrap = patient_bootstrap(labels, mean_a, mean_b, t_a, t_b, patients, draws, int(rng.integers(2**31)))
    right = [(p.mean(0) >= t.mean()) == labels for p, t in ((mean_a, t_a), (mean_b, t_b))]
    right_images = [(p.mean(0) >= t.mean()) == y for p, t in ((a, t_a), (b, t_b))]
    return {
        "DeLong, patients": plain.p,
        **({"DeLong, patients and seeds": with_seeds.p} if len(a) > 1 else {}),
        **{f"bootstrap, {metric}": bootstrap.p[metric] for metric in METRICS},
        "McNemar, patients": mcnemar_test(*right).p,
        "Durkalski, images": clustered_mcnemar_test(*right_images, patient).p,
    }


def _split(labels: np.ndarray, repeats: int, folds: int, rng: np.random.Generator) -> pd.DataFrame:
    names = pd.Series(np.where(labels == 1, "AFF", "NFF"))
    return make_splits(names, repeats, folds, int(rng.integers(2**31)), validation_share=VALIDATION_SHARE)


def _parts(splits: pd.DataFrame, fold: tuple[int, int]) -> list[np.ndarray]:
    """Return (patients,) bool of each part of a fold."""
    rows = splits[(splits.repeat == fold[0]) & (splits.fold == fold[1])].sort_values("patient_id")
    return [(rows.part == part).to_numpy() for part in ("train", "validation", "test")]


def _mean(values: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Return the mean of each patient's images."""
    return np.bincount(patient, values) / np.bincount(patient)


def _learner(X: np.ndarray, y: np.ndarray, train: np.ndarray, block: slice) -> np.ndarray:
    """Return the probability of AFF of every image, from the images `train`."""
    columns = np.r_[SHARED, block]
    return LinearDiscriminantAnalysis().fit(X[train][:, columns], y[train]).predict_proba(X[:, columns])[:, 1]


def equicorrelated_folds(
    number: int, n: int, ratio: float, effects: Sequence[float] = (0.0,), margin: float | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return p of the naive and the corrected t-test of folds whose differences correlate as the correction assumes.

    Parameters
    ----------
    number, n : how many studies, and folds of each
    ratio : test patients / training patients; ρ = ratio / (1 + ratio), that is 1 / K of K folds without validation
    effects : true mean of each contrast, in standard deviations as a study would observe them between its folds (what
        folds have in common does not show in it); contrasts are independent
    margin : of equivalence, in the same unit

    Returns
    -------
    A row a study: "naive t" and "corrected t" of the first contrast, "any, Holm": the smallest Holm-adjusted p of all,
    and with a margin "TOST": p that the first contrast lies within it.
    """
    rng = np.random.default_rng(seed)
    common, own = rng.normal(size=(number, len(effects), 1)), rng.normal(size=(number, len(effects), n))
    differences = np.sqrt(ratio) * common + own + np.reshape(effects, (-1, 1))  # ρ / (1 − ρ) = ratio
    tests = [[corrected_t_test(d, ratio) for d in study] for study in differences]
    found = {
        "naive t": stats.ttest_1samp(differences[:, 0], 0, axis=1).pvalue,
        "corrected t": [first.p for first, *_ in tests],
        "any, Holm": [holm([test.p for test in study]).min() for study in tests],
    }
    if margin is not None:
        found["TOST"] = [tost(first.difference, first.standard_error, margin, first.df) for first, *_ in tests]
    return pd.DataFrame(found)


def rejections(p_values: pd.DataFrame) -> pd.DataFrame:
    """Return the share of p below 0.05 in each column, with its exact 95 % interval (Clopper & Pearson 1934)."""
    rows = {}
    for test in p_values:
        found = stats.binomtest(int((p_values[test] < 0.05).sum()), len(p_values))
        low, high = found.proportion_ci()
        rows[test] = {"rejected": found.statistic, "ci_low": low, "ci_high": high, "n": len(p_values)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("test")


def all_rejections(number: int, patients: int = 1200, seed: int = 0) -> pd.DataFrame:
    """Return `rejections` of every test of the study under each truth, from so many cohorts each.

    Half as many where one learner is better, whose rate need not be exact. Five times as many folds alone, which cost
    little: 3 × 5 of five contrasts without effect, or of one whose true effect is the margin of equivalence.
    """
    ratio = ratio_of_fold(5, VALIDATION_SHARE)
    p_values = {
        "equally good": simulated(p_values_of_cohort, number, seed, patients=patients),
        "one is better": simulated(p_values_of_cohort, (number + 1) // 2, seed, patients=patients, shift_b=0.5),
        "fixed": simulated(p_values_of_fixed, number, seed, patients=patients // 4),
        "trained again": simulated(p_values_of_seeds, number, seed, patients=patients),
        "folds": equicorrelated_folds(5 * number, 15, ratio, [0.0] * 5, seed=seed),
        "folds, a margin apart": equicorrelated_folds(5 * number, 15, ratio, [2.0], margin=2.0, seed=seed)[["TOST"]],
        "generators alike": simulated(p_values_of_generators, number, seed),
    }
    return pd.concat({truth: rejections(p) for truth, p in p_values.items()}, names=["truth"])


def verdicts(found: pd.DataFrame, strictly: bool = False) -> pd.DataFrame:
    """Say whether every test is as `WANTED`: columns `wanted` ("0.02 to 0.065") and `as wanted`, where something is
    wanted.

    `found` is of `all_rejections`. Strictly, the share itself must lie in the wanted range, as that of a thousand
    studies can. Of few studies the exact 95 % interval must overlap it: a test is off where chance does not explain it.
    """
    found = found[[key in WANTED for key in found.index]]
    low, high = np.array([WANTED[key] for key in found.index]).T
    wanted = [f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True)]
    largest, smallest = (found.rejected, found.rejected) if strictly else (found.ci_high, found.ci_low)
    return found.assign(wanted=wanted, **{"as wanted": (largest >= low) & (smallest <= high)})
