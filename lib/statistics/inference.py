"""Tests of paired differences, between classifiers and between generators.

Every difference is a − b: a is the method in question, b its reference. The unit of inference is the patient. Which
comparisons are made was declared beforehand and stands in `lib.statistics.comparisons`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import integrate, stats

PROPORTIONS = ("accuracy", "sensitivity", "specificity", "sensitivity_at_90_specificity")


# Two learning procedures, several cells


def corrected_t_test(differences, test_train_ratio: float) -> pd.Series:
    """Corrected resampled t-test of paired differences between two learning procedures.

    Training sets of different cells overlap, so their scores are correlated: t = d̄ / √(s² (1/n + n_test/n_train)),
    df = n − 1. Nadeau & Bengio 2003, doi:10.1023/A:1024068626366; for repeated cross-validation Bouckaert & Frank
    2004, doi:10.1007/978-3-540-24775-3_3.

    Parameters
    ----------
    differences : (n,) score of a − score of b, one a cell (repeat × fold); average over seeds first, n ≥ 2
    test_train_ratio : test patients / training patients of a cell; K-fold cross-validation: 1 / (K − 1)

    Returns
    -------
    Series with `difference, ci_low, ci_high` (95 %), `ci90_low, ci90_high`, `statistic, p` (two-sided), `df,
    standard_error, effect_size` (d_z = mean / SD). Without any spread the limit is returned: all differences 0 give
    p = 1, all equal but not 0 give statistic ±∞ and p = 0.
    """
    d = _cells(differences, test_train_ratio)
    n, mean, sd = len(d), d.mean(), _spread(d)
    factor = 1 / n + test_train_ratio
    result = _result(mean, sd * np.sqrt(factor), stats.t(n - 1))
    result["df"] = n - 1
    with np.errstate(divide="ignore"):
        result["effect_size"] = 0.0 if mean == 0 else mean / np.float64(sd)
    return result


def bayes_factor(t: float, df: int, n_effective: float) -> float:
    """BF10 of a t statistic: how much likelier it is under a Cauchy(0, 0.707) effect size than under none.

    Rouder et al. 2009 (JZS), doi:10.3758/PBR.16.2.225: the effect size has variance 0.707²/z², z standard normal.
    Correlated cells carry less than n observations: n_effective = 1 / (1/n + n_test/n_train). NaN where t is infinite.
    With so few effective observations BF01 stays under about 3, so it can never support "no effect".
    """
    if not np.isfinite(t):
        return np.nan

    def ratio(z):  # density of t given z over its density under no effect
        inflation = 1 + n_effective * 0.707**2 / z**2
        power = (df + 1) / 2
        return inflation**-0.5 * ((1 + t**2 / df) / (1 + t**2 / (df * inflation))) ** power

    return integrate.quad(lambda z: 2 * stats.norm.pdf(z) * ratio(z), 0, 12, limit=200)[0]


def rope(differences, test_train_ratio: float, margin: float) -> pd.Series:
    """Probabilities that a is worse, practically the same, or better than b: the Bayesian correlated t-test.

    The posterior of the mean difference is Student's t with the location, scale and df of `corrected_t_test`;
    `margin` bounds the region of practical equivalence. Benavoli et al. 2017, JMLR 18(77). Decide above 0.95.

    Returns
    -------
    Series `below` P(Δ < −margin), `within`, `above` P(Δ > margin)
    """
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, but is {margin}")
    d = _cells(differences, test_train_ratio)
    scale = _spread(d) * np.sqrt(1 / len(d) + test_train_ratio)
    if scale == 0:  # all probability on one point
        below, above = float(d.mean() < -margin), float(d.mean() > margin)
    else:
        posterior = stats.t(len(d) - 1, d.mean(), scale)
        below, above = posterior.cdf(-margin), posterior.sf(margin)
    return pd.Series({"below": below, "within": 1 - below - above, "above": above})


def tost(difference: float, standard_error: float, margin: float, df: float = np.inf) -> float:
    """p of two one-sided t-tests: small where the difference is shown to lie within ±margin.

    Schuirmann 1987, doi:10.1007/BF01068419. It is under 0.05 exactly where the 90 % interval of the same standard
    error lies within the margin; with that of `corrected_t_test` it allows for overlapping training sets.

    Parameters
    ----------
    df : degrees of freedom of the standard error; infinite: normal
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, but is {margin}")
    if not standard_error > 0:
        return np.nan
    return float(stats.t.sf((margin - abs(difference)) / standard_error, df))


def _cells(differences, test_train_ratio: float) -> np.ndarray:
    d = np.asarray(differences, float)
    if d.ndim != 1 or len(d) < 2 or not np.isfinite(d).all():
        raise ValueError(f"differences must be at least two finite numbers, one a cell, but are {differences}")
    if not 0 < test_train_ratio < np.inf:
        raise ValueError(f"test_train_ratio must be positive (test patients / training patients): {test_train_ratio}")
    return d


def _spread(d: np.ndarray) -> float:
    """Standard deviation; rounding errors of equal numbers are no spread."""
    return 0.0 if np.ptp(d) <= 1e-12 * np.abs(d).max() else float(d.std(ddof=1))


def _result(difference: float, standard_error: float, distribution) -> pd.Series:
    """Interval and two-sided p of a difference whose standardised form has this distribution."""
    with np.errstate(divide="ignore"):
        statistic = 0.0 if difference == 0 else np.float64(difference) / standard_error
    wide, narrow = (distribution.ppf(q) * standard_error for q in (0.975, 0.95))
    return pd.Series(
        {
            "difference": difference, "ci_low": difference - wide, "ci_high": difference + wide,
            "ci90_low": difference - narrow, "ci90_high": difference + narrow,
            "statistic": statistic, "p": 2 * distribution.sf(abs(statistic)), "standard_error": standard_error,
        }
    )  # fmt: skip


# Trainings that differ in a part and in their seed


def seed_differences(results: pd.DataFrame, by: str, reference: str) -> pd.DataFrame:
    """What else than `reference` does, paired by training seed: mean differences with a t interval (n − 1 degrees).

    The seeds share data and judge, so the interval holds for trainings of this study's images, not for other patients.

    Parameters
    ----------
    results : a row for each training, with columns `by`, `seed` and a metric each, at least two seeds a value of `by`
    by, reference : the column that names what was compared, and the name that all others are compared with

    Returns
    -------
    Columns `by, metric, reference, seeds, difference, ci_low, ci_high` (95 %), `p`.
    """
    table, rows = results.set_index([by, "seed"]), []
    for name in table.index.unique(by).drop(reference):
        d = (table.loc[name] - table.loc[reference]).dropna()
        if len(d) < 2:
            raise ValueError(f"{name} and {reference} share {len(d)} training seeds: an interval needs at least two")
        for metric in d:
            tested = _result(d[metric].mean(), _spread(d[metric].to_numpy()) / len(d) ** 0.5, stats.t(len(d) - 1))
            found = tested[["difference", "ci_low", "ci_high", "p"]]
            rows.append({by: name, "metric": metric, "reference": reference, "seeds": len(d), **found})
    return pd.DataFrame(rows)


# Two fixed classifiers, one test set


def delong_test(labels, a, b) -> pd.Series:
    """DeLong's test of AUC(a) − AUC(b) on the same independent units.

    DeLong et al. 1988, doi:10.2307/2531595; midranks after Sun & Xu 2014, doi:10.1109/LSP.2014.2337313. Use one score
    a patient: images of one patient are not independent (`clustered_auc_test` is for those).

    Parameters
    ----------
    labels : (n,) 1 for AFF, 0 for NFF; at least two of each
    a, b : (n,) scores of the two classifiers, higher for AFF

    Returns
    -------
    Series with `difference, ci_low, ci_high` (95 %), `ci90_low, ci90_high`, `statistic` (z), `p` (two-sided),
    `standard_error, auc_a, auc_b` and `effect_size` (see `auc_effect`). Identical rankings give p = 1.
    """
    return clustered_auc_test(labels, a, b, np.arange(len(labels)))


def clustered_auc_test(labels, a, b, clusters) -> pd.Series:
    """Test of AUC(a) − AUC(b) where several images belong to one patient.

    Obuchowski 1997, Biometrics 53:567, doi:10.2307/2533958. A patient may have images of both classes. With one image
    a patient it is DeLong's test.

    Parameters
    ----------
    labels : (n,) 1 for AFF, 0 for NFF
    a, b : (n,) scores of the two classifiers, higher for AFF; or (S, n) those of S trainings, whose AUCs are averaged
    clusters : (n,) the patient of each image; at least two patients with AFF and two with NFF

    Returns
    -------
    Series as of `delong_test`
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    labels, *scores = _scores(labels, *a, *b)
    a, b = scores[: len(a)], scores[len(a) :]
    _, patient = np.unique(np.asarray(clusters), return_inverse=True)
    if patient.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels, but {len(patient)} clusters")
    m = np.bincount(patient[labels == 1], minlength=patient.max() + 1)  # AFF images of each patient
    n = np.bincount(patient[labels == 0], minlength=patient.max() + 1)  # NFF images
    M, N, I10, I01 = m.sum(), n.sum(), (m > 0).sum(), (n > 0).sum()
    for label, count in (("AFF (label 1)", I10), ("NFF (label 0)", I01)):
        if count < 2:
            raise ValueError(f"an AUC test needs at least two patients with {label}, but there are {count}")

    placements = [[np.mean(V, axis=0) for V in zip(*(_placements(labels, s) for s in c), strict=True)] for c in (a, b)]
    V10, V01 = placements[0][0] - placements[1][0], placements[0][1] - placements[1][1]
    difference = V10.mean()
    X = np.bincount(patient[labels == 1], V10, len(m)) - m * difference
    Y = np.bincount(patient[labels == 0], V01, len(n)) - n * difference
    # Obuchowski's variances and covariances of both AUCs, already contracted to those of their difference.
    S10 = I10 / ((I10 - 1) * M) * (X @ X)
    S01 = I01 / ((I01 - 1) * N) * (Y @ Y)
    S11 = len(m) / (len(m) - 1) * (X @ Y)
    variance = S10 / M + S01 / N + 2 * S11 / (M * N)
    result = _result(difference, np.sqrt(max(variance, 0.0)), stats.norm)
    auc_a, auc_b = (float(V.mean()) for V, _ in placements)
    return pd.concat([result, pd.Series({"auc_a": auc_a, "auc_b": auc_b, "effect_size": auc_effect(auc_a, auc_b)})])


def with_training_seeds(result: pd.Series, differences) -> pd.Series:
    """The result of an AUC test with the spread between training seeds added to its variance.

    An AUC test takes its two networks as given: the same method trained once more with another seed is then found to
    differ from itself too often (`lib.statistics.simulation.p_values_of_seeds`). The AUC differences of S pairs of
    trainings, all
    tested on the same patients, vary with the trainings alone, and their mean has variance s²/S beside the test's own.
    Degrees of freedom by Satterthwaite 1946, doi:10.2307/3002019: SE⁴ (S − 1) / (s²/S)².

    Parameters
    ----------
    result : as of `clustered_auc_test`, on the scores of all seeds
    differences : (S,) AUC(a) − AUC(b) of each seed; with a single one the result stays as it is

    Returns
    -------
    The result with new intervals, `statistic` (t), `p`, `standard_error`, and `df`
    """
    d = np.asarray(differences, float)
    of_seeds = _spread(d) ** 2 / len(d) if len(d) > 1 else 0.0
    if of_seeds == 0:
        return pd.concat([result, pd.Series({"df": np.inf})])
    variance = result.standard_error**2 + of_seeds
    df = variance**2 * (len(d) - 1) / of_seeds**2
    wider = _result(result.difference, np.sqrt(variance), stats.t(df))
    return pd.concat([wider, result.drop(wider.index, errors="ignore"), pd.Series({"df": df})])


def auc_effect(auc_a: float, auc_b: float) -> float:
    """Difference of d′ = √2 Φ⁻¹(AUC): how many standard deviations further apart a holds the classes than b does.

    NaN where an AUC is 0 or 1, whose d′ is infinite.
    """
    effect = np.sqrt(2) * (stats.norm.ppf(auc_a) - stats.norm.ppf(auc_b))
    return float(effect) if np.isfinite(effect) else np.nan


def _scores(labels, *scores) -> list[np.ndarray]:
    labels, *scores = (np.asarray(values) for values in (labels, *scores))
    if any(values.ndim != 1 or len(values) != len(labels) for values in (labels, *scores)):
        raise ValueError(f"labels and scores must be of one length, but are {[len(v) for v in (labels, *scores)]}")
    if not set(np.unique(labels)) <= {0, 1}:
        raise ValueError(f"labels must be 1 (AFF) or 0 (NFF), but are {np.unique(labels)[:5]}")
    scores = [values.astype(float) for values in scores]
    if not all(np.isfinite(values).all() for values in scores):
        raise ValueError("scores must be finite")
    return [labels.astype(int), *scores]


def _placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V10 of each positive: share of negatives below it; V01 of each negative: share of positives above it."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    ranks = stats.rankdata(scores)
    V10 = (ranks[labels == 1] - stats.rankdata(positive)) / len(negative)
    V01 = 1 - (ranks[labels == 0] - stats.rankdata(negative)) / len(positive)
    return V10, V01


def mcnemar_test(right_a, right_b) -> pd.Series:
    """Exact McNemar test of two classifiers' decisions on the same independent units: one decision a patient.

    McNemar 1947, doi:10.1007/BF02295996; p = 2 · Bin(min(b, c); b + c, ½), no discordant unit: 1.

    Parameters
    ----------
    right_a, right_b : (n,) bool, whether the decision on each unit was right

    Returns
    -------
    Series `difference` of accuracies (a − b), `statistic` (units that a alone gets right, b above), `p`
    """
    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return pd.Series({"difference": (only_a - only_b) / len(a), "statistic": only_a, "p": p})


def clustered_mcnemar_test(right_a, right_b, clusters) -> pd.Series:
    """Durkalski's test of two classifiers' decisions where several images belong to one patient.

    Durkalski et al. 2003, doi:10.1002/sim.1438: with b_k and c_k of the n_k images of patient k that a alone and b
    alone gets right, χ² = (Σ (b_k − c_k) / n_k)² / Σ ((b_k − c_k) / n_k)², one degree of freedom.

    Parameters
    ----------
    right_a, right_b : (n,) bool, whether the decision on each image was right
    clusters : (n,) the patient of each image

    Returns
    -------
    Series as of `mcnemar_test`; `difference` is the mean over patients, `statistic` χ²
    """
    _, patient = np.unique(np.asarray(clusters), return_inverse=True)
    balance = np.asarray(right_a, int) - np.asarray(right_b, int)
    d = np.bincount(patient, balance) / np.bincount(patient)
    chi2 = d.sum() ** 2 / (d @ d) if d.any() else 0.0
    return pd.Series({"difference": d.mean(), "statistic": chi2, "p": stats.chi2.sf(chi2, 1)})


def patient_bootstrap(
    labels, a, b, thresholds_a, thresholds_b, patients, draws: int = 10_000, seed: int = 0, recalibrated=None
) -> pd.DataFrame:
    """Differences of every metric of `lib.statistics.metrics.evaluate`, with intervals from resampled patients.

    Patients are drawn with replacement within their class, and both conditions see the same draw. A metric is computed
    seed by seed and averaged. Another training of the same would come out otherwise too: where there are S seeds, each
    draw adds s/√S times a Student t of S − 1 degrees, with s the standard deviation of the seeds' differences. (Drawing
    the few seeds with replacement shows only (S − 1)/S of that variance, and none of what a small s leaves unknown.)
    With one seed everything is conditional on that one training.

    Parameters
    ----------
    labels : (n,) 1 for AFF, 0 for NFF, one a patient; both must occur
    a, b : (S, n) probabilities of S classifier seeds; all images of a patient go into that patient's mean beforehand
    thresholds_a, thresholds_b : (S,) decision thresholds of those classifiers
    patients : (n,) patient of each column; a patient with both labels has two and is drawn as one
    draws : number of bootstrap samples; the bias correction of 2,000 still moves a p of 0.7 by 0.05
    recalibrated : of a and of b, (S, n) probabilities that the Brier score is taken of; by default those above

    Returns
    -------
    DataFrame, one row a metric: `difference`, bias-corrected and accelerated intervals `ci_low, ci_high` (95 %) and
    `ci90_low, ci90_high` (`bca_quantiles`), `standard_error`, `statistic` (difference / standard error, descriptive),
    two-sided `p` (`bca_p`), and `effect_size`: Cohen's h for proportions, else NaN.
    """
    labels = _scores(labels)[0]
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    if a.shape != b.shape or a.shape[1] != len(labels):
        raise ValueError(f"probabilities {a.shape} and {b.shape} do not fit each other and {len(labels)} patients")
    if len(set(labels)) < 2:
        raise ValueError("the bootstrap needs AFF and NFF patients")
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(len(labels)), _resample(labels, np.asarray(patients), draws, rng)])
    unknown = rng.standard_t(len(a) - 1, draws) / np.sqrt(len(a)) if len(a) > 1 else np.zeros(draws)

    certain = (a, b) if recalibrated is None else tuple(map(np.atleast_2d, recalibrated))

    def by_seed(weights):  # of a and of b: metric → (S, samples)
        scored = []
        for probabilities, thresholds, calibrated in zip((a, b), (thresholds_a, thresholds_b), certain, strict=True):
            rows = zip(probabilities, thresholds, calibrated, strict=True)
            scores = [weighted_metrics(labels, p, t, weights, c) for p, t, c in rows]
            scored.append({metric: np.stack([s[metric] for s in scores]) for metric in scores[0]})
        return scored

    values, left_out = by_seed(weights), by_seed(_left_out(labels, np.asarray(patients)))
    stratum = _kinds(labels, np.asarray(patients))[_with_company(labels, np.asarray(patients))]

    rows = {}
    for metric in values[0]:
        score_a, score_b = (float(v[metric][:, 0].mean()) for v in values)
        differences = values[0][metric] - values[1][metric]
        difference, drawn, of_seeds = score_a - score_b, differences[:, 1:].mean(0), _spread(differences[:, 0])
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
    """Bias correction z₀ and acceleration of a bootstrap. Efron 1987, doi:10.1080/01621459.1987.10478410.

    Parameters
    ----------
    observed : the statistic
    drawn : (B,) the same of B bootstrap samples
    left_out : for each stratum that was resampled on its own, the statistic without each of its units
    """
    if np.ptp(drawn) == 0:
        return 0.0, 0.0
    below = ((drawn < observed).mean() + (drawn <= observed).mean()) / 2
    z0 = stats.norm.ppf(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    influence = np.concatenate([(len(v) - 1) / len(v) * (v.mean() - v) for v in left_out])
    scale = (influence**2).sum() ** 1.5
    return float(z0), float((influence**3).sum() / (6 * scale)) if scale else 0.0


def bca_quantiles(drawn: np.ndarray, z0: float, acceleration: float, levels: Sequence[float]) -> np.ndarray:
    """Bounds of the bias-corrected and accelerated bootstrap at these levels (0.025 and 0.975: a 95 % interval)."""
    z = z0 + stats.norm.ppf(levels)
    return np.quantile(drawn, stats.norm.cdf(z0 + z / (1 - acceleration * z)))


def bca_p(drawn: np.ndarray, z0: float, acceleration: float) -> float:
    """Two-sided p of the hypothesis 0: twice the smallest level whose one-sided bound excludes it (ties do not)."""

    def level(share):  # which level's bound lies at this share of the draws
        if share in (0, 1):
            return share
        w = stats.norm.ppf(share) - z0
        return stats.norm.cdf(w / (1 + acceleration * w) - z0)

    B = len(drawn)
    up_to, under = (1 + (drawn <= 0).sum()) / (B + 1), (drawn < 0).sum() / (B + 1)
    return float(min(1.0, 2 * level(up_to), 2 * (1 - level(under))))


def _resample(labels: np.ndarray, patients: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, n) how often each column occurs when patients are drawn with replacement within their class."""
    _, patient = np.unique(patients, return_inverse=True)
    kind = _kinds(labels, patients)
    counts = np.zeros((draws, len(kind)))
    for stratum in np.unique(kind):
        members = np.flatnonzero(kind == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return counts[:, patient]


def _kinds(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Stratum of each patient, in sorted order: 1 with NFF, 2 with AFF, 3 with both."""
    _, patient = np.unique(patients, return_inverse=True)
    kind = np.zeros(patient.max() + 1, int)
    np.bitwise_or.at(kind, patient, labels + 1)
    return kind


def _with_company(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Which patients, in sorted order, are not alone in their stratum: without those that are, a class may be empty."""
    kind = _kinds(labels, patients)
    return np.bincount(kind, minlength=4)[kind] > 1


def _left_out(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """(patients, n) weights of the samples that lack one patient each."""
    _, patient = np.unique(patients, return_inverse=True)
    return 1.0 - np.equal.outer(np.flatnonzero(_with_company(labels, patients)), patient)


def weighted_metrics(
    labels, probabilities, threshold: float, weights: np.ndarray, recalibrated=None
) -> dict[str, np.ndarray]:
    """`lib.statistics.metrics.evaluate` of many weighted samples at once.

    Parameters
    ----------
    labels, probabilities, threshold : as of `lib.statistics.metrics.evaluate`
    weights : (B, n) how often each unit occurs in each of B samples; both classes must occur in each
    recalibrated : (n,) probabilities that the Brier score is taken of; by default the ones above

    Returns
    -------
    dict of the same metrics, each (B,), equal to `evaluate` on the repeated rows
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


# Two generators, one set of real images


def kid(X, Y) -> float:
    """Kernel inception distance: unbiased MMD² with k(x, y) = (xᵀy/d + 1)³. It may be negative.

    Bińkowski et al. 2018, arXiv:1801.01401, on all pairs instead of random subsets.

    Parameters
    ----------
    X, Y : (n, d) and (m, d) features of two image sets, n, m ≥ 2
    """
    X, Y = _features(X, Y)
    return float(_mmd(*(K.sum() for K in _kernels(X, Y)), len(X), len(Y)))


def kid_jackknife(X, Y, x_patients, y_patients) -> pd.Series:
    """KID with a 95 % interval from leaving out one patient at a time.

    A bootstrap would draw rows twice, and duplicates bias MMD upward. A patient of both sets leaves both at once.

    Parameters
    ----------
    X, Y : (n, d) and (m, d) features
    x_patients, y_patients : (n,) and (m,) the patient of each image; of a synthetic one, its source's patient

    Returns
    -------
    Series `value, ci_low, ci_high, standard_error, patients`
    """
    value, left_out = _leave_one_out(*_features(X, Y), x_patients, y_patients)
    standard_error = _jackknife_error(value, left_out)
    wide = stats.norm.ppf(0.975) * standard_error
    return pd.Series(
        {"value": value, "ci_low": value - wide, "ci_high": value + wide, "standard_error": standard_error,
         "patients": len(left_out)}
    )  # fmt: skip


def kid_permutation_test(
    a, b, reference, patients, permutations: int = 9999, seed: int = 0, reference_patients=None
) -> pd.Series:
    """Does a's output lie closer to real images than b's? T = KID(a, reference) − KID(b, reference).

    Row i of a and of b was made from the same source image. Under the null hypothesis a and b are exchangeable, so
    they are swapped for a random half of the source patients, all images of a patient together. The p-value is exact
    for these two trained generators; it says nothing of another training of the same methods.

    Parameters
    ----------
    a, b : (n, d) features of the two generators' images
    reference : (m, d) features of held-out real images
    patients : (n,) the patient of each source image
    reference_patients : (m,) the patient of each real image, for the interval; by default one patient an image

    Returns
    -------
    Series `difference` (negative: a is closer), `ci_low, ci_high` (95 %, jackknife over source and reference
    patients), `statistic` (T), `p` = (1 + #{|T*| ≥ |T|}) / (1 + permutations), `standard_error, n, patients`
    """
    a, reference = _features(a, reference)
    b, _ = _features(b, reference)
    if a.shape != b.shape or len(patients) != len(a):
        raise ValueError(f"a {a.shape}, b {b.shape} and {len(patients)} patients must be of the same source images")
    if reference_patients is None:
        reference_patients = [f"reference {i}" for i in range(len(reference))]
    kid_a, left_out_a = _leave_one_out(a, reference, patients, reference_patients)
    kid_b, left_out_b = _leave_one_out(b, reference, patients, reference_patients)
    T = kid_a - kid_b

    # Swapping is a sign per image, z = ±1. Of a pair of images i, j the difference k(a*ᵢ, a*ⱼ) − k(b*ᵢ, b*ⱼ) is linear
    # in the signs, zᵢ (kaa − kbb + kab − kba)ᵢⱼ / 2 + the same of j, so that T* = Σ zᵢ wᵢ.
    n = len(a)
    paired = _kernel(a, a) - _kernel(b, b) + _kernel(a, b) - _kernel(b, a)
    np.fill_diagonal(paired, 0)
    w = paired.sum(1) / (n * (n - 1)) - 2 * (_kernel(a, reference) - _kernel(b, reference)).mean(1) / n
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    w = np.bincount(patient, w)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (permutations, len(w)))
    extreme = np.abs(signs @ w) >= abs(T) * (1 - 1e-9) - 1e-15

    standard_error = _jackknife_error(T, left_out_a - left_out_b)
    wide = stats.norm.ppf(0.975) * standard_error
    return pd.Series(
        {"difference": T, "ci_low": T - wide, "ci_high": T + wide, "statistic": T,
         "p": (1 + extreme.sum()) / (1 + permutations), "standard_error": standard_error, "n": n, "patients": len(w)}
    )  # fmt: skip


def _features(X, Y) -> tuple[np.ndarray, np.ndarray]:
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or min(len(X), len(Y)) < 2:
        raise ValueError(f"KID needs (n, d) and (m, d) features of at least two images each, not {X.shape}, {Y.shape}")
    return X, Y


def _kernel(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return (X @ Y.T / X.shape[1] + 1) ** 3


def _mmd(xx, yy, xy, n, m):
    """Unbiased MMD² from sums of the kernel over pairs of different images of X, of Y, and of one of each."""
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _kernels(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernel within X, within Y (of an image with itself: 0), and between them."""
    Kxx, Kyy, Kxy = _kernel(X, X), _kernel(Y, Y), _kernel(X, Y)
    np.fill_diagonal(Kxx, 0)
    np.fill_diagonal(Kyy, 0)
    return Kxx, Kyy, Kxy


def _leave_one_out(X, Y, x_patients, y_patients) -> tuple[float, np.ndarray]:
    """KID, and KID without each patient in turn (patients in sorted order).

    The latter are missing where only one image would be left of a set: so few patients allow no interval.
    """
    if len(x_patients) != len(X) or len(y_patients) != len(Y):
        raise ValueError(f"{len(X)} and {len(Y)} images, but patients of {len(x_patients)} and {len(y_patients)}")
    patients, index = np.unique([*map(str, x_patients), *map(str, y_patients)], return_inverse=True)
    of_x, of_y = (np.equal.outer(np.arange(len(patients)), i).astype(float) for i in np.split(index, [len(X)]))
    n, m = len(X) - of_x.sum(1), len(Y) - of_y.sum(1)
    if min(n.min(), m.min()) < 2:
        return kid(X, Y), np.full(len(patients), np.nan)
    Kxx, Kyy, Kxy = _kernels(X, Y)
    xx = Kxx.sum() - 2 * of_x @ Kxx.sum(1) + ((of_x @ Kxx) * of_x).sum(1)
    yy = Kyy.sum() - 2 * of_y @ Kyy.sum(1) + ((of_y @ Kyy) * of_y).sum(1)
    xy = Kxy.sum() - of_x @ Kxy.sum(1) - of_y @ Kxy.sum(0) + ((of_x @ Kxy) * of_y).sum(1)
    return kid(X, Y), _mmd(xx, yy, xy, n, m)


def _jackknife_error(value: float, left_out: np.ndarray) -> float:
    return float(np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - value) ** 2).sum()))


# Several hypotheses


def holm(p) -> np.ndarray:
    """Holm-adjusted p-values; missing ones stay missing and do not count."""
    from pingouin import multicomp

    return multicomp(np.asarray(p, float), method="holm")[1]
