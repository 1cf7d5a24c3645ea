"""Overview: how many patients and images a cohort has, by label, by kind and by part."""

import pandas as pd

from lib.data.cohort import LABELS, Cohort

KINDS = ("view", "side", "hospital")  # columns that may be more frequent in one class


def by_label(cohort: Cohort) -> pd.DataFrame:
    """Count patients and images of each label: `patients, images, images per patient`."""
    patients, images = cohort.patients.value_counts(), cohort.table.label.value_counts()
    table = pd.DataFrame({"patients": patients, "images": images}).reindex(LABELS, fill_value=0)
    return table.assign(**{"images per patient": table.images / table.patients}).rename_axis("label")


def by_kind(cohort: Cohort) -> pd.DataFrame:
    """Count the images of each label by view, side and, where the table has it, hospital."""
    counts = {kind: pd.crosstab(cohort.table[kind], cohort.table.label) for kind in KINDS if kind in cohort.table}
    return pd.concat(counts, names=["", ""]).reindex(columns=LABELS, fill_value=0)


def examples(cohort: Cohort, most: int = 6) -> list[int]:
    """Choose rows of images read from files: the one with most writing, the most cropped one, and some others."""
    extreme = [cohort.table[name].idxmax() for name in ("writing", "cropped")]
    return list(dict.fromkeys([*extreme, *range(0, len(cohort), max(len(cohort) // most, 1))]))[:most]
