"""Privacy: does a run carry anything that leads to a patient?

    python -m lib.privacy runs/NAME [--source DICOM_FOLDER] [--linkage FILE]

looks through every file of a run, into pictures, PDFs and weights too, for names, numbers, dates and paths: of the
table of radiographs, of the DICOM files that it names or that lie in `--source`, of an import's linkage, and of this
machine. It says in which file there is something and of which kind, never what, and ends with status 1.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import pickletools
import re
import sys
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pydicom
from PIL import Image

from lib.radiographs.__main__ import KEY
from lib.radiographs.files import is_dicom, read_dataset
from lib.radiographs.importing import LINKAGE, walk
from lib.radiographs.table import OPTIONAL, REQUIRED, RadiographsError, read_csv
from lib.runs import ROOT, Damaged, Run, from_root, progress

NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "ReferringPhysicianName", "PerformingPhysicianName",
         "RequestingPhysician", "OperatorsName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy")  # fmt: skip
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "StudyInstanceUID", "SeriesInstanceUID",
           "SOPInstanceUID", "DeviceSerialNumber")  # fmt: skip
PLACES = ("InstitutionName", "InstitutionAddress", "PatientAddress", "StationName", "InstitutionalDepartmentName")
SHORTEST, SHORTEST_NUMBER = 4, 5  # letters and digits, or digits alone: what is shorter is everywhere
BLOCK = 2**20  # characters that are looked through at once
BASE64 = re.compile(r"[A-Za-z0-9+/]{200,}={0,2}")

Words = tuple[str, ...]


class Identifiers:
    """What is looked for: sequences of words, each with the kind of thing it is."""

    def __init__(self):
        self.kinds: dict[Words, str] = {}
        self.lengths: dict[str, set[int]] = {}  # of the sequences that begin with a word
        self.left_out = 0  # because they are short, or words of the study itself

    def add(self, kind: str, text: str) -> None:
        found = words(text)
        letters = "".join(found)
        if len(letters) >= (SHORTEST_NUMBER if letters.isdigit() else SHORTEST):
            self.kinds.setdefault(found, kind)
            self.lengths.setdefault(found[0], set()).add(len(found))
        elif letters:
            self.left_out += 1

    def add_name(self, kind: str, text: str) -> None:
        """A DICOM person's name: family and given name in either order or run together, and the family name alone."""
        for written in text.split("="):
            family, given = [*written.split("^"), ""][:2]
            for form in (f"{family} {given}", f"{given} {family}", family + given, given + family, family):
                self.add(kind, form)

    def add_date(self, kind: str, text: str) -> None:
        """A DICOM date, YYYYMMDD, in the ways it is written."""
        if match := re.fullmatch(r"(\d{4})(\d\d)(\d\d)", text.strip()):
            y, m, d = match.groups()
            for form in (y + m + d, f"{y}-{m}-{d}", f"{d}.{m}.{y}", f"{d}/{m}/{y}", f"{m}/{d}/{y}"):
                self.add(kind, form)

    def leave_out(self, text: str) -> None:
        """What this text holds is ordinary, and looked for no longer."""
        for found in self.found(text):
            del self.kinds[found]
            self.left_out += 1

    def found(self, text: str) -> Counter[Words]:
        """Which of them a text holds, and how often."""
        seen = words(text)
        ends = ((i, i + length) for i, word in enumerate(seen) for length in self.lengths.get(word, ()))
        return Counter(sequence for i, j in ends if j <= len(seen) and (sequence := seen[i:j]) in self.kinds)


def words(text: str) -> Words:
    """Letters, and digits, between anything else, without case. A number with a point is one word: no 12345 is in
    0.12345."""
    return tuple(re.findall(r"\d+\.\d+|\d+|[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold()))


# Where they come from -------------------------------------------------------------------------------------------------


def of_table(csv: Path, into: Identifiers) -> list[Path]:
    """Paths and columns of a table of radiographs that its cohort does not take over; the files that it names."""
    table, _ = read_csv(csv, known=None)
    own = [column for column in table if column not in (*REQUIRED, *OPTIONAL)]
    for column in own:
        for cell in table[column].unique():
            into.add(f"column {column!r} of the table", cell)
    ids = table.image_id if "image_id" in table else [""] * len(table)
    for path, image_id in zip(table.path, ids, strict=True):
        stem = Path(path.replace("\\", "/")).stem
        if stem not in image_id:  # as it is after an import
            into.add("path of the table", path)
            into.add("file name of the table", stem)
    return [csv.parent / path.replace("\\", "/") for path in table.path]


def of_dicom(path: Path, into: Identifiers) -> None:
    """The identifying tags of a file, if it is DICOM and can be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(132)
        if not is_dicom(head):
            return
        ds = read_dataset(path, head, pixels=False)
        for keywords, add in ((NAMES, into.add_name), (DATES, into.add_date), (NUMBERS + PLACES, into.add)):
            for keyword in keywords:
                value = ds.get(keyword)
                for one in value if isinstance(value, pydicom.multival.MultiValue) else [value or ""]:
                    add(f"{keyword} of a file", str(one))
    except Exception:  # decoders raise of all kinds; a file that cannot be read has got no image into the run
        return


def of_linkage(path: Path, into: Identifiers) -> None:
    """Numbers, places and files of an import."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("patient_number", "accession", "image_number", "institution", "file"):
        for cell in table.get(column, pd.Series(dtype=str)).unique():
            into.add(f"{column} of the linkage", cell)
    for file in table.get("file", ()):
        into.add("file of the linkage", Path(file).stem)


# What is looked through -----------------------------------------------------------------------------------------------


def texts(path: Path) -> Iterator[str]:
    """All text of a file, piece by piece: that within pictures, PDFs, archives and weights too, not their numbers."""
    data = path.read_bytes()
    match path.suffix.lower():
        case ".npy":
            yield data[: 10 + int.from_bytes(data[8:10], "little")].decode("latin-1")
        case ".safetensors":
            yield data[8 : 8 + int.from_bytes(data[:8], "little")].decode("utf-8", "replace")
        case ".pdf":
            yield from _of_pdf(data)
        case _ if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                yield "\n".join(archive.namelist())
                for name in archive.namelist():
                    if name.endswith(".pkl"):  # of a checkpoint; its operations are listed, not done
                        said = pickletools.genops(archive.read(name))
                        yield "\n".join(what for _, what, _ in said if isinstance(what, str))
        case _ if (about := _of_picture(data)) is not None:
            yield about
        case _:
            text = data.decode("utf-8", "replace")
            for blob in BASE64.findall(text):
                yield _of_picture(base64.b64decode(blob[: len(blob) // 4 * 4])) or ""
            text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), BASE64.sub(" ", text))
            yield html.unescape(text)


def _of_picture(data: bytes) -> str | None:
    """What a picture says beside its pixels; None where the bytes are none."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return "\n".join(map(str, [*picture.info.items(), *picture.getexif().values()]))
    except Exception:  # no picture, or a broken one
        return None


def _of_pdf(data: bytes) -> Iterator[str]:
    """A PDF's own words and the letters that it draws, those of a line together."""
    before = b""
    for piece in re.split(rb"stream\r?\n|endstream", data):
        picture, before = b"/Subtype /Image" in before[-500:], piece
        if picture:
            continue
        with suppress(zlib.error):
            piece = zlib.decompress(piece)
        text = piece.decode("latin-1")
        yield text
        for line in re.findall(r"\[([^\[\]]*)\]\s*TJ", text):
            yield "".join(re.findall(r"\(((?:\\.|[^\\)])*)\)", line, re.DOTALL)).replace("\0", "")


def scan(run: Path, identifiers: Identifiers) -> pd.DataFrame:
    """Every file of a run that holds an identifier, or whose name does.

    Returns
    -------
    DataFrame `file, kind, times`
    """
    rows = []
    files = sorted(path for path in run.rglob("*") if path.is_file())
    with progress(len(files), desc="files") as bar:
        for path in files:
            name, counts = path.relative_to(run).as_posix(), Counter()
            for text in (name, *texts(path)):
                for start in range(0, len(text), BLOCK):
                    counts += identifiers.found(text[start : start + BLOCK + 200])
            kinds = Counter()
            for sequence, times in counts.items():
                kinds[identifiers.kinds[sequence]] += times
            rows += [(name if not identifiers.found(name) else "a file's name", *found) for found in kinds.items()]
            bar.update()
    return pd.DataFrame(rows, columns=["file", "kind", "times"])


def gather(run: Run, source: Path | None, linkage: Path | None) -> Identifiers:
    """Everything that must not be in a run."""
    identifiers = Identifiers()
    csv = run.manifest.get("parameters", {}).get("radiographs_csv", "")
    files = of_table(from_root(csv), identifiers) if csv else []
    files += walk(source) if source else []
    with progress(len(files), desc="DICOM tags") as bar:
        for path in files:
            of_dicom(path, identifiers)
            bar.update()
    if linkage:
        of_linkage(linkage, identifiers)
    for path in {ROOT, Path.home(), Path(sys.prefix), *((from_root(csv).resolve().parent,) if csv else ())}:
        identifiers.add("path of this machine", str(path))
    study = [
        *ROOT.glob("*.*"),
        *ROOT.glob("data/*.md"),
        *(ROOT / "lib").rglob("*.py"),
        *(ROOT / "notebooks").rglob("*.*"),
    ]
    for path in study:
        if path.is_file():
            identifiers.leave_out(path.read_text(encoding="utf-8", errors="replace"))
    for notebook in run.manifest.get("notebooks", {}).values():
        identifiers.leave_out(notebook["started"])
    return identifiers


def main(arguments: list[str] | None = None) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.privacy", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, runs/NAME")
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="DICOM files that the table was made from")
    parser.add_argument("--linkage", type=Path, metavar="FILE",
                        help="of an import (default: the one beside the default key, if there is one)")  # fmt: skip
    options = parser.parse_args(arguments)
    linkage = options.linkage or KEY.with_name(f"{KEY.stem}-{LINKAGE}")
    try:
        if not (options.run / "manifest.json").is_file():
            raise RadiographsError(f"{options.run} is no run: it has no manifest.json")
        if options.source and not options.source.is_dir():
            raise RadiographsError(f"--source {options.source} is no folder")
        if options.linkage and not options.linkage.is_file():
            raise RadiographsError(f"there is no linkage {options.linkage}")
        identifiers = gather(Run(options.run.resolve()), options.source, linkage if linkage.is_file() else None)
        found = scan(options.run, identifiers)
    except (RadiographsError, Damaged, OSError) as error:
        print(f"lib.privacy: {error}", file=sys.stderr)
        return 2
    kinds = Counter(identifiers.kinds.values())
    print(f"Looked for {sum(kinds.values()):,} identifiers: {', '.join(f'{kind} {n:,}' for kind, n in kinds.items())}.")
    if identifiers.left_out:
        print(f"Left out: {identifiers.left_out:,} that are short, or words of the study's own code and dates.")
    if len(found):
        print(f"Found, in {found.file.nunique()} files:\n{found.to_string(index=False)}")
        return 1
    print("Found none of them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
