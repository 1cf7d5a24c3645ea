"""The translator: learns to turn NFF into AFF radiographs and back, from unpaired images of both.

X is the NFF domain, Y the AFF domain; G: X → Y and F: Y → X. A method is a subclass of `Translator` in a file of its
own (`cyclegan.py`, `cyclediff/`) and a row of `lib.translators.methods`.
"""

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import pandas as pd
import torch

from lib.data.cohort import LABELS, Cohort
from lib.data.hashes import cohort_hash, patients_hash
from lib.data.images import Images
from lib.run.files import shown
from lib.run.hardware import accelerator
from lib.run.progress import no_progress, progress
from lib.run.settings import check_names
from lib.run.weights import load_weights, save_weights, weights_metadata
from lib.translators.training import WEIGHTS, History, Training, Watch, loop

Function = Callable[[torch.Tensor], torch.Tensor]  # (B, 1, H, W) in [-1, 1] → the same


class Translator:
    """What every method offers; a subclass gives `name`, `kinds`, `build`, `training` and `translator`.

    Its first settings have `stages` (field → steps of each stage that is trained), `divisor` and `smallest` (of the
    side of images), `batch`, `enlarge`, `ema`, `log_every`, `previews` and `diffaugment`.

    >>> gan = CycleGAN(Settings(steps=100))  # doctest: +SKIP
    >>> history = gan.fit(training, Path("runs/quick/cyclegan/r0f0"), seed=0)  # doctest: +SKIP
    >>> synthetic = gan.translate(training.select(label="NFF"), to="AFF")  # doctest: +SKIP
    """

    name: str
    kinds: dict[str, type]  # attribute → the dataclass of its settings; no field stands in two of them

    def __init__(self, *chosen):
        """Take one object of each of `kinds`, or its defaults for those that are left out."""
        for attribute, given in zip_longest(self.kinds, chosen):
            setattr(self, attribute, given or self.kinds[attribute]())
        self.accelerator = accelerator()
        self.device = self.accelerator.device
        self.networks = None  # once trained or loaded, an object whose attributes are what translates
        self.metadata: dict = {}  # once trained: method, settings, seed, steps, image_size, hashes

    @classmethod
    def from_parameters(cls, values: Mapping[str, object]) -> Self:
        """Make one as a notebook's parameters say: `NAME_field`, and `NAME_settings` for further fields."""
        return cls(*cls.settings_from(values))

    @classmethod
    def settings_from(cls, values: Mapping[str, object]) -> list:
        """Read an object of each of `kinds` from a notebook's parameters.

        Raises ValueError where `NAME_settings` has a name that is no setting, or a value cannot be.
        """
        prefix = f"{cls.name}_"
        check_names(values.get(f"{prefix}settings", {}), prefix, *cls.kinds.values())
        return [kind.from_parameters(values, prefix) for kind in cls.kinds.values()]

    @property
    def make(self) -> Callable[[], Self]:
        """Return what makes an untrained one of the same settings, here or in another process."""
        return partial(type(self), *(getattr(self, attribute) for attribute in self.kinds))

    # What a method gives ---------------------------------------------------------------------------------------------

    def build(self, size: int):
        """Make networks for images of this side; torch's global generator draws what `training` does not."""
        raise NotImplementedError

    def training(self, X: Images, Y: Images, seed: int) -> Training:
        """Prepare the training of `self.networks` on the NFF and the AFF images."""
        raise NotImplementedError

    def translator(self, to: str, seed: int, networks) -> Function:
        """Return the function that gives images the label `to`; what it draws follows from the seed."""
        raise NotImplementedError

    # What every method does ------------------------------------------------------------------------------------------

    def fit(
        self, cohort: Cohort, folder: Path, seed: int, preview: Cohort | None = None, watch: Watch | None = None
    ) -> pd.DataFrame:
        """Train on all images of the cohort and return the history of the losses.

        It leaves `history.csv`, `checkpoint.pt` and `weights.safetensors` in the folder, and goes on from a checkpoint
        of the same settings, seed, cohort and source. On the way the images of `preview` are translated to their other
        label into `previews/STEP.npy`, (N, H, W) in the cohort's integer range. Where `watch` ends the training,
        `metadata["stopped_at"]` is the number of steps done, and the next call goes on from there.
        Several processes of a launcher call this with the same arguments and a folder that all of them see. Each trains
        on its part of every batch (`lib.run.rank.Rank`), the first writes the files, any may stop them. A checkpoint of
        another number of processes is not continued.

        Raises ValueError where the images do not fit, or the processes do not divide the batch or were given different
        things; FloatingPointError, in all processes, where a loss of any is not finite; RuntimeError where it was
        stopped before what translates began to learn.
        """
        s, processes = self.settings, self.accelerator.num_processes
        X, Y = domains(cohort, s.divisor, s.smallest, s.batch)
        torch.manual_seed(seed)
        self.networks = self.build(cohort.size)
        training = self.training(X, Y, seed)
        self.metadata = {"method": self.name, "settings": asdict(s)}
        self.metadata["precision"] = self.accelerator.mixed_precision  # "bf16", or "no": float32
        self.metadata |= {"processes": processes} if processes > 1 else {}
        self.metadata |= {"seed": seed, "steps": training.steps, "image_size": cohort.size, **training.facts}
        self.metadata |= {"cohort_hash": cohort_hash(cohort), "patients_hash": patients_hash(cohort)}
        return loop(self, training, Path(folder), preview, watch)

    def translate(self, cohort: Cohort, to: str = "AFF", batch: int = 32, seed: int = 0) -> Cohort:
        """Translate each image of the cohort to the other label.

        Raises ValueError where an image has the label `to` already, or the images' size does not fit.
        """
        self.check(cohort)
        check_sources(cohort, to)
        function = self.translator(to, seed, self.networks)
        return translated(cohort, to, self.name, function, batch, self.metadata["patients_hash"])

    def check(self, cohort: Cohort) -> None:
        """Raise where nothing was learnt yet, or images of this size cannot be translated."""
        if self.networks is None:
            raise RuntimeError(f"this {type(self).__name__} is not trained: call fit, or load")
        check_size(cohort, self.settings.divisor, self.settings.smallest)

    def save(self, folder: Path) -> None:
        """Write what translates, with its settings and the hashes of what it saw, to `weights.safetensors`."""
        chosen = {attribute: asdict(getattr(self, attribute)) for attribute in self.kinds}
        save_weights(Path(folder) / WEIGHTS, vars(self.networks), self.metadata | chosen)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load what `save` wrote; raise ValueError where it is of another method, or another version of the code."""
        path = Path(folder) / WEIGHTS
        metadata = weights_metadata(path, cls.name)
        try:
            model = cls(*(kind(**metadata[attribute]) for attribute, kind in cls.kinds.items()))
        except TypeError as error:
            raise ValueError(f"{shown(path)} was made by another version of the code ({error}): train again") from error
        model.metadata, model.networks = metadata, model.build(metadata["image_size"])
        load_weights(path, vars(model.networks))
        return model


# Images in and out ---------------------------------------------------------------------------------------------------


def domains(cohort: Cohort, divisor: int, smallest: int, batch: int) -> tuple[Images, Images]:
    """Return the images of X (NFF) and of Y (AFF).

    Raises ValueError where a domain is empty or smaller than a batch, or the images' size does not fit.
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
    """Raise ValueError where images are no squares, too small, or their side is no multiple of `divisor`."""
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
    cohort: Cohort, to: str, name: str, function: Function, batch: int, generator: str | None = None
) -> Cohort:
    """Return the cohort after a function, batch by batch, with the provenance that `Cohort.provenance` writes."""
    pixels = np.empty(cohort.pixels.shape, cohort.pixels.dtype)
    with progress(len(cohort), desc=f"{name} to {to}") as bar:
        for rows, sources in cohort.blocks(batch):
            images = function(torch.from_numpy(sources.images())).cpu().numpy()
            pixels[rows] = sources.translated(images, to, name).pixels
            bar.update(len(rows))
    return Cohort(cohort.provenance(to, name, generator), pixels)


# Training elsewhere, and how long it takes ---------------------------------------------------------------------------


def train(make: Callable[[], Translator], *arguments, **options) -> bool:
    """Fit what `make` makes with the arguments of `Translator.fit`; return whether `watch` stopped it."""
    translator = make()
    translator.fit(*arguments, **options)
    return "stopped_at" in translator.metadata


class _Timed(Exception):
    """Ends the training of `seconds_needed`."""


def seconds_needed(model: Translator, cohort: Cohort, timed: int = 5) -> float:
    """Measure how long `model.fit(cohort)` takes here: a few steps of each stage are timed, none is kept.

    The median of a stage's steps counts; what grows later in a stage, an adversarial term for example, does not.
    """
    stages, stamps, short = model.settings.stages, [], copy.copy(model)
    short.settings = replace(model.settings, **dict.fromkeys(stages, timed), log_every=1)

    def watch(history: History, folder: Path) -> bool:
        stamps.append(time.perf_counter())
        if len(stamps) == timed * len(stages) - 1:
            raise _Timed
        return False

    with TemporaryDirectory() as folder, no_progress(), suppress(_Timed):
        short.fit(cohort, Path(folder), seed=0, watch=watch)
    of_steps = [np.diff(stamps[first : first + timed]) for first in range(0, len(stamps), timed)]
    return sum(float(np.median(took)) * n for took, n in zip(of_steps, stages.values(), strict=True))
