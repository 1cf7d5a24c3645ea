"""Ablations: the setting with one part changed, trained anew and compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from lib.run.tasks import Machines, Task, run_tasks
from lib.study import Fold
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.settings import ABLATIONS, ablated
from lib.translators.training import WEIGHTS
from lib.translators.translator import train


def known() -> pd.DataFrame:
    """List the ablations: `ablation, changes`."""
    return pd.DataFrame([{"ablation": name, "changes": str(what or "nothing")} for name, what in ABLATIONS.items()])


def train_ablations(
    fold: Fold, model: CycleDiff, names: Sequence[str], seeds: Sequence[int], machines: Machines, watch=None
) -> dict[tuple[str, int], Path]:
    """Train each ablation with each seed on a fold's training part; return their folders by name and seed."""
    places = {
        (name, seed): fold.run / "cyclediff_ablations" / name.replace(" ", "_") / f"seed{seed}"
        for name in names
        for seed in seeds
    }
    tasks = {}
    for (name, seed), place in places.items():
        make = partial(CycleDiff, ablated(model.settings, name), model.sampler)
        do = partial(train, make, fold.train, place, seed)
        tasks[f"{place.parent.name}-{place.name}"] = Task(do, place / WEIGHTS)
    run_tasks(tasks, fold.run / "cyclediff_ablations" / "tasks", machines, data_parallel=True, watch=watch)
    return places
