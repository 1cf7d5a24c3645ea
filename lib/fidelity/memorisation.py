"""Memorisation: are synthetic images copies of training images?

A translation resembles its source by design, so it is compared with training images of the class translated to. Each
measure is calibrated with planted copies (`planted`).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from lib.data.cohort import Cohort
from lib.data.pixels import joined, taken
from lib.fidelity.distances import shrunk
from lib.fidelity.judge import Judge
from lib.fidelity.measures import noised
from lib.run.randomness import generator

PLANTED = (0.0, 0.05, 0.1, 0.2)  # shares of generated images that copies replace

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (N, H, W), (M, H, W) → (N, M)


def distances_of(judge: Judge) -> dict[str, Distance]:
    """Return two distances between images, by name.

    `pixels` compares thumbnails of at most 64 × 64 pixels, of mean 0 and variance 1, and takes the nearest of an image
    and its mirror image, shifted by up to a pixel. `judge` compares features.
    """

    def thumbnails(pixels):
        small = shrunk(pixels, 64)
        centred = small - small.mean((1, 2), keepdims=True)
        return centred / np.maximum(centred.std((1, 2), keepdims=True), 1e-6) / small.shape[-1]

    def of_pixels(a, b):
        one, other = thumbnails(a), thumbnails(b).reshape(len(b), -1)
        nearest = np.inf
        for view in (one, one[:, :, ::-1]):
            for shift in np.ndindex(3, 3):
                shifted = np.roll(view, np.subtract(shift, 1), (1, 2)).reshape(len(a), -1)
                nearest = np.minimum(nearest, 2 - 2 * shifted @ other.T)  # squared distance of vectors of length 1
        return np.sqrt(np.maximum(nearest, 0))

    return {"pixels": of_pixels, "judge": lambda a, b: cdist(judge.features(a), judge.features(b))}


def nearest(images: Cohort, training: Cohort, distance: Distance) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) distances to the nearest training image of another patient, and its (N,) positions.

    Images made from one of the same label are compared with their own patient too: they may be copies of it.
    """
    apart = distance(images.pixels, training.pixels)
    own = np.equal.outer(images.table.patient_id.to_numpy(), training.table.patient_id.to_numpy())
    if "source_label" in images.table:
        own &= (images.table.source_label != images.table.label).to_numpy()[:, None]
    apart = np.where(own, np.inf, apart)
    return apart.min(1), apart.argmin(1)


def memorisation(generated: Cohort, training: Cohort, test: Cohort, distance: Distance) -> dict[str, float]:
    """Compare how near generated images are to training images with how near real ones are to each other.

    All are images of one label; training and test images are real, of different patients.

    Returns
    -------
    dict
        copies : share of generated images nearer to a training image than 99 % of training images are to those of
            other patients
        authentic : share of generated images farther from their nearest training image than that is from its own
            nearest (Alaa et al. 2022, arXiv:2102.08921)
        C_T : standard score of Mann and Whitney's U of the distances generated → training against test → training
            (Meehan et al. 2020, arXiv:2004.05675): well below 0 where training images are nearer than they should be
    """
    of_generated, position = nearest(generated, training, distance)
    of_training, of_test = (nearest(real, training, distance)[0] for real in (training, test))
    n, m = len(of_generated), len(of_test)
    U = mannwhitneyu(of_generated, of_test).statistic
    return {
        "copies": float((of_generated < np.quantile(of_training, 0.01)).mean()),
        "authentic": float((of_generated > of_training[position]).mean()),
        "C_T": float((U - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)),
    }


def planted(generated: Cohort, training: Cohort, share: float, seed: int = 0) -> Cohort:
    """Replace a share of the generated images by training images, mirrored or not, shifted a little, noisy."""
    rng, step = generator(seed, 4), max(generated.size // 64, 1)
    rows = rng.permutation(len(generated))[: round(share * len(generated))]
    copied = np.resize(rng.permutation(len(training)), len(rows))
    mirrors, shifts = rng.random(len(rows)) < 0.5, rng.integers(-1, 2, (len(rows), 2))
    shifted = np.empty((len(rows), *generated.pixels.shape[1:]), generated.pixels.dtype)
    for image, row, mirror, shift in zip(shifted, copied, mirrors, shifts, strict=True):
        source = training.pixels[row]
        image[:] = np.roll(source[:, ::-1] if mirror else source, tuple(step * shift), (0, 1))
    order = np.arange(len(generated))
    order[rows] = len(generated) + np.arange(len(rows))
    return Cohort(generated.table, taken(joined([generated.pixels, noised(shifted)]), order))


def memorisation_table(
    generated: dict[str, Cohort], training: Cohort, test: Cohort, judge: Judge, shares: tuple[float, ...] = PLANTED
) -> pd.DataFrame:
    """Measure `memorisation` of each method in both distances, with each share of planted copies.

    The columns are `method, distance, planted, copies, authentic, C_T, n`.
    """
    rows = []
    for method, images in generated.items():
        for name, distance in distances_of(judge).items():
            for share in shares:
                found = memorisation(planted(images, training, share), training, test, distance)
                rows.append({"method": method, "distance": name, "planted": share, **found, "n": len(images)})
    return pd.DataFrame(rows)


def sees_copies(table: pd.DataFrame) -> pd.Series:
    """Return how much of what was planted is found, by method and distance: the rise of `copies` over the share."""
    rows = table.set_index(["method", "distance", "planted"]).copies.unstack()
    if rows.empty:
        return pd.Series(dtype=float, index=rows.index)
    return (rows.iloc[:, -1] - rows.iloc[:, 0]) / rows.columns[-1]


def closest_pairs(generated: Cohort, training: Cohort, distance: Distance, n: int = 8) -> tuple[Cohort, Cohort]:
    """Return the n generated images nearest to a training image, and a copy of that training image for each."""
    apart, position = nearest(generated, training, distance)
    rows = np.argsort(apart, kind="stable")[:n]
    return generated.take(rows), training.copies(position[rows], "nearest")
