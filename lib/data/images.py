"""Images to train on: integers in memory or on disk, floats by the batch."""

from collections.abc import Iterator

import numpy as np
import torch

from lib.data.cohort import to_images
from lib.data.pixels import OnDisk


class Images:
    """Images to train on, (N, H, W) integers: those that are indexed become (B, 1, H, W) float32 in [-1, 1]."""

    def __init__(self, pixels: np.ndarray | OnDisk):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 1, *self.pixels.shape[1:]

    def __getitem__(self, rows) -> torch.Tensor:
        return torch.from_numpy(to_images(self.pixels[rows]))

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Return all images in order, at most `size` at a time; where there are none, none once, as of a tensor."""
        return (self[start : start + size] for start in range(0, max(len(self), 1), size))
