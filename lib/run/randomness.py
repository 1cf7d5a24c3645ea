"""Random streams that are pure functions of their keys, and what is drawn of them: batches, flips."""

import numpy as np
import torch


def generator(*key: int) -> np.random.Generator:
    """Return a random stream that is a pure function of its key, such as (seed, step)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def torch_generator(*key: int) -> torch.Generator:
    """Return the same for torch, on the CPU: noise is drawn there and moved, so that every device sees the same."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def batch_rows(n: int, batch: int, step: int, *key: int) -> np.ndarray:
    """Draw a step's row numbers, (batch,): each epoch is a new permutation of all n rows, with nothing dropped."""
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = {epoch: generator(*key, int(epoch)).permutation(n) for epoch in np.unique(positions // n)}
    return np.array([epochs[position // n][position % n] for position in positions])


def flipped(images: torch.Tensor, *key: int) -> torch.Tensor:
    """Mirror each image of (B, C, H, W) with probability ½: a left femur is a mirrored right one."""
    mirror = torch.rand(len(images), generator=torch_generator(*key)) < 0.5
    return torch.where(mirror.to(images.device)[:, None, None, None], images.flip(-1), images)
