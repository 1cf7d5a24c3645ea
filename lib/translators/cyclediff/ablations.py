"""Ablations: the setting with one part changed, trained anew and compared."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

from lib.run.tasks import Machines, Task, run_tasks
from lib.study import Fold
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.settings import Settings
from lib.translators.training import WEIGHTS
from lib.translators.translator import train

ABLATIONS = {
    "as set": {},
    "joint": {"joint": "both"},
    "diffusion only": {"joint": "diffusion_only"},
    "frozen U-Nets": {"joint": "frozen"},
    "without time": {"translator_time": False},
    "without attention": {"translator_attention": False},
    "without contrastive": {"contrastive": 0.0},
    "without perceptual": {"perceptual": 0.0},
    "with perceptual": {"perceptual": 0.5},
    "all times": {"t_max": 1.0},
    "separate U-Nets": {"shared_unet": False},
}


def known() -> pd.DataFrame:
    """List the ablations: `ablation, changes`."""
    return pd.DataFrame([{"ablation": name, "changes": str(what or "nothing")} for name, what in ABLATIONS.items()])


def ablated(settings: Settings, name: str) -> Settings:
    """Return the settings changed by an ablation; raise ValueError where there is none, or they are so already."""
    if name not in ABLATIONS:
        raise ValueError(f"no ablation {name!r}; there are {', '.join(map(repr, ABLATIONS))}")
    changed = replace(settings, **ABLATIONS[name])
    if changed == settings and ABLATIONS[name]:
        raise ValueError(f"ablation {name!r} changes nothing here: {ABLATIONS[name]} is set already")
    return changed


def train_ablations(
    fold: Fold, model: CycleDiff, names: Sequence[str], seeds: Sequence[int], machines: Machines, watch=None
) -> dict[tuple[str, int], Path]:
    """Train each ablation with each seed on a fold's training part; return their folders by name and seed."""
    home, places, tasks = fold.run / "cyclediff_ablations", {}, {}
    for name, seed in product(names, seeds):
        place = home / name.replace(" ", "_") / f"seed{seed}"
        make = partial(CycleDiff, ablated(model.settings, name), model.sampler)
        do = partial(train, make, fold.train, place, seed)
        places[name, seed] = place
        tasks[f"{place.parent.name}-{place.name}"] = Task(do, place / WEIGHTS)
    run_tasks(tasks, home / "tasks", machines, data_parallel=True, watch=watch)
    return places
