"""Importing: a hospital's folder of DICOM files to a table and pictures that name nobody.

    python -m lib.radiographs DICOM_FOLDER --labels labels.csv --out data/hospital

leaves in `--out` what `radiographs_csv` takes: `radiographs.csv` and `images/`, with ids that are keyed hashes (HMAC,
RFC 2104) of patient and image numbers, and `excluded.csv`, which says what was left out and why. The key, and the table
that leads from ids back to numbers and files, stay outside of it, where only their owner can read them. A second call
reads only files that are new or changed.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lib.cohort import LABELS
from lib.radiographs.files import Radiograph, is_dicom, read_dataset, read_dicom, reason
from lib.radiographs.geometry import Picture
from lib.radiographs.preparing import over_cores
from lib.radiographs.table import EXCLUDED, RadiographsError, read_csv
from lib.radiographs.writing import without_text
from lib.runs import progress, write_text, written

TABLE, LINKAGE = "radiographs.csv", "linkage.csv"
FOUND = ("file", "id", "made", "issuer", "patient_number", "accession", "image_number", "institution", "view", "side",
         "notes", "problem")  # fmt: skip
JOINS = ("accession", "patient_number")  # what labels are found by, in this order
TAGS = {
    "issuer": "IssuerOfPatientID", "patient_number": "PatientID", "accession": "AccessionNumber",
    "image_number": "SOPInstanceUID", "institution": "InstitutionName",
}  # fmt: skip
EVERY = 200  # files between two savings of what is known so far


def read_key(path: Path, out: Path) -> bytes:
    """The secret of the hashes, made where there is none yet; a file that its owner alone can read.

    Raises
    ------
    RadiographsError
        Where it would lie in the output folder: who has both can find out who is who.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise RadiographsError(f"--key {path} lies in the output folder: keep it elsewhere, it undoes the pseudonyms")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    key = path.read_text(encoding="ascii").strip().encode()
    if len(key) < 32:
        raise RadiographsError(f"--key {path} holds no key of 32 characters or more")
    return key


def pseudonym(key: bytes, *parts: str) -> str:
    """Twelve hexadecimal digits that only the holder of the key can compute again, and nobody can undo."""
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:12]


def import_folder(
    folder: Path, labels: Path, out: Path, key_file: Path, size: int = 1024, hide_text: bool = False
) -> pd.DataFrame:
    """Write `radiographs.csv`, `images/` and `excluded.csv` into `out`, and the linkage beside the key.

    Parameters
    ----------
    folder : walked through, links not followed
    labels : CSV with `label` and one of `patient_number` and `accession`, as in DICOM's PatientID and AccessionNumber
    size : longest side of the pictures in pixels; they are never enlarged
    hide_text : paint over what looks like writing (`lib.radiographs.writing`)

    Returns
    -------
    The flow: DataFrame `what, images`, every file found and what became of it

    Raises
    ------
    RadiographsError
        Where the labels or the key cannot be used.
    """
    if not folder.is_dir():
        raise RadiographsError(f"{folder} is no folder")
    key, labelled = read_key(key_file, out), read_labels(labels)
    linkage = key_file.with_name(f"{key_file.stem}-{LINKAGE}")
    known = pd.read_csv(linkage, dtype=str, keep_default_na=False) if linkage.exists() else pd.DataFrame(columns=FOUND)
    known = {row["id"]: row for row in known.to_dict("records")}
    files = {_file_id(key, folder, file): file for file in walk(folder)}
    pictures, made = out / "images", f"{size} px{', writing hidden' * hide_text}"
    new = [
        id for id in files
        if id not in known
        or not (known[id]["problem"] or (known[id].get("made") == made and (pictures / f"{id}.png").exists()))
    ]  # fmt: skip
    pictures.mkdir(parents=True, exist_ok=True)
    one = functools.partial(_import, folder=folder, pictures=pictures, size=size, hide_text=hide_text)
    with progress(len(new), desc="radiographs") as bar:
        for number, found in enumerate(over_cores(one, [(files[id], id) for id in new]), 1):
            known[found["id"]] = found | {"made": made}
            bar.update()
            if number % EVERY == 0:
                _save_private(linkage, known)
    _save_private(linkage, known)
    return _write_tables(pd.DataFrame([known[id] for id in files], columns=FOUND), labelled, key, out)


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """`patient_number` or `accession` → number → label; every row that cannot be used is named by its number alone."""
    table, reasons = read_csv(path, ("label",), JOINS)
    joins = [column for column in JOINS if column in table]
    if not joins:
        raise RadiographsError(f"{path.name} needs the column patient_number or accession, to find labels by")
    labels = table.label.str.upper()
    twice = [table[j].ne("") & (labels.groupby(table[j]).transform("nunique") > 1) for j in joins]
    for what, rows in (
        ("fields too few or too many", [row for row, found in reasons.items() if found]),
        ("a label that is not AFF or NFF", table.index[~labels.isin(LABELS)]),
        ("another label for a number than an earlier row", table.index[np.any(twice, axis=0)]),
    ):
        if len(rows):
            raise RadiographsError(f"{path.name} has {what} in row {', '.join(map(str, rows[:50]))}")
    return {j: {number: label for number, label in zip(table[j], labels, strict=True) if number} for j in joins}


# Files ---------------------------------------------------------------------------------------------------------------


def walk(folder: Path) -> list[Path]:
    """All files below, sorted; hidden ones, links, and what lies behind links are left alone."""
    found = []
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(above, name) for name in sorted(names) if not name.startswith(".") and name != "DICOMDIR"]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found


def _file_id(key: bytes, folder: Path, path: Path) -> str:
    """Changes with the file's place, size and time: a changed file is a new one."""
    stat = path.stat()
    return pseudonym(key, path.relative_to(folder).as_posix(), str(stat.st_size), str(stat.st_mtime_ns))


def _import(file: tuple[Path, str], folder: Path, pictures: Path, size: int, hide_text: bool) -> dict[str, str]:
    path, id = file
    found = dict.fromkeys(FOUND, "") | {"file": path.relative_to(folder).as_posix(), "id": id}
    try:
        with open(path, "rb") as opened:
            head = opened.read(132)
        if not is_dicom(head):
            return found | {"problem": "no DICOM file"}
        ds = read_dataset(path, head)
        found |= {column: str(ds.get(tag) or "").strip() for column, tag in TAGS.items()}
        radiograph = read_dicom(ds)
    except Exception as error:  # decoders raise of all kinds
        return found | {"problem": f"unreadable: {reason(error, path)}"}
    with written(pictures / f"{id}.png") as part:
        picture(radiograph, size, hide_text).save(part, format="PNG")
    return found | {"view": radiograph.view, "side": radiograph.side, "notes": "; ".join(radiograph.notes)}


def picture(radiograph: Radiograph, size: int, hide_text: bool = False) -> Image.Image:
    """A PNG's worth of a radiograph: head up, square pixels, longest side at most `size`, 8 or 16 bits, and no tag."""
    image = without_text(radiograph.image) if hide_text else radiograph.image
    spacing = np.roll(radiograph.spacing, radiograph.quarters % 2)
    image = Picture(image).turned(radiograph.quarters)
    extent = np.multiply(image.image.shape, spacing) / spacing.min()
    height, width = (max(1, round(side)) for side in extent * min(1, size / extent.max()))
    dtype = np.uint8 if radiograph.bits <= 8 else np.uint16
    small = np.clip(image.resized(height, width).image, 0, 1)
    return Image.fromarray(np.rint(small * np.iinfo(dtype).max).astype(dtype))


# Tables --------------------------------------------------------------------------------------------------------------


def _write_tables(found: pd.DataFrame, labelled: dict, key: bytes, out: Path) -> pd.DataFrame:
    """The table, and what is not in it and why; nothing in either leads back to a person without the key.

    Rows are in the order of their hashes, since that of the files may be alphabetical, and what a decoder complained of
    stands in the linkage alone, since it may quote a tag.
    """
    label = pd.Series("", found.index)
    for column, labels in labelled.items():  # the accession's label before the patient's
        label = label.where(label != "", found[column].map(labels).fillna(""))
    problem = found.problem.mask(found.problem.eq("") & found.patient_number.eq(""), "no patient number")
    problem = problem.mask(problem.eq("") & label.eq(""), "no label")
    numbered = found.image_number[problem.eq("") & found.image_number.ne("")]
    problem[numbered.index[numbered.duplicated()]] = "the same image as another file"
    kept = problem == ""
    table = pd.DataFrame(
        {
            "path": "images/" + found.id + ".png",
            "patient_id": ["P" + pseudonym(key, *who) for who in zip(found.issuer, found.patient_number, strict=True)],
            "label": label,
            "image_id": "I" + found.id,
            "view": found["view"],
            "side": found.side,
            "hospital": ["H" + pseudonym(key, "hospital", name)[:4] if name else "" for name in found.institution],
        }
    )[kept]
    problem = problem.str.split(":").str[0]
    excluded = pd.DataFrame({"id": found.id, "problem": problem})[~kept]
    for name, rows in ((TABLE, table.sort_values("image_id")), (EXCLUDED, excluded.sort_values("id"))):
        write_text(out / name, rows.to_csv(index=False))
    kinds = problem.where(~kept, "in the table: " + label)
    return kinds.value_counts().rename_axis("what").rename("images").reset_index()


def _save_private(path: Path, known: dict[str, dict]) -> None:
    """Write the linkage so that only its owner can read it."""
    with written(path) as part:
        part.touch(mode=0o600)
        pd.DataFrame(list(known.values()), columns=FOUND).to_csv(part, index=False)
