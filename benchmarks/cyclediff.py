"""CycleDiff's speed: this project's training step and sampler against a plain rendition of the published schedule.

Training: joint steps a second at 64 px, against float32 with two full passes a step, one for translators and U-Nets and
one for discriminators. Sampling: images a second and KID of a trained model, against 100 Euler steps in float64 from
the same start. Both schedules use the same blocks, alternate in one process, and give medians of at least 5; peak
memory comes from a process of each one's own.

python benchmarks/cyclediff.py [runs/quick]   # without the folder of a finished run, sampling is not measured
"""

import copy
import multiprocessing
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.cohort import Cohort
from lib.cyclediff import CycleDiff, Settings
from lib.cyclediff.losses import contrastive_loss, cycle_loss, diffusion_loss, identity_loss, perceptual_loss
from lib.cyclediff.networks import Networks
from lib.cyclediff.process import diffuse, draw_times
from lib.cyclediff.train import Training
from lib.fidelity import at_a_glance
from lib.judge import Judge
from lib.networks import lsgan_discriminator, lsgan_generator
from lib.splits import read_splits
from lib.training import accelerator, torch_generator

SETTINGS = Settings(
    autoencoder="pixels", warmup_steps=0, joint_steps=1000, batch=8, unet_width=32, unet_multipliers=(1, 2, 2),
    unet_blocks=2, translator_width=32, translator_blocks=4, discriminator_width=32, vgg16_weights="none", dropout=0.0,
    enlarge=1.0,
)  # fmt: skip
SIZE, REPEATS = 64, 7


def published_step(training: Training, step: int) -> None:
    """Float32: one pass of all networks updates translators and U-Nets, another the discriminators."""
    s, (G, F) = training.settings, (training.networks.G, training.networks.F)
    random = torch_generator(0, step)
    latents = [training.networks.autoencoders.encode(training._draw(step, domain), domain) for domain in range(2)]
    t = draw_times(s.batch, 1.0, random)

    def components() -> tuple[list[torch.Tensor], torch.Tensor]:
        predicted, losses = [], []
        for domain, x0 in enumerate(latents):
            eps = torch.randn(x0.shape, generator=random)
            C, eps_hat = training.networks.denoisers(diffuse(x0, t, eps), t, domain)
            predicted.append(C)
            losses.append(diffusion_loss(x0, eps, C, eps_hat, t, s.diffusion_weights))
        return predicted, sum(losses)

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

    (C_X, C_Y), _ = components()
    C_XY, C_YX = G(C_X, t), F(C_Y, t)
    loss = torch.zeros(())
    for D, real, fake in ((training.D_X, C_X, C_YX), (training.D_Y, C_Y, C_XY)):
        scores = D(real.detach(), t), D(fake.detach(), t)
        loss = loss + lsgan_discriminator(*scores) + s.contrastive * contrastive_loss(*scores)
    training.optimisers["D"].zero_grad()
    loss.backward()
    training.optimisers["D"].step()
    for name in ("denoisers", "G", "F"):
        training.averages[name].update()


def built() -> Training:
    torch.manual_seed(0)
    X, Y = (torch.rand(64, 1, SIZE, SIZE, generator=torch_generator(i)) * 2 - 1 for i in range(2))
    return Training(Networks.build(SETTINGS, SIZE), SETTINGS, X, Y, 0, accelerator())


def schedules() -> dict:
    ours, plain = built(), built()
    plain.networks = Networks(
        **{name: network.to(memory_format=torch.contiguous_format) for name, network in vars(plain.networks).items()}
    )
    return {"published schedule": lambda step: published_step(plain, step), "this project": ours.step}


def peak_memory(name: str) -> float:
    """GB that a process holds at most which trains a few steps of one schedule."""
    step = schedules()[name]
    for i in range(3):
        step(i)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def training_speed() -> None:
    steps, seconds = schedules(), {}
    for i in range(REPEATS + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step(i)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    median = {name: np.median(values[2:]) for name, values in seconds.items()}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = dict(zip(median, pool.map(peak_memory, median, chunksize=1), strict=True))
    for name, value in median.items():
        print(f"{name:20} {1 / value:6.2f} joint steps/s   peak memory {memory[name]:.2f} GB")
    print(f"ratio {median['published schedule'] / median['this project']:.2f} (medians of {REPEATS} steps)")


class Plain(CycleDiff):
    """The same model with 100 Euler steps in float64."""

    @classmethod
    def of(cls, model: CycleDiff) -> "Plain":
        plain = cls(model.settings, replace(model.sampler, steps=100, solver="euler"))
        plain.metadata = model.metadata
        plain.networks = Networks(**{name: copy.deepcopy(net).double() for name, net in vars(model.networks).items()})
        plain.accelerator = type(model.accelerator)(mixed_precision="no")
        return plain

    def _translation(self, images, to, seed, networks):
        return super()._translation(images.double(), to, seed, networks)


def sampling_speed(run: Path) -> None:
    cohort, splits = Cohort.load(run / "cohort"), read_splits(run / "cohort" / "splits.csv")
    test, judge = cohort.part(splits, 0, 0, "test"), Judge.load(run / "judge" / "r0f0")
    nff, aff = test.select(label="NFF").first(64), test.select(label="AFF")
    model = CycleDiff.load(run / "cyclediff" / "r0f0")
    models, rows = {"100 Euler, float64": Plain.of(model), f"{model.sampler.steps} {model.sampler.solver}": model}, []
    seconds = {name: [] for name in models}
    for _ in range(5):
        for name, method in models.items():
            start = time.perf_counter()
            translated = method.translate(nff, "AFF")
            seconds[name].append(time.perf_counter() - start)
            if len(seconds[name]) == 1:
                rows.append({"sampler": name, **at_a_glance(translated, nff, aff, judge)})
    table = pd.DataFrame(rows).set_index("sampler")
    table.insert(0, "images_per_second", [len(nff) / np.median(seconds[name]) for name in table.index])
    print(table.round(3).to_string())
    print(f"ratio {table.images_per_second.iloc[1] / table.images_per_second.iloc[0]:.1f} (medians of 5)")


if __name__ == "__main__":
    training_speed()
    if len(sys.argv) > 1:
        sampling_speed(Path(sys.argv[1]))
