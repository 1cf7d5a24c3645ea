"""Radiographs: one's own images, PNG, JPEG, TIFF or DICOM, made into a cohort.

A CSV says which file shows which patient and which fracture. Each file takes the same way:

    read_image   decode → values the file's author wanted to be seen → grey in [0, 1], dark background
    letterbox    square pixels, square frame, antialiased
    cohort       uint8, or uint16 as soon as one file has more than 8 bits

Nothing else of a file is kept: no tag, no name, no path.
"""

from __future__ import annotations

import csv as csv_files
import hashlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array

from lib.cohort import LABELS, Cohort
from lib.runs import progress
from lib.splits import PARTS

REQUIRED = ("path", "patient_id", "label")
OPTIONAL = ("image_id", "view", "side", "split", "zone_top", "zone_bottom")
SHOWN = 100  # bad rows named in an error's message; its `problems` have them all
CODE = Path(__file__).read_bytes()  # part of a cached image's key: images prepared by older code are prepared again


class RadiographsError(ValueError):
    """A table of radiographs that cannot be used: `problems` has (row, path, reason) for every bad row.

    Rows are counted as a spreadsheet counts them: the header is row 1.
    """

    def __init__(self, message: str, problems: list[tuple[int, str, str]] | None = None):
        super().__init__(message)
        self.problems = problems or []


class Radiograph(NamedTuple):
    """One image as read from its file."""

    image: np.ndarray  # (h, w) float32 in [0, 1], bone bright on a dark background
    bits: int  # stored per pixel and channel
    spacing: tuple[float, float] = (1.0, 1.0)  # height and width of one pixel; only their ratio has a meaning


def read_radiographs(csv: str | Path, size: int, cache: str | Path | None = None, rows=None) -> Cohort:
    """The cohort that a CSV of one's own radiographs describes.

    Parameters
    ----------
    csv : file with the columns `path` (relative to the CSV's folder), `patient_id`, `label` (AFF or NFF, in any case)
        and optionally `image_id, view, side, split, zone_top, zone_bottom` (see data/README.md); UTF-8, separated by
        comma, semicolon or tab
    size : side of the square images in pixels
    cache : folder in which prepared images are kept, so that the next call reads only files that are new or changed
    rows : positions of the rows to read; by default all

    Returns
    -------
    Cohort
        Rows in the CSV's order, uint8, or uint16 if any file has more than 8 bits (8-bit images then times 257, which
        maps 255 to 65535). A missing `image_id` becomes `<patient_id>-<k>`, k counting the patient's rows from 1.
        `split` and the fracture zone are there if the CSV has them, the zone in fractions of the square frame.

    Raises
    ------
    RadiographsError
        Naming every row that cannot be used, and why.
    """
    csv = Path(csv)
    table, reasons = _read_table(csv)
    _check_table(table, reasons)
    table = table if rows is None else table.iloc[rows]
    pixels = np.zeros((len(table), size, size), np.uint16)
    boxes = np.zeros((len(table), 4))
    deep = False
    bar = progress(len(table), desc="radiographs")
    for position, (row, written) in enumerate(table.path.items()):
        bar.update()
        path = csv.parent / _as_path(written)
        try:
            if not os.path.isfile(path):
                raise ValueError("no such file")
            image, boxes[position] = _prepare(path, size, cache)
        except ValueError as error:
            reasons[row].append(str(error))
            continue
        deep |= image.dtype == np.uint16
        pixels[position] = image if image.dtype == np.uint16 else image.astype(np.uint16) * 257
    bar.close()
    if problems := [(row, table.path[row], "; ".join(found)) for row, found in reasons.items() if found]:
        raise RadiographsError(_message(csv, len(table), problems), problems)
    _warn_of_dark(table, pixels)
    return Cohort(_cohort_table(table, boxes / size), pixels if deep else (pixels // 257).astype(np.uint8))


# One image ------------------------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> Radiograph:
    """Decode one PNG, JPEG, TIFF or DICOM file; of several frames or pages the first. What it is, its content says.

    DICOM values pass the modality and VOI transforms of the file; other files span the full range of their bit depth.
    Colours become luminance (ITU-R BT.601; grey stays grey).

    Raises
    ------
    ValueError
        With the reason, and without the path, where the file holds no usable image.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(132)
        if not head:
            raise ValueError("the file is empty (0 bytes)")
        radiograph = _read_dicom(path) if head[128:] == b"DICM" else _read_picture(path)
    except UnidentifiedImageError:
        raise ValueError("not a PNG, JPEG, TIFF or DICOM image, or of a rare kind that Pillow cannot read") from None
    except Exception as error:  # decoders raise of all kinds
        detail = " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__
        raise ValueError(f"unreadable image: {detail}") from None
    if np.ptp(radiograph.image) == 0:
        raise ValueError("empty image: every pixel has the same value")
    return radiograph


def _read_picture(path: Path) -> Radiograph:
    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
        tags = getattr(picture, "tag_v2", {})
        bits = tags.get(258, (16,))[0] if picture.mode.startswith("I;16") else 8
        if picture.mode in ("I", "F"):
            raise ValueError("signed, 32-bit or floating-point pixels have no white level: save it with 8 or 16 bits")
        picture = ImageOps.exif_transpose(picture)
        # Pillow's convert("L") would cut 16 bits off at 255, so they go to numpy as they are.
        image = np.asarray(picture if bits > 8 else picture.convert("L"), np.float32) / (2**bits - 1)
    if bits > 8 and tags.get(262) == 0:  # WhiteIsZero: Pillow inverts it at 8 bits, not at 16
        image = 1 - image
    return Radiograph(image, bits)


def _read_dicom(path: Path) -> Radiograph:
    with warnings.catch_warnings():  # pydicom's warnings quote tags
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        if "PixelData" not in ds:
            raise ValueError("a DICOM file without an image")
        pixels = pixel_array(ds, index=0)
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, ds)  # (h, w, 3)
        if pixels.ndim == 3:
            bits = pixels.dtype.itemsize * 8
            image = pixels[..., :3] @ np.array([0.299, 0.587, 0.114]) / (2**bits - 1)
        else:
            bits = ds.BitsStored
            image = _presentation(pixels, ds)
    return Radiograph(image.astype(np.float32), bits, _pixel_spacing(ds))


def _presentation(pixels: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    """Stored values to [0, 1] as the file wants to be shown: modality LUT or rescale, then VOI LUT or window (the first
    of several), then MONOCHROME1 inverted. Without VOI, the full range of the stored bits. DICOM PS3.3 C.11.1, C.11.2.
    """
    lowest = -(2 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
    extremes = np.array([lowest, lowest + 2**ds.BitsStored - 1])
    if ds.get("ModalityLUTSequence"):
        extremes = np.array([0, _widen(ds.ModalityLUTSequence[0])])
    else:
        extremes = np.sort(apply_modality_lut(extremes, ds))
    values = apply_modality_lut(pixels.astype(np.int32), ds)

    center, width = _first(ds.get("WindowCenter")), _first(ds.get("WindowWidth"))
    if ds.get("VOILUTSequence"):
        first = ds.VOILUTSequence[0].LUTDescriptor[1]
        top = _widen(ds.VOILUTSequence[0])
        image = apply_voi(np.rint(np.clip(values, first, first + 65535)).astype(np.int32), ds) / top
    elif center is not None and width is not None:
        image = window(values, center, width, (ds.get("VOILUTFunction") or "LINEAR").upper())
    else:
        image = np.clip((values - extremes[0]) / (extremes[1] - extremes[0]), 0, 1)
    return 1 - image if ds.PhotometricInterpretation == "MONOCHROME1" else image


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values to [0, 1] by a LINEAR, LINEAR_EXACT or SIGMOID window: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if width <= 0 or (width < 1 and function == "LINEAR"):
        raise ValueError(f"its window has the width {width:g}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)  # a width of 1 is a step
    return np.clip((values - center) / width + 0.5, 0, 1)


def _widen(item: pydicom.Dataset) -> int:
    """The highest value of a lookup table, which is then declared 16 bits deep: pydicom computes the table's *indices*
    in its output depth, so that those of a table with 8-bit output would wrap at 256.
    """
    entries, first, depth = item.LUTDescriptor
    item.LUTDescriptor = [entries, first, 16]
    return 2**depth - 1


def _first(value) -> float | None:
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return None if value is None else float(value)


def _pixel_spacing(ds: pydicom.Dataset) -> tuple[float, float]:
    """Height and width of a pixel: at the patient, else at the detector, else their bare ratio, else square."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        if (spacing := ds.get(keyword)) and min(map(float, spacing)) > 0:
            return float(spacing[0]), float(spacing[1])
    return 1.0, 1.0


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


def _prepare(path: Path, size: int, cache: str | Path | None) -> tuple[np.ndarray, np.ndarray]:
    """(size, size) uint8 or uint16 and its box (see `letterbox`), from the cache where it has them."""
    stat = path.stat()
    key = hashlib.sha256(repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns, size)).encode() + CODE).hexdigest()
    cached = Path(cache, f"{key}.npz") if cache else None
    if cached and cached.exists():
        with np.load(cached) as entry:
            return entry["pixels"], entry["box"]
    image, bits, spacing = read_image(path)
    square, box = letterbox(image, size, spacing)
    dtype = np.uint8 if bits <= 8 else np.uint16
    pixels = np.rint(square * np.iinfo(dtype).max).astype(dtype)
    if cached:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".npz.part", delete=False) as file:
            np.savez(file, pixels=pixels, box=box)
        os.replace(file.name, cached)  # whole or not at all
    return pixels, np.asarray(box)


# The table ------------------------------------------------------------------------------------------------------------


def _read_table(csv: Path) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """The CSV's known columns as stripped strings, without empty ones, indexed by spreadsheet row; and row → [] or what
    is wrong with it.
    """
    if not csv.is_file():
        raise RadiographsError(f"there is no CSV file {csv}: give radiographs_csv its path")
    try:
        with open(csv, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            lines = list(csv_files.reader(file, delimiter=max(",;\t", key=header.count)))
    except UnicodeDecodeError:
        raise RadiographsError(f"{csv.name} is not in UTF-8: save it as 'CSV UTF-8'") from None
    except csv_files.Error as error:
        raise RadiographsError(f"{csv.name} is no CSV file: {error}") from None
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    n = len(columns)
    if missing := [name for name in REQUIRED if name not in columns]:
        raise RadiographsError(
            f"{csv.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"it has {', '.join(columns) or 'none'}; needed are {', '.join(REQUIRED)}"
        )
    if repeated := {name for name in columns if name in (*REQUIRED, *OPTIONAL) and columns.count(name) > 1}:
        raise RadiographsError(f"{csv.name} has the column {', '.join(sorted(repeated))} more than once")
    rows = {row: [cell.strip() for cell in line] for row, line in enumerate(lines[1:], 2) if any(map(str.strip, line))}
    if not rows:
        raise RadiographsError(f"{csv.name} has a header and no rows")
    reasons = {
        row: [f"{len(line)} fields where the header has {n}"] if len(line) < n or any(line[n:]) else []
        for row, line in rows.items()
    }
    cells = [(line + [""] * n)[:n] for line in rows.values()]
    table = pd.DataFrame(cells, index=list(rows), columns=columns, dtype=str)
    known = [*REQUIRED, *(name for name in OPTIONAL if name in table and any(table[name]))]
    return table[known].copy(), reasons


def _as_path(written: str) -> str:
    """The same file is the same string, whichever way its slashes lean."""
    return os.path.normpath(written.replace("\\", "/"))


def _check_table(table: pd.DataFrame, reasons: dict[int, list[str]]) -> None:
    """Bring labels, parts, zones and image ids into their final form, and note what is wrong; both in place."""

    def refuse(values: pd.Series, bad: pd.Series, reason: str):
        """`{value!r}` and `{first}` in the reason: the row's value, and the first row that has the same."""
        first = dict(zip(values[::-1], values.index[::-1], strict=True))
        for row in table.index[bad]:
            reasons[row].append(reason.format(value=values[row], first=first[values[row]]))

    refuse(table.patient_id, table.patient_id == "", "no patient_id")

    labels = table.label.str.upper()
    refuse(table.label, ~labels.isin(LABELS), f"unknown label {{value!r}}: labels are {' and '.join(LABELS)}")
    table["label"] = labels

    counted = table.patient_id + "-" + (table.groupby("patient_id").cumcount() + 1).astype(str)
    table["image_id"] = table.image_id.where(table.image_id != "", counted) if "image_id" in table else counted
    refuse(table.image_id, table.image_id.duplicated(), "image_id {value!r} already stands in row {first}")
    paths = table.path.map(_as_path)
    refuse(paths, paths.duplicated() & table.path.ne(""), "the same file already stands in row {first}")

    if "split" in table:
        table["split"] = table.split.str.lower()
        refuse(table.split, ~table.split.isin(PARTS), f"unknown split {{value!r}}: splits are {', '.join(PARTS)}")
        known = table[table.split.isin(PARTS)]
        seen = {}
        for row, patient, split in zip(known.index, known.patient_id, known.split, strict=True):
            first_split, first = seen.setdefault(patient, (split, row))
            if split != first_split:
                reasons[row].append(f"patient {patient!r} is in {split} here and in {first_split} in row {first}")

    if "zone_top" in table or "zone_bottom" in table:
        for name in ("zone_top", "zone_bottom"):
            written = table[name] if name in table else pd.Series("", table.index)
            table[name] = pd.to_numeric(written.str.replace(",", "."), errors="coerce")
            refuse(written, table[name].isna() & written.ne(""), f"{name} {{value!r}} is no number")
        top, bottom = table.zone_top, table.zone_bottom
        valid = ((top >= 0) & (top < bottom) & (bottom <= 1)) | (top.isna() & bottom.isna())
        refuse(table.path, ~valid, "not 0 ≤ zone_top < zone_bottom ≤ 1 (fractions of the image height)")


def _cohort_table(table: pd.DataFrame, boxes: np.ndarray) -> pd.DataFrame:
    """The cohort's columns; the fracture zone moves from fractions of the image to fractions of the square."""
    cohort = table[["image_id", "patient_id", "label"]].copy()
    for column in ("view", "side"):
        cohort[column] = table[column].replace("", "unknown") if column in table else "unknown"
    if "split" in table:
        cohort["split"] = table.split
    top, bottom = boxes[:, 0], boxes[:, 2]
    for column in ("zone_top", "zone_bottom"):
        if column in table:
            cohort[column] = top + table[column] * (bottom - top)
    return cohort


def _message(csv: Path, n: int, problems: list[tuple[int, str, str]]) -> str:
    lines = [f"{len(problems)} of {n} rows of {csv.name} cannot be used (the header is row 1); mend or remove them:"]
    lines += [f"  row {row}, {path or 'no path'}: {reason}" for row, path, reason in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN} more")
    return "\n".join(lines)


def _warn_of_dark(table: pd.DataFrame, pixels: np.ndarray) -> None:
    """Say which images use less than a sixteenth of their range: 12 bits stored in 16 without scaling, most often."""
    if len(dark := table.index[pixels.max(axis=(1, 2)) < 65536 // 16]):
        warnings.warn(
            f"{len(dark)} of {len(table)} images use less than 1/16 of their grey levels and look black: 12 bits "
            f"written into 16 without scaling? (row {', '.join(map(str, dark[:10]))}{' …' * (len(dark) > 10)})",
            stacklevel=3,
        )
