"""How soon a PatchGAN tells AFF from NFF, by how its last layer starts: N(0, 0.02) as published, or zero.

AUROC on test patients of the phantom after every 100 steps of LSGAN's discriminator loss, median of 3 seeds.

python benchmarks/discriminator.py
"""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from lib.cohort import Cohort
from lib.networks import PatchGAN, diffaugment, init_weights, lsgan_discriminator
from lib.phantom import Phantom
from lib.splits import make_splits
from lib.training import accelerator, batch_rows, flipped, torch_generator
from lib.translator import domains

STEPS, EVERY, BATCH = 600, 100, 4


def course(training: Cohort, test: Cohort, zero: bool, seed: int) -> list[float]:
    """Test AUROC of the mean patch score, every 100 steps."""
    X, Y = domains(training, divisor=4, smallest=16)
    images = torch.from_numpy(test.images())
    D = PatchGAN(1, 32)
    if zero:
        D.init_weights(torch_generator(seed))
    else:
        init_weights(D, torch_generator(seed))
    D.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(D.parameters(), lr=4e-4, betas=(0.5, 0.999))
    autocast, aurocs = accelerator().autocast, []
    for step in range(STEPS):
        batches = [flipped(Z[batch_rows(len(Z), BATCH, step, seed, i)], seed, i, step) for i, Z in enumerate((Y, X))]
        both = diffaugment(torch.cat(batches), torch_generator(seed, 2, step))
        with autocast():
            scores = D(both.contiguous(memory_format=torch.channels_last))
        optimiser.zero_grad()
        lsgan_discriminator(*scores.chunk(2)).backward()
        optimiser.step()
        if (step + 1) % EVERY == 0:
            with torch.no_grad(), autocast():
                scores = torch.cat([D(part).float().mean((1, 2, 3)) for part in images.split(64)])
            aurocs.append(roc_auc_score(test.targets, scores))
    return aurocs


def main() -> None:
    phantom = Phantom(patients=400, size=64)
    cohort = phantom.cohort()
    splits = make_splits(cohort.patients, repeats=1, folds=1, seed=0, test_share=0.3)
    training, test = (cohort.part(splits, 0, 0, part) for part in ("train", "test"))
    print("last layer   " + " ".join(f"{step:5}" for step in range(EVERY, STEPS + 1, EVERY)) + "  steps")
    for name, zero in (("N(0, 0.02)", False), ("zero", True)):
        aurocs = np.median([course(training, test, zero, seed) for seed in range(3)], axis=0)
        print(f"{name:12} " + " ".join(f"{auroc:5.2f}" for auroc in aurocs))


if __name__ == "__main__":
    main()
