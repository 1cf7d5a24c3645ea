"""Steganography: does a translation hide its source where no eye sees it?

Chu, Zhmoginov & Sandler 2017, arXiv:1712.02950: cycle consistency rewards a generator for writing the source into fine
noise of its output, where the way back reads it. Such a cycle collapses when that noise is changed a little.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy import ndimage

from lib.data.cohort import Cohort
from lib.data.pixels import blocks
from lib.fidelity.measures import mean_by_patient
from lib.run.randomness import generator
from lib.study import Fold
from lib.translators.methods import METHODS
from lib.translators.translator import Translator

CLEAN, SUSPECT = "unchanged", "noise 2/255"
COLLAPSE = 2.0  # a way back that moves by more than twice the change reads what no eye sees

# (N, H, W) from 0 to 1 → the same, touched
PERTURBATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    CLEAN: lambda images: images,
    "8 bits": lambda images: np.rint(images * 255) / 255,
    "low-pass": lambda images: ndimage.gaussian_filter(images, (0, images.shape[1] / 128, images.shape[1] / 128)),
    **{
        f"noise {s}/255": lambda images, s=s: images + generator(s).normal(0, s / 255, images.shape)
        for s in (1, 2, 4, 8)
    },
}


def cycle_errors(translator: Translator, cohort: Cohort) -> pd.DataFrame:
    """Measure the way back F from the translation G = G(x) of images x of one label, after small changes ε to G.

    Everything runs at 16 bits, so that an unchanged translation is not already rounded to 8.

    Returns
    -------
    DataFrame, a row a `perturbation`: `touched`, mean |ε|; `value, ci_low, ci_high, n`, mean |F(G + ε) − x| with an
    interval from resampled patients, both in shares of the grey scale; `gain`, mean |F(G + ε) − F(G)| / mean |ε|, which
    is at most about 1 where F only passes the change on
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
    """Return whether noise of 2/255 has a gain above `COLLAPSE` in `cycle_errors`.

    False proves nothing, for a source may be hidden in coarser patterns that outlive such noise.
    """
    return bool(errors.set_index("perturbation").gain[SUSPECT] > COLLAPSE)


def radial_spectrum(pixels: np.ndarray) -> pd.Series:
    """Return the mean power of (N, H, H) integer images, scaled to 0 … 1, by spatial frequency in cycles a pixel.

    The mean of an image is taken away. White noise of variance σ² has the power σ² at every frequency.
    """
    size, total = pixels.shape[-1], np.zeros(pixels.shape[1:])
    for rows in blocks(len(pixels), 64):
        images = pixels[rows] / np.iinfo(pixels.dtype).max
        for power in abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))) ** 2:
            total += power
    power = total / len(pixels) / size**2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2))
    rings = np.arange(1, size // 2 + 1)
    means = ndimage.mean(power, np.rint(frequency * size).astype(int), rings)
    return pd.Series(means, pd.Index(rings / size, name="frequency"), name="power")


def look(fold: Fold, methods: Iterable[str], sources: Cohort) -> tuple[dict[str, pd.DataFrame], dict[str, pd.Series]]:
    """Return each method's `cycle_errors` on NFF sources, and the `radial_spectrum` of its translations to AFF."""
    errors, spectra = {}, {}
    for method in methods:
        model = METHODS[method].translator.load(fold.folder(method))
        errors[method] = cycle_errors(model, sources)
        spectra[method] = radial_spectrum(model.translate(sources, "AFF").pixels)
    return errors, spectra
