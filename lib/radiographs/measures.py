"""Measures: what can be told of an image alone, without training, for quality control (`quality.py`)."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label
from skimage.segmentation import clear_border

from lib.radiographs.geometry import Picture


def measures(image: np.ndarray) -> dict[str, float]:
    """Measure one image.

    Parameters
    ----------
    image : (h, w) in [0, 1], borders taken off

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
