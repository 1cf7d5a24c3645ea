"""Simulation: do the tests of `lib.statistics` hold their level where the truth is known?

Cohorts of patients with several images each, two learners that are equally good by construction (or not), the same
cross-validation as the study's. Nothing here reads images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from lib.statistics import clustered_auc_test, corrected_t_test, delong_test, holm, with_training_seeds

SHARED, A, B = slice(0, 5), slice(5, 10), slice(10, 15)  # features both learners see, and those of one alone


def cohort(patients: int, shift_b: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and patients of simulated images.

    A patient has 1 + Poisson(2.6) images and AFF with probability 0.15; features are normal with a correlation of
    0.6 between images of a patient, and shifted by 0.35 (block B: `shift_b`) where there is AFF.

    Returns
    -------
    features (n, 15), labels (n,) 1 for AFF, patient of each image (n,)
    """
    patient = np.repeat(np.arange(patients), 1 + rng.poisson(2.6, patients))
    labels = (rng.random(patients) < 0.15).astype(int)[patient]
    between, within = rng.normal(size=(patients, 15)), rng.normal(size=(len(patient), 15))
    shifts = np.full(15, 0.35)
    shifts[B] = shift_b
    return np.sqrt(0.6) * between[patient] + np.sqrt(0.4) * within + np.outer(labels, shifts), labels, patient


def p_values_of_cohort(
    patients: int, repeats: int, folds: int, shift_b: float, rng: np.random.Generator
) -> dict[str, float]:
    """p of each test that learner B is as good as learner A, from one simulated cohort.

    Both are linear discriminants on the shared features and a block of their own. With `shift_b` = 0.35 the blocks are
    exchangeable, so the hypothesis is true for every training set.
    """
    X, y, patient = cohort(patients, shift_b, rng)
    differences, pooled = [], np.zeros((2, len(y)))
    for _ in range(repeats):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
        for train, test in splitter.split(X, y, patient):
            scores = [_learner(X, y, train, test, block) for block in (A, B)]
            differences.append(np.subtract(*(roc_auc_score(y[test], s) for s in reversed(scores))))
            pooled[:, test] += scores  # averaged over repeats, as `lib.comparisons.compare` does
    return {
        "naive t": stats.ttest_1samp(differences, 0).pvalue,
        "corrected t": corrected_t_test(differences, 1 / (folds - 1)).p,
        "DeLong, images": delong_test(y, pooled[1], pooled[0]).p,
        "clustered AUC": clustered_auc_test(y, pooled[1], pooled[0], patient).p,
    }


def p_values_of_seeds(patients: int, seeds: int, rng: np.random.Generator) -> dict[str, float]:
    """p of each test that a learner differs from itself, trained again with other seeds (A/A), on one hold-out.

    A seed is a bootstrap of the training patients; the AUC is averaged over the seeds of either side, as the study's.
    """
    X, y, patient = cohort(patients, 0.35, rng)
    test = rng.permutation(patients)[: patients // 3]
    tested, trained = np.isin(patient, test), np.flatnonzero(~np.isin(patient, test))
    of_patient = np.split(trained, np.flatnonzero(np.diff(patient[trained])) + 1)

    def scores():
        drawn = np.concatenate([of_patient[i] for i in rng.integers(len(of_patient), size=len(of_patient))])
        images = _learner(X, y, drawn, np.flatnonzero(tested), A)
        return pd.Series(images).groupby(patient[tested]).mean().to_numpy()

    labels = pd.Series(y[tested]).groupby(patient[tested]).first().to_numpy()
    a, b = (np.array([scores() for _ in range(seeds)]) for _ in range(2))
    plain = delong_test(labels, a, b)
    widened = with_training_seeds(plain, [delong_test(labels, *pair).difference for pair in zip(a, b, strict=True)])
    return {"DeLong, patients": plain.p, "DeLong, patients and seeds": widened.p}


def _learner(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, block: slice) -> np.ndarray:
    columns = np.r_[SHARED, block]
    return LinearDiscriminantAnalysis().fit(X[train][:, columns], y[train]).predict_proba(X[test][:, columns])[:, 1]


def rejections(p_values: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Share of p below alpha in each column, with its exact 95 % interval (Clopper & Pearson 1934)."""
    rows = {}
    for test in p_values:
        found = stats.binomtest(int((p_values[test] < alpha).sum()), len(p_values))
        low, high = found.proportion_ci()
        rows[test] = {"rejected": found.statistic, "ci_low": low, "ci_high": high, "n": len(p_values)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("test")


def simulated_cohorts(
    number: int, patients: int = 1200, repeats: int = 3, folds: int = 5, shift_b: float = 0.35, seed: int = 0
) -> pd.DataFrame:
    """p of each test, one row a simulated cohort (`p_values_of_cohort`)."""
    rngs = np.random.default_rng(seed).spawn(number)
    return pd.DataFrame([p_values_of_cohort(patients, repeats, folds, shift_b, rng) for rng in rngs])


def simulated_seeds(number: int, patients: int = 600, seeds: int = 3, seed: int = 0) -> pd.DataFrame:
    """p of each test of the same against the same, one row a simulated cohort (`p_values_of_seeds`)."""
    rngs = np.random.default_rng(seed).spawn(number)
    return pd.DataFrame([p_values_of_seeds(patients, seeds, rng) for rng in rngs])


def equicorrelated_cells(
    number: int, repeats: int, folds: int, effects: Sequence[float] = (0.0,), seed: int = 0
) -> pd.DataFrame:
    """p of the naive and the corrected t-test of cells whose differences correlate by ρ = 1 / folds, as they assume.

    Parameters
    ----------
    number : how many studies
    effects : true mean of each contrast, in standard deviations as a study would observe them between its cells (what
        cells have in common does not show in it); contrasts are independent

    Returns
    -------
    A row a study: "naive t" and "corrected t" of the first contrast, "any, Holm": the smallest Holm-adjusted p of all.
    """
    rng, n, rho = np.random.default_rng(seed), repeats * folds, 1 / folds
    common, own = rng.normal(size=(number, len(effects), 1)), rng.normal(size=(number, len(effects), n))
    cells = np.sqrt(rho / (1 - rho)) * common + own + np.reshape(effects, (-1, 1))
    p = [[corrected_t_test(d, 1 / (folds - 1)).p for d in study] for study in cells]
    return pd.DataFrame(
        {
            "naive t": stats.ttest_1samp(cells[:, 0], 0, axis=1).pvalue,
            "corrected t": [row[0] for row in p],
            "any, Holm": [holm(row).min() for row in p],
        }
    )
