"""Privacy: does a run carry anything that leads to a patient?

    python -m lib.checks.privacy runs/NAME [--source DICOM_FOLDER] [--linkage FILE]

looks for names, numbers, dates and paths in every file of a run, in pictures, PDFs and weights too. It takes them from
the table of radiographs, the DICOM files that the table names or that lie in `--source`, an import's linkage, and this
machine. It says in which file there is something, and of which kind, never what, and ends with status 1. It cannot read
what is drawn in pictures.
"""

import argparse
import base64
import gzip
import html
import io
import json
import pickletools
import re
import sys
import unicodedata
import warnings
import zipfile
import zlib
from calendar import month_abbr, month_name
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pydicom
from PIL import Image

from lib.radiographs.decoding import read_dataset
from lib.radiographs.importing import KEY, LINKAGE, walk
from lib.radiographs.table import OPTIONAL, REQUIRED, RadiographsError, decoded, read_csv
from lib.run.files import ROOT, from_root
from lib.run.folder import Damaged, Run
from lib.run.progress import progress

# Tags beside all names (PN), dates (DA, DT) and instances' UIDs
TAGS = (
    *("PatientID", "OtherPatientIDs", "IssuerOfPatientID", "AccessionNumber", "StudyID", "AdmissionID"),
    *("DeviceSerialNumber", "PatientTelephoneNumbers", "MedicalRecordLocator", "InstitutionName"),
    *("InstitutionAddress", "InstitutionalDepartmentName", "StationName", "PatientAddress", "PatientComments"),
    *("ImageComments", "AdditionalPatientHistory"),
)
SHORTEST, SHORTEST_NUMBER = 4, 5  # letters and digits, or digits alone: what is shorter is everywhere
BLOCK = 2**20  # characters that are looked through at once
LARGEST = 2**30  # bytes of what is unpacked
BASE64 = re.compile(r"[A-Za-z0-9+/]{200,}={0,2}")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WORD = re.compile(r"[a-z]?[0-9a-f]{12,}(?![0-9a-z])|\d+(?:\.\d+){2,}|\d{1,3}\.\d+|\d+\.0+(?!\d)|\d+|[^\W\d_]+")
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "æ": "ae"})

Words = tuple[str, ...]


class Identifiers:
    """Holds what is looked for: sequences of words, each with the kind of thing it is."""

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
        """Add a DICOM person's name: its parts in either order or run together, and each part alone."""
        for written in text.split("="):
            parts = [part for part in re.split(r"[\^,\s-]+", written) if part]
            for form in (" ".join(parts), " ".join(parts[::-1]), "".join(parts[:2]), "".join(parts[1::-1]), *parts):
                self.add(kind, form)

    def add_date(self, kind: str, text: str) -> None:
        """Add a DICOM date, YYYYMMDD and what follows, in the ways it is written."""
        if match := re.match(r"(\d{4})(\d\d)(\d\d)", text.strip()):
            y, m, d = match.groups()
            forms = [y + m + d, f"{y}-{m}-{d}", f"{d}-{m}-{y}", f"{m}-{d}-{y}", f"{d}-{m}-{y[2:]}"]
            if 1 <= int(m) <= 12:
                for month in (month_name[int(m)], month_abbr[int(m)]):
                    forms += [f"{d} {month} {y}", f"{month} {d} {y}"]
            for form in forms:
                self.add(kind, form)

    def leave_out(self, text: str, numbers: bool = False) -> None:
        """Look no longer for what this text holds, for it is ordinary; with a digit in it only where `numbers`."""
        for found in self.found(text):
            if numbers or not re.search(r"\d", "".join(found)):
                del self.kinds[found]
                self.left_out += 1

    def found(self, text: str) -> Counter[Words]:
        """Count which of them a text holds."""
        seen = words(text)
        ends = ((i, i + length) for i, word in enumerate(seen) for length in self.lengths.get(word, ()))
        return Counter(sequence for i, j in ends if j <= len(seen) and (sequence := seen[i:j]) in self.kinds)


def words(text: str) -> Words:
    """Split into letters and digits between anything else, without case, accents, and zeros in front.

    Numbers with two points or more (dates, UIDs) are taken apart, and 4711.0 is 4711. But 0.12345 is one word, and so
    is a hash: there is no 12345 in them.
    """
    text = unicodedata.normalize("NFKC", text).casefold().translate(UMLAUTS)
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    text = text.casefold()
    found = []
    for word in WORD.findall(text):
        if "." in word and (word.count(".") > 1 or not word.rpartition(".")[2].strip("0")):
            parts = word.split(".") if word.count(".") > 1 else [word.partition(".")[0]]
        else:
            parts = [word]
        found += [part.lstrip("0") or "0" if part.isdigit() else part for part in parts]
    return tuple(found)


# Where they come from -------------------------------------------------------------------------------------------------


def of_table(csv: Path, into: Identifiers) -> list[Path]:
    """Add a table's paths, and its columns that no cohort takes over. Return the files that it names."""
    table, _ = read_csv(csv, known=None)
    for column in (column for column in table if column not in (*REQUIRED, *OPTIONAL)):
        for cell in table[column].unique():
            into.add(f"column {column!r} of the table", cell)
    ids = table.image_id if "image_id" in table else [""] * len(table)
    paths = [Path(path.replace("\\", "/")) for path in table.path]
    for path, image_id in zip(paths, ids, strict=True):
        for folder in path.parent.parts:
            into.add("folder of the table", folder)
        if path.stem not in (image_id, image_id[1:]):  # ids are taken for the pseudonyms that they are to be
            into.add("file name of the table", path.stem)
    return [csv.parent / path for path in paths]


def of_dicom(path: Path, into: Identifiers) -> None:
    """Add the identifying tags of a file, if it is DICOM and can be read."""
    adding = {"PN": into.add_name, "DA": into.add_date, "DT": into.add_date}
    # Decoders raise errors of all kinds; a file that cannot be read has got no image into the run.
    with suppress(Exception), warnings.catch_warnings():  # pydicom's warnings quote tags
        warnings.simplefilter("ignore")
        for element in (read_dataset(path, pixels=False) or pydicom.Dataset()).iterall():
            named = element.keyword in TAGS or (element.VR == "UI" and "Instance" in element.keyword)
            if add := into.add if named else adding.get(element.VR):
                value = element.value
                for one in value if isinstance(value, pydicom.multival.MultiValue) else [value or ""]:
                    add(f"{element.keyword} of a file", str(one))


def of_linkage(path: Path, into: Identifiers) -> None:
    """Add an import's numbers, places and files."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("patient_number", "accession", "image_number", "institution", "file"):
        for cell in table.get(column, pd.Series(dtype=str)).unique():
            into.add(f"{column} of the linkage", cell)
    for file in table.get("file", ()):
        into.add("file of the linkage", Path(file).stem)


def gather(run: Run, source: Path | None, linkages: list[Path]) -> Identifiers:
    """Gather everything that must not be in a run."""
    identifiers = Identifiers()
    csv = run.manifest.get("parameters", {}).get("radiographs_csv", "")
    files = of_table(from_root(csv), identifiers) if csv else []
    files += walk(source) if source else []
    with progress(len(files), desc="DICOM tags") as bar:
        for path in files:
            of_dicom(path, identifiers)
            bar.update()
    for linkage in linkages:
        of_linkage(linkage, identifiers)
    for path in {ROOT, Path.home(), Path(sys.prefix), *((from_root(csv).resolve().parent,) if csv else ())}:
        identifiers.add("path of this machine", str(path))
    for path in (ROOT / "run_all.py", ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "lib").rglob("*.py")):
        identifiers.leave_out(path.read_text(encoding="utf-8"))
    for notebook in run.manifest.get("notebooks", {}).values():
        identifiers.leave_out(notebook["started"], numbers=True)
    return identifiers


# What is looked through -----------------------------------------------------------------------------------------------


def scan(run: Path, identifiers: Identifiers) -> pd.DataFrame:
    """Find the files of a run that hold an identifier, or whose names do: a table `file, kind, times`."""
    rows = []
    files = sorted(path for path in run.rglob("*") if path.is_file())
    with progress(len(files), desc="files") as bar:
        for path in files:
            name, counts = path.relative_to(run).as_posix(), Counter()
            for text in (unquote(name), *texts(path.name, path.read_bytes())):
                for start in range(0, len(text), BLOCK):
                    counts += identifiers.found(text[start : start + BLOCK + 200])
            kinds = Counter()
            for sequence, times in counts.items():
                kinds[identifiers.kinds[sequence]] += times
            rows += [(name if not identifiers.found(name) else "a file's name", *found) for found in kinds.items()]
            bar.update()
    return pd.DataFrame(rows, columns=["file", "kind", "times"])


def texts(name: str, data: bytes) -> Iterator[str]:
    """Yield all text of a file, also within pictures, PDFs, archives, arrays and weights, told by its name's ending."""
    suffix = Path(name).suffix.lower()
    if suffix == ".npy":
        yield from _of_array(data)
    elif suffix == ".safetensors":
        yield from _of_text(data[8 : 8 + int.from_bytes(data[:8], "little")].decode("utf-8", "replace"))
    elif suffix == ".pdf":
        yield from _of_pdf(data)
    elif suffix in (".pkl", ".pickle"):
        yield from _of_pickle(data)
    elif suffix == ".gz":
        yield from texts(Path(name).stem, gzip.GzipFile(fileobj=io.BytesIO(data)).read(LARGEST))
    elif zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                yield member.filename
                if "/data/" not in member.filename and member.file_size < LARGEST:  # a checkpoint's numbers
                    yield from texts(member.filename, archive.read(member))
    elif (about := _of_picture(data)) is not None:
        yield about
    else:
        said = [decoded(data, "replace")]
        if suffix in (".json", ".ipynb"):
            with suppress(ValueError):
                said = [*_strings(json.loads(data))]
        for text in said:
            yield from _of_text(text)


def _of_text(text: str) -> Iterator[str]:
    """Yield text without its colours and codes, and what is encoded in it: pictures of a page, for example."""
    for blob in BASE64.findall(text):
        yield from texts("", base64.b64decode(blob[: len(blob) // 4 * 4]))
    text = ANSI.sub(" ", BASE64.sub(" ", text))
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
    yield unquote(html.unescape(re.sub(r"\\[nrtbf]", " ", text)))


def _strings(value) -> Iterator[str]:
    """Yield every text and number of a JSON value, keys too; the lines of a notebook's cell as one text."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _strings(one)
    elif isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        yield "".join(value)
        yield " ".join(value)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    else:
        yield str(value).replace("\n", "") if BASE64.match(str(value)[:400].replace("\n", "")) else str(value)


def _of_array(data: bytes) -> Iterator[str]:
    """Yield an array's header, and its texts where it holds any."""
    length = 10 + int.from_bytes(data[8:10], "little")
    yield data[10:length].decode("latin-1")
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        yield from _of_pickle(data[length:])
        return
    if array.dtype.kind in "US":
        yield "\n".join(map(str, array.ravel().tolist()))


def _of_pickle(data: bytes) -> Iterator[str]:
    """Yield the texts of a pickle; its operations are listed, not done."""
    with suppress(ValueError):
        yield "\n".join(what for _, what, _ in pickletools.genops(data) if isinstance(what, str))


def _of_picture(data: bytes) -> str | None:
    """Return what a picture says beside its pixels; None where the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            with suppress(OSError, ValueError):
                picture.load()  # a PNG may have text behind its pixels
            return "\n".join(map(str, [*picture.info.items(), *picture.getexif().values()]))
    except Exception:  # no picture, or a broken one
        return None


def _of_pdf(data: bytes) -> Iterator[str]:
    """Yield a PDF's own words and the letters that it draws, those of a line together."""
    before = b""
    for piece in re.split(rb"stream\r?\n|endstream", data):
        picture, before = b"/Subtype /Image" in before[before.rfind(b" obj") :], piece
        if picture:
            continue
        with suppress(zlib.error):
            piece = zlib.decompress(piece)
        text = piece.decode("latin-1")
        yield text
        for line in re.findall(r"\[([^\[\]]*)\]\s*TJ", text):
            yield "".join(re.findall(r"\(((?:\\.|[^\\)])*)\)", line, re.DOTALL)).replace("\0", "")


def main(arguments: list[str] | None = None) -> int:
    """Run the command. The exit status is 1 where something is found, 2 where that cannot be told."""
    parser = argparse.ArgumentParser(prog="python -m lib.checks.privacy", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, runs/NAME")
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="DICOM files that the table was made from")
    parser.add_argument("--linkage", type=Path, metavar="FILE",
                        help="of an import (default: those beside the default key)")  # fmt: skip
    options = parser.parse_args(arguments)
    linkages = [options.linkage] if options.linkage else sorted(KEY.parent.glob(f"{KEY.stem}-*{LINKAGE}"))
    try:
        for wrong, message in (
            (not (options.run / "manifest.json").is_file(), f"{options.run} is no run: it has no manifest.json"),
            (options.source and not options.source.is_dir(), f"--source {options.source} is no folder"),
            (options.linkage and not options.linkage.is_file(), f"there is no linkage {options.linkage}"),
        ):
            if wrong:
                raise RadiographsError(message)
        run = Run(options.run.resolve())
        identifiers = gather(run, options.source, linkages)
        found = scan(run.folder, identifiers)
    except (RadiographsError, Damaged, OSError) as error:
        print(f"lib.checks.privacy: {error}", file=sys.stderr)
        return 2
    kinds = Counter(identifiers.kinds.values())
    print(f"Looked for {sum(kinds.values()):,} identifiers: {', '.join(f'{kind} {n:,}' for kind, n in kinds.items())}.")
    if identifiers.left_out:
        print(f"Left out: {identifiers.left_out:,} that are short, or words of the study's own code and dates.")
    if len(found):
        print(f"Found, in {found.file.nunique()} files:\n{found.to_string(index=False)}")
        return 1
    known = [kind for kind in kinds if kind.endswith(("of a file", "of the linkage")) or kind.startswith("column")]
    if run.manifest.get("parameters", {}).get("radiographs_csv") and not known:
        print("No patient's name, number or date was known: give --source or --linkage.", file=sys.stderr)
        return 2
    print("Found none of them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
