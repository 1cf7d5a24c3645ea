"""The table of translation methods: one row each. A new method is one file, one row here, and a notebook's section.

Synthesis, audit, trials, comparisons, answers and figures run over these rows, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib.translators import cyclediff, cyclegan
from lib.translators.training import WEIGHTS
from lib.translators.translator import Translator


@dataclass(frozen=True)
class Method:
    """How a translation method is called, and where it is trained.

    Parameters
    ----------
    name : in folders, tables and conditions
    title : in sentences and figures
    translator : the class that keeps the promise of `lib.translators.translator.Translator`
    published : the settings of its paper, by name
    budget : how long the paper trained it, in words
    notebook : which trains it
    """

    name: str
    title: str
    translator: type[Translator]
    published: dict[str, object]
    budget: str
    notebook: str

    def weights(self, run: Path, fold: str) -> Path:
        """Return the weights file of a fold in a run's folder."""
        return Path(run, self.name, fold, WEIGHTS)


METHODS = {
    method.name: method
    for method in (
        Method("cyclegan", "CycleGAN", cyclegan.CycleGAN, cyclegan.PUBLISHED, "200 epochs of single images",
               "02_cyclegan"),
        Method("cyclediff", "CycleDiff", cyclediff.CycleDiff, cyclediff.PUBLISHED, "100,000 steps of 24 images",
               "03_cyclediff"),
    )
}  # fmt: skip
NOISE = "noise"  # images that a diffusion model draws from noise alone: no translation
DRAWS_NOISE = "cyclediff"  # the method whose AFF model draws them
GENERATORS = (*METHODS, NOISE)  # what adds images to a training set, controls aside
