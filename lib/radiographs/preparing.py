"""Preparing: one radiograph to a square of the size that networks take, kept in a cache."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lib.radiographs.files import read_image

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


class Prepared(NamedTuple):
    """One file as networks take it."""

    pixels: np.ndarray  # (size, size) uint8, or uint16 where the file has more than 8 bits
    box: np.ndarray  # (top, left, bottom, right) of the image within the square, see `letterbox`
    view: str
    side: str
    notes: tuple[str, ...]


def prepared(paths: Sequence[Path], size: int, cache: str | Path | None) -> Iterator[tuple[int, Prepared | ValueError]]:
    """Many files as squares: from the cache where it has them, the others over all cores.

    Yields
    ------
    position of the file, and what became of it: a ValueError where it holds no usable image
    """
    new = []
    for position, path in enumerate(paths):
        if entry := _cached(path, size, cache):
            yield position, entry
        else:
            new.append(position)
    one = functools.partial(_prepared_or_error, size=size, cache=cache)
    yield from zip(new, over_cores(one, [paths[position] for position in new]), strict=True)


def over_cores(function: Callable, items: list) -> Iterator:
    """What `function` makes of each item, in order, over all cores where there are enough of them."""
    workers = min(os.cpu_count(), len(items) // 64)  # a worker takes a second to start
    if workers < 2:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=8)


def _prepared_or_error(path: Path, size: int, cache: str | Path | None) -> Prepared | ValueError:
    try:
        radiograph = read_image(path)
    except ValueError as error:
        return error
    square, box = letterbox(radiograph.image, size, radiograph.spacing)
    dtype = np.uint8 if radiograph.bits <= 8 else np.uint16
    pixels = np.rint(square * np.iinfo(dtype).max).astype(dtype)
    found = Prepared(pixels, np.asarray(box), radiograph.view, radiograph.side, radiograph.notes)
    if entry := _entry(path, size, cache):
        entry.parent.mkdir(parents=True, exist_ok=True)
        about = {"dtype": pixels.dtype.name, "box": box, "view": found.view, "side": found.side, "notes": found.notes}
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
            file.write(json.dumps(about).encode() + b"\n" + pixels.tobytes())
        os.replace(file.name, entry)  # whole or not at all
    return found


def _cached(path: Path, size: int, cache: str | Path | None) -> Prepared | None:
    entry = _entry(path, size, cache)
    if entry is None or not entry.exists():
        return None
    about, _, data = entry.read_bytes().partition(b"\n")
    about = json.loads(about)
    pixels = np.frombuffer(data, about["dtype"]).reshape(size, size)
    return Prepared(pixels, np.array(about["box"]), about["view"], about["side"], tuple(about["notes"]))


def _entry(path: Path, size: int, cache: str | Path | None) -> Path | None:
    """The cache's file for a radiograph as it is now: a line of JSON, then the pixels (an .npz is ten times slower).

    Its name says nothing of the radiograph's.
    """
    if cache is None:
        return None
    stat = path.stat()
    key = hashlib.sha256(repr((str(path), stat.st_size, stat.st_mtime_ns, size)).encode() + CODE).hexdigest()
    return Path(cache, key)
