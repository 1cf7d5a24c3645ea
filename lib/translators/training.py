"""What every training loop needs: device, processes, batches, random streams, averages, history, checkpoints, weights.

The loops themselves are written out where they belong (`lib.translators.cyclegan`, `lib.translators.cyclediff`,
`lib.fidelity.judge`, `lib.trials.classifier`).
All randomness of a step is a pure function of (seed, step), so a training that was interrupted and goes on from its
checkpoint draws the same batches, flips, noise and times as one that was not, without any random state being stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from lib.data.cohort import Cohort, to_pixels
from lib.run.files import written

WEIGHTS = "weights.safetensors"
RESULTS = (WEIGHTS, "history.csv", "previews")  # what a training leaves beside its checkpoint
# Averages and history ------------------------------------------------------------------------------------------------


class EMA:
    """Exponential moving average of a network's weights: the copy that is sampled from.

    The decay grows from 0.1 to its value over the first steps, so the average forgets the random initial weights.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay, self.updates = network, decay, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        for averaged, current in zip(self.average.parameters(), self.network.parameters(), strict=True):
            averaged.lerp_(current, 1 - decay)
        for averaged, current in zip(self.average.buffers(), self.network.buffers(), strict=True):
            averaged.copy_(current)

    def state_dict(self) -> dict:
        return {"average": self.average.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.average.load_state_dict(state["average"])
        self.updates = state["updates"]


def check_finite(step: int, terms: dict[str, torch.Tensor | float]) -> None:
    """Raise FloatingPointError, naming the step and the terms, where a term is not finite.

    Called with every step's losses before they change a weight, so that no checkpoint holds what would have followed.
    """
    values = torch.stack([torch.as_tensor(term).detach().float() for term in terms.values()])
    if not values.isfinite().all():
        bad = [name for name, value in zip(terms, values.tolist(), strict=True) if not np.isfinite(value)]
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} is not finite. The last checkpoint is kept; lower the learning rate "
            "and start again."
        )


class History:
    """Losses by step: one row each time something is recorded."""

    def __init__(self):
        self.rows: list[dict] = []
        self.collected: dict[str, list[torch.Tensor]] = {}

    def collect(self, **terms: torch.Tensor) -> None:
        """Keep tensors of one number, of which `means` is asked later; a checkpoint holds them."""
        for name, value in terms.items():
            self.collected.setdefault(name, []).append(value.detach())

    def means(self) -> dict[str, torch.Tensor]:
        """The mean of what was collected since the last call, by name."""
        means = {name: torch.stack([v.cpu() for v in values]).mean() for name, values in self.collected.items()}
        self.collected = {}
        return means

    def record(self, step: int, **facts) -> None:
        """Add a row; `facts` are numbers, tensors of one number, or text."""
        facts = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in facts.items()}
        self.rows.append({"step": step, **facts})

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict:
        return {"rows": self.rows, "collected": self.collected}

    def load_state_dict(self, state: dict) -> None:
        self.rows, self.collected = state["rows"], state["collected"]


Watch = Callable[[History, Path], bool]  # the losses so far and the training's folder, as each row is recorded → stop?


# Checkpoints and weights ---------------------------------------------------------------------------------------------


def preview_due(step: int, steps: int, previews: int) -> bool:
    """Whether one of so many previews, evenly spread over the steps, comes after this step (from 0); one the last."""
    return (step + 1) * previews // steps > step * previews // steps


def save_preview(
    preview: Cohort, functions: dict[str, Callable[[torch.Tensor], torch.Tensor]], folder: Path, step: int
) -> None:
    """Translate each image of `preview` to its other label, with the function for that label, into one file."""
    pixels = np.empty_like(np.asarray(preview.pixels))
    for to, function in functions.items():
        rows = np.flatnonzero(preview.table.label != to)
        if len(rows):
            images = function(torch.from_numpy(preview.take(rows).images()))
            pixels[rows] = to_pixels(images.cpu().numpy(), pixels.dtype)
    with written(folder / "previews" / f"{step:07d}.npy") as path:
        np.save(path, pixels)
