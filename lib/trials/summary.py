"""Summaries: what the trials of a run were given and what they reached, before any test."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort
from lib.statistics.metrics import calibration, net_benefit
from lib.trials.conditions import condition, training_set

GIVEN = ["steps", "images_seen", "validations"]  # what all conditions get equally
SPENT = [*GIVEN, "seconds"]
THRESHOLDS = np.linspace(0.02, 0.6, 59)  # probabilities above which a patient is examined


def training_sets(conditions: Sequence[str], training: Cohort, synthetic: dict[str, Cohort]) -> pd.DataFrame:
    """Count what each condition trains on: `condition` (index), `NFF`, `AFF`, `weight of an AFF`, `what`."""
    rows = []
    for name in conditions:
        images, weight = training_set(condition(name), training, synthetic, seed=0)
        counts = images.table.label.value_counts()
        rows.append({"condition": name, "NFF": counts["NFF"], "AFF": counts["AFF"], "weight of an AFF": weight,
                     "what": condition(name).description})  # fmt: skip
    return pd.DataFrame(rows).set_index("condition")


def budgets(metrics: pd.DataFrame) -> pd.DataFrame:
    """Average what a trial of each condition was really given (`SPENT`), and count its `trials`."""
    table = metrics[metrics.metric.isin(SPENT)].pivot_table("value", "condition", "metric", sort=False)[SPENT]
    trials = metrics[metrics.metric == "steps"].groupby("condition", sort=False).size()
    return table.assign(trials=trials)[["trials", *SPENT]]


def are_equal(budgets: pd.DataFrame) -> bool:
    """Tell whether every condition was given as many steps, images and validations."""
    return bool((budgets[GIVEN].nunique() == 1).all())


def means(metrics: pd.DataFrame) -> pd.DataFrame:
    """Average every metric of test patients over folds and seeds: a row a condition."""
    table = metrics.pivot_table("value", "condition", "metric", sort=False)
    return table.drop(columns=["threshold", *SPENT])


def doses(metrics: pd.DataFrame) -> pd.DataFrame:
    """Select the AUROC of conditions that ran at more than one dose: `condition, dose, value` and the trial's key."""
    of_auroc = metrics[metrics.metric == "auroc"]
    dose = [condition(name).dose for name in of_auroc.condition]
    of_auroc = of_auroc.assign(dose=dose, condition=of_auroc.condition.str.split("@").str[0])
    return of_auroc[of_auroc.groupby("condition").dose.transform("nunique") > 1]


def calibrations(patients: pd.DataFrame) -> pd.DataFrame:
    """Measure the calibration of each condition's `recalibrated_patients`, as trained and recalibrated."""
    rows = {
        (name, kind): calibration(group.aff, group[column])
        for name, group in patients.groupby("condition", sort=False)
        for kind, column in {"as trained": "probability", "recalibrated": "recalibrated"}.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["condition", "probabilities"])


def net_benefits(patients: pd.DataFrame) -> dict[str, np.ndarray]:
    """Compute each condition's net benefit over `THRESHOLDS`, and that of examining everybody."""
    groups = dict(iter(patients.groupby("condition", sort=False)))
    everybody = next(iter(groups.values()))
    found = {name: net_benefit(group.aff, group.recalibrated, THRESHOLDS) for name, group in groups.items()}
    return found | {"everybody": net_benefit(everybody.aff, np.ones(len(everybody)), THRESHOLDS)}
