"""Hallucination: does a translation invent or remove what has nothing to do with the fracture?

Where an attribute is commoner in one class, matching distributions rewards a generator for adding or removing it
(Cohen, Luck & Honari 2018, arXiv:1805.08841). The phantom knows which images have a lead side marker, and can make it
commoner in one class (`lib.data.phantom.Phantom.marker_difference`).
"""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from lib.data.cohort import Cohort
from lib.data.phantom import MARKERS, Phantom, marker_places
from lib.data.pixels import blocks
from lib.fidelity.measures import DIRECTIONS, mean_by_patient


def marker_scores(pixels: np.ndarray) -> np.ndarray:
    """Return (N,): by what share of the grey scale the best marker of (N, H, H) pixels outshines its surroundings."""
    best = np.empty(len(pixels), np.float32)
    for block in blocks(len(pixels)):
        images, scores = pixels[block].astype(np.float32) / np.iinfo(pixels.dtype).max, []
        for glyph in MARKERS.values():
            for rows, columns, mask in marker_places(glyph, images.shape[-1]):
                patch = images[:, rows, columns]
                scores.append(patch[:, mask].min(1) - patch[:, ~mask].mean(1))
        best[block] = np.max(scores, axis=0)
    return best


class Reader:
    """Reads from pixels whether an image has a side marker; the threshold is fitted to images of the phantom."""

    def __init__(self, cohort: Cohort, phantom: Phantom):
        truth, scores = phantom.has_marker(cohort.table.image_id), marker_scores(cohort.pixels)
        if truth.all() or not truth.any():
            raise ValueError(
                f"all or none of the {len(truth)} images have a marker: a reader cannot be calibrated on them"
            )
        false, found, thresholds = roc_curve(truth, scores, drop_intermediate=False)
        best = np.argmax(found - false)
        below = scores[scores < thresholds[best]]
        self.threshold = (thresholds[best] + below.max()) / 2 if len(below) else thresholds[best]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return (N,) bool: whether an image has a marker."""
        return marker_scores(pixels) >= self.threshold

    def accuracy(self, cohort: Cohort, phantom: Phantom) -> float:
        """Return the share of images of known truth that are read rightly."""
        return float((self(cohort.pixels) == phantom.has_marker(cohort.table.image_id)).mean())


def flip_rates(translated: dict[str, Cohort], test: Cohort, phantom: Phantom, reader: Reader) -> pd.DataFrame:
    """Count how often a translation invents a marker that its source has not, and removes one that it has.

    `translated` holds, by method, the `test` images translated both ways (`lib.fidelity.synthesis.load_test`). The
    untouched `source` and the `counterfactual` are counted as methods, too. The columns are `method, direction, change`
    ("invented" or "removed"), `value` (share of the images in which it could happen) and those of `mean_by_patient`.
    """
    rows = []
    for to, direction in DIRECTIONS.items():
        source = test.take(test.table.label != to)
        truth = phantom.has_marker(source.table.image_id)
        sets = {"source": source, "counterfactual": phantom.counterfactual(source)}
        sets |= {method: images.select(label=to) for method, images in translated.items()}
        for method, images in sets.items():
            seen = reader(images.pixels)
            for change, possible in (("invented", ~truth), ("removed", truth)):
                flipped = (seen != truth)[possible]
                found = mean_by_patient(flipped, source.table.patient_id[possible])
                rows.append({"method": method, "direction": direction, "change": change, **found})
    return pd.DataFrame(rows)
