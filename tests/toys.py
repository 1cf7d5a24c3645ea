"""Toy cohorts and settings that several test files share."""

from dataclasses import replace

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort
from lib.translators import cyclegan
from lib.translators.cyclediff import settings as cyclediff
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclegan import CycleGAN
from lib.trials import classifier

TINY = classifier.Settings(architecture="resnet18", weights="none", steps=6, batch=8, lr=1e-3, validate_every=2)


def blob_cohort(patients=24, seed=0, images=2):
    """Noise with a blob at the top (NFF) or at the bottom (AFF); half of the patients have each."""
    random = np.random.default_rng(seed)
    rows, pixels = [], random.integers(60, 120, (patients * images, 32, 32), np.uint8)
    for i in range(patients * images):
        label = ("NFF", "AFF")[i // images % 2]
        row = {"NFF": 8, "AFF": 18}[label]
        pixels[i, row : row + 6, 12:20] = 220
        patient = f"p{seed}-{i // images}"
        rows.append({"image_id": f"{patient}-{i}", "patient_id": patient, "label": label, "view": "AP", "side": "left"})
    return Cohort(pd.DataFrame(rows), pixels)


TOY = replace(
    cyclegan.PUBLISHED, upsampling="resize",
    steps=6, batch=2, width=4, blocks=1, discriminator_width=4, pool=3, residual=True, skips=True, ema=0.5, noise=0.02,
    diffaugment=True, log_every=2, previews=2,
)  # fmt: skip


def line_cohort(n: int = 12, size: int = 16, dtype=np.uint8) -> Cohort:
    """A third of the images are AFF: brighter, with a dark transverse line."""
    random, top = np.random.default_rng(0), np.iinfo(dtype).max
    labels = ["AFF" if i % 3 == 0 else "NFF" for i in range(n)]
    pixels = random.uniform(0.2, 0.4, (n, size, size))
    for image, label in zip(pixels, labels, strict=True):
        if label == "AFF":
            image += 0.3
            image[size // 2] = 0
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)]})
    return Cohort(table.assign(label=labels, view="AP", side="left"), (pixels * top).astype(dtype))


TOYS = {
    "cyclegan": (
        CycleGAN,
        replace(
            cyclegan.PUBLISHED, upsampling="resize",
            steps=6, batch=2, width=4, blocks=1, discriminator_width=4, log_every=2,
        ),
    ),
    "cyclediff": (
        CycleDiff,
        replace(
            cyclediff.PUBLISHED, diffusion_weights="released",
            autoencoder="pixels", warmup_steps=2, joint_steps=4, batch=2, unet_width=8, unet_multipliers=(1, 1),
            unet_blocks=1, unet_attention=(), translator_width=4, translator_blocks=1, discriminator_width=4,
            vgg16_weights="none", log_every=2,
        ),
    ),
}  # fmt: skip
