"""Planning: how many repeats, folds and patients a difference needs, and what they cost.

The formulas are those of the corrected t-test, of its two one-sided tests and of a z-test, read the other way round.
Power is that of a difference worth finding, chosen beforehand: that of the observed difference is its p-value in other
words (Hoenig & Heisey 2001, doi:10.1198/000313001300339897).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from scipy import optimize, stats

from lib.statistics.comparisons import DECLARED

DESIGNS = ((1, 5), (3, 5), (5, 5), (10, 5), (1, 10), (3, 10), (5, 10), (10, 10))  # repeats × folds
COMPARISONS = DECLARED["thesis"]  # Holm's first step tests at 0.05 / COMPARISONS


def ratio_of_fold(folds: int, validation_share: float = 0.0) -> float:
    """Test patients / training patients of K-fold cross-validation: 1 / ((K − 1) (1 − share)).

    Parameters
    ----------
    validation_share : of the patients that are not tested, those that validate and so do not train
    """
    return 1 / ((folds - 1) * (1 - validation_share))


def power(effect: float, spread: float, cells: float, ratio: float, alpha: float = 0.05) -> float:
    """Power of the two-sided corrected t-test: noncentral t with λ = δ / (σ √(1/n + n_test/n_train)).

    Parameters
    ----------
    effect, spread : true mean δ and standard deviation σ of the cells' paired differences
    cells : n, repeats × folds; infinite: the ceiling that no number of repeats passes
    ratio : test patients / training patients of a cell (`ratio_of_fold`)
    alpha : of a single comparison; Holm's first step has 0.05 / `COMPARISONS`
    """
    return _power(effect / (spread * np.sqrt(1 / cells + ratio)), cells - 1, alpha)


def _power(shift: float, df: float, alpha: float) -> float:
    bound = stats.t(df).ppf(1 - alpha / 2) * _observed_spread(df)
    return float((stats.norm.cdf(shift - bound) + stats.norm.cdf(-shift - bound)).mean())


@cache
def _observed_spread(df: float) -> np.ndarray:
    """Quantiles of a standard deviation of true value 1 with df degrees; scipy's noncentral t overflows."""
    if np.isinf(df):
        return np.ones(1)
    levels = (np.arange(4000) + 0.5) / 4000
    return np.sqrt(stats.chi2(df).ppf(levels) / df)


def detectable(spread: float, cells: float, ratio: float, wanted: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that the corrected t-test finds with this power."""
    return spread * np.sqrt(1 / cells + ratio) * errors_to_detect(cells - 1, wanted, alpha)


def errors_to_detect(df: float, wanted: float = 0.8, alpha: float = 0.05) -> float:
    """How many standard errors a true difference must be for a t-test to find it with this power.

    Parameters
    ----------
    df : degrees of freedom of the standard error; infinite: a z-test, 2.80
    """
    return optimize.brentq(lambda shift: _power(shift, df, alpha) - wanted, 1e-6, 1e5)


def power_of_equivalence(margin: float, spread: float, cells: float, ratio: float, alpha: float = 0.05) -> float:
    """Probability that two equally good methods are shown to be equivalent: P(90 % interval within ±margin | δ = 0).

    d̄ is normal and s² its own multiple of χ²: the mean of P(|d̄| < margin − t s) over the distribution of s.
    """
    scale = spread * np.sqrt(1 / cells + ratio)
    s = scale * _observed_spread(cells - 1)
    room = np.maximum(margin - stats.t(cells - 1).ppf(1 - alpha) * s, 0)
    return float((2 * stats.norm.cdf(room / scale) - 1).mean())


def designs(
    effect: float, spread: float, folds: float, margin: float, hours_of_fold: float, validation_share: float = 0.2
) -> pd.DataFrame:
    """What each of `DESIGNS` could find, and what it would cost.

    Parameters
    ----------
    effect : a true difference worth finding, never the one observed
    spread, folds : standard deviation of the cells' paired differences, and the number of folds it belongs to
        (`pilot_spread`). A cell of K folds is taken to spread √(K / folds) times as much: all of the spread is put down
        to the sampling of test patients, which makes designs comparable
    margin : differences within ±margin are of no consequence
    hours_of_fold : of the generators and all trials of one cell
    validation_share : of the patients that are not tested

    Returns
    -------
    DataFrame indexed by design ("3 × 5"): `cells, spread, power` (at 5 %), `power_holm` (at Holm's first step, which
    the smallest p of the declared comparisons must pass), `detectable` (with 80 % power at 5 %), `equivalence` (the
    probability to show two equal methods equivalent), `hours`
    """
    rows = {}
    for repeats, K in DESIGNS:
        cells, ratio, sigma = repeats * K, ratio_of_fold(K, validation_share), spread * np.sqrt(K / folds)
        rows[f"{repeats} × {K}"] = {
            "cells": cells,
            "spread": sigma,
            "power": power(effect, sigma, cells, ratio),
            "power_holm": power(effect, sigma, cells, ratio, 0.05 / COMPARISONS),
            "detectable": detectable(sigma, cells, ratio),
            "equivalence": power_of_equivalence(margin, sigma, cells, ratio),
            "hours": cells * hours_of_fold,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"cells": int}).rename_axis("repeats × folds")


def patients_needed(
    patients: int, standard_error: float, difference: float, margin: float, alpha: float = 0.05
) -> dict[str, float]:
    """Test patients with which a hold-out would decide, if the standard error falls with √n, at 80 % power.

    Parameters
    ----------
    patients, standard_error : of this run
    difference : the one worth finding, two-sided at `alpha`; not the observed one
    margin : the one to be excluded where there is none, by two one-sided tests at 5 %

    Returns
    -------
    dict `difference, equivalence` : numbers of patients
    """
    found = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(0.8)) / abs(difference) if difference else np.inf
    equal = (stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) / margin
    return {
        "difference": patients * (standard_error * found) ** 2,
        "equivalence": patients * (standard_error * equal) ** 2,
    }


def hours_of_fold(manifest: dict, metrics: pd.DataFrame, cells: int) -> float:
    """Hours of one cell of this run: its share of the notebooks that train generators, and its trials.

    Parameters
    ----------
    manifest : of the run, with the seconds of its notebooks; those resumed from checkpoints count what was left
    metrics : `condition, repeat, fold, seed, metric, value` with the metric "seconds"
    """
    notebooks = manifest.get("notebooks", {})
    generators = sum(
        notebooks.get(name, {}).get("seconds", 0.0) for name in ("02_cyclegan", "03_cyclediff", "04_synthesis")
    )
    return (generators + metrics.value[metrics.metric == "seconds"].sum()) / cells / 3600


def pilot_spread(metrics: pd.DataFrame, splits: pd.DataFrame, equal: pd.DataFrame) -> tuple[float, float, str]:
    """The spread of paired AUROC differences to plan with, from this run as the pilot.

    Several cells: the largest standard deviation of a declared difference between cells, seeds averaged. One hold-out:
    its largest standard error. That is a floor, since cells also differ by what they train on.

    Parameters
    ----------
    metrics : `condition, repeat, fold, seed, metric, value`
    splits : `repeat, fold, patient_id, part`
    equal : of `lib.statistics.comparisons.equivalence`; NaN where it holds no declared comparison

    Returns
    -------
    spread, the number of folds it belongs to (patients / test patients of a cell; 4 where a quarter is tested), and
    where it comes from, in words
    """
    declared = equal[equal.question != "control"]
    tested = splits[splits.part == "test"].groupby(["repeat", "fold"]).patient_id.nunique()
    folds = float(splits.patient_id.nunique() / tested.mean())
    if len(tested) == 1:
        return float(declared.standard_error.max()), folds, "from the standard error of one hold-out: a floor"
    aurocs = metrics[metrics.metric == "auroc"].groupby(["condition", "repeat", "fold"]).value.mean()
    spreads = [(aurocs[row.a] - aurocs[row.b]).std() for row in declared.itertuples()]
    return float(max(spreads, default=np.nan)), folds, "the largest of these cells"


def validation_share(splits: pd.DataFrame) -> float:
    """Share of the patients that validate among those that validate or train."""
    counts = splits.part.value_counts()
    return float(counts["validation"] / (counts["validation"] + counts["train"]))
