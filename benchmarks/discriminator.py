"""How soon a PatchGAN tells AFF from NFF, by how its last layer starts: N(0, 0.02) as published, or zero.

AUROC on validation patients of a phantom that no study uses, at 64 px, after every 100 steps of LSGAN's discriminator
loss with 32 channels; median of 3 seeds.

python benchmarks/discriminator.py
"""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.run.hardware import accelerator
from lib.run.randomness import batch_rows, flipped, torch_generator
from lib.translators.networks import PatchGAN, diffaugment, init_weights, lsgan_discriminator
from lib.translators.translator import domains

STEPS, EVERY, BATCH = 1000, 100, 4


def course(training: Cohort, validation: Cohort, undecided: bool, seed: int) -> list[float]:
    """Validation AUROC of the mean patch score, every 100 steps."""
    X, Y = domains(training, divisor=4, smallest=16, batch=BATCH)
    images, device = torch.from_numpy(validation.images()), accelerator().device
    D = PatchGAN(1, 32)
    if undecided:
        D.init_weights(torch_generator(seed))
    else:
        init_weights(D, torch_generator(seed))
    D.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(D.parameters(), lr=3e-4, betas=(0.5, 0.999))
    autocast, aurocs = accelerator().autocast, []
    for step in range(STEPS):
        batches = [flipped(Z[batch_rows(len(Z), BATCH, step, seed, i)], seed, i, step) for i, Z in enumerate((Y, X))]
        both = diffaugment(torch.cat(batches), torch_generator(seed, 2, step))
        with autocast():
            scores = D(both.to(device, memory_format=torch.channels_last))
        optimiser.zero_grad()
        lsgan_discriminator(*scores.chunk(2)).backward()
        optimiser.step()
        if (step + 1) % EVERY == 0:
            with torch.no_grad(), autocast():
                scores = torch.cat([D(part.to(device)).float().mean((1, 2, 3)).cpu() for part in images.split(64)])
            aurocs.append(roc_auc_score(validation.targets, scores))
    return aurocs


def main() -> None:
    cohort = Phantom(patients=400, size=64, seed=1).cohort()
    splits = make_splits(cohort.patients, repeats=1, folds=1, seed=1, validation_share=0.3)
    patients = splits.groupby("part").patient_id
    training, validation = (cohort.select(patient_id=patients.get_group(part)) for part in ("train", "validation"))
    print("last layer   " + " ".join(f"{step:5}" for step in range(EVERY, STEPS + 1, EVERY)) + "  steps")
    for name, undecided in (("N(0, 0.02)", False), ("zero", True)):
        aurocs = np.median([course(training, validation, undecided, seed) for seed in range(3)], axis=0)
        print(f"{name:12} " + " ".join(f"{auroc:5.2f}" for auroc in aurocs))


if __name__ == "__main__":
    main()
