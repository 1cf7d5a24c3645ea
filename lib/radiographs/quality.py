"""Quality control: what is suspicious about an image, by numbers that need no training.

Suspicions are for a person to look at. Notebook 01 counts them and shows the worst. Who leaves an image out writes the
reason into the table's column `exclude`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.data.cohort import MEASURES, Cohort
from lib.radiographs.measures import measures
from lib.radiographs.writing import text_lines

SUSPICIONS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "inverted": lambda m: m.inversion > 0.05,
    "nearly blank": lambda m: m.contrast < 0.1,
    "much cropped": lambda m: m.cropped > 0.4,
    "implant": lambda m: m.metal > 0.015,
    "text": lambda m: m.writing > 0,
    "small": lambda m: m[["height", "width"]].min(axis=1) < 0.5 * m[["height", "width"]].min(axis=1).median(),
}


def quality(cohort: Cohort, pairs: pd.DataFrame) -> pd.DataFrame:
    """Measure each image, and say what is suspicious about it.

    Parameters
    ----------
    cohort : has the columns `MEASURES` if it was read from files; else its own pixels are measured
    pairs : its `lib.data.duplicates.duplicate_pairs`

    Returns
    -------
    DataFrame, a row an image: `image_id`, `MEASURES`, a column of bool for each suspicion, and `suspicions`, their
    number. Besides `SUSPICIONS` there are "twice" and "of two patients": another image is the same.
    """
    if set(MEASURES) <= set(cohort.table):
        numbers = cohort.table[list(MEASURES)].copy()
    else:
        images = (image / 2 + 0.5 for _, few in cohort.blocks() for image in few.images()[:, 0])
        numbers = pd.DataFrame([measures(image) | {"writing": len(text_lines(image))} for image in images])
        numbers = numbers.assign(height=cohort.size, width=cohort.size, bits=cohort.pixels.itemsize * 8, cropped=0.0)
    found = {name: suspicious(numbers) for name, suspicious in SUSPICIONS.items()}
    for name, patients in (("twice", "one"), ("of two patients", "two")):
        found[name] = np.isin(np.arange(len(cohort)), pairs.loc[pairs.patients == patients, ["a", "b"]])
    flags = pd.DataFrame(found)
    table = pd.concat([cohort.table.image_id, numbers[list(MEASURES)], flags], axis=1)
    return table.assign(suspicions=flags.sum(axis=1))


def spread(checked: pd.DataFrame) -> pd.DataFrame:
    """Describe each measure over all images: mean, extremes and percentiles, a row a measure."""
    described = checked[list(MEASURES)].describe(percentiles=[0.05, 0.5, 0.95]).T
    return described.drop(columns=["count", "std"]).rename_axis("measure")


def counts(checked: pd.DataFrame) -> pd.DataFrame:
    """Count the images that are suspected of each thing: `images`, a row a suspicion."""
    return _flags(checked).sum().rename("images").rename_axis("suspected").to_frame()


def worst(checked: pd.DataFrame, most: int) -> pd.Series:
    """Choose the most suspicious images: row of the cohort → id and suspicions, a line each."""
    found = checked[checked.suspicions > 0].sort_values("suspicions", ascending=False, kind="stable").head(most)
    flags = _flags(found)
    lines = ["\n".join([image, *flags.columns[flags.loc[row]]]) for row, image in found.image_id.items()]
    return pd.Series(lines, found.index, dtype=object)


def _flags(checked: pd.DataFrame) -> pd.DataFrame:
    return checked.drop(columns=[*MEASURES, "image_id", "suspicions"])
