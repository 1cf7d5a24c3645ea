"""Splits: which patients train, validate and test, in every repeat and fold.

A table of splits has the columns `repeat, fold, patient_id, part` (train, validation or test), one row a patient and
cell. All images of a patient go where the patient goes, so no patient is on both sides of anything.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from lib.data.cohort import Cohort

PARTS = ("train", "validation", "test")


def make_splits(
    patients: pd.Series,
    repeats: int,
    folds: int,
    seed: int,
    test_share: float = 0.25,
    validation_share: float = 0.2,
) -> pd.DataFrame:
    """Repeated splits by patient, stratified by label.

    Repeat r depends on the patients, `folds`, `seed` and r alone: more repeats leave the earlier ones as they were, and
    the order of the patients does not matter.

    Parameters
    ----------
    patients : patient_id → label, as `Cohort.patients`
    repeats : number of independent splits
    folds : 1 for one hold-out cell a repeat; from 2 on, K folds in which every patient is tested once a repeat
    test_share : share of each class's patients that a hold-out cell tests on
    validation_share : share of each class's other patients that validates

    Raises
    ------
    ValueError
        Where a class has too few patients for one in each part of each cell, or too few for so many different repeats.
    """
    if repeats < 1 or folds < 1:
        raise ValueError(f"repeats={repeats} and folds={folds} must be at least 1")
    if not (0 < test_share < 1 and 0 < validation_share < 1):
        raise ValueError(f"test_share={test_share} and validation_share={validation_share} must lie between 0 and 1")
    patients = patients.sort_index()
    needed = max(2 * folds, 4)  # two to test on in every cell, and two to share
    counts = patients.value_counts().reindex(["AFF", "NFF"], fill_value=0)
    for label, n in counts[counts < needed].items():
        remedy = f"set folds to {min(counts) // 2} or less, or " * (min(counts) > 3) + "bring more patients"
        raise ValueError(
            f"class {label} has {n} patients; folds={folds} needs at least {needed} of each class, "
            f"to train, validate and test in every cell: {remedy}"
        )

    cells, seen = [], {}
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        tests = []
        for fold, test in enumerate(_test_sets(patients, folds, test_share, rng)):
            rest = patients.drop(test)
            part = pd.Series("train", patients.index)
            part.loc[test] = "test"
            part.loc[_draw(rest, validation_share, rng, spare=1)] = "validation"
            cell = {"repeat": repeat, "fold": fold, "patient_id": part.index, "part": part.to_numpy()}
            cells.append(pd.DataFrame(cell))
            tests.append(frozenset(test))
        if (twin := seen.setdefault(frozenset(tests), repeat)) != repeat:
            raise ValueError(
                f"repeats {twin} and {repeat} test on the same patients: "
                f"{len(patients)} patients are too few for repeats={repeats}; lower it, or take another seed"
            )
    return check_splits(pd.concat(cells, ignore_index=True), patients)


def predefined_splits(table: pd.DataFrame) -> pd.DataFrame:
    """The one cell that a cohort table's own `split` column describes.

    Raises
    ------
    ValueError
        Where the column is missing, a patient stands in two parts, or a part lacks a class.
    """
    if "split" not in table:
        raise ValueError("the table has no column split (train, validation, test)")
    cell = table[["patient_id", "split"]].drop_duplicates().sort_values("patient_id", ignore_index=True)
    cell = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": cell.patient_id, "part": cell.split})
    return check_splits(cell, table.set_index("patient_id").label)


def keep_aff(splits: pd.DataFrame, labels: pd.Series, share: float, seed: int) -> pd.DataFrame:
    """The splits with this share of each cell's AFF training patients, at least one; the others are in no part.

    What a small share keeps, a larger one keeps too, and nobody else moves: so results of several shares are points of
    one learning curve.

    Parameters
    ----------
    labels : patient_id → label, as `Cohort.patients`
    share : above 0, up to 1
    """
    if not 0 < share <= 1:
        raise ValueError(f"training_aff_share={share} must lie above 0 and up to 1")
    aff = splits[(splits.part == "train") & splits.patient_id.map(labels).eq("AFF")]
    dropped = []
    for (repeat, fold), cell in aff.groupby(["repeat", "fold"]):
        order = np.random.default_rng([seed, repeat, fold]).permutation(cell.index.to_numpy())
        dropped += list(order[max(round(share * len(order)), 1) :])
    return splits.drop(index=dropped).reset_index(drop=True)


def check_splits(splits: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """Return the splits if every patient is in one part of each cell, and every part has patients of both classes.

    Parameters
    ----------
    splits : `repeat, fold, patient_id, part`
    labels : patient_id → label; a patient with images of both may occur twice
    """
    if (twice := splits.duplicated(["repeat", "fold", "patient_id"])).any():
        row = splits[twice].iloc[0]
        raise ValueError(f"patient {row.patient_id!r} is in two parts of repeat {row['repeat']}, fold {row['fold']}")
    if unknown := sorted(set(splits.part.fillna("")) - set(PARTS)):
        raise ValueError(f"unknown part {unknown[0]!r}: parts are {', '.join(PARTS)}")
    members = {label: set(labels.index[labels == label]) for label in ("AFF", "NFF")}
    for (repeat, fold), cell in splits.groupby(["repeat", "fold"]):
        for part in PARTS:
            for label, patients in members.items():
                if patients.isdisjoint(cell.patient_id[cell.part == part]):
                    raise ValueError(f"no {label} patient in the {part} part of repeat {repeat}, fold {fold}")
    return splits


def read_splits(path: str | Path) -> pd.DataFrame:
    """A `splits.csv`, with patient ids as they were written ("007" stays "007")."""
    return pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)


def with_windows(splits: pd.DataFrame, cohort: Cohort, percentiles: tuple[float, float]) -> pd.DataFrame:
    """The splits with columns `black` and `white`: which grey levels become black and white in a cell, in shares of
    the full range. They are percentiles of all pixels of the cell's training images but their padding, so that nothing
    of how images look was fitted to anyone who validates or tests.

    Raises
    ------
    ValueError
        Where percentiles are none, or training images have one grey level between them.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"window percentiles {low:g} and {high:g} are not 0 ≤ low < high ≤ 100")
    windowed = []
    for (repeat, fold), cell in splits.groupby(["repeat", "fold"]):
        training = cohort.select(patient_id=cell.patient_id[cell.part == "train"])
        top = np.iinfo(cohort.pixels.dtype).max
        levels = np.zeros(top + 1, int)
        for _, few in training.blocks():
            levels += np.bincount(few.pixels[:][~few.padding], minlength=top + 1)
        black, white = (_percentile(levels, q) / top for q in (low, high))
        if black == white:
            raise ValueError(
                f"cell {fold_name(repeat, fold)}: percentiles {low:g} and {high:g} are the same grey level"
            )
        windowed.append(cell.assign(black=black, white=white))
    return pd.concat(windowed, ignore_index=True)


def _percentile(counts: np.ndarray, q: float) -> float:
    """`numpy.percentile` of integers of which there are so many each, 0 first."""
    place = (counts.sum() - 1) * (q / 100)
    below = int(place)
    low, high = np.searchsorted(np.cumsum(counts), [below, min(below + 1, counts.sum() - 1)], side="right")
    share = place - below
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def fold_keys(splits: pd.DataFrame) -> list[tuple[int, int]]:
    """The (repeat, fold) of every cell, in order."""
    return sorted(set(zip(splits.repeat.tolist(), splits.fold.tolist(), strict=True)))


def fold_name(repeat: int, fold: int) -> str:
    """The folder that holds what belongs to a cell."""
    return f"r{repeat}f{fold}"


def counts_by_part(cohort: Cohort, splits: pd.DataFrame) -> pd.DataFrame:
    """Patients and images of each class in the parts of a cell, mean over cells, indexed by part."""
    images = splits.merge(cohort.table[["patient_id", "image_id", "label"]], on="patient_id")
    n = len(fold_keys(splits))
    counts = images.groupby(["part", "label"]).agg(patients=("patient_id", "size"), images=("image_id", "size"))
    counts["patients"] = images.drop_duplicates(["repeat", "fold", "patient_id"]).groupby(["part", "label"]).size()
    counts = (counts / n).unstack("label").reindex(PARTS)
    counts.columns = [f"{label} {unit}" for unit, label in counts.columns]
    return counts


def _test_sets(patients: pd.Series, folds: int, test_share: float, rng: np.random.Generator):
    """The patients to test on, fold by fold."""
    if folds == 1:
        return [_draw(patients, test_share, rng, spare=2, least=2)]
    folding = StratifiedKFold(folds, shuffle=True, random_state=int(rng.integers(2**32)))
    return [patients.index[test] for _, test in folding.split(patients, patients)]


def _draw(patients: pd.Series, share: float, rng: np.random.Generator, spare: int, least: int = 1) -> np.ndarray:
    """A share of each class's patients, at least `least` and all but `spare` at most."""
    drawn = [
        rng.choice(group.index, np.clip(round(share * len(group)), least, len(group) - spare), replace=False)
        for _, group in patients.groupby(patients)
    ]
    return np.concatenate(drawn)
