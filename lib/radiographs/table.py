"""The table: a CSV that says which file shows which patient and which fracture, made into a cohort."""

import codecs
import csv as csv_files
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.cohort import CROP, LABELS, MEASURES, TO_SOURCE, Cohort
from lib.data.splits import PARTS
from lib.radiographs.decoding import SIDES, read_image
from lib.radiographs.geometry import moved
from lib.radiographs.preparing import DEFAULT, STEPS, Preparation, prepare, prepared
from lib.run.progress import progress

REQUIRED = ("path", "patient_id", "label")
ZONE = ("zone_top", "zone_bottom")
REGION = ("region_top", "region_left", "region_bottom", "region_right")
OPTIONAL = ("image_id", "view", "side", "hospital", "split", *ZONE, *REGION, "turn", "exclude")
TURNS = ("0", "90", "180", "270")  # degrees counter-clockwise
EXCLUDED = "excluded.csv"  # what an import left out, beside the table
SHOWN = 100  # bad rows named in an error's message; its `problems` have them all


class RadiographsError(ValueError):
    """A table of radiographs that cannot be used: `problems` has (row, path, reason) for every bad row.

    Rows are counted as a spreadsheet counts them: the header is row 1.
    """

    def __init__(self, message: str, problems: Sequence[tuple[int, str, str]] = ()):
        super().__init__(message)
        self.problems = problems


def read_radiographs(
    csv: str | Path, size: int, cache: str | Path | None = None, rows=None, how: Preparation = DEFAULT
) -> Cohort:
    """Read the cohort that a CSV of one's own radiographs describes.

    Its rows are in the CSV's order, without those that have a reason in `exclude`. Pixels are uint8, or uint16 if any
    file has more than 8 bits: 8-bit values are then multiplied by 257. The fracture zone is in fractions of the square.
    Further columns are `CROP`, `TO_SOURCE` and `MEASURES` of `lib.data.cohort`. Raises RadiographsError, which names
    every row that cannot be used, and why.

    Parameters
    ----------
    csv : has the columns `REQUIRED` and perhaps some of `OPTIONAL`, see data/README.md
    size : side of the square images in pixels
    cache : folder of prepared images, so that the next call reads only files that are new or changed
    rows : positions of the rows to read, among those that are not excluded; by default all
    how : what is done to the images; `region_…`, `turn` and `side` of a row come before it
    """
    csv = Path(csv)
    table, reasons = _read_kept(csv)
    table = table if rows is None else table.iloc[rows]
    files, root = {}, csv.parent.resolve()
    for row, path in table.path.items():
        try:
            files[row] = _inside(root, path), _of_row(table.loc[row], how)
        except ValueError as error:
            reasons[row].append(str(error))
    pixels, read = None, {}
    with progress(len(files), desc="radiographs") as bar:
        for row, found in prepared(files, size, cache):
            bar.update()
            if isinstance(found, ValueError):
                reasons[row].append(str(found))
                continue
            if pixels is None:
                pixels = np.zeros((len(table), size, size), found.pixels.dtype)
            if found.pixels.dtype != pixels.dtype:
                pixels = _of_16_bits(pixels)
            same = found.pixels.dtype == pixels.dtype
            pixels[table.index.get_loc(row)] = found.pixels if same else _of_16_bits(found.pixels)
            read[row] = found._replace(pixels=None)
    if problems := [(row, table.path[row], "; ".join(found)) for row, found in reasons.items() if found]:
        raise RadiographsError(_message(csv, len(table), problems), problems)
    _warn_of_dark(table, pixels)
    read = [read[row] for row in table.index]
    for note, count in Counter(note for found in read for note in found.notes).most_common():
        print(f"{count} of {len(table)} files: {note}")
    return Cohort(_cohort_table(table, pd.DataFrame([found.about for found in read], table.index), size), pixels)


def steps(csv: str | Path, rows: Sequence[int], size: int, how: Preparation = DEFAULT) -> dict[str, np.ndarray]:
    """Return what `read_radiographs` does to images: name of the step → (n, size, size) float32 in [-1, 1].

    `rows` are positions among those that are not excluded. An image that a step leaves alone stays as before it.
    """
    csv = Path(csv)
    table, _ = _read_kept(csv)
    ways = []
    for _, row in table.iloc[rows].iterrows():
        pictures, *_ = prepare(read_image(_inside(csv.parent.resolve(), row.path)), size, _of_row(row, how))
        ways.append({name: picture.shrunk(size).padded(size).image * 2 - 1 for name, picture in pictures.items()})
    shown = [name for name in STEPS if any(name in way for way in ways)]
    for way in ways:
        for before, name in pairwise(shown):
            way.setdefault(name, way[before])
    return {name: np.stack([way[name] for way in ways]) for name in shown}


def flow(csv: str | Path) -> pd.DataFrame:
    """Count all images: those that an import left out, those that the table excludes, those that are read.

    Returns `what, images, patients`, in this order; the patients that an import left out are not known.
    """
    csv = Path(csv)
    table, _ = read_csv(csv)
    excluded = table.get("exclude", pd.Series("", table.index))
    what = ("excluded: " + excluded).where(excluded != "", "read: " + table.label.str.upper())
    counts = table.groupby(what.rename("what")).patient_id.agg(images="size", patients="nunique")
    left_out = csv.with_name(EXCLUDED)
    if left_out.exists() and "problem" in (found := pd.read_csv(left_out, dtype=str)):
        problems = "not imported: " + found.problem
        counts = pd.concat([problems.value_counts().rename_axis("what").rename("images").to_frame(), counts])
    return counts.astype("Int64").reset_index()


def _read_kept(csv: Path) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """Read and check the rows that are not excluded."""
    table, reasons = read_csv(csv)
    if "exclude" in table:
        table = table[table.exclude == ""]
        if not len(table):
            raise RadiographsError(f"{csv.name} excludes every row")
    table, reasons = table.copy(), {row: reasons[row] for row in table.index}
    _check_table(table, reasons)
    return table, reasons


def _of_row(row: pd.Series, how: Preparation) -> Preparation:
    """Return how a row's file is prepared."""
    region = tuple(row[name] for name in REGION) if "region_top" in row else (np.nan,)
    region = None if np.isnan(region).any() else region
    quarters = int(row.turn) // 90 if row.get("turn") in TURNS else None
    return replace(how, region=region, quarters=quarters, side=SIDES.get(row.get("side", "").lower(), ""))


# The table ------------------------------------------------------------------------------------------------------------


def read_csv(
    csv: Path, needed: tuple[str, ...] = REQUIRED, known: tuple[str, ...] | None = OPTIONAL
) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """Read a CSV as spreadsheets save it; raise RadiographsError where it is none, or a needed column is missing.

    Returns
    -------
    table : the needed columns and, where they are not empty, the known ones (None: every one), as stripped strings,
        indexed by the spreadsheet's rows
    reasons : row → [] or what is wrong with it
    """
    if not csv.is_file():
        raise RadiographsError(f"there is no CSV file {csv}")
    try:
        text = decoded(csv.read_bytes())
    except UnicodeDecodeError:
        raise RadiographsError(
            f"{csv.name} is no text in UTF-8, UTF-16 or Windows-1252: save it as 'CSV UTF-8'"
        ) from None
    header, _, rest = text.partition("\n")
    if declared := re.fullmatch(r"sep=(.)\r?", header):  # Excel's first line, where it is told which character to use
        text, delimiter = rest, declared[1]
    else:
        delimiter = max(",;\t", key=header.count)
    lines = []
    try:
        lines.extend(csv_files.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv_files.Error as error:
        raise RadiographsError(f"{csv.name} is no CSV file, after its row {len(lines)}: {error}") from None
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    n = len(columns)
    ours = [name for name in columns if name in (*needed, *(known or ()))]  # the others may be a patient's data
    if missing := [name for name in needed if name not in columns]:
        raise RadiographsError(
            f"{csv.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; needed are "
            f"{', '.join(needed)}; its first row has {', '.join(ours) or 'none of them'}, and {n - len(ours)} others"
        )
    if repeated := {name for name in ours if ours.count(name) > 1}:
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
    if known is None:
        table.columns = [name if name not in columns[:i] else f"{name}.{i}" for i, name in enumerate(columns)]
        return table, reasons
    return table[[*needed, *(name for name in known if name in table and any(table[name]))]].copy(), reasons


def decoded(data: bytes, errors: str = "strict") -> str:
    """Return text as spreadsheets save it: UTF-8, UTF-16 with its mark, or Windows-1252."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return data.decode("utf-16", errors)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors)


def _inside(root: Path, written: str) -> Path:
    """Return the file that a row names; raise ValueError unless it lies in the CSV's folder `root`, links followed.

    A table from elsewhere must not have any file of this machine read into a cohort.
    """
    try:
        path = (root / _as_path(written)).resolve()
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, links in a circle
        exists = False
    if not exists:
        raise ValueError("no such file")
    if not path.is_relative_to(root):
        raise ValueError("lies outside the CSV's folder (an absolute path, '..', or a link): move the CSV or the file")
    return path


def _as_path(written: str) -> str:
    """Write a path in one way, whichever way its slashes lean."""
    return os.path.normpath(written.replace("\\", "/"))


def _check_table(table: pd.DataFrame, reasons: dict[int, list[str]]) -> None:
    """Bring labels, parts, zones and image ids into their final form, and note what is wrong; both in place."""

    def refuse(values: pd.Series, bad: pd.Series, reason: str):
        """Note a reason; `{value!r}` and `{first}` in it are the row's value and the first row that has the same."""
        first = dict(zip(values[::-1], values.index[::-1], strict=True))
        for row in table.index[bad]:
            reasons[row].append(reason.format(value=values[row], first=first[values[row]]))

    shifted = [row for row, found in reasons.items() if found]  # its cells may hold anything, a name too
    refuse(table.patient_id, table.patient_id == "", "no patient_id")

    labels = table.label.str.upper()
    refuse(table.label, ~labels.isin(LABELS), f"unknown label: labels are {' and '.join(LABELS)}")
    table["label"] = labels

    counted = table.patient_id + "-" + (table.groupby("patient_id").cumcount() + 1).astype(str)
    table["image_id"] = table.image_id.where(table.image_id != "", counted) if "image_id" in table else counted
    refuse(table.image_id, table.image_id.duplicated(), "image_id {value!r} already stands in row {first}")
    paths = table.path.map(_as_path)
    refuse(paths, paths.duplicated() & table.path.ne(""), "the same file already stands in row {first}")

    if "split" in table:
        table["split"] = table.split.str.lower()
        refuse(table.split, ~table.split.isin(PARTS), f"unknown split: splits are {', '.join(PARTS)}")
        known = table[table.split.isin(PARTS)]
        for patient, own in known.groupby("patient_id").split:
            first = own.index[0]
            for row, split in own[own != own[first]].items():
                reasons[row].append(f"patient {patient!r} is in {split} here and in {own[first]} in row {first}")

    if "turn" in table:
        refuse(table.turn, ~table.turn.isin(["", *TURNS]), f"turn is none of {', '.join(TURNS)}")

    for names, ends in ((ZONE, [ZONE]), (REGION, [REGION[::2], REGION[1::2]])):
        if not set(names) & set(table):
            continue
        for name in names:
            written = table[name] if name in table else pd.Series("", table.index)
            table[name] = pd.to_numeric(written.str.replace(",", "."), errors="coerce")
            refuse(written, table[name].isna() & written.ne(""), f"{name} is no number")
        missing = table[list(names)].isna()
        for start, end in ends:
            valid = ((table[start] >= 0) & (table[start] < table[end]) & (table[end] <= 1)) | missing.all(axis=1)
            refuse(table.path, ~valid, f"not 0 ≤ {start} < {end} ≤ 1 (fractions of the image)")
    for row in shifted:
        del reasons[row][1:]


def _cohort_table(table: pd.DataFrame, about: pd.DataFrame, size: int) -> pd.DataFrame:
    """Return the cohort's columns, with the fracture zone moved from the file's image to the square."""
    cohort = table[["image_id", "patient_id", "label"]].copy()
    for column in ("view", "side"):
        own = table.get(column, pd.Series("", table.index))
        cohort[column] = own.where(own != "", about[column]).replace("", "unknown")
    cohort = cohort.join(table[[column for column in ("hospital", "split") if column in table]])
    cohort = cohort.join(about[[*CROP, *TO_SOURCE, *MEASURES]])
    if "zone_top" in table:
        zones = []
        for row, (top, bottom) in zip(cohort.itertuples(), table[list(ZONE)].to_numpy(), strict=True):
            to_source = np.array([[row.xx, row.xy, row.x0], [row.yx, row.yy, row.y0], [0, 0, 1]])
            ends = [(row.width / 2, top * row.height), (row.width / 2, bottom * row.height)]
            zones.append(moved(ends, np.linalg.inv(to_source))[:, 1] / size)
        zones = np.clip(np.sort(zones, axis=1), 0, 1)
        zones[~(np.diff(zones, axis=1)[:, 0] > 1e-6)] = np.nan  # of an image that was turned on its side
        cohort[list(ZONE)] = zones
    return cohort


def _message(csv: Path, n: int, problems: list[tuple[int, str, str]]) -> str:
    lines = [f"{len(problems)} of {n} rows of {csv.name} cannot be used (the header is row 1); mend or remove them:"]
    lines += [f"  row {row}: {reason}" for row, _, reason in problems[:SHOWN]]  # a path may name somebody
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN} more")
    return "\n".join(lines)


def _of_16_bits(pixels: np.ndarray) -> np.ndarray:
    """Return grey levels of 8 or 16 bits as uint16: 255 becomes 65535."""
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257


def _warn_of_dark(table: pd.DataFrame, pixels: np.ndarray) -> None:
    """Say which images use less than a sixteenth of their range: 12 bits stored in 16 without scaling, most often."""
    if len(dark := table.index[_of_16_bits(pixels.max(axis=(1, 2))) < 65536 // 16]):
        warnings.warn(
            f"{len(dark)} of {len(table)} images use less than 1/16 of their grey levels and look black: 12 bits "
            f"written into 16 without scaling? (row {', '.join(map(str, dark[:10]))}{' …' * (len(dark) > 10)})",
            stacklevel=3,
        )
