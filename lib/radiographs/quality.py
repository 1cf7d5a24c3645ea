"""Quality control: what is suspicious about an image, by numbers that need no training.

Suspicions are for a person to look at, not verdicts: notebook 01 counts them and shows the worst. What is to be left
out then goes into the table's column `exclude`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.ndimage import label

from lib.cohort import MEASURES, Cohort
from lib.duplicates import duplicates
from lib.radiographs.geometry import Picture
from lib.radiographs.writing import GLYPHS, text_boxes

SUSPICIONS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "inverted": lambda m: m.inversion > 0.05,
    "nearly blank": lambda m: m.contrast < 0.1,
    "much cropped": lambda m: m.cropped > 0.4,
    "implant": lambda m: m.metal > 0.01,
    "writing": lambda m: m.writing >= GLYPHS,
    "small": lambda m: m[["height", "width"]].min(axis=1) < 0.5 * m[["height", "width"]].min(axis=1).median(),
}


def measures(image: np.ndarray) -> dict[str, float]:
    """What `SUSPICIONS` are about.

    Parameters
    ----------
    image : (h, w) in [0, 1], borders taken off

    Returns
    -------
    contrast : from the 1st to the 99th percentile
    inversion : how much brighter the left and right edges are than the middle, by medians
    metal : share of the largest saturated patch that does not touch the border
    writing : letters in lines, see `text_boxes`
    """
    small = Picture(image).shrunk(min(256, max(image.shape))).image
    width = small.shape[1]
    low, high = np.percentile(small, [1, 99])
    edge = max(width // 12, 1)
    edges = np.concatenate([small[:, :edge], small[:, -edge:]], 1)
    return {
        "contrast": float(high - low),
        "inversion": float(np.median(edges) - np.median(small[:, width // 3 : width - width // 3])),
        "metal": _metal(small),
        "writing": len(text_boxes(image)),
    }


def _metal(image: np.ndarray) -> float:
    """Share of the largest patch at the top of the grey scale that does not reach the border."""
    patches, _ = label(image >= max(0.97 * image.max(), 0.6))
    border = np.concatenate([patches[0], patches[-1], patches[:, 0], patches[:, -1]])
    sizes = np.bincount(patches.ravel())
    sizes[np.unique(np.append(border, 0))] = 0
    return float(sizes.max() / image.size)


def quality(cohort: Cohort) -> pd.DataFrame:
    """The numbers of each image, and what is suspicious about it.

    Parameters
    ----------
    cohort : with the columns `MEASURES` where it was read from files; else its own pixels are measured

    Returns
    -------
    DataFrame, a row an image: `image_id`, `MEASURES`, a column of bool for each of `SUSPICIONS` and `"twice"` (another
    image of the patient is the same, by `duplicates`), and `suspicions`, their number
    """
    if set(MEASURES) <= set(cohort.table):
        numbers = cohort.table[list(MEASURES)].copy()
    else:
        numbers = pd.DataFrame([measures(image[0] / 2 + 0.5) for image in cohort.images()])
        numbers = numbers.assign(height=cohort.size, width=cohort.size, bits=cohort.pixels.itemsize * 8, cropped=0.0)
    found = {name: suspicious(numbers) for name, suspicious in SUSPICIONS.items()}
    found["twice"] = _twice(cohort)
    flags = pd.DataFrame(found)
    table = pd.concat([cohort.table.image_id, numbers[list(MEASURES)], flags], axis=1)
    return table.assign(suspicions=flags.sum(axis=1))


def _twice(cohort: Cohort) -> np.ndarray:
    """(N,) bool: of which images the same patient has a duplicate."""
    twice = np.zeros(len(cohort), bool)
    for rows in cohort.table.groupby("patient_id").indices.values():
        if len(rows) > 1:
            pixels, ids = cohort.pixels[rows], cohort.table.image_id.iloc[rows]
            twice[rows[np.concatenate(duplicates(pixels, pixels, ids, ids))]] = True
    return twice
