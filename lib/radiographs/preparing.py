"""Preparing: one radiograph to a square of the size that networks take, step by step, and the cache of squares."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed

from lib.data.cohort import CROP, TO_SOURCE
from lib.radiographs.decoding import Radiograph, read_image
from lib.radiographs.geometry import Picture, field_of_view, fitting, tilt
from lib.radiographs.quality import measures
from lib.radiographs.writing import text_lines, without_text
from lib.run.files import written
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
STEPS = ("decoded", "writing hidden", "region", "borders off", "proximal up", "shaft upright", "as a left side",
         "square")  # fmt: skip


def prepare(
    radiograph: Radiograph, size: int, how: Preparation = DEFAULT
) -> tuple[dict[str, Picture], tuple[int, int, int, int], dict]:
    """Put a radiograph into the middle of a black square, in proportion; raise ValueError where its region is empty.

    Returns
    -------
    steps : name → the image after this step; the last is the square of `size` pixels a side
    crop : (top, left, bottom, right) of what is shown of the file's image, in its pixels
    about : `lib.data.cohort.MEASURES` of the image
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
    cropped = 1 - picture.image.size / (height * width)
    about = {"height": height, "width": width, "bits": radiograph.bits, "cropped": cropped, "writing": len(lines)}
    about |= measures(picture.image)
    quarters = radiograph.quarters if how.quarters is None else how.quarters
    extent = np.multiply(picture.image.shape, radiograph.spacing)[:: -1 if quarters % 2 else 1]
    if quarters:
        steps["proximal up"] = picture = picture.turned(quarters)
    if how.upright and (degrees := tilt(picture.resized(*fitting(extent, 256)).image)):
        larger = picture.resized(*fitting(extent, 2 * size))  # square pixels, and none too small to be turned well
        steps["shaft upright"] = picture = larger.rotated(degrees)
        extent = picture.image.shape
    if how.one_side and (how.side or radiograph.side) == "right":
        steps["as a left side"] = picture = picture.mirrored()
    steps["square"] = picture.resized(*fitting(extent, size)).padded(size)
    return steps, (top, left, bottom, right), about


class Prepared(NamedTuple):
    """One file as networks take it."""

    pixels: np.ndarray  # (size, size) uint8, or uint16 where the file has more than 8 bits
    about: dict[str, float | str]  # view, side, and `CROP`, `TO_SOURCE` and `MEASURES` of `lib.data.cohort`
    notes: list[str]  # what a reader should know, see `Radiograph`


def prepared(
    files: dict[Hashable, tuple[Path, Preparation]], size: int, cache: str | Path | None
) -> Iterator[tuple[Hashable, Prepared | ValueError]]:
    """Yield each file's key and square, from the cache or made over all cores; a ValueError where it is unusable."""
    new = {}
    for key, (path, how) in files.items():
        entry = _entry(path, size, how, cache)
        if entry and entry.exists():
            head, _, data = entry.read_bytes().partition(b"\n")
            dtype, about, notes = json.loads(head)
            yield key, Prepared(np.frombuffer(data, dtype).reshape(size, size), about, notes)
        else:
            new[key] = path, how, entry
    yield from zip(new, over_cores(functools.partial(_prepared_or_error, size=size), list(new.values())), strict=True)


def over_cores(function: Callable, items: list) -> Iterator:
    """Apply a function to each item, in order, over all cores where there are enough items."""
    workers = max(1, min(os.cpu_count(), len(items) // 64))  # a worker takes a second to start
    yield from Parallel(workers, return_as="generator", batch_size=8)(delayed(function)(item) for item in items)


def _prepared_or_error(file: tuple[Path, Preparation, Path | None], size: int) -> Prepared | ValueError:
    path, how, entry = file
    try:
        radiograph = read_image(path)
        steps, crop, about = prepare(radiograph, size, how)
    except ValueError as error:
        return error
    dtype = np.uint8 if radiograph.bits <= 8 else np.uint16
    square = steps["square"]
    pixels = np.rint(np.clip(square.image, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    about |= {"view": radiograph.view, "side": radiograph.side, **dict(zip(CROP, crop, strict=True))}
    about |= zip(TO_SOURCE, square.to_source[:2].ravel().tolist(), strict=True)
    if entry:
        with written(entry) as part:
            head = json.dumps([pixels.dtype.name, about, radiograph.notes])
            part.write_bytes(head.encode() + b"\n" + pixels.tobytes())
    return Prepared(pixels, about, list(radiograph.notes))


def _entry(path: Path, size: int, how: Preparation, cache: str | Path | None) -> Path | None:
    """Return the cache's file for a radiograph as it is now: a line of JSON, then the pixels (.npz is slow)."""
    if cache is None:
        return None
    stat = path.stat()
    key = hashlib.sha256(repr((str(path), stat.st_size, stat.st_mtime_ns, size, how, code())).encode()).hexdigest()
    return Path(cache, key)
