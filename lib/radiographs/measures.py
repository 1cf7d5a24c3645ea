"""What can be measured on an image alone, without training: what `lib.radiographs.quality` finds suspicious."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

from lib.radiographs.geometry import Picture


def measures(image: np.ndarray) -> dict[str, float]:
    """The numbers of one image.

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
    return {
        "contrast": float(high - low),
        "inversion": float(np.median(edges) - np.median(small[:, width // 3 : width - width // 3])),
        "metal": _metal(small),
    }


def _metal(image: np.ndarray) -> float:
    """Share of the largest patch at the top of the grey scale that does not reach the border."""
    patches, _ = label(image >= max(0.97 * image.max(), 0.6))
    border = np.concatenate([patches[0], patches[-1], patches[:, 0], patches[:, -1]])
    sizes = np.bincount(patches.ravel())
    sizes[np.unique(np.append(border, 0))] = 0
    return float(sizes.max() / image.size)
