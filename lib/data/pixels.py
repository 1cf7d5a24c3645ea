"""Pixels that stay on disk: rows of `.npy` files that are read when they are indexed, and only those.

They are not mapped into memory: mapped pages count as the process's own until the system takes them back.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lib.run.files import shown

BLOCK = 256  # images read at a time


def blocks(n: int, size: int = BLOCK) -> Iterator[np.ndarray]:
    """Yield the row numbers 0 … n − 1 in order, at most `size` at a time."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


def taken(pixels: np.ndarray | OnDisk, rows) -> np.ndarray | OnDisk:
    """Return the images at these positions; those on disk stay there."""
    return pixels.take(rows) if isinstance(pixels, OnDisk) else pixels[rows]


def joined(several: Sequence[np.ndarray | OnDisk]) -> np.ndarray | OnDisk:
    """Return the images of the first, then those of the second, and so on; where some are on disk nothing is read."""
    if not any(isinstance(pixels, OnDisk) for pixels in several):
        return np.concatenate(several)
    several = [OnDisk.of(pixels) for pixels in several]
    before = np.cumsum([0, *(len(pixels.parts) for pixels in several)])
    return OnDisk(
        tuple(part for pixels in several for part in pixels.parts),
        np.concatenate([pixels.which + first for pixels, first in zip(several, before, strict=False)]),
        np.concatenate([pixels.row for pixels in several]),
    )


def save_pixels(path: Path, n: int, images: Iterable[np.ndarray]) -> None:
    """Write n images, which come in blocks (m, H, W), into one file, as `numpy.save` does."""
    with open(path, "wb") as file:
        written = 0
        for block in images:
            if not file.tell():
                kind = {"descr": np.lib.format.dtype_to_descr(block.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, kind | {"shape": (n, *block.shape[1:])})
            file.write(np.ascontiguousarray(block))
            written += len(block)
    if written != n:
        raise ValueError(f"{written} images came for the {n} rows of their table")


class File:
    """A `.npy` file of (N, H, W) integers, held open: it keeps its content where another file takes its place.

    Raises ValueError where the file does not hold such an array, or less of it than it says.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        with open(self.path, "rb", buffering=0) as file:
            np.lib.format.read_magic(file)
            self.shape, by_columns, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.offset, state = file.tell(), os.fstat(file.fileno())
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self.identity = state.st_mtime_ns, state.st_size  # the same on every machine that sees the file
        if by_columns or len(self.shape) != 3:
            raise ValueError(f"{shown(self.path)} holds no images (N, H, W): make it again")
        self.image_bytes = self.shape[1] * self.shape[2] * self.dtype.itemsize
        if state.st_size < self.offset + self.shape[0] * self.image_bytes:
            raise ValueError(f"{shown(self.path)} is shorter than it says: make it again")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        """Read one image (H, W)."""
        read = os.pread(self.descriptor, self.image_bytes, self.offset + int(row) * self.image_bytes)
        return np.frombuffer(read, self.dtype).reshape(self.shape[1:])

    def __reduce__(self):
        return _opened_again, (self.path, self.identity)


def _opened_again(path: Path, identity: tuple) -> File:
    file = File(path)
    if file.identity != identity:
        raise ValueError(f"{shown(path)} was written anew since it was opened: load the cohort again")
    return file


class OnDisk:
    """(N, H, W) pixels of files and arrays, in any order; what is indexed is read, as an array.

    A pickle holds paths of files, not their content.

    Parameters
    ----------
    parts : files or arrays, each with the table of grey levels that it is seen through, (256,) or (65536,), or None
    which, row : (N,) the part of each image, and its position there
    """

    ndim = 3

    def __init__(self, parts: tuple[tuple[File | np.ndarray, np.ndarray | None], ...], which, row):
        self.parts, self.which, self.row = parts, np.asarray(which), np.asarray(row)

    @classmethod
    def of(cls, pixels: File | np.ndarray | OnDisk) -> OnDisk:
        """Take all images of a file or an array."""
        if isinstance(pixels, OnDisk):
            return pixels
        return cls(((pixels, None),), np.zeros(len(pixels), int), np.arange(len(pixels)))

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0][0].dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self), *self.parts[0][0].shape[1:]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows) -> OnDisk:
        """Return the images at these positions, or where this boolean mask is true; nothing is read."""
        return OnDisk(self.parts, self.which[rows], self.row[rows])

    def through(self, levels: np.ndarray) -> OnDisk:
        """Return the same images, each grey level replaced by its entry in a table."""
        seen = tuple((source, levels if past is None else levels[past]) for source, past in self.parts)
        return OnDisk(seen, self.which, self.row)

    def __getitem__(self, index) -> np.ndarray:
        """Read as an array is read; behind the first comma stand slices and numbers only."""
        if isinstance(index, tuple):
            images, rest = self[index[0]], index[1:]
            return images[rest] if images.ndim == 2 else images[:, *rest]
        which, row = self.which[index], self.row[index]
        images = np.empty((*row.shape, *self.shape[1:]), self.dtype)
        for image, part, position in zip(images.reshape(-1, *self.shape[1:]), which.flat, row.flat, strict=True):
            source, levels = self.parts[part]
            image[:] = source[position] if levels is None else levels[source[position]]
        return images

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Read all images."""
        if copy is False:
            raise ValueError("pixels on disk cannot be an array without being copied")
        return np.asarray(self[:], dtype)
