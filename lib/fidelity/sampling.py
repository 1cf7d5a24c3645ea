"""Sampling: variants of a diffusion sampler, tried on validation images while a method is set up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pandas as pd

from lib.fidelity.judge import Judge
from lib.fidelity.measures import at_a_glance
from lib.study import Fold

IMAGES = 64  # validation images that every variant translates


class Tryout:
    """Lets variants of a model translate a fold's validation images from NFF to AFF, from noise of one seed."""

    def __init__(self, fold: Fold, judge: Judge, seed: int):
        validation, phantom = fold.validation, fold.phantom
        self.source, self.reference = validation.select(label="NFF").first(IMAGES), validation.select(label="AFF")
        self.counterfactual = phantom.counterfactual(self.source) if phantom else None
        self.judge, self.seed = judge, seed

    def measure(self, model) -> dict[str, float]:
        """Translate the images; return `seconds` per image and what `lib.fidelity.measures.at_a_glance` measures."""
        started = time.perf_counter()
        translated = model.translate(self.source, "AFF", seed=self.seed)
        seconds = (time.perf_counter() - started) / len(self.source)
        measured = at_a_glance(translated, self.source, self.reference, self.judge, self.counterfactual)
        return {"seconds": seconds, **measured}

    def table(self, model, variants: Sequence[dict[str, object]]) -> pd.DataFrame:
        """Measure a model with each variant of its sampler: the variant's fields, then what was measured."""
        return pd.DataFrame([variant | self.measure(model.with_sampler(**variant)) for variant in variants])

    def compare(self, models: Mapping[tuple, object], names: Sequence[str]) -> pd.DataFrame:
        """Measure several models; the parts of their keys stand in the columns `names`."""
        return pd.DataFrame([dict(zip(names, key, strict=True)) | self.measure(models[key]) for key in models])
