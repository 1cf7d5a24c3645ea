"""Preparing: one radiograph to a square of the size that networks take, kept in a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from lib.radiographs.files import Radiograph, read_image

# Part of a cached image's key: images prepared by older code are prepared again.
CODE = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("files.py", "preparing.py"))


def letterbox(image: np.ndarray, size: int, spacing: tuple[float, float] = (1.0, 1.0)):
    """Fit an image into the middle of a black square, with its true proportions.

    Resampled by Pillow on float32 with a triangle filter as wide as the reduction asks for: antialiased at any ratio,
    and free of the overshoot with which sharper filters would draw seams along cortices and collimators.

    Parameters
    ----------
    image : (h, w) float32
    size : side of the square in pixels
    spacing : height and width of one pixel of `image`

    Returns
    -------
    square : (size, size) float32
    box : (top, left, bottom, right) of the image within the square, in its pixels
    """
    extent = np.multiply(image.shape, spacing)
    height, width = (max(1, round(side)) for side in extent * size / extent.max())
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size), np.float32)
    content = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    square[top : top + height, left : left + width] = content
    return square, (top, left, top + height, left + width)


def prepared(path: Path, size: int, cache: str | Path | None) -> tuple[np.ndarray, np.ndarray, Radiograph]:
    """One file as a square, from the cache where it has it.

    Returns
    -------
    pixels : (size, size) uint8, or uint16 where the file has more than 8 bits
    box : (top, left, bottom, right) of the image within it, see `letterbox`
    radiograph : what else the file says: view, side and notes, without the image
    """
    stat = path.stat()
    key = hashlib.sha256(repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns, size)).encode() + CODE).hexdigest()
    cached = Path(cache, f"{key}.npz") if cache else None
    if cached and cached.exists():
        with np.load(cached) as entry:
            view, side, *notes = entry["said"].tolist()
            return entry["pixels"], entry["box"], Radiograph(None, 0, view=view, side=side, notes=tuple(notes))
    radiograph = read_image(path)
    square, box = letterbox(radiograph.image, size, radiograph.spacing)
    dtype = np.uint8 if radiograph.bits <= 8 else np.uint16
    pixels = np.rint(square * np.iinfo(dtype).max).astype(dtype)
    if cached:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".npz.part", delete=False) as file:
            said = np.array([radiograph.view, radiograph.side, *radiograph.notes])
            np.savez(file, pixels=pixels, box=box, said=said)
        os.replace(file.name, cached)  # whole or not at all
    return pixels, np.asarray(box), radiograph._replace(image=None)
