"""The leak audit: does anything that is fitted or tested know what it must not?

Each check compares two things, counts what it finds that must not be there, and is one row of a table
`check, where, compared, found, example, passed`. A run prints the table, and stops where a check did not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort
from lib.data.duplicates import duplicates
from lib.data.hashes import cohort_hash, patients_hash
from lib.data.leaks import LeakError
from lib.data.splits import PARTS, fold_keys, fold_name, with_windows
from lib.fidelity.controls import CONTROL_GENERATORS
from lib.run.files import write_text
from lib.run.weights import weights_metadata

COLUMNS = ("check", "where", "compared", "found", "example", "passed")
WEIGHTS = {  # everything that is fitted to images, and where a cell keeps it
    "cyclegan": "weights.safetensors",
    "cyclediff": "weights.safetensors",
    "judge": "judge.safetensors",
}


def audit(path: Path, *checks: pd.DataFrame) -> pd.DataFrame:
    """Keep these checks in a run's audit table, in the place of older ones of the same name, and stop at a leak.

    Returns
    -------
    The checks given, `by_check`.

    Raises
    ------
    LeakError
        Naming each check that did not pass; the table is written before.
    """
    new = pd.concat(checks, ignore_index=True)
    table = new
    if Path(path).exists():
        old = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([old[~old.check.isin(new.check)], new], ignore_index=True)
    write_text(path, table.to_csv(index=False))
    if not new.passed.all():
        failed = [
            f"{c.where}: {c.check}: {c.found} of {c.compared}, such as {c.example}"
            for c in new.itertuples()
            if not c.passed
        ]
        raise LeakError("the leak audit failed, so the run stops here.\n" + "\n".join(failed))
    return by_check(new)


def by_check(table: pd.DataFrame) -> pd.DataFrame:
    """What each check compared and found, over all its rows (cells, parts, methods)."""
    sums = {"rows": ("where", "size"), "compared": ("compared", "sum"), "found": ("found", "sum")}
    return table.groupby("check", sort=False).agg(**sums, passed=("passed", "all"))


def _check(check: str, where: str, compared: int, offenders) -> dict:
    offenders = [str(offender) for offender in offenders]
    return {
        "check": check, "where": where, "compared": compared, "found": len(offenders),
        "example": offenders[0] if offenders else "", "passed": not offenders,
    }  # fmt: skip


def _table(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


# Real images ---------------------------------------------------------------------------------------------------------


def part_checks(cohort: Cohort, splits: pd.DataFrame) -> pd.DataFrame:
    """No patient in two parts of a cell; nobody in the splits who is not in the cohort."""
    rows = []
    for cell in fold_keys(splits):
        named = splits[(splits.repeat == cell[0]) & (splits.fold == cell[1])]
        members = {part: set(named.patient_id[named.part == part]) & set(cohort.table.patient_id) for part in PARTS}
        shared = sorted(set().union(*(members[a] & members[b] for a, b in combinations(PARTS, 2))))
        patients = set().union(*members.values())
        rows.append(_check("patients in two parts", fold_name(*cell), len(patients), shared))
        strangers = sorted(set(named.patient_id) - set(cohort.table.patient_id))
        rows.append(_check("patients of the splits without an image", fold_name(*cell), len(named), strangers))
    return _table(rows)


def duplicate_checks(cohort: Cohort, splits: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """No image in one part of a cell of which there is a copy in another part.

    Parameters
    ----------
    pairs : the `lib.data.duplicates.duplicate_pairs` of the cohort
    """
    a, b = pairs.a.to_numpy(), pairs.b.to_numpy()
    ids, patients, rows = cohort.table.image_id.to_numpy(), cohort.table.patient_id, []
    for cell in fold_keys(splits):
        part = patients.map(splits[(splits.repeat == cell[0]) & (splits.fold == cell[1])].set_index("patient_id").part)
        part = part.fillna("").to_numpy()
        across = (part[a] != part[b]) & (part[a] != "") & (part[b] != "")
        found = [f"{ids[i]} and {ids[j]}" for i, j in zip(a[across], b[across], strict=True)]
        rows.append(_check("images in two parts", fold_name(*cell), int((part != "").sum()), found))
    return _table(rows)


def preprocessing_check(cohort: Cohort, splits: pd.DataFrame, prepare: Callable[[np.ndarray], Cohort]) -> pd.DataFrame:
    """Preparing test images alone gives the same pixels: nothing of how they look was fitted to other images.

    Parameters
    ----------
    prepare : (n,) rows of the cohort → the cohort of these images, prepared without any other
    """
    tested = cohort.table.patient_id.isin(splits[splits.part == "test"].patient_id).to_numpy()
    rows = np.flatnonzero(tested)[:: max(int(tested.sum()) // 8, 1)][:8]
    differ = abs(prepare(rows).images() - cohort.take(rows).images()).max(axis=(1, 2, 3)) > 1e-6
    ids = cohort.table.image_id.iloc[rows[differ]]
    return _table([_check("images that change when prepared alone", "test part", len(rows), ids)])


def window_checks(cohort: Cohort, splits: pd.DataFrame, percentiles: tuple[float, float]) -> pd.DataFrame:
    """Each cell's window is that of its training images, whatever the others look like.

    Parameters
    ----------
    percentiles : of `lib.data.splits.with_windows`
    """
    strangers = []
    for (repeat, fold), cell in splits.groupby(["repeat", "fold"]):
        others = cohort.table.patient_id.isin(cell.patient_id[cell.part != "train"]).to_numpy()
        inverted = cohort.take(others).windowed(black=1, white=0)
        fitted = with_windows(cell, cohort.take(~others).join(inverted), percentiles)
        if not np.allclose(fitted[["black", "white"]], cell[["black", "white"]]):
            strangers.append(fold_name(repeat, fold))
    return _table([_check("windows fitted to other images", "all cells", len(fold_keys(splits)), strangers)])


# Fitted things -------------------------------------------------------------------------------------------------------


def weights_checks(folder: Path, cohort: Cohort, splits: pd.DataFrame, names=tuple(WEIGHTS)) -> pd.DataFrame:
    """Generators and judge of each cell have seen its training patients, all of them and nobody else.

    The hash of the patients was written into the weights by the training itself. Weights that do not exist are no leak.

    Parameters
    ----------
    folder : of the run
    names : of `WEIGHTS`
    """
    rows = []
    for name in names:
        of_name = {cell: Path(folder, name, fold_name(*cell), WEIGHTS[name]) for cell in fold_keys(splits)}
        of_name = {cell: path for cell, path in of_name.items() if path.exists()}
        strangers = []
        for cell, path in of_name.items():
            training, metadata = cohort.part(splits, *cell, "train"), weights_metadata(path)
            seen = metadata.get("patients_hash", metadata.get("patients")), metadata.get("cohort_hash")
            if seen[0] != patients_hash(training):
                strangers.append(f"{name} of {fold_name(*cell)}, whose patients are not those of its training part")
            elif seen[1] not in (None, cohort_hash(training)):
                strangers.append(f"{name} of {fold_name(*cell)}, which saw other images or labels of its patients")
        if of_name:
            rows.append(_check(f"{name} fitted to other images", "all cells", len(of_name), strangers))
    return _table(rows)


# Synthetic images ----------------------------------------------------------------------------------------------------


def synthetic_checks(
    synthetic: dict[tuple[tuple[int, int], str], Cohort], cohort: Cohort, splits: pd.DataFrame
) -> pd.DataFrame:
    """Synthetic images come from training images, are of nobody who validates or tests, and repeat no such image.

    What translators and noise made says by which generator: one that saw the cell's training patients and nobody else.

    Parameters
    ----------
    synthetic : (cell, method) → what the method adds to the cell's training part; `noise` has no sources, and those of
        `oracle` may be real AFF hidden from every part
    """
    rows = []
    for (cell, method), made in synthetic.items():
        where = f"{fold_name(*cell)}, {method}"
        training, *held_out = (cohort.part(splits, *cell, part) for part in PARTS)
        held_out = held_out[0].join(held_out[1])
        if method not in ("noise", "oracle"):
            source = made.table.source_image_id.map(training.table.set_index("image_id").patient_id)
            strangers = made.table.image_id[source.isna() | (source != made.table.patient_id)]
            rows.append(_check("synthetic images from outside the training part", where, len(made), strangers))
        if method not in CONTROL_GENERATORS:
            trained_on = made.table.reindex(columns=["generator"]).generator
            others = made.table.image_id[trained_on != patients_hash(training)]
            rows.append(_check("synthetic images of another cell's generator", where, len(made), others))
        held = made.table.image_id[made.table.patient_id.isin(held_out.table.patient_id)]
        rows.append(_check("synthetic images of patients who validate or test", where, len(made), held))
        a, b = duplicates(made.pixels, held_out.pixels, ["synthetic"] * len(made), held_out.table.patient_id)
        pairs = [f"{made.table.image_id[i]} and {held_out.table.image_id[j]}" for i, j in zip(a, b, strict=True)]
        rows.append(_check("synthetic images that repeat a validation or test image", where, len(made), pairs))
    return _table(rows)
