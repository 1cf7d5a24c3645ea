"""The translator: learns to turn NFF into AFF radiographs and back, from unpaired images of both.

`lib.translators.cyclegan.CycleGAN` and `lib.translators.cyclediff.CycleDiff` keep this one promise; a third method
is one more file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, Self

import numpy as np
import pandas as pd
import torch

from lib.data.cohort import LABELS, Cohort
from lib.data.images import Images
from lib.run.progress import no_progress, progress
from lib.translators.training import History, Watch


class Translator(Protocol):
    """What every translation method offers. X is the NFF domain, Y the AFF domain; G: X → Y and F: Y → X."""

    name: str
    settings: object  # a dataclass, whose `stages` names its numbers of steps: field → steps
    metadata: dict  # method, settings, and after `fit`: seed, steps, image_size, patients_hash, cohort_hash

    def fit(
        self, cohort: Cohort, folder: Path, seed: int, preview: Cohort | None = None, watch: Watch | None = None
    ) -> pd.DataFrame:
        """Train on all images of the cohort and return the history of the losses.

        Leaves `history.csv`, `checkpoint.pt` and `weights.safetensors` in the folder and goes on from a checkpoint that
        was made with the same settings, seed, cohort and source. A few times on the way the images of `preview` are
        translated to their other label into `previews/STEP.npy`, (N, H, W) in the cohort's own integer range.
        Where `watch` wants the training to end, what was learnt is kept, `metadata["stopped_at"]` is the number of
        steps, and the next call goes on from there.
        Where a launcher has started several processes, all call this with the same arguments and a folder that all of
        them see. Each trains on its part of every batch (`lib.run.rank.Rank`), the first writes the files, any may
        stop them; `metadata["processes"]` is their number, and a checkpoint of another number is not continued.
        """

    def translate(self, cohort: Cohort, to: str = "AFF", batch: int = 32) -> Cohort:
        """The synthetic cohort; a ValueError where an image carries the label `to` already.

        Its column `generator` is `metadata["patients_hash"]`, so that no other cell's images pass for this one's.
        """

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...


def domains(cohort: Cohort, divisor: int, smallest: int, batch: int) -> tuple[Images, Images]:
    """The images of X (NFF) and of Y (AFF); indexed with row numbers, they are (B, 1, H, W) float32 in [-1, 1].

    Raises
    ------
    ValueError
        Where a domain is empty or smaller than a batch, or the side of the images is no multiple of `divisor`, or
        smaller than `smallest`.
    """
    check_size(cohort, divisor, smallest)
    for label in LABELS:
        n = (cohort.table.label == label).sum()
        if not n:
            raise ValueError(f"no {label} among the {len(cohort)} training images: a translator needs both labels")
        if n < batch:
            raise ValueError(f"a batch of {batch} is larger than the {n} {label} training images: take {n} or less")
    X, Y = (Images(cohort.select(label=label).pixels) for label in LABELS)
    return X, Y


def check_size(cohort: Cohort, divisor: int, smallest: int) -> None:
    height, width = cohort.pixels.shape[1:]
    if height != width or width % divisor or width < smallest:
        raise ValueError(
            f"images of {height} x {width} pixels: this translator needs squares of at least {smallest} pixels and "
            f"a multiple of {divisor}; set image_size to {max(smallest, round(width / divisor) * divisor)}"
        )


def check_sources(cohort: Cohort, to: str) -> None:
    """Raise ValueError where `to` is no label, or an image carries it already."""
    if to not in LABELS:
        raise ValueError(f"to={to!r}: images are translated to {' or '.join(LABELS)}")
    if len(wrong := cohort.table.image_id[cohort.table.label == to]):
        raise ValueError(f"image {wrong.iloc[0]!r} is {to} already ({len(wrong)} such): select the other label first")


def translated(
    cohort: Cohort,
    to: str,
    name: str,
    function: Callable[[torch.Tensor], torch.Tensor],
    batch: int,
    generator: str | None = None,
) -> Cohort:
    """The cohort after `function`, which takes and gives (B, 1, H, W) in [-1, 1], batch by batch.

    `generator` is the hash of the patients that the function was trained on, and stands in every row.
    """
    check_sources(cohort, to)
    pixels = np.empty(cohort.pixels.shape, cohort.pixels.dtype)
    with progress(len(cohort), desc=f"{name} to {to}") as bar:
        for rows, sources in cohort.blocks(batch):
            images = function(torch.from_numpy(sources.images())).cpu().numpy()
            pixels[rows] = sources.translated(images, to, name).pixels
            bar.update(len(rows))
    return Cohort(cohort.provenance(to, name, generator), pixels)


def train(
    make: Callable[[], Translator],
    cohort: Cohort,
    folder: Path,
    seed: int,
    preview: Cohort | None = None,
    watch: Watch | None = None,
) -> bool:
    """`make().fit(...)`, which another process can be sent: nothing is made before it arrives there. Whether `watch`
    has stopped it."""
    translator = make()
    translator.fit(cohort, folder, seed, preview, watch)
    return "stopped_at" in translator.metadata


class _Timed(Exception):
    """Ends the training of `seconds_needed`."""


def seconds_needed(make: Callable[..., Translator], settings, cohort: Cohort, timed: int = 5) -> float:
    """How long `make(settings).fit(cohort)` takes on this machine: a few steps of each stage are timed, none is kept.

    The median of a stage's steps counts; what grows later in a stage, an adversarial term for example, does not.

    >>> print(f"{seconds_needed(CycleGAN, Settings(), training) / 60:.0f} minutes a cell")  # doctest: +SKIP
    """
    few, stamps = dict.fromkeys(settings.stages, timed), []

    def watch(history: History, folder: Path) -> bool:
        stamps.append(time.perf_counter())
        if len(stamps) == timed * len(few) - 1:
            raise _Timed
        return False

    with TemporaryDirectory() as folder, no_progress(), suppress(_Timed):
        make(replace(settings, **few, log_every=1)).fit(cohort, Path(folder), seed=0, watch=watch)
    of_steps = [np.diff(stamps[first : first + timed]) for first in range(0, len(stamps), timed)]
    return sum(float(np.median(took)) * n for took, n in zip(of_steps, settings.stages.values(), strict=True))
