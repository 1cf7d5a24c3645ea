"""Quality control: what is suspicious about an image, by numbers that need no training.

Suspicions are for a person to look at. Who leaves an image out writes the reason into the table's column `exclude`.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.ndimage import label
from skimage.segmentation import clear_border

from lib.data.cohort import MEASURES, Cohort
from lib.radiographs.geometry import Picture
from lib.radiographs.writing import text_lines

SUSPICIONS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "inverted": lambda m: m.inversion > 0.05,
    "nearly blank": lambda m: m.contrast < 0.1,
    "much cropped": lambda m: m.cropped > 0.4,
    "implant": lambda m: m.metal > 0.015,
    "text": lambda m: m.writing > 0,
    "small": lambda m: m[["height", "width"]].min(axis=1) < 0.5 * m[["height", "width"]].min(axis=1).median(),
}


def measures(image: np.ndarray) -> dict[str, float]:
    """Measure one image (h, w) in [0, 1], borders taken off.

    Returns
    -------
    contrast : from the 1st to the 99th percentile
    inversion : how much brighter the left and right edges are than the middle, by medians
    metal : share of the largest saturated patch that does not touch the border
    """
    small = Picture(image).shrunk(min(256, max(image.shape))).image
    width = small.shape[1]
    low, high = np.percentile(small, [1, 99])
    edge = max(width // 12, 1)
    edges = np.concatenate([small[:, :edge], small[:, -edge:]], 1)
    patches, _ = label(small >= max(0.97 * small.max(), 0.6))
    sizes = np.bincount(clear_border(patches).ravel())[1:]
    return {
        "contrast": float(high - low),
        "inversion": float(np.median(edges) - np.median(small[:, width // 3 : width - width // 3])),
        "metal": float(sizes.max(initial=0) / small.size),
    }


def quality(cohort: Cohort, pairs: pd.DataFrame) -> pd.DataFrame:
    """Measure each image, and say what is suspicious about it.

    Parameters
    ----------
    cohort : has the columns `MEASURES` if it was read from files; else its own pixels are measured
    pairs : its `lib.data.duplicates.duplicate_pairs`, for the suspicions "twice" and "of two patients"

    Returns
    -------
    DataFrame, a row an image: `image_id`, `MEASURES`, a column of bool a suspicion, and `suspicions`, their number
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
