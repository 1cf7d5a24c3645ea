"""CycleDiff's speed: this project's training step and sampler against plain renditions of the published schedule.

Training: joint steps a second at 64 px, against two full passes of all networks a step, one that updates translators
and U-Nets and one the discriminators, in float32 and in this project's precision on the machine
(`lib.run.hardware.accelerator`: bf16 autocast where that is faster). Sampling: images a second, KID and the judge's
verdict on validation images of a trained model, against 100 Euler steps with float32 networks and float64 arithmetic
from the same start, and as many steps as ours in that precision. All use the same blocks and alternate in one process;
medians of at least 5. Peak memory, the GPU's where there is one, comes from a process of each schedule's own.

python benchmarks/cyclediff.py [runs/quick]   # without the folder of a finished run, sampling is not measured
"""

import contextlib
import copy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from lib.fidelity.judge import Judge
from lib.fidelity.measures import at_a_glance
from lib.run.folder import Run
from lib.run.hardware import accelerator
from lib.run.randomness import torch_generator
from lib.study import Study
from lib.translators.cyclediff.losses import (
    contrastive_loss,
    cycle_loss,
    diffusion_loss,
    identity_loss,
    perceptual_loss,
)
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.networks import Denoisers, Networks, Translator
from lib.translators.cyclediff.process import diffuse, draw_times
from lib.translators.cyclediff.settings import PUBLISHED
from lib.translators.cyclediff.train import CycleDiffTraining
from lib.translators.networks import lsgan_discriminator, lsgan_generator

SETTINGS = replace(
    PUBLISHED, autoencoder="pixels", warmup_steps=0, joint_steps=1000, batch=8, unet_width=32,
    unet_multipliers=(1, 2, 2), unet_blocks=2, translator_width=32, translator_blocks=4, discriminator_width=32,
    vgg16_weights="none", dropout=0.0, enlarge=1.0,
)  # fmt: skip
SIZE, REPEATS = 64, 7


def two_pass_step(training: CycleDiffTraining, step: int, autocast) -> None:
    """One pass of all networks updates translators and U-Nets, another the discriminators; each call for one use."""
    s, (G, F) = training.settings, (training.networks.G, training.networks.F)
    random = torch_generator(0, step)
    latents = [training.networks.autoencoders.encode(x, domain) for domain, x in enumerate(training.draw(step))]
    t = draw_times(s.batch, 1.0, random).to(training.device)

    def components() -> tuple[list[torch.Tensor], torch.Tensor]:
        predicted, losses = [], []
        for domain, x0 in enumerate(latents):
            eps = torch.randn(x0.shape, generator=random).to(x0)
            C, eps_hat = training.networks.denoisers(diffuse(x0, t, eps), t, domain)
            predicted.append(C)
            losses.append(diffusion_loss(x0, eps, C, eps_hat, t, "plain"))
        return predicted, sum(losses)

    with autocast():
        (C_X, C_Y), loss = components()
        C_XY, C_YX = G(C_X, t), F(C_Y, t)
        C_XYX, C_YXY = F(C_XY, t), G(C_YX, t)
        loss = s.diffusion * loss
        loss = loss + s.adversarial * (lsgan_generator(training.D_Y(C_XY, t)) + lsgan_generator(training.D_X(C_YX, t)))
        loss = loss + s.cycle * (cycle_loss(C_X, C_XYX) + cycle_loss(C_Y, C_YXY))
        loss = loss + s.identity * (identity_loss(C_Y, G(C_Y, t)) + identity_loss(C_X, F(C_X, t)))
        for domain, pair in enumerate(((C_X, C_XYX), (C_Y, C_YXY))):
            loss = loss + s.perceptual * perceptual_loss(*(training._features(C, domain) for C in pair))
    for name in ("T", "U"):
        training.optimisers[name].zero_grad()
    loss.backward()
    for name in ("T", "U"):
        training.optimisers[name].step()

    with autocast():
        (C_X, C_Y), _ = components()
        C_XY, C_YX = G(C_X, t), F(C_Y, t)
        loss = torch.zeros((), device=training.device)
        for D, real, fake in ((training.D_X, C_X, C_YX), (training.D_Y, C_Y, C_XY)):
            scores = D(real.detach(), t), D(fake.detach(), t)
            loss = loss + lsgan_discriminator(*scores) + s.contrastive * contrastive_loss(*scores)
    training.optimisers["D"].zero_grad()
    loss.backward()
    training.optimisers["D"].step()
    for name in ("denoisers", "G", "F"):
        training.averages[name].update()


def schedule(name: str):
    """A training of its own and its step."""
    torch.manual_seed(0)
    machine = accelerator()
    X, Y = (torch.rand(64, 1, SIZE, SIZE, generator=torch_generator(i)) * 2 - 1 for i in range(2))
    training = CycleDiffTraining(Networks.build(SETTINGS, SIZE, machine.device), SETTINGS, X, Y, 0, machine)
    if name == "this project":
        return training.step
    autocast = machine.autocast if name == "two passes, as here" else contextlib.nullcontext
    return lambda step: two_pass_step(training, step, autocast)


NAMES = ("two passes, float32", "two passes, as here", "this project")


def peak_memory(name: str) -> str:
    """What a process holds at most that trains a few steps of one schedule."""
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import cyclediff\n"
        f"step = cyclediff.schedule({name!r})\nfor i in range(3): step(i)\n"
        "gpu = cyclediff.torch.cuda.is_available()\n"
        "host = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(cyclediff.torch.cuda.max_memory_allocated() / 2**10 if gpu else host)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return f"{float(done.stdout) / 2**20:.2f} GiB"


def training_speed() -> None:
    steps, seconds = {name: schedule(name) for name in NAMES}, {name: [] for name in NAMES}
    for i in range(REPEATS + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step(i)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    median = {name: np.median(values[2:]) for name, values in seconds.items()}
    print(f"precision of this project here: {accelerator().mixed_precision.replace('no', 'float32')}")
    for name, value in median.items():
        ratio = value / median["this project"]
        print(f"{name:20} {1 / value:6.2f} joint steps/s   1/{ratio:.2f} of ours   peak memory {peak_memory(name)}")


class DoubleDenoisers(Denoisers):
    """Net_θ whose U-Nets run in float32 while the sampler's arithmetic goes on in float64."""

    def forward(self, x_t, t, domain):
        return tuple(part.double() for part in super().forward(x_t.float(), t.float(), domain))


class DoubleTranslator(Translator):
    """G or F likewise."""

    def forward(self, C, t):
        return super().forward(C.float(), t.float()).double()


def plain(model: CycleDiff, steps: int) -> CycleDiff:
    """The same model without autocast, with Euler steps in float64."""
    other = model.with_sampler(sampling_steps=steps, solver="euler")
    other.networks, other.accelerator = copy.deepcopy(model.networks), SimpleNamespace(autocast=contextlib.nullcontext)
    other.networks.denoisers.__class__ = DoubleDenoisers
    other.networks.G.__class__ = other.networks.F.__class__ = DoubleTranslator
    return other


def sampling_speed(run: Path) -> None:
    fold = Study.load(Run(run)).fold()
    validation, judge = fold.validation, Judge.of(fold)
    nff, aff = validation.select(label="NFF").first(64), validation.select(label="AFF")
    model = CycleDiff.load(fold.folder("cyclediff"))
    steps = model.sampler.sampling_steps
    models = {f"{n} euler, float64": plain(model, n) for n in (100, steps)}
    models[f"{steps} {model.sampler.solver}, this project"] = model
    seconds, rows = {name: [] for name in models}, {}
    for _ in range(5):
        for name, method in models.items():
            start = time.perf_counter()
            translated = method.translate(nff, "AFF")
            seconds[name].append(time.perf_counter() - start)
            rows[name] = at_a_glance(translated, nff, aff, judge)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.insert(0, "images/s", [len(nff) / np.median(seconds[name]) for name in table.index])
    table.insert(1, "ratio", table["images/s"] / table["images/s"].iloc[0])
    print(f"\nfrom t = {model.sampler.start_t}, medians of 5\n{table.round(3).to_string()}")


if __name__ == "__main__":
    training_speed()
    if len(sys.argv) > 1:
        sampling_speed(Path(sys.argv[1]))
