"""Synthesis: the images that generators add to a training set, with their provenance."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from lib.cohort import Cohort
from lib.runs import shown
from lib.training import generator
from lib.translator import Translator

VERDICTS = "verdicts.csv"  # image_id, pixels, keep, reason: what was decided by hand


def images_needed(training: Cohort, ratio: float) -> int:
    """How many AFF images bring a training set to `ratio` AFF images per NFF image (1: balanced)."""
    aff = int(training.targets.sum())
    return max(round(ratio * (len(training) - aff)) - aff, 0)


def chosen_sources(training: Cohort, number: int, seed: int) -> Cohort:
    """`number` NFF images of the training part, drawn without repetition: what is to be translated.

    Raises
    ------
    ValueError
        Where there are fewer NFF images than that.
    """
    nff = training.select(label="NFF")
    if number > len(nff):
        raise ValueError(
            f"{number} AFF images are to be made from {len(nff)} NFF training images, each used once: "
            "lower synthetic_ratio"
        )
    return nff.take(np.sort(generator(seed).permutation(len(nff))[:number]))


def copies(cohort: Cohort, rows: np.ndarray, method: str) -> Cohort:
    """The images at these positions, which may repeat, under new ids and with the provenance of synthetic images."""
    table = cohort.table.iloc[rows]
    table = table.assign(
        source_image_id=table.image_id,
        source_label=table.label,
        image_id=[f"{method}-{i}-{image_id}" for i, image_id in enumerate(table.image_id)],
        method=method,
    )
    return Cohort(table, cohort.pixels[rows])


def both_ways(translator: Translator, cohort: Cohort) -> Cohort:
    """Every image of a cohort translated to the other label, NFF to AFF first: what fidelity is measured on."""
    return translator.translate(cohort.select(label="NFF"), "AFF").join(
        translator.translate(cohort.select(label="AFF"), "NFF")
    )


def pixel_hashes(images: Cohort) -> list[str]:
    """Of each image sixteen hexadecimal digits: a verdict is on these pixels, whatever is later made under their id."""
    return [hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:16] for pixels in images.pixels]


def read_verdicts(path: Path) -> pd.DataFrame:
    """`image_id, pixels, keep, reason` of synthetic images that somebody looked at; no rows where there is no file yet.

    `pixels` are those of `pixel_hashes`.
    """
    columns = {"image_id": str, "pixels": str, "keep": bool, "reason": str}
    if not Path(path).exists():
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    table = pd.read_csv(path, dtype=columns, keep_default_na=False)
    if missing := set(columns) - set(table):
        raise ValueError(f"{shown(path)} has no column {', '.join(sorted(missing))}: delete it, and decide anew")
    return table


def without_rejected(synthetic: dict[str, Cohort], path: Path) -> dict[str, Cohort]:
    """The synthetic images without those rejected by hand, and equally many of each method: the first ones."""
    verdicts = read_verdicts(path)
    rejected = set(verdicts.pixels[~verdicts.keep])
    kept = {
        method: images.take([found not in rejected for found in pixel_hashes(images)])
        for method, images in synthetic.items()
    }
    fewest = min((len(images) for images in kept.values()), default=0)
    return {method: images.first(fewest) for method, images in kept.items()}
