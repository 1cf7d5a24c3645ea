"""The patient bootstrap: differences of every metric on one test set, with intervals from resampled patients.

BCa intervals: Efron 1987, doi:10.1080/01621459.1987.10478410.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lib.statistics.inference import spread

PROPORTIONS = ("accuracy", "sensitivity", "specificity", "sensitivity_at_90_specificity")


def patient_bootstrap(
    labels, a, b, thresholds_a, thresholds_b, patients, draws: int = 10_000, seed: int = 0, recalibrated=None
) -> pd.DataFrame:
    """Compare every metric of `lib.statistics.metrics.evaluate`, with intervals from resampled patients.

    Patients are drawn with replacement within their class, both conditions alike; a metric is averaged over seeds.
    Another training would come out otherwise too: of S seeds, each draw adds s/√S times a Student t of S − 1 degrees,
    with s the standard deviation of the seeds' differences. With one seed, the result holds for that training alone.

    Parameters
    ----------
    labels : (n,) 1 for AFF, 0 for NFF, one a patient; both must occur
    a, b : (S, n) probabilities of S classifier seeds, averaged over each patient's images
    thresholds_a, thresholds_b : (S,) decision thresholds of those classifiers
    patients : (n,) patient of each column; a patient with both labels has two and is drawn as one
    draws : number of bootstrap samples; the bias correction of 2,000 still moves a p of 0.7 by 0.05
    recalibrated : of a and of b, (S, n) probabilities that the Brier score is taken of; by default those above

    Returns
    -------
    DataFrame, one row a metric: `difference, ci_low, ci_high` (95 %), `ci90_low, ci90_high, standard_error`,
    `statistic` (difference / standard error, descriptive), `p` (two-sided, `bca_p`), `effect_size` (Cohen's h of
    proportions, else NaN)
    """
    labels, a, b = np.asarray(labels, int), np.atleast_2d(a), np.atleast_2d(b)
    if a.shape != b.shape or a.shape[1] != len(labels):
        raise ValueError(f"probabilities {a.shape} and {b.shape} do not fit each other and {len(labels)} patients")
    if len(set(labels)) < 2:
        raise ValueError("the bootstrap needs AFF and NFF patients")
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(len(labels)), _resample(labels, patients, draws, rng)])
    unknown = rng.standard_t(len(a) - 1, draws) / np.sqrt(len(a)) if len(a) > 1 else np.zeros(draws)
    certain = (a, b) if recalibrated is None else tuple(map(np.atleast_2d, recalibrated))

    def by_seed(weights):  # of a and of b: metric → (S, samples)
        scored = []
        for probabilities, thresholds, calibrated in zip((a, b), (thresholds_a, thresholds_b), certain, strict=True):
            rows = zip(probabilities, thresholds, calibrated, strict=True)
            scores = [weighted_metrics(labels, p, t, weights, c) for p, t, c in rows]
            scored.append({metric: np.stack([s[metric] for s in scores]) for metric in scores[0]})
        return scored

    patient, kind = _strata(labels, patients)
    can_go = np.flatnonzero(np.bincount(kind)[kind] > 1)  # without one who is alone in a stratum, a class may be empty
    values, left_out = by_seed(weights), by_seed(1.0 - np.equal.outer(can_go, patient))
    stratum = kind[can_go]

    rows = {}
    for metric in values[0]:
        score_a, score_b = (float(v[metric][:, 0].mean()) for v in values)
        differences = values[0][metric] - values[1][metric]
        difference, drawn, of_seeds = score_a - score_b, differences[:, 1:].mean(0), spread(differences[:, 0])
        drawn[np.abs(drawn) < 1e-12] = 0
        of_patients = drawn.std(ddof=1)
        standard_error = np.hypot(of_patients, of_seeds / np.sqrt(len(a)))
        drawn = drawn + of_seeds * unknown
        without = (left_out[0][metric] - left_out[1][metric]).mean(0)
        z0, acceleration = bca_constants(difference, drawn, [without[stratum == kind] for kind in np.unique(stratum)])
        if standard_error:  # skewness of a sum of which the patients' part alone is skewed
            acceleration *= (of_patients / standard_error) ** 3
        low, low90, high90, high = bca_quantiles(drawn, z0, acceleration, (0.025, 0.05, 0.95, 0.975))
        h = 2 * (np.arcsin(np.sqrt(score_a)) - np.arcsin(np.sqrt(score_b))) if metric in PROPORTIONS else np.nan
        rows[metric] = {
            "difference": difference, "ci_low": low, "ci_high": high, "ci90_low": low90, "ci90_high": high90,
            "statistic": difference / standard_error if standard_error else 0.0,
            "p": bca_p(drawn, z0, acceleration), "standard_error": standard_error, "effect_size": h,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


def bca_constants(observed: float, drawn: np.ndarray, left_out: list[np.ndarray]) -> tuple[float, float]:
    """Return bias correction z₀ and acceleration of a bootstrap.

    `drawn` is the statistic of (B,) samples; `left_out`, for each stratum, the statistic without each of its units.
    """
    if np.ptp(drawn) == 0:
        return 0.0, 0.0
    below = ((drawn < observed).mean() + (drawn <= observed).mean()) / 2
    z0 = stats.norm.ppf(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    influence = np.concatenate([(len(v) - 1) / len(v) * (v.mean() - v) for v in left_out])
    scale = (influence**2).sum() ** 1.5
    return float(z0), float((influence**3).sum() / (6 * scale)) if scale else 0.0


def bca_quantiles(drawn: np.ndarray, z0: float, acceleration: float, levels: Sequence[float]) -> np.ndarray:
    """Return the bounds of the bootstrap at these levels (0.025 and 0.975: a 95 % interval)."""
    z = z0 + stats.norm.ppf(levels)
    return np.quantile(drawn, stats.norm.cdf(z0 + z / (1 - acceleration * z)))


def bca_p(drawn: np.ndarray, z0: float, acceleration: float) -> float:
    """Return the two-sided p of the hypothesis 0: twice the smallest level whose one-sided bound excludes it."""

    def level(share):  # which level's bound lies at this share of the draws
        if share in (0, 1):
            return share
        w = stats.norm.ppf(share) - z0
        return stats.norm.cdf(w / (1 + acceleration * w) - z0)

    B = len(drawn)
    up_to, under = (1 + (drawn <= 0).sum()) / (B + 1), (drawn < 0).sum() / (B + 1)
    return float(min(1.0, 2 * level(up_to), 2 * (1 - level(under))))


def _strata(labels: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each column's patient, numbered, and each patient's stratum: 1 with NFF, 2 with AFF, 3 with both."""
    _, patient = np.unique(patients, return_inverse=True)
    kind = np.zeros(patient.max() + 1, int)
    np.bitwise_or.at(kind, patient, labels + 1)
    return patient, kind


def _resample(labels: np.ndarray, patients: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return (draws, n) how often each column occurs when patients are drawn with replacement within their class."""
    patient, kind = _strata(labels, patients)
    counts = np.zeros((draws, len(kind)))
    for stratum in np.unique(kind):
        members = np.flatnonzero(kind == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return counts[:, patient]


def weighted_metrics(
    labels, probabilities, threshold: float, weights: np.ndarray, recalibrated=None
) -> dict[str, np.ndarray]:
    """Evaluate many weighted samples at once: `lib.statistics.metrics.evaluate` of the repeated rows, (B,) each.

    `weights` (B, n) says how often each unit occurs in each of B samples, both classes in every one. The Brier score is
    taken of the `recalibrated` probabilities (n,), by default of the others.
    """
    order = np.argsort(-np.asarray(probabilities), kind="stable")
    p, y, w = np.asarray(probabilities)[order], np.asarray(labels)[order], weights[:, order]
    certain = p if recalibrated is None else np.asarray(recalibrated)[order]
    ends = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)  # last of each run of equal probabilities
    tp = np.cumsum(w * y, axis=1)[:, ends]  # (B, thresholds) AFF and NFF at or above each threshold
    fp = np.cumsum(w * (1 - y), axis=1)[:, ends]
    P, N = tp[:, -1], fp[:, -1]
    new_tp, new_fp = (np.diff(counts, axis=1, prepend=0) for counts in (tp, fp))
    sensitivities = np.where(fp <= N[:, None] * (0.1 + 1e-12), tp, 0) / P[:, None]

    decided = p[ends] >= threshold
    TP, FP = new_tp[:, decided].sum(1), new_fp[:, decided].sum(1)
    TN, FN = N - FP, P - TP
    product = (TP + FP) * P * N * (TN + FN)
    return {
        "auroc": ((tp - new_tp / 2) * new_fp).sum(1) / (P * N),
        "sensitivity_at_90_specificity": sensitivities.max(1),
        "auprc": (new_tp * tp / np.maximum(tp + fp, 1)).sum(1) / P,
        "accuracy": (TP + TN) / (P + N),
        "f1": 2 * TP / (2 * TP + FP + FN),
        "sensitivity": TP / P,
        "specificity": TN / N,
        "balanced_accuracy": (TP / P + TN / N) / 2,
        "mcc": np.where(product > 0, (TP * TN - FP * FN) / np.sqrt(np.maximum(product, 1)), 0.0),
        "brier": (w * (certain - y) ** 2).sum(1) / (P + N),
    }


def sample_metrics(labels, probabilities, threshold: float, recalibrated=None) -> dict[str, float]:
    """Evaluate one sample: `lib.statistics.metrics.evaluate`, the fast way."""
    metrics = weighted_metrics(labels, probabilities, threshold, np.ones((1, len(labels))), recalibrated)
    return {metric: float(value[0]) for metric, value in metrics.items()}
