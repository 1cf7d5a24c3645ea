"""The leak audit: does anything that is fitted or tested know what it must not?

Each check counts what it finds that must not be there, and is one row of a table `check, where, compared, found,
example, passed`. A run prints the table, and stops where a check did not pass.
"""

from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort
from lib.data.duplicates import duplicates
from lib.data.hashes import cohort_hash, patients_hash
from lib.data.leaks import LeakError
from lib.data.splits import PARTS, fit_windows
from lib.fidelity.controls import CONTROL_GENERATORS
from lib.run.files import write_text
from lib.run.weights import weights_metadata
from lib.study import Fold, Study
from lib.translators.methods import METHODS, NOISE
from lib.translators.training import WEIGHTS

COLUMNS = ("check", "where", "compared", "found", "example", "passed")


def audit(path: Path, *checks: pd.DataFrame) -> pd.DataFrame:
    """Write these checks into a run's audit table, replacing those of the same names, and return them `by_check`.

    Once the table is written, a LeakError names each check that did not pass.
    """
    new = table = pd.concat(checks, ignore_index=True)
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([old[~old.check.isin(new.check)], new], ignore_index=True)
    write_text(path, table.to_csv(index=False))
    if not new.passed.all():
        failed = [
            f"{c.where}: {c.check}: {c.found} of {c.compared}, such as {c.example}"
            for c in new[~new.passed].itertuples()
        ]
        raise LeakError("the leak audit failed, so the run stops here.\n" + "\n".join(failed))
    return by_check(new)


def by_check(table: pd.DataFrame) -> pd.DataFrame:
    """Sum up what each check compared and found, over all its rows (folds, parts, methods)."""
    sums = {"rows": ("where", "size"), "compared": ("compared", "sum"), "found": ("found", "sum")}
    return table.groupby("check", sort=False).agg(**sums, passed=("passed", "all"))


def _check(check: str, where: str, compared: int, offenders: Iterable[str]) -> tuple:
    """Return a row of the table; it passes where there are no offenders."""
    offenders = [*offenders]
    return check, where, compared, len(offenders), next(iter(offenders), ""), not offenders


def part_checks(study: Study) -> pd.DataFrame:
    """Check that no patient is in two parts of a fold, and nobody in the splits but not in the cohort."""
    rows, known = [], set(study.cohort.table.patient_id)
    for fold in study.folds:
        named = fold.splits
        members = {part: set(named.patient_id[named.part == part]) & known for part in PARTS}
        shared = sorted(set().union(*(members[a] & members[b] for a, b in combinations(PARTS, 2))))
        patients, strangers = set().union(*members.values()), sorted(set(named.patient_id) - known)
        rows.append(_check("patients in two parts", fold.name, len(patients), shared))
        rows.append(_check("patients of the splits without an image", fold.name, len(named), strangers))
    return pd.DataFrame(rows, columns=COLUMNS)


def duplicate_checks(study: Study, pairs: pd.DataFrame) -> pd.DataFrame:
    """Check that none of the cohort's `lib.data.duplicates.duplicate_pairs` lies in two parts of a fold."""
    a, b = pairs.a.to_numpy(), pairs.b.to_numpy()
    ids, patients, rows = study.cohort.table.image_id.to_numpy(), study.cohort.table.patient_id, []
    for fold in study.folds:
        part = patients.map(fold.splits.set_index("patient_id").part).fillna("").to_numpy()
        across = (part[a] != part[b]) & (part[a] != "") & (part[b] != "")
        found = [f"{ids[i]} and {ids[j]}" for i, j in zip(a[across], b[across], strict=True)]
        rows.append(_check("images in two parts", fold.name, int((part != "").sum()), found))
    return pd.DataFrame(rows, columns=COLUMNS)


def preprocessing_check(study: Study, prepare: Callable[[np.ndarray], Cohort]) -> pd.DataFrame:
    """Check that test images have the same pixels when they are prepared alone: nothing was fitted to other images.

    `prepare` returns the images of these rows of the cohort, prepared without any other.
    """
    cohort, splits = study.cohort, study.splits
    tested = cohort.table.patient_id.isin(splits[splits.part == "test"].patient_id).to_numpy()
    rows = np.flatnonzero(tested)[:: max(int(tested.sum()) // 8, 1)][:8]
    differ = abs(prepare(rows).images() - cohort.take(rows).images()).max(axis=(1, 2, 3)) > 1e-6
    ids = cohort.table.image_id.iloc[rows[differ]]
    row = _check("images that change when prepared alone", "test part", len(rows), ids)
    return pd.DataFrame([row], columns=COLUMNS)


def window_checks(study: Study, percentiles: tuple[float, float]) -> pd.DataFrame:
    """Check that a fold's window (`fit_windows`) stays the same when its held-out images are inverted."""
    cohort, strangers = study.cohort, []
    for fold in study.folds:
        others = cohort.table.patient_id.isin(fold.splits.patient_id[fold.splits.part != "train"]).to_numpy()
        inverted = cohort.take(others).windowed(black=1, white=0)
        fitted = fit_windows(fold.splits, cohort.take(~others).join(inverted), percentiles)
        if not np.allclose(fitted[["black", "white"]].iloc[0], fold.window):
            strangers.append(fold.name)
    row = _check("windows fitted to other images", "all folds", len(study.folds), strangers)
    return pd.DataFrame([row], columns=COLUMNS)


def weights_checks(study: Study, *names: str) -> pd.DataFrame:
    """Check that translators and judge of each fold have seen all of its training images and no others.

    The training has written hashes into the weights. `names` are of `lib.translators.methods.METHODS`, or "judge"; by
    default all whose weights exist are checked.
    """
    rows = []
    for name in names or (*METHODS, "judge"):
        trained = [fold for fold in study.folds if (fold.folder(name) / WEIGHTS).exists()]
        strangers = []
        for fold in trained:
            training, seen = fold.train, weights_metadata(fold.folder(name) / WEIGHTS)
            if seen.get("patients_hash") != patients_hash(training):
                strangers.append(f"{name} of {fold.name}, whose patients are not those of its training part")
            elif seen.get("cohort_hash") != cohort_hash(training):
                strangers.append(f"{name} of {fold.name}, which saw other images or labels of its patients")
        if trained:
            rows.append(_check(f"{name} fitted to other images", "all folds", len(trained), strangers))
    return pd.DataFrame(rows, columns=COLUMNS)


def synthetic_checks(fold: Fold, synthetic: dict[str, Cohort]) -> pd.DataFrame:
    """Check that synthetic images come from training images and from a generator of this fold.

    None may belong to a held-out patient or repeat a held-out image. Noise has no sources, and those of "oracle" may be
    real AFF images that are hidden from every part.
    """
    training, validation, test = fold.parts
    held_out, rows = validation.join(test), []
    for method, images in synthetic.items():
        made, found = images.table, {}
        if method not in (NOISE, "oracle"):
            patient = made.source_image_id.map(training.table.set_index("image_id").patient_id)
            found["from outside the training part"] = made.image_id[patient.isna() | (patient != made.patient_id)]
        if method not in CONTROL_GENERATORS:
            trained_on = made.reindex(columns=["generator"]).generator
            found["of another fold's generator"] = made.image_id[trained_on != patients_hash(training)]
        found["of patients who validate or test"] = made.image_id[made.patient_id.isin(held_out.table.patient_id)]
        a, b = duplicates(images.pixels, held_out.pixels, ["synthetic"] * len(made), held_out.table.patient_id)
        pairs = [f"{made.image_id[i]} and {held_out.table.image_id[j]}" for i, j in zip(a, b, strict=True)]
        found["that repeat a validation or test image"] = pairs
        where = f"{fold.name}, {method}"
        rows += [_check(f"synthetic images {what}", where, len(made), which) for what, which in found.items()]
    return pd.DataFrame(rows, columns=COLUMNS)
