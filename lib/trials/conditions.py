"""trials.conditions"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.data.cohort import Cohort
from lib.data.leaks import check_sources
from lib.fidelity.controls import CONTROLS, permuted_labels
from lib.run.randomness import generator

GENERATORS = ("cyclegan", "cyclediff", "noise")


BALANCE = {
    "real": "the real training images as they are",
    "undersampling": "NFF images dropped, down to the share of AFF that the generators reach",
    "weighted": "AFF images weigh more in the loss, by as much as the generators multiply them",
    "oversampling": "AFF images copied, as many copies as a generator adds: the count-matched control",
    "cyclegan": "AFF images added that CycleGAN translated from NFF training images",
    "cyclediff": "AFF images added that CycleDiff translated from NFF training images",
    "noise": "AFF images added that CycleDiff's AFF diffusion model drew from noise",
}


AS_REAL = ("real", "again", "permuted")  # these train on the real images alone


@dataclass(frozen=True)
class Condition:
    """How a training set is made: `balance` is a key of `BALANCE` or `CONTROLS`, `standard` says whether images are
    rotated, flipped and cropped, `dose` which share of the images to be added is."""

    balance: str
    standard: bool = False
    dose: float = 1.0

    @property
    def name(self) -> str:
        name = self.balance
        if self.standard:
            name = "standard" if name == "real" else f"{name}+standard"
        return name if self.dose == 1 else f"{name}@{self.dose:g}"

    @property
    def description(self) -> str:
        parts = [(BALANCE | CONTROLS)[self.balance]]
        parts += ["rotated, flipped, cropped"] * self.standard
        parts += [f"{self.dose:.0%} of the dose"] * (self.dose != 1)
        return "; ".join(parts)


CONDITIONS = {c.name: c for standard in (False, True) for c in (Condition(balance, standard) for balance in BALANCE)}


def condition(name: str) -> Condition:
    """The condition of a name, "@0.5" behind it for half the dose; ValueError with the nearest where there is none."""
    known = CONDITIONS | {control: Condition(control) for control in CONTROLS}
    name, at, dose = name.partition("@")
    if name not in known:
        spelled_out = {c.balance + "+standard" * c.standard: key for key, c in known.items()} | {"": "real"}
        nearest = spelled_out[difflib.get_close_matches(name, spelled_out, 1, 0)[0]]
        raise ValueError(f"unknown condition {name!r}, did you mean {nearest!r}? There are: {', '.join(known)}")
    found = known[name]
    if not at:
        return found
    try:
        share = float(dose)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1 or found.balance in AS_REAL:
        raise ValueError(f"condition {name}@{dose}: a dose is a share above 0 and up to 1 of the images to be added")
    return Condition(found.balance, found.standard, share)


def images_to_add(real: Cohort, synthetic: dict[str, Cohort]) -> int:
    """How many AFF images every balanced condition adds: as many as each generator made.

    Without any generator, as many as make AFF and NFF images equal in number.
    """
    counts = {method: int(images.targets.sum()) for method, images in synthetic.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise ValueError(f"generators must add equally many AFF images to be compared, not {each}")
    n_aff = int(real.targets.sum())
    return next(iter(counts.values())) if counts else max(len(real) - 2 * n_aff, 0)


def training_set(condition: Condition, real: Cohort, synthetic: dict[str, Cohort], seed: int) -> tuple[Cohort, float]:
    """The images a condition trains on, and the weight of an AFF image in the loss.

    Undersampling, weighted, oversampling and the generators all reach the same ratio of AFF to NFF, in images or in
    weight, so that a difference between them is not one of class balance. Smaller doses are parts of larger ones.

    Parameters
    ----------
    real : the cell's training part
    synthetic : images of each of `GENERATORS` and control generators that ran in this cell; their AFF images join
    seed : which images are dropped, copied or left out

    Raises
    ------
    LeakError
        Where a synthetic image was not made from the training part.
    """
    if condition.balance in AS_REAL:
        return real, 1.0
    aff, nff = np.flatnonzero(real.targets == 1), np.flatnonzero(real.targets == 0)
    added, order = round(condition.dose * images_to_add(real, synthetic)), generator(seed)
    match condition.balance:
        case "undersampling":
            kept = order.permutation(nff)[: round(len(nff) * len(aff) / (len(aff) + added))]
            return real.take(np.sort(np.concatenate([aff, kept]))), 1.0
        case "weighted":
            return real, (len(aff) + added) / len(aff)
        case "oversampling":
            return real.join(real.copies(np.resize(order.permutation(aff), added), "oversampling")), 1.0
    if condition.balance not in synthetic:
        raise ValueError(f"condition {condition.name!r} needs images of {condition.balance}: synthesise them first")
    joining = synthetic[condition.balance].select(label="AFF")
    if condition.balance not in ("noise", "oracle"):  # noise has no source, and the oracle's may be hidden ones
        check_sources(joining, real)
    return real.join(joining.take(np.sort(order.permutation(len(joining))[:added]))), 1.0


def labelled(condition: Condition, cell: tuple[int, int], parts: Sequence[Cohort]) -> Sequence[Cohort]:
    """Training, validation and test images with the labels that a condition gives them: shuffled ones in "permuted"."""
    return permuted_labels(tuple(parts), *cell) if condition.balance == "permuted" else parts
