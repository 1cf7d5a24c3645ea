"""Preparing: one radiograph to a square of the size that networks take, step by step, kept in a cache."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed

from lib.radiographs.decoding import Radiograph, read_image
from lib.radiographs.geometry import Picture, field_of_view, tilt
from lib.radiographs.measures import measures
from lib.radiographs.writing import text_lines, without_text
from lib.run.fingerprint import source_hash


@functools.cache
def code() -> str:
    """Return the part of a cached image's key by which images of other code are prepared again."""
    return source_hash(_prepared_or_error)


@dataclass(frozen=True)
class Preparation:
    """What is done to an image between its file and the square, in this order."""

    hide_text: bool = False  # what looks like writing is painted over
    region: tuple[float, float, float, float] | None = None  # top, left, bottom, right: this part, in fractions
    crop: bool = False  # collimation borders and burned-in frames are taken off, where there is no region
    quarters: int | None = None  # quarter turns counter-clockwise that bring proximal up; None: as DICOM's tag says
    upright: bool = False  # turned by up to 45° more, so that the shaft is vertical
    one_side: bool = False  # right femurs mirrored, so that all look like left ones
    side: str = ""  # "left" or "right"; empty: as DICOM's tag says


DEFAULT = Preparation()
STEPS = (
    *("decoded", "writing hidden", "region", "borders off", "proximal up", "shaft upright", "as a left side"),
    "square",
)


def prepare(
    radiograph: Radiograph, size: int, how: Preparation = DEFAULT
) -> tuple[dict[str, Picture], tuple[int, int, int, int], dict]:
    """A radiograph in the middle of a black square, with its true proportions.

    Parameters
    ----------
    size : side of the square in pixels

    Returns
    -------
    steps : name → the image after this step; the last is the square
    crop : (top, left, bottom, right) of what is shown of the file's image, in its pixels
    about : `measures` of the image, `cropped`, the share of it that was taken off, and `writing`, the lines found

    Raises
    ------
    ValueError
        Where the region holds no pixel.
    """
    picture = Picture(radiograph.image)
    steps = {"decoded": picture}
    height, width = picture.image.shape
    lines = text_lines(picture.image)
    if how.hide_text and lines:
        steps["writing hidden"] = picture = Picture(without_text(picture.image, lines))
    top, left, bottom, right = 0, 0, height, width
    if how.region:
        top, left, bottom, right = np.multiply(how.region, [height, width, height, width]).round().astype(int).tolist()
        if top >= bottom or left >= right:
            raise ValueError("its region holds no pixel")
        steps["region"] = picture = picture.cropped(top, left, bottom, right)
    elif how.crop:
        top, left, bottom, right = field_of_view(picture.image)
        steps["borders off"] = picture = picture.cropped(top, left, bottom, right)
    about = {"cropped": 1 - picture.image.size / (height * width), "writing": len(lines), **measures(picture.image)}
    quarters = radiograph.quarters if how.quarters is None else how.quarters
    extent = np.multiply(picture.image.shape, radiograph.spacing)[:: -1 if quarters % 2 else 1]
    if quarters:
        steps["proximal up"] = picture = picture.turned(quarters)
    if how.upright and (degrees := tilt(picture.resized(*_fitting(extent, 256)).image)):
        larger = picture.resized(*_fitting(extent, 2 * size))  # square pixels, and none too small to be turned well
        steps["shaft upright"] = picture = larger.rotated(degrees)
        extent = picture.image.shape
    if how.one_side and (how.side or radiograph.side) == "right":
        steps["as a left side"] = picture = picture.mirrored()
    steps["square"] = picture.resized(*_fitting(extent, size)).padded(size)
    return steps, (top, left, bottom, right), about


def _fitting(extent, size: int) -> tuple[int, int]:
    """Height and width in pixels of what has this extent and is to fit a square."""
    height, width = (max(1, round(side * size / max(extent))) for side in extent)
    return height, width


class Prepared(NamedTuple):
    """One file as networks take it."""

    pixels: np.ndarray  # (size, size) uint8, or uint16 where the file has more than 8 bits
    crop: tuple[int, int, int, int]  # top, left, bottom, right of what is shown of the file's image, in its pixels
    to_source: np.ndarray  # (3, 3): (x, y, 1) in the square to the file's, see `lib.radiographs.geometry`
    view: str
    side: str
    notes: tuple[str, ...]
    about: dict[str, float]  # `lib.data.cohort.MEASURES`


def prepared(
    paths: Sequence[Path], size: int, how: Sequence[Preparation], cache: str | Path | None
) -> Iterator[tuple[int, Prepared | ValueError]]:
    """Many files as squares: from the cache where it has them, the others over all cores.

    Yields
    ------
    position of the file, and what became of it: a ValueError where it holds no usable image
    """
    new = []
    for position, (path, preparation) in enumerate(zip(paths, how, strict=True)):
        if entry := _cached(path, size, preparation, cache):
            yield position, entry
        else:
            new.append(position)
    one = functools.partial(_prepared_or_error, size=size, cache=cache)
    yield from zip(new, over_cores(one, [(paths[position], how[position]) for position in new]), strict=True)


def over_cores(function: Callable, items: list) -> Iterator:
    """What `function` makes of each item, in order, over all cores where there are enough of them."""
    workers = max(1, min(os.cpu_count(), len(items) // 64))  # a worker takes a second to start
    yield from Parallel(workers, return_as="generator", batch_size=8)(delayed(function)(item) for item in items)


def _prepared_or_error(file: tuple[Path, Preparation], size: int, cache: str | Path | None) -> Prepared | ValueError:
    path, how = file
    try:
        radiograph = read_image(path)
        steps, crop, about = prepare(radiograph, size, how)
    except ValueError as error:
        return error
    dtype = np.uint8 if radiograph.bits <= 8 else np.uint16
    square = steps["square"]
    pixels = np.rint(np.clip(square.image, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    about |= {"height": radiograph.image.shape[0], "width": radiograph.image.shape[1], "bits": radiograph.bits}
    facts = radiograph.view, radiograph.side, radiograph.notes, about
    found = Prepared(pixels, crop, square.to_source, *facts)
    if entry := _entry(path, size, how, cache):
        entry.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps([pixels.dtype.name, crop, square.to_source.tolist(), *facts])
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
            file.write(head.encode() + b"\n" + pixels.tobytes())
        os.replace(file.name, entry)  # whole or not at all
    return found


def _cached(path: Path, size: int, how: Preparation, cache: str | Path | None) -> Prepared | None:
    entry = _entry(path, size, how, cache)
    if entry is None or not entry.exists():
        return None
    head, _, data = entry.read_bytes().partition(b"\n")
    dtype, crop, to_source, view, side, notes, about = json.loads(head)
    pixels = np.frombuffer(data, dtype).reshape(size, size)
    return Prepared(pixels, tuple(crop), np.array(to_source), view, side, tuple(notes), about)


def _entry(path: Path, size: int, how: Preparation, cache: str | Path | None) -> Path | None:
    """The cache's file for a radiograph as it is now: a line of JSON, then the pixels (an .npz is ten times slower).

    Its name says nothing of the radiograph's.
    """
    if cache is None:
        return None
    stat = path.stat()
    key = hashlib.sha256(repr((str(path), stat.st_size, stat.st_mtime_ns, size, how, code())).encode()).hexdigest()
    return Path(cache, key)
