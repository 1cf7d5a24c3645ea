"""Conditions: how a classifier's training set is made.

They are a factorial: how the classes are balanced, times whether the standard augmentation runs. There are also
smaller doses of what is added, and controls (`lib.fidelity.controls`).
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.data.cohort import Cohort
from lib.data.leaks import check_sources
from lib.fidelity.controls import CONTROLS, permuted_labels
from lib.run.randomness import generator
from lib.study import Fold
from lib.translators.methods import DRAWS_NOISE, METHODS, NOISE

AS_REAL = ("real", "again", "permuted")  # these train on the real images alone


def balances() -> dict[str, str]:
    """Describe each way to balance the classes, by name; every row of `METHODS` is one."""
    return {
        "real": "the real training images as they are",
        "undersampling": "NFF images dropped, down to the share of AFF that the generators reach",
        "weighted": "AFF images weigh more in the loss, by as much as the generators multiply them",
        "oversampling": "AFF images copied, as many copies as a generator adds: the count-matched control",
        **{
            name: f"AFF images added that {method.title} translated from NFF training images"
            for name, method in METHODS.items()
        },
        NOISE: f"AFF images added that {METHODS[DRAWS_NOISE].title}'s AFF diffusion model drew from noise",
    }


@dataclass(frozen=True)
class Condition:
    """Says how a training set is made."""

    balance: str  # of `balances` or `CONTROLS`
    standard: bool = False  # whether images are rotated, flipped and cropped
    dose: float = 1.0  # share of the images to be added that is added

    @property
    def name(self) -> str:
        name = self.balance
        if self.standard:
            name = "standard" if name == "real" else f"{name}+standard"
        return name if self.dose == 1 else f"{name}@{self.dose:g}"

    @property
    def description(self) -> str:
        parts = [(balances() | CONTROLS)[self.balance]]
        parts += ["rotated, flipped, cropped"] * self.standard
        parts += [f"{self.dose:.0%} of the dose"] * (self.dose != 1)
        return "; ".join(parts)


def factorial() -> dict[str, Condition]:
    """Return all conditions by name, without controls and doses."""
    return {c.name: c for standard in (False, True) for c in (Condition(balance, standard) for balance in balances())}


def condition(name: str) -> Condition:
    """Return the condition of a name, whose end "@0.5" means half the dose; a ValueError suggests the nearest name."""
    known = factorial() | {control: Condition(control) for control in CONTROLS}
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
    """Count the AFF images that balanced conditions add: as many as each generator made, or else NFF − AFF."""
    counts = {method: int(images.targets.sum()) for method, images in synthetic.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise ValueError(f"generators must add equally many AFF images to be compared, not {each}")
    return next(iter(counts.values())) if counts else max(len(real) - 2 * int(real.targets.sum()), 0)


def training_set(condition: Condition, real: Cohort, synthetic: dict[str, Cohort], seed: int) -> tuple[Cohort, float]:
    """Return the images a condition trains on, and the weight of an AFF image in the loss.

    Undersampling, weighted, oversampling and the generators reach the same ratio of AFF to NFF, in images or in weight,
    so that class balance explains no difference between them. Smaller doses are parts of larger ones. The seed decides
    which images are dropped, copied or left out. A LeakError where one of the `synthetic` images (by method, see
    `lib.fidelity.synthesis.load`) was not made from `real`, the training part.
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
    if condition.balance not in (NOISE, "oracle"):  # noise has no source, and the oracle's may be hidden ones
        check_sources(joining, real)
    return real.join(joining.take(np.sort(order.permutation(len(joining))[:added]))), 1.0


def labelled(condition: Condition, fold: Fold, parts: Sequence[Cohort]) -> Sequence[Cohort]:
    """Give training, validation and test images the condition's labels, which "permuted" shuffles."""
    return permuted_labels(parts, fold.repeat, fold.number) if condition.balance == "permuted" else parts
