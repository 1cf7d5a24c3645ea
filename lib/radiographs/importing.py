"""Importing: a hospital's folder of DICOM files to a table and pictures that name nobody.

    python -m lib.radiographs DICOM_FOLDER --labels labels.csv --out data/hospital

leaves in `--out` what `radiographs_csv` takes: `radiographs.csv` and `images/`. Ids are keyed hashes of patient and
image numbers (HMAC, RFC 2104). `excluded.csv` says what was left out, and why. The key, and the linkage that leads from
ids back to numbers, files and pixels, stay elsewhere, where only their owner can read them. Another call reads only
files that are new, changed, or could not be used before. What was filled into the table by hand stays.
"""

import functools
import hashlib
import hmac
import os
import secrets
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lib.data.cohort import LABELS, TO_SOURCE
from lib.radiographs.decoding import Radiograph, read_dataset, read_image, reason
from lib.radiographs.geometry import Picture
from lib.radiographs.preparing import over_cores
from lib.radiographs.table import EXCLUDED, OPTIONAL, RadiographsError, read_csv
from lib.radiographs.writing import text_lines, without_text
from lib.run.files import write_text, written
from lib.run.fingerprint import source_hash
from lib.run.progress import progress

KEY = Path.home() / ".config" / "aff-augmentation" / "key"
TABLE, LINKAGE = "radiographs.csv", "linkage.csv"
TAGS = {
    "issuer": "IssuerOfPatientID", "patient_number": "PatientID", "accession": "AccessionNumber",
    "image_number": "SOPInstanceUID", "institution": "InstitutionName", "modality": "Modality",
}  # fmt: skip
JOINS = ("accession", "patient_number")  # what labels are found by, in this order
FOUND = ("folder", "file", "id", "made", *TAGS, "label", "view", "side", "height", "width", "spacing", *TO_SOURCE,
         "notes", "problem")  # fmt: skip
MODALITIES = ("", "CR", "DX", "RG", "RF", "XA", "SC", "OT")  # projections, and captures of them
EVERY = 200  # files between two savings of what is known so far


def read_key(path: Path, out: Path) -> bytes:
    """Return the secret of the hashes, made where there is none yet, in a file that only its owner can read.

    Raises RadiographsError where it is too short, or lies in the output folder: who has both finds out who is who.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise RadiographsError(f"--key {path} lies in the output folder: keep it elsewhere, it undoes the pseudonyms")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    key = path.read_bytes().strip()
    if len(key) < 32:
        raise RadiographsError(f"--key {path} holds no key of 32 characters or more")
    return key


def pseudonym(key: bytes, *parts: str) -> str:
    """Return twelve hexadecimal digits that only the holder of the key can compute, and nobody can undo."""
    return hmac.new(key, os.fsencode("\0".join(parts)), hashlib.sha256).hexdigest()[:12]


def linkage_of(key_file: Path, out: Path) -> Path:
    """Return the path of the table that leads back from the ids of one output folder: beside the key."""
    place = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:6]
    return key_file.with_name(f"{key_file.stem}-{out.resolve().name}-{place}-{LINKAGE}")


def import_folder(
    folder: Path, labels: Path, out: Path, key_file: Path, size: int = 1024, hide_text: bool = False
) -> pd.DataFrame:
    """Write `radiographs.csv`, `images/` and `excluded.csv` into `out`, and the linkage beside the key.

    Several folders may go into one `out`, one after the other. Pictures that the table does not name are deleted.
    Raises RadiographsError where the labels or the key cannot be used.

    Parameters
    ----------
    labels : CSV with `label` and one of `patient_number` and `accession`, as in DICOM's PatientID and AccessionNumber
    size : longest side of the pictures in pixels; they are never enlarged
    hide_text : paint over what looks like writing (`lib.radiographs.writing`)

    Returns
    -------
    DataFrame `what, images`: how many files are used, how many are left out and why, and notes on those used
    """
    if not folder.is_dir():
        raise RadiographsError(f"{folder} is no folder")
    if labels.resolve().is_relative_to(out.resolve()):
        raise RadiographsError(f"--labels {labels} lies in the output folder, where nobody's number is to be: move it")
    key, labelled, linkage = read_key(key_file, out), read_labels(labels), linkage_of(key_file, out)
    known = {row["id"]: row for row in _read_private(linkage)}
    made = f"{size} px{', writing hidden' * hide_text}, code {source_hash(read_image, picture)[:8]}"
    pictures, source = out / "images", str(folder.resolve())
    files = {_file_id(key, folder, file): file for file in walk(folder)}
    known = {id: row for id, row in known.items() if row["folder"] != source or id in files}
    done = {id for id, row in known.items() if row["made"] == made and (pictures / f"{id}.png").exists()}
    new = [(file, id) for id, file in files.items() if id not in done]
    pictures.mkdir(parents=True, exist_ok=True)
    how = {"folder": folder, "pictures": pictures, "labelled": labelled, "size": size, "hide_text": hide_text}
    with progress(len(new), desc="radiographs") as bar:
        for number, found in enumerate(over_cores(functools.partial(_import, **how), new), 1):
            known[found["id"]] = found | {"folder": source, "made": "" if found["problem"] else made}
            bar.update()
            if number % EVERY == 0:
                _save_private(linkage, known)
    for row in known.values():  # those of other folders keep the label that they had
        row["label"] = _label(row, labelled) or ("" if row["folder"] == source else row["label"])
    _save_private(linkage, known)
    return _write_tables(pd.DataFrame(list(known.values()), columns=FOUND), key, out)


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """Read `patient_number` or `accession` → number → label; errors name bad rows by their number alone."""
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


def _label(row: dict[str, str], labelled: dict[str, dict[str, str]]) -> str:
    """Return a file's label: the accession's before the patient's, empty where there is none."""
    return next((labels[row[column]] for column, labels in labelled.items() if row[column] in labels), "")


# Files ---------------------------------------------------------------------------------------------------------------


def walk(folder: Path) -> list[Path]:
    """List all files below a folder, sorted, but hidden ones, links, and what lies behind links.

    Raises OSError where a folder cannot be read: what is in it would be missing without a word.
    """

    def stop(error: OSError):
        raise error

    found = []
    for above, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(above, name) for name in sorted(names) if not name.startswith(".") and name != "DICOMDIR"]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found


def _file_id(key: bytes, folder: Path, path: Path) -> str:
    """Return an id that changes with the file's place, size and time: a changed file is a new one."""
    stat = path.stat()
    return pseudonym(key, path.relative_to(folder).as_posix(), str(stat.st_size), str(stat.st_mtime_ns))


def _import(
    file: tuple[Path, str], folder: Path, pictures: Path, labelled: dict, size: int, hide_text: bool
) -> dict[str, str]:
    """Return what is known of one file, and write its picture if it is wanted."""
    path, id = file
    name = os.fsencode(path.relative_to(folder).as_posix()).decode(errors="backslashreplace")  # names of old systems
    found = dict.fromkeys(FOUND, "") | {"file": name, "id": id}
    try:
        if (ds := read_dataset(path, pixels=False)) is None:
            return found | {"problem": "no DICOM file"}
        with warnings.catch_warnings():  # pydicom's warnings quote tags
            warnings.simplefilter("ignore")
            found |= {column: str(ds.get(tag) or "").strip() for column, tag in TAGS.items()}
            raw = ds.get("PresentationIntentType") == "FOR PROCESSING"
        for problem, is_so in (
            (f"no radiograph ({found['modality']})", found["modality"] not in MODALITIES),
            ("raw data, not for presentation", raw),
            ("no patient number", not found["patient_number"]),
            ("no label", not _label(found, labelled)),
        ):
            if is_so:
                return found | {"problem": problem}
        radiograph = read_image(path)
        image, to_source = picture(radiograph, size, hide_text)
        with written(pictures / f"{id}.png") as part:
            image.save(part, format="PNG")
    except Exception as error:  # decoders raise errors of all kinds
        return found | {"problem": f"unreadable: {reason(error, path).removeprefix('unreadable image: ')}"}
    height, width = radiograph.image.shape
    found |= {"height": height, "width": width, "spacing": " ".join(map(str, radiograph.spacing))}
    found |= dict(zip(TO_SOURCE, to_source[:2].ravel().tolist(), strict=True))
    return found | {"view": radiograph.view, "side": radiograph.side, "notes": "; ".join(radiograph.notes)}


def picture(radiograph: Radiograph, size: int, hide_text: bool = False) -> tuple[Image.Image, np.ndarray]:
    """Make a radiograph's picture: head up, square pixels, longest side at most `size`, 8 or 16 bits, no tag.

    Returns it, and the matrix (3, 3) from its (x, y, 1) to the file's.
    """
    image = without_text(radiograph.image, text_lines(radiograph.image)) if hide_text else radiograph.image
    spacing = np.roll(radiograph.spacing, radiograph.quarters % 2)
    image = Picture(image).turned(radiograph.quarters)
    extent = np.multiply(image.image.shape, spacing) / spacing.min()
    height, width = (max(1, round(side)) for side in extent * min(1, size / extent.max()))
    image = image.resized(height, width)
    dtype = np.uint8 if radiograph.bits <= 8 else np.uint16
    pixels = np.rint(np.clip(image.image, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    return Image.fromarray(pixels), image.to_source


# Tables --------------------------------------------------------------------------------------------------------------


def _write_tables(found: pd.DataFrame, key: bytes, out: Path) -> pd.DataFrame:
    """Write the table, and what is not in it and why. Nothing in either leads back to a person without the key.

    Rows are in the order of their hashes, since that of the files may be alphabetical. A decoder's words stand in the
    linkage alone.
    """
    problem = found.problem.str.split(":").str[0].copy()
    problem = problem.mask(problem.eq("") & found.label.eq(""), "no label")
    issuers = found[found.issuer != ""].groupby("patient_number").issuer.nunique()
    shared = found.patient_number.isin(issuers.index[issuers > 1])
    problem = problem.mask(problem.eq("") & shared, "a patient number that two issuers use")
    numbered = found.image_number[problem.eq("") & found.image_number.ne("")]
    problem[numbered.index[numbered.duplicated()]] = "the same image as another file"
    kept = problem == ""
    table = pd.DataFrame(
        {
            "path": "images/" + found.id + ".png",
            "patient_id": ["P" + pseudonym(key, number) for number in found.patient_number],
            "label": found.label,
            "image_id": "I" + found.id,
            "view": found["view"],
            "side": found.side,
            "hospital": ["H" + pseudonym(key, "hospital", name)[:4] if name else "" for name in found.institution],
        }
    )[kept]
    excluded = pd.DataFrame({"id": found.id, "problem": problem})[~kept]
    table = _with_what_was_filled_in(table, out / TABLE)
    for name, rows in ((TABLE, table.sort_values("image_id")), (EXCLUDED, excluded.sort_values("id"))):
        write_text(out / name, rows.to_csv(index=False))
    pictures = set(found.id[kept] + ".png")
    for path in (out / "images").glob("*.png"):
        if path.name not in pictures:
            path.unlink()
    counts = problem.where(~kept, "in the table: " + found.label).value_counts().to_dict()
    notes = Counter(note for text in found.notes[kept] if text for note in text.split("; "))
    counts |= {f"of these: {note}": number for note, number in notes.most_common()}
    return pd.DataFrame({"what": list(counts), "images": list(counts.values())})


def _with_what_was_filled_in(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the new table with the old one's optional columns, where somebody has filled these in."""
    if not path.exists() or b"\n" not in path.read_bytes().strip():  # no rows yet
        return table
    old, _ = read_csv(path)
    if "image_id" not in old:
        return table
    old, table = old.set_index("image_id"), table.set_index("image_id")
    for column in (name for name in OPTIONAL if name in old):
        filled = old[column][old[column] != ""].reindex(table.index)
        table[column] = filled.fillna(table.get(column, ""))
    return table.reset_index()[[*table.columns[:3], "image_id", *table.columns[3:]]]


def _read_private(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    return pd.read_csv(path, dtype=str, keep_default_na=False).reindex(columns=FOUND, fill_value="").to_dict("records")


def _save_private(path: Path, known: dict[str, dict]) -> None:
    """Write the linkage so that only its owner can read it."""
    with written(path) as part:
        part.touch(mode=0o600)
        pd.DataFrame(list(known.values()), columns=FOUND).to_csv(part, index=False)
