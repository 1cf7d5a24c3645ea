"""Tests of paired differences between classifiers, and the adjustment for several of them.

First tests of learning procedures over several folds, then of fixed classifiers on one test set. Every difference is
a − b: a is the method in question, b its reference. The unit of inference is the patient. Metrics other than the AUROC
are tested in `lib.statistics.bootstrap`, generators in `lib.statistics.kid`.
"""

import numpy as np
import pandas as pd
from scipy import integrate, stats


def corrected_t_test(differences, test_train_ratio: float) -> pd.Series:
    """Test paired differences between two learning procedures: corrected resampled t-test.

    Training sets of different folds overlap, so their scores are correlated: t = d̄ / √(s² (1/n + n_test/n_train)),
    df = n − 1. Nadeau & Bengio 2003, doi:10.1023/A:1024068626366; for repeated cross-validation Bouckaert & Frank
    2004, doi:10.1007/978-3-540-24775-3_3.

    Parameters
    ----------
    differences : (n,) score of a − score of b, one a fold of each repeat, averaged over seeds; n ≥ 2
    test_train_ratio : test patients / training patients of a fold; K-fold cross-validation: 1 / (K − 1)

    Returns
    -------
    Series `difference, ci_low, ci_high` (95 %), `ci90_low, ci90_high, statistic, p` (two-sided), `standard_error, df,
    effect_size` (d_z = mean / SD). Without spread, differences of 0 give p = 1, others statistic ±∞ and p = 0.
    """
    d = np.asarray(differences, float)
    if d.ndim != 1 or len(d) < 2 or not np.isfinite(d).all():
        raise ValueError(f"differences must be at least two finite numbers, one a fold, but are {differences}")
    if not 0 < test_train_ratio < np.inf:
        raise ValueError(f"test_train_ratio must be positive (test patients / training patients): {test_train_ratio}")
    n, mean, sd = len(d), d.mean(), spread(d)
    tested = difference_test(mean, sd * np.sqrt(1 / n + test_train_ratio), stats.t(n - 1))
    tested["df"] = n - 1
    with np.errstate(divide="ignore"):
        tested["effect_size"] = 0.0 if mean == 0 else mean / np.float64(sd)
    return tested


def bayes_factor(t: float, df: int, n_effective: float) -> float:
    """Return BF10 of a t statistic: a Cauchy(0, 0.707) effect size against none.

    Rouder et al. 2009 (JZS), doi:10.3758/PBR.16.2.225: the effect size has variance 0.707²/z², z standard normal.
    Correlated folds carry less than n observations: n_effective = 1 / (1/n + n_test/n_train). NaN where t is infinite.
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
    """Return the probabilities that a is worse, practically the same, or better than b: `below, within, above` ±margin.

    The Bayesian correlated t-test: the posterior of the mean difference is Student's t with the location, scale and df
    of `corrected_t_test`. Benavoli et al. 2017, JMLR 18(77). Decide above 0.95.
    """
    tested = corrected_t_test(differences, test_train_ratio)
    if tested.standard_error == 0:  # all probability on one point
        below, above = float(tested.difference < -margin), float(tested.difference > margin)
    else:
        posterior = stats.t(tested.df, tested.difference, tested.standard_error)
        below, above = posterior.cdf(-margin), posterior.sf(margin)
    return pd.Series({"below": below, "within": 1 - below - above, "above": above})


def tost(difference: float, standard_error: float, margin: float, df: float = np.inf) -> float:
    """Return p of two one-sided t-tests: small where the difference lies within ±margin.

    Schuirmann 1987, doi:10.1007/BF01068419. It is under 0.05 exactly where the 90 % interval of the same standard
    error lies within the margin. Infinite degrees of freedom: normal.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, but is {margin}")
    if not standard_error > 0:
        return np.nan
    return float(stats.t.sf((margin - abs(difference)) / standard_error, df))


def spread(d: np.ndarray) -> float:
    """Return the standard deviation; rounding errors of equal numbers are no spread."""
    return 0.0 if np.ptp(d) <= 1e-12 * np.abs(d).max() else float(d.std(ddof=1))


def difference_test(difference: float, standard_error: float, distribution) -> pd.Series:
    """Return interval and two-sided p of a difference whose standardised form has this distribution."""
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


def seed_differences(results: pd.DataFrame, by: str, reference: str) -> pd.DataFrame:
    """Compare what was trained with one part changed, paired by training seed: mean differences with a t interval.

    The seeds share data and judge, so the interval holds for trainings of this study's images, not for other patients.

    Parameters
    ----------
    results : a row a training: column `by` (what was changed), `seed` and metrics; two seeds or more of each change
    reference : the change that all others are compared with

    Returns
    -------
    DataFrame `by, metric, reference, seeds, difference, ci_low, ci_high` (95 %), `p`
    """
    table, rows = results.set_index([by, "seed"]), []
    for name in table.index.unique(by).drop(reference):
        d = (table.loc[name] - table.loc[reference]).dropna()
        if len(d) < 2:
            raise ValueError(f"{name} and {reference} share {len(d)} training seeds: an interval needs at least two")
        for metric in d:
            error = spread(d[metric].to_numpy()) / len(d) ** 0.5
            tested = difference_test(d[metric].mean(), error, stats.t(len(d) - 1))
            found = tested[["difference", "ci_low", "ci_high", "p"]]
            rows.append({by: name, "metric": metric, "reference": reference, "seeds": len(d), **found})
    return pd.DataFrame(rows)


def delong_test(labels, a, b) -> pd.Series:
    """Test AUC(a) − AUC(b) on the same independent units, such as patients: DeLong's test.

    DeLong et al. 1988, doi:10.2307/2531595; midranks after Sun & Xu 2014, doi:10.1109/LSP.2014.2337313. Arguments and
    results are those of `clustered_auc_test`, which is for images: those of one patient are not independent.
    """
    return clustered_auc_test(labels, a, b, np.arange(len(labels)))


def clustered_auc_test(labels, a, b, clusters) -> pd.Series:
    """Test AUC(a) − AUC(b) where several images belong to one patient.

    Obuchowski 1997, Biometrics 53:567, doi:10.2307/2533958. A patient may have images of both classes. With one image
    a patient it is DeLong's test.

    Parameters
    ----------
    labels : (n,) 1 for AFF, 0 for NFF
    a, b : (n,) scores of the two classifiers, higher for AFF; or (S, n) those of S trainings, whose AUCs are averaged
    clusters : (n,) the patient of each image; at least two patients with AFF and two with NFF

    Returns
    -------
    Series `difference, ci_low, ci_high` (95 %), `ci90_low, ci90_high, statistic` (z), `p` (two-sided),
    `standard_error, auc_a, auc_b, effect_size`: the difference of d′ = √2 Φ⁻¹(AUC), by how many standard deviations a
    classifier holds the classes apart; NaN where an AUC is 0 or 1. Identical rankings give p = 1.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    labels, *scores = _checked_scores(labels, *a, *b)
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
    tested = difference_test(difference, np.sqrt(max(variance, 0.0)), stats.norm)
    auc_a, auc_b = (float(V.mean()) for V, _ in placements)
    effect = np.sqrt(2) * (stats.norm.ppf(auc_a) - stats.norm.ppf(auc_b))
    effect = effect if np.isfinite(effect) else np.nan
    return pd.concat([tested, pd.Series({"auc_a": auc_a, "auc_b": auc_b, "effect_size": effect})])


def auc_test_of_seeds(labels, a, b, clusters) -> tuple[pd.Series, pd.Series]:
    """Return `clustered_auc_test` of (S, n) scores, and the same with the spread between their training seeds."""
    alone = clustered_auc_test(labels, a, b, clusters)
    of_seeds = [clustered_auc_test(labels, *pair, clusters).difference for pair in zip(a, b, strict=True)]
    return alone, with_training_seeds(alone, of_seeds)


def with_training_seeds(tested: pd.Series, differences) -> pd.Series:
    """Add the spread between training seeds to the variance of an AUC test, `tested` on the scores of all seeds.

    An AUC test takes its two networks as given: the same method trained once more with another seed is then found to
    differ from itself too often (`lib.statistics.simulation.p_values_of_seeds`). `differences` are AUC(a) − AUC(b) of
    S pairs of trainings on the same patients. They vary with the trainings alone; their mean adds the variance s²/S.
    Degrees of freedom by Satterthwaite 1946, doi:10.2307/3002019: SE⁴ (S − 1) / (s²/S)². One seed changes nothing.
    """
    d = np.asarray(differences, float)
    of_seeds = spread(d) ** 2 / len(d) if len(d) > 1 else 0.0
    if of_seeds == 0:
        return pd.concat([tested, pd.Series({"df": np.inf})])
    variance = tested.standard_error**2 + of_seeds
    df = variance**2 * (len(d) - 1) / of_seeds**2
    wider = difference_test(tested.difference, np.sqrt(variance), stats.t(df))
    return pd.concat([wider, tested.drop(wider.index, errors="ignore"), pd.Series({"df": df})])


def _checked_scores(labels, *scores) -> list[np.ndarray]:
    """Return labels and scores as arrays; ValueError where they are of several lengths, no labels, or not finite."""
    labels, *scores = (np.asarray(values) for values in (labels, *scores))
    if any(values.ndim != 1 or len(values) != len(labels) for values in (labels, *scores)):
        raise ValueError(f"labels and scores must be of one length, but are {[len(v) for v in (labels, *scores)]}")
    if not set(np.unique(labels)) <= {0, 1}:
        raise ValueError(f"labels must be 1 (AFF) or 0 (NFF), but are {np.unique(labels)[:5]}")
    scores = [values.astype(float) for values in scores]
    if not all(np.isfinite(values).all() for values in scores):
        bad = next(values[~np.isfinite(values)][0] for values in scores if not np.isfinite(values).all())
        raise ValueError(f"scores must be finite, but one is {bad}")
    return [labels.astype(int), *scores]


def _placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return V10 of each positive, the share of negatives below it, and V01 of each negative, of positives above."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    ranks = stats.rankdata(scores)
    V10 = (ranks[labels == 1] - stats.rankdata(positive)) / len(negative)
    V01 = 1 - (ranks[labels == 0] - stats.rankdata(negative)) / len(positive)
    return V10, V01


def mcnemar_test(right_a, right_b) -> pd.Series:
    """Test two classifiers' decisions on the same independent units, one a patient: exact McNemar test.

    McNemar 1947, doi:10.1007/BF02295996; p = 2 · Bin(min(b, c); b + c, ½), no discordant unit: 1. `right_a, right_b`:
    (n,) bool. Returns `difference` of accuracies (a − b), `statistic` (units that a alone gets right, b above), `p`.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)
    return pd.Series({"difference": (only_a - only_b) / len(a), "statistic": only_a, "p": p})


def clustered_mcnemar_test(right_a, right_b, clusters) -> pd.Series:
    """Test two classifiers' decisions where several images belong to one patient: Durkalski's test.

    Durkalski et al. 2003, doi:10.1002/sim.1438: with b_k and c_k of the n_k images of patient k that a alone and b
    alone gets right, χ² = (Σ (b_k − c_k) / n_k)² / Σ ((b_k − c_k) / n_k)², one degree of freedom. Returns `difference`
    (mean over patients), `statistic` (χ²), `p`.
    """
    _, patient = np.unique(np.asarray(clusters), return_inverse=True)
    balance = np.asarray(right_a, int) - np.asarray(right_b, int)
    d = np.bincount(patient, balance) / np.bincount(patient)
    chi2 = d.sum() ** 2 / (d @ d) if d.any() else 0.0
    return pd.Series({"difference": d.mean(), "statistic": chi2, "p": stats.chi2.sf(chi2, 1)})


def holm(p) -> np.ndarray:
    """Return Holm-adjusted p-values; missing ones stay missing and do not count."""
    from pingouin import multicomp

    return multicomp(np.asarray(p, float), method="holm")[1]
