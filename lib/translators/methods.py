"""The table of translation methods: one row each. A new method is one file, one row here, and a notebook's section.

Synthesis, audit, trials, comparisons, answers and figures run over these rows, however many there are.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from lib.translators import cyclegan
from lib.translators.cyclediff import settings as cyclediff
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.training import WEIGHTS
from lib.translators.translator import Translator


@dataclass(frozen=True)
class Method:
    """How a translation method is called, and where it is trained."""

    name: str  # in folders, tables and conditions, and before its parameters: `cyclegan_steps`
    title: str  # in sentences and figures
    translator: type[Translator]
    published: dict[str, object]  # the settings of its paper, by name
    budget: str  # how long the paper trained it, in words
    notebook: str  # which trains it

    def weights(self, run: Path, fold: str) -> Path:
        """Return the weights file of a fold in a run's folder."""
        return Path(run, self.name, fold, WEIGHTS)


METHODS = {
    method.name: method
    for method in (
        Method("cyclegan", "CycleGAN", cyclegan.CycleGAN, asdict(cyclegan.PUBLISHED), "200 epochs of single images",
               "02_cyclegan"),
        Method("cyclediff", "CycleDiff", CycleDiff, asdict(cyclediff.PUBLISHED) | asdict(cyclediff.PUBLISHED_SAMPLER),
               "100,000 steps of 24 images", "03_cyclediff"),
    )
}  # fmt: skip
NOISE = "noise"  # images that a diffusion model draws from noise alone: no translation
DRAWS_NOISE = next(name for name, method in METHODS.items() if hasattr(method.translator, "sample"))  # by this one
