"""Steganography: does a translation hide its source where no eye sees it?

Chu, Zhmoginov & Sandler 2017, arXiv:1712.02950: a generator that must be undone can write the source into fine noise
of its output, where the way back reads it. Then the cycle is nearly perfect, and collapses when that noise is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from lib.data.cohort import Cohort
from lib.data.pixels import blocks
from lib.fidelity.measures import mean_by_patient
from lib.run.randomness import generator
from lib.study import Fold
from lib.translators.methods import METHODS
from lib.translators.translator import Translator

CLEAN, SUSPECT = "unchanged", "noise 2/255"
COLLAPSE = 2.0  # a way back that moves by twice what was touched, reads what no eye sees

# (N, H, W) from 0 to 1 → the same, touched
PERTURBATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    CLEAN: lambda images: images,
    "8 bits": lambda images: np.rint(images * 255) / 255,
    "low-pass": lambda images: gaussian_filter(images, (0, images.shape[1] / 128, images.shape[1] / 128)),
    **{
        f"noise {s}/255": lambda images, s=s: images + generator(s).normal(0, s / 255, images.shape)
        for s in (1, 2, 4, 8)
    },
}


def cycle_errors(translator: Translator, cohort: Cohort) -> pd.DataFrame:
    """Measure how far the way back moves, and ends from the source, when the translation is touched before.

    Everything runs at 16 bits, so that an unchanged translation is not already rounded to 8.

    Parameters
    ----------
    cohort : images of one label

    Returns
    -------
    DataFrame `perturbation, touched, value, ci_low, ci_high, n, gain`: the mean absolute change ε to the translation,
    the mean absolute error of the way back with an interval from resampled patients, both in shares of the grey scale,
    and the gain, mean |F(G + ε) − F(G)| / mean |ε|, of the way back F from the translation G. It compares with the way
    back of the unchanged translation, not with the source, whose distance grows slowly where it is large already.
    Passing a change on has a gain of up to about 1.
    """
    top = np.iinfo(np.uint16).max
    source = np.asarray(cohort.pixels, np.float64) / np.iinfo(cohort.pixels.dtype).max
    fine = Cohort(cohort.table, np.rint(source * top).astype(np.uint16))
    label = cohort.table.label.iloc[0]
    there = translator.translate(fine, "NFF" if label == "AFF" else "AFF")

    def way_back(pixels):
        return translator.translate(Cohort(there.table, pixels), label).pixels / top

    clean, rows = way_back(there.pixels), []
    for name, touch in PERTURBATIONS.items():
        pixels = np.rint(np.clip(touch(there.pixels / top), 0, 1) * top).astype(np.uint16)
        touched = abs(pixels.astype(np.float64) - there.pixels).mean() / top
        back = clean if name == CLEAN else way_back(pixels)
        error = mean_by_patient(abs(back - source).mean((1, 2)), cohort.table.patient_id)
        gain = abs(back - clean).mean() / touched if touched else np.nan
        rows.append({"perturbation": name, "touched": touched, **error, "gain": gain})
    return pd.DataFrame(rows)


def hides(errors: pd.DataFrame) -> bool:
    """Return whether `cycle_errors` found the way back to move more than twice as far as noise of 2/255.

    True is a finding; False is none, for a message may be written coarse enough to outlive such noise.
    """
    return bool(errors.set_index("perturbation").gain[SUSPECT] > COLLAPSE)


def radial_spectrum(pixels: np.ndarray) -> pd.Series:
    """Return the mean power of images over spatial frequency: what is added at high ones, eyes do not see.

    Parameters
    ----------
    pixels : (N, H, H) integers; images are taken from 0 to 1, without their mean

    Returns
    -------
    Series, power by frequency in cycles a pixel: white noise of variance σ² has the power σ² everywhere.
    """
    size, total = pixels.shape[-1], np.zeros(pixels.shape[1:])
    for rows in blocks(len(pixels), 64):
        images = pixels[rows] / np.iinfo(pixels.dtype).max
        for power in abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))) ** 2:
            total += power
    power = total / len(pixels) / size**2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2))
    ring = np.rint(frequency * size).astype(int)
    counts = np.bincount(ring.ravel())
    mean = np.bincount(ring.ravel(), power.ravel()) / counts
    rings = np.arange(1, size // 2 + 1)
    return pd.Series(mean[rings], pd.Index(rings / size, name="frequency"), name="power")


def look(fold: Fold, methods: Iterable[str], sources: Cohort) -> tuple[dict[str, pd.DataFrame], dict[str, pd.Series]]:
    """Ask each method for its `cycle_errors`, and for the `radial_spectrum` of its translations to AFF.

    Parameters
    ----------
    sources : NFF images
    """
    errors, spectra = {}, {}
    for method in methods:
        model = METHODS[method].translator.load(fold.folder(method))
        errors[method] = cycle_errors(model, sources)
        spectra[method] = radial_spectrum(model.translate(sources, "AFF").pixels)
    return errors, spectra
