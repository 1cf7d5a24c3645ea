"""Planning: how many repeats, folds and patients a difference needs, and what they cost.

All formulas are those of the tests in `lib.statistics`, read the other way round.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import optimize, stats

DESIGNS = ((1, 5), (3, 5), (5, 5), (10, 5), (1, 10), (3, 10), (5, 10), (10, 10))  # repeats × folds


def power(effect: float, spread: float, repeats: int, folds: int, alpha: float = 0.05) -> float:
    """Power of the two-sided corrected t-test: noncentral t with λ = δ / (σ √(1/n + 1/(K − 1))).

    Parameters
    ----------
    effect, spread : true mean δ and standard deviation σ of the cells' paired differences
    """
    n = repeats * folds
    shift = effect / (spread * np.sqrt(1 / n + 1 / (folds - 1)))
    bound = stats.t(n - 1).ppf(1 - alpha / 2) * _observed_spread(n)
    return float((stats.norm.cdf(shift - bound) + stats.norm.cdf(-shift - bound)).mean())


def _observed_spread(n: int) -> np.ndarray:
    """Quantiles of the standard deviation of n standard normal numbers; scipy's noncentral t overflows."""
    levels = (np.arange(4000) + 0.5) / 4000
    return np.sqrt(stats.chi2(n - 1).ppf(levels) / (n - 1))


def detectable(spread: float, repeats: int, folds: int, wanted: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that the corrected t-test finds with this power."""
    return spread * optimize.brentq(lambda effect: power(effect, 1.0, repeats, folds, alpha) - wanted, 1e-6, 1e4)


def power_of_equivalence(margin: float, spread: float, repeats: int, folds: int, alpha: float = 0.05) -> float:
    """Probability that two equally good methods are shown to be equivalent: P(90 % interval within ±margin | δ = 0).

    d̄ is normal and s² its own multiple of χ²: the mean of P(|d̄| < margin − t s) over the distribution of s.
    """
    n = repeats * folds
    scale = spread * np.sqrt(1 / n + 1 / (folds - 1))
    s = scale * _observed_spread(n)
    room = np.maximum(margin - stats.t(n - 1).ppf(1 - alpha) * s, 0)
    return float((2 * stats.norm.cdf(room / scale) - 1).mean())


def designs(effect: float, spread: float, margin: float, hours_of_cell: float) -> pd.DataFrame:
    """What each of `DESIGNS` could find, and what it would cost.

    Parameters
    ----------
    effect : a true difference worth finding
    spread : standard deviation of the cells' paired differences, from a pilot. Test sampling makes it grow with the
        number of folds, so rows of 5 and of 10 folds are not to be compared where it comes from one of them
    margin : differences within ±margin are of no consequence
    hours_of_cell : of the generators and all trials of one cell

    Returns
    -------
    DataFrame indexed by design ("3 × 5"): `cells, power, detectable` (at 80 % power), `equivalence` (the probability to
    show two equal methods equivalent), `hours`
    """
    rows = {}
    for repeats, folds in DESIGNS:
        cells = repeats * folds
        rows[f"{repeats} × {folds}"] = {
            "cells": cells,
            "power": power(effect, spread, repeats, folds),
            "detectable": detectable(spread, repeats, folds),
            "equivalence": power_of_equivalence(margin, spread, repeats, folds),
            "hours": cells * hours_of_cell,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"cells": int}).rename_axis("repeats × folds")


def patients_needed(patients: int, standard_error: float, difference: float, margin: float) -> dict[str, float]:
    """Test patients with which a hold-out would decide, if the standard error falls with √n, at 80 % power.

    Parameters
    ----------
    patients, standard_error : of this run
    difference : the one to be found, at 5 % two-sided
    margin : the one to be excluded where there is none, by two one-sided tests at 5 %

    Returns
    -------
    dict `difference, equivalence` : numbers of patients
    """
    found = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / abs(difference) if difference else np.inf
    equal = (stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) / margin
    return {
        "difference": patients * (standard_error * found) ** 2,
        "equivalence": patients * (standard_error * equal) ** 2,
    }


def hours_of_cell(manifest: dict, metrics: pd.DataFrame, cells: int) -> float:
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


def pilot_spread(metrics: pd.DataFrame, splits: pd.DataFrame, equal: pd.DataFrame) -> tuple[float, str]:
    """The spread of paired AUROC differences to plan with, from this run as the pilot, and where it comes from.

    Several cells: the largest standard deviation of a declared difference between cells, seeds averaged. One hold-out:
    its largest standard error, scaled to a test part of a fifth of the patients. That is a floor, since cells also
    differ by what they train on.

    Parameters
    ----------
    metrics : `condition, repeat, fold, seed, metric, value`
    splits : `repeat, fold, patient_id, part`
    equal : of `lib.comparisons.equivalence`; NaN where it holds no declared comparison
    """
    declared = equal[equal.question != "control"]
    aurocs = metrics[metrics.metric == "auroc"].groupby(["condition", "repeat", "fold"]).value.mean()
    if len(splits[["repeat", "fold"]].drop_duplicates()) > 1:
        spreads = [(aurocs[row.a] - aurocs[row.b]).std() for row in declared.itertuples()]
        return float(max(spreads, default=np.nan)), "the largest of these cells"
    tested = splits[splits.part == "test"].patient_id.nunique()
    scale = np.sqrt(tested / (splits.patient_id.nunique() / 5))
    return float(declared.standard_error.max() * scale), "from the standard error of one hold-out: a floor"
