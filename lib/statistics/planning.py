"""Planning: how many repeats, folds and patients a difference needs, and what they cost.

The formulas are those of the corrected t-test, of its two one-sided tests and of a z-test, read the other way round.
Power is that of a difference worth finding, chosen beforehand: that of the observed difference is its p-value in other
words (Hoenig & Heisey 2001, doi:10.1198/000313001300339897).

effect, spread : true mean δ and standard deviation σ of the folds' paired differences
n : number of folds, those of all repeats; infinite: the ceiling that no number of repeats passes
ratio : test patients / training patients of a fold (`ratio_of_fold`)
alpha : of a single comparison; Holm's first step has 0.05 / the number of comparisons
"""

from collections.abc import Iterable
from functools import cache

import numpy as np
import pandas as pd
from scipy import optimize, stats

POWER = 0.8  # that a plan is to have
DESIGNS = ((1, 5), (3, 5), (5, 5), (10, 5), (1, 10), (3, 10), (5, 10), (10, 10))  # repeats × folds


def ratio_of_fold(folds: int, validation_share: float) -> float:
    """Return test patients / training patients of K-fold cross-validation: 1 / ((K − 1) (1 − share)).

    The share is that of the patients who validate, among those who are not tested.
    """
    return 1 / ((folds - 1) * (1 - validation_share))


def power(effect: float, spread: float, n: float, ratio: float, alpha: float = 0.05) -> float:
    """Return the power of the two-sided corrected t-test: noncentral t with λ = δ / (σ √(1/n + n_test/n_train))."""
    return _power(effect / (spread * np.sqrt(1 / n + ratio)), n - 1, alpha)


def _power(shift: float, df: float, alpha: float) -> float:
    bound = stats.t(df).ppf(1 - alpha / 2) * _observed_spread(df)
    return float((stats.norm.cdf(shift - bound) + stats.norm.cdf(-shift - bound)).mean())


@cache
def _observed_spread(df: float) -> np.ndarray:
    """Return quantiles of a standard deviation of true value 1 with df degrees; scipy's noncentral t overflows."""
    if np.isinf(df):
        return np.ones(1)
    levels = (np.arange(4000) + 0.5) / 4000
    return np.sqrt(stats.chi2(df).ppf(levels) / df)


def detectable(spread: float, n: float, ratio: float, alpha: float = 0.05) -> float:
    """Return the smallest true difference that the corrected t-test finds with 80 % power."""
    return spread * np.sqrt(1 / n + ratio) * errors_to_detect(n - 1, alpha)


def errors_to_detect(df: float, alpha: float = 0.05) -> float:
    """Return the true difference, in standard errors, that a t-test finds with 80 % power; infinite df: a z-test."""
    return optimize.brentq(lambda shift: _power(shift, df, alpha) - POWER, 1e-6, 1e5)


def power_of_equivalence(margin: float, spread: float, n: float, ratio: float) -> float:
    """Return the probability to show two equal methods equivalent: P(90 % interval within ±margin | δ = 0).

    d̄ is normal and s² its own multiple of χ²: the mean of P(|d̄| < margin − t s) over the distribution of s.
    """
    scale = spread * np.sqrt(1 / n + ratio)
    s = scale * _observed_spread(n - 1)
    room = np.maximum(margin - stats.t(n - 1).ppf(0.95) * s, 0)
    return float((2 * stats.norm.cdf(room / scale) - 1).mean())


def designs(
    effect: float, spread: float, folds: float, margin: float, hours: float, comparisons: int, validation_share: float
) -> pd.DataFrame:
    """Say what each of `DESIGNS` could find, and what it would cost.

    Parameters
    ----------
    effect : a true difference worth finding, never the one observed
    spread, folds : of `pilot_spread`. One of K folds is taken to spread √(K / folds) times as much: all of the spread
        is put down to the sampling of test patients, which makes designs comparable
    margin : differences within ±margin are of no consequence
    hours : of the generators and all trials of one fold (`hours_of_fold`)
    comparisons : that are adjusted together, by Holm

    Returns
    -------
    DataFrame indexed by design ("3 × 5"): `folds` of all repeats, `spread, power` (at 5 %), `power_holm` (at Holm's
    first step), `detectable` (with 80 % power at 5 %), `equivalence` (`power_of_equivalence`), `hours`
    """
    rows = {}
    for repeats, K in DESIGNS:
        n, ratio, sigma = repeats * K, ratio_of_fold(K, validation_share), spread * np.sqrt(K / folds)
        rows[f"{repeats} × {K}"] = {
            "folds": n,
            "spread": sigma,
            "power": power(effect, sigma, n, ratio),
            "power_holm": power(effect, sigma, n, ratio, 0.05 / comparisons),
            "detectable": detectable(sigma, n, ratio),
            "equivalence": power_of_equivalence(margin, sigma, n, ratio),
            "hours": n * hours,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"folds": int}).rename_axis("repeats × folds")


def patients_needed(
    patients: int, standard_error: float, difference: float, margin: float, alpha: float = 0.05
) -> dict[str, float]:
    """Return the test patients with which a hold-out would decide, at 80 % power, if the standard error falls with √n.

    `difference` is the one worth finding, two-sided at `alpha`; `margin` is to be excluded where there is none, by two
    one-sided tests at 5 %. The dict has a number of patients for each: `difference, equivalence`.
    """
    found = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) / abs(difference) if difference else np.inf
    equal = (stats.norm.ppf(0.95) + stats.norm.ppf((1 + POWER) / 2)) / margin
    needed = {"difference": found, "equivalence": equal}
    return {name: patients * (standard_error * errors) ** 2 for name, errors in needed.items()}


def hours_of_fold(manifest: dict, notebooks: Iterable[str], metrics: pd.DataFrame, folds: int) -> float:
    """Return the hours of a fold of this run: its share of the `notebooks` that make synthetic images, and its trials.

    A notebook that went on from checkpoints counts what was left. Of `metrics`, "seconds" is used.
    """
    took = manifest.get("notebooks", {})
    generators = sum(took.get(name, {}).get("seconds", 0.0) for name in notebooks)
    return (generators + metrics.value[metrics.metric == "seconds"].sum()) / folds / 3600


def pilot_spread(metrics: pd.DataFrame, splits: pd.DataFrame, equal: pd.DataFrame) -> tuple[float, float, str]:
    """Return the spread of paired AUROC differences to plan with, from this run as the pilot.

    Several folds: the largest standard deviation of a declared difference between folds, seeds averaged. One hold-out:
    its largest standard error. That is a floor, since folds also differ by what they train on.

    Returns
    -------
    spread (NaN where `equal`, of `lib.statistics.comparisons.equivalence`, has no declared comparison), the number of
    folds it belongs to (patients / test patients of a fold), and where it comes from, in words
    """
    compared = equal[equal.question != "control"]
    tested = splits[splits.part == "test"].groupby(["repeat", "fold"]).patient_id.nunique()
    folds = float(splits.patient_id.nunique() / tested.mean())
    if len(tested) == 1:
        return float(compared.standard_error.max()), folds, "from the standard error of one hold-out: a floor"
    aurocs = metrics[metrics.metric == "auroc"].groupby(["condition", "repeat", "fold"]).value.mean()
    spreads = [(aurocs[row.a] - aurocs[row.b]).std() for row in compared.itertuples()]
    return float(max(spreads, default=np.nan)), folds, "the largest of these folds"


def validation_share(splits: pd.DataFrame) -> float:
    """Return the share of the patients that validate among those that validate or train."""
    counts = splits.part.value_counts()
    return float(counts["validation"] / (counts["validation"] + counts["train"]))
