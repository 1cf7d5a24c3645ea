"""The one training loop of all translators, and what every training needs: averages, history, checks.

`loop` trains, shows, saves and stops; a method's `Training` says what one step does. All randomness of a step is a pure
function of (seed, step): a training that goes on from its checkpoint draws what an uninterrupted one draws.
"""

import copy
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from lib.data.cohort import LABELS, Cohort, to_pixels
from lib.data.images import Images
from lib.run.checkpoints import Checkpoint
from lib.run.files import write_text, written
from lib.run.progress import progress
from lib.run.randomness import batch_rows, flipped, torch_generator
from lib.run.rank import Rank
from lib.translators.networks import diffaugment, random_crops

WEIGHTS = "weights.safetensors"
RESULTS = (WEIGHTS, "history.csv", "previews")  # what a training leaves beside its checkpoint


# The loop ------------------------------------------------------------------------------------------------------------


class Training:
    """What the steps of all methods share. A method's own adds networks, optimisers and `step`.

    `networks` are what translates, trained in place, `X` and `Y` the NFF and the AFF training images. Weights, batches,
    flips, crops and all noise follow from the seed.
    """

    translates_from = 0  # steps that come before what translates begins to learn
    clip: float | None = None  # largest norm of each optimiser's gradient

    def __init__(self, networks, settings, X: Images, Y: Images, seed: int, accelerator: Accelerator):
        self.networks, self.settings, self.images, self.seed = networks, settings, (X, Y), seed
        self.accelerator, self.device, self.autocast = accelerator, accelerator.device, accelerator.autocast
        self.rank = Rank(settings.batch, accelerator.num_processes, accelerator.process_index)
        self.steps = sum(settings.stages.values())
        self.averages = {name: EMA(network, settings.ema) for name, network in vars(networks).items()}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.facts: dict[str, object] = {}  # for the metadata

    def step(self, step: int) -> dict[str, torch.Tensor | float | str]:
        """Train one step and return its row of the history: learning rate and losses, unweighted.

        Raises FloatingPointError where a loss or a clipped gradient of any process is not finite; no weight changes.
        """
        raise NotImplementedError

    def objects(self) -> dict:
        """Return by name all that a checkpoint must hold."""
        averages = {f"average_{name}": average for name, average in self.averages.items()}
        return vars(self.networks) | averages | {f"optimiser_{name}": one for name, one in self.optimisers.items()}

    def averaged(self):
        """Return the averaged networks, which sample."""
        return type(self.networks)(**{name: average.average for name, average in self.averages.items()})

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, in channels_last memory."""
        return network.to(self.device, memory_format=torch.channels_last)

    def adam(self, learning_rate: float, *networks: nn.Module, beta2: float = 0.999) -> torch.optim.Adam:
        """Return an optimiser of these networks, with β1 = 0.5."""
        parameters = [parameter for network in networks for parameter in network.parameters()]
        return torch.optim.Adam(parameters, lr=learning_rate, betas=(0.5, beta2), fused=True)

    def set_rate(self, learning_rate: float, *names: str) -> None:
        """Set the learning rate of these optimisers."""
        for name in names:
            for group in self.optimisers[name].param_groups:
                group["lr"] = learning_rate

    def draw(self, step: int) -> list[torch.Tensor]:
        """Draw a batch of each domain, this process's rows: [x, y], mirrored and cropped at random."""
        s, seed, batches = self.settings, self.seed, []
        for domain, images in enumerate(self.images):
            rows = batch_rows(len(images), s.batch, step, seed, 10 + domain)
            batch = flipped(images[rows], seed, 20 + domain, step)
            batch = random_crops(batch, s.enlarge, torch_generator(seed, 30 + domain, step))
            batches.append(self.rank.of(batch).to(self.device, memory_format=torch.channels_last))
        return batches

    def seen(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Return what a discriminator sees of images or components: augmented, where the settings say so."""
        return diffaugment(images, random, self.rank) if self.settings.diffaugment else images

    def update(self, step: int, loss: torch.Tensor, terms: dict, *names: str) -> None:
        """Step these optimisers down the gradient of a loss; terms and gradients become means over all processes."""
        terms |= self.rank.mean(terms)
        check_finite(step + 1, terms)
        for name in names:
            self.optimisers[name].zero_grad()
        loss.backward()
        for name in names:
            parameters = [p for group in self.optimisers[name].param_groups for p in group["params"]]
            self.rank.average(parameters)
            if self.clip:
                norm = nn.utils.clip_grad_norm_(parameters, self.clip)
                check_finite(step + 1, {f"gradient of {name}": norm})
        for name in names:
            self.optimisers[name].step()


Watch = Callable[["History", Path], bool]  # losses so far and folder, as each row is recorded → stop?


def loop(
    model, training: Training, folder: Path, preview: Cohort | None = None, watch: Watch | None = None
) -> pd.DataFrame:
    """Train the networks of a `Translator` step by step, from its checkpoint where there is one; see its `fit`."""
    s, rank, first, steps = model.settings, training.rank, training.accelerator.is_main_process, training.steps
    ends, start, history = set(accumulate(s.stages.values())), training.translates_from, History()
    objects, code = training.objects() | {"history": history}, [model.fit, type(model)]
    checkpoint = Checkpoint(folder / "checkpoint.pt", model.metadata, objects, code, RESULTS)
    done = checkpoint.load()
    rank.check_same(checkpoint.inputs | {"steps done": done})
    if not done and first:
        checkpoint.make_room()

    with progress(steps, done, desc=model.name) as bar:
        for step in range(done, steps):
            row = training.step(step)

            # Record, show, save; stop where any process is asked to.
            recorded = (step + 1) % s.log_every == 0 or step + 1 in ends
            if recorded:
                history.record(step + 1, **row)
            if first and preview is not None and preview_due(step - start, steps - start, s.previews):
                networks = training.averaged()
                save_preview(preview, {to: model.translator(to, 0, networks) for to in LABELS}, folder, step + 1)
            stop = recorded and watch and step + 1 < steps and rank.any(watch(history, folder))
            if first and (stop or checkpoint.due() or step + 1 == steps):
                checkpoint.save(step + 1)
            bar.set_postfix_str(row.get("stage", ""), refresh=False)
            bar.update()
            if stop:
                model.metadata["stopped_at"] = step + 1
                break
    training.accelerator.wait_for_everyone()
    if model.metadata.get("stopped_at", steps) < start:
        raise RuntimeError(
            f"stopped after step {model.metadata['stopped_at']:,}, before the translators begin to learn (step "
            f"{start + 1:,}): there is nothing to translate with yet. Run it again to go on."
        )

    # Keep the averaged networks.
    for name, average in training.averages.items():
        getattr(model.networks, name).load_state_dict(average.average.state_dict())
    if first:
        write_text(folder / "history.csv", history.frame().to_csv(index=False))
        model.save(folder)
    training.accelerator.wait_for_everyone()
    return history.frame()


def preview_due(step: int, steps: int, previews: int) -> bool:
    """Return whether one of so many previews, evenly spread over the steps, comes after this step (from 0)."""
    return step >= 0 and (step + 1) * previews // steps > step * previews // steps


def save_preview(
    preview: Cohort, functions: dict[str, Callable[[torch.Tensor], torch.Tensor]], folder: Path, step: int
) -> None:
    """Translate each image to its other label, by the function for that label, into one file of `previews/`."""
    pixels = np.empty_like(np.asarray(preview.pixels))
    for to, function in functions.items():
        rows = np.flatnonzero(preview.table.label != to)
        if len(rows):
            images = function(torch.from_numpy(preview.take(rows).images()))
            pixels[rows] = to_pixels(images.cpu().numpy(), pixels.dtype)
    with written(folder / "previews" / f"{step:07d}.npy") as path:
        np.save(path, pixels)


def previews(folder: Path) -> dict[str, np.ndarray]:
    """Read the previews of a training: "step 500" → (N, H, W), in order."""
    files = sorted((folder / "previews").glob("[!.]*.npy"))
    return {f"step {int(file.stem):,}": np.load(file) for file in files}


# Averages, history, checks -------------------------------------------------------------------------------------------


class EMA:
    """Exponential moving average of a network's weights: the copy that samples.

    The decay grows from 0.1 to its value over the first steps, so the average forgets the random initial weights.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay, self.updates = network, decay, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights; buffers are copied."""
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

    Called before losses change a weight, so that no checkpoint holds what would have followed.
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
        """Return by name the mean of what was collected since the last call."""
        means = {name: torch.stack([v.cpu() for v in values]).mean() for name, values in self.collected.items()}
        self.collected = {}
        return means

    def record(self, step: int, **facts) -> None:
        """Add a row; `facts` are numbers, tensors of one number, or text."""
        facts = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in facts.items()}
        self.rows.append({"step": step, **facts})

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table: `step`, and a column for each fact."""
        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict:
        return {"rows": self.rows, "collected": self.collected}

    def load_state_dict(self, state: dict) -> None:
        self.rows, self.collected = state["rows"], state["collected"]
