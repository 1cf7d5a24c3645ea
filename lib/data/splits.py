"""Splits: which patients train, validate and test, in every repeat and fold.

A table of splits has the columns `repeat, fold, patient_id, part` (train, validation or test), one row a patient and
fold. All images of a patient go where the patient goes, so no patient is on both sides of anything.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from lib.data.cohort import LABELS, Cohort

PARTS = ("train", "validation", "test")


def make_splits(
    patients: pd.Series, repeats: int, folds: int, seed: int, test_share: float = 0.25, validation_share: float = 0.2
) -> pd.DataFrame:
    """Draw repeated splits by patient, stratified by label.

    Repeat r depends on the patients, `folds`, `seed` and r alone: more repeats leave the earlier ones as they were, and
    the order of the patients does not matter. Raises ValueError where a class has too few patients for one in each part
    of each fold, or for so many different repeats.

    Parameters
    ----------
    patients : patient_id → label, as `Cohort.patients`
    folds : 1: one hold-out fold a repeat; from 2 on, every patient is tested once a repeat
    test_share : of each class's patients, where there is a hold-out fold
    validation_share : of each class's patients that are not tested
    """
    if repeats < 1 or folds < 1:
        raise ValueError(f"repeats={repeats} and folds={folds} must be at least 1")
    if not (0 < test_share < 1 and 0 < validation_share < 1):
        raise ValueError(f"test_share={test_share} and validation_share={validation_share} must lie between 0 and 1")
    patients = patients.sort_index()
    needed = max(2 * folds, 4)  # two to test on in every fold, and two to share
    counts = patients.value_counts().reindex(["AFF", "NFF"], fill_value=0)
    for label, n in counts[counts < needed].items():
        remedy = f"set folds to {min(counts) // 2} or less, or " * (min(counts) > 3) + "bring more patients"
        raise ValueError(
            f"class {label} has {n} patients; folds={folds} needs at least {needed} of each class, "
            f"to train, validate and test in every fold: {remedy}"
        )

    rows, seen = [], {}
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        if folds == 1:
            tests = [_draw(patients, test_share, rng, spare=2, least=2)]
        else:
            folding = StratifiedKFold(folds, shuffle=True, random_state=int(rng.integers(2**32)))
            tests = [patients.index[test] for _, test in folding.split(patients, patients)]
        for fold, test in enumerate(tests):
            part = pd.Series("train", patients.index)
            part.loc[test] = "test"
            part.loc[_draw(patients.drop(test), validation_share, rng, spare=1)] = "validation"
            named = {"repeat": repeat, "fold": fold, "patient_id": part.index, "part": part.to_numpy()}
            rows.append(pd.DataFrame(named))
        if (twin := seen.setdefault(frozenset(map(frozenset, tests)), repeat)) != repeat:
            raise ValueError(
                f"repeats {twin} and {repeat} test on the same patients: "
                f"{len(patients)} patients are too few for repeats={repeats}; lower it, or take another seed"
            )
    return check_splits(pd.concat(rows, ignore_index=True), patients)


def _draw(patients: pd.Series, share: float, rng: np.random.Generator, spare: int, least: int = 1) -> np.ndarray:
    """Draw a share of each class's patients, at least `least` and all but `spare` at most."""
    drawn = [
        rng.choice(group.index, np.clip(round(share * len(group)), least, len(group) - spare), replace=False)
        for _, group in patients.groupby(patients)
    ]
    return np.concatenate(drawn)


def predefined_splits(table: pd.DataFrame) -> pd.DataFrame:
    """Return the one fold that a cohort table's own `split` column describes, checked by `check_splits`."""
    if "split" not in table:
        raise ValueError("the table has no column split (train, validation, test)")
    rows = table[["patient_id", "split"]].drop_duplicates().sort_values("patient_id", ignore_index=True)
    splits = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": rows.patient_id, "part": rows.split})
    return check_splits(splits, table.set_index("patient_id").label)


def keep_aff(splits: pd.DataFrame, labels: pd.Series, share: float, seed: int) -> pd.DataFrame:
    """Keep this share (0 < share ≤ 1) of each fold's AFF training patients, at least one; the others are in no part.

    What a small share keeps, a larger one keeps too, and nobody else moves: so results of several shares are points of
    one learning curve. `labels` are `Cohort.patients`.
    """
    if not 0 < share <= 1:
        raise ValueError(f"training_aff_share={share} must lie above 0 and up to 1")
    aff = splits[(splits.part == "train") & splits.patient_id.map(labels).eq("AFF")]
    dropped = []
    for key, rows in aff.groupby(["repeat", "fold"]):
        order = np.random.default_rng([seed, *key]).permutation(rows.index.to_numpy())
        dropped += list(order[max(round(share * len(order)), 1) :])
    return splits.drop(index=dropped).reset_index(drop=True)


def check_splits(splits: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """Return the splits; raise ValueError unless each patient is in one part of a fold, and each part has both classes.

    `labels` is patient_id → label; a patient with images of both may occur twice.
    """
    if (twice := splits.duplicated(["repeat", "fold", "patient_id"])).any():
        row = splits[twice].iloc[0]
        raise ValueError(f"patient {row.patient_id!r} is in two parts of repeat {row['repeat']}, fold {row['fold']}")
    if unknown := sorted(set(splits.part.fillna("")) - set(PARTS)):
        raise ValueError(f"unknown part {unknown[0]!r}: parts are {', '.join(PARTS)}")
    members = {label: set(labels.index[labels == label]) for label in reversed(LABELS)}
    for (repeat, fold), rows in splits.groupby(["repeat", "fold"]):
        for part in PARTS:
            for label, patients in members.items():
                if patients.isdisjoint(rows.patient_id[rows.part == part]):
                    raise ValueError(f"no {label} patient in the {part} part of repeat {repeat}, fold {fold}")
    return splits


def read_splits(path: str | Path) -> pd.DataFrame:
    """Read a `splits.csv`, with patient ids as they were written ("007" stays "007")."""
    return pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)


def fold_keys(splits: pd.DataFrame) -> list[tuple[int, int]]:
    """Return the (repeat, fold) of every fold, in order."""
    return sorted(set(zip(splits.repeat.tolist(), splits.fold.tolist(), strict=True)))


def fit_windows(splits: pd.DataFrame, cohort: Cohort, percentiles: tuple[float, float]) -> pd.DataFrame:
    """Fit each fold's window of grey levels to its training images, padding left out.

    Returns `repeat, fold, black, white`: which levels become black and white, in shares of the full range. Raises
    ValueError where percentiles are none, or training images have one grey level between them.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"window percentiles {low:g} and {high:g} are not 0 ≤ low < high ≤ 100")
    top, windows = np.iinfo(cohort.pixels.dtype).max, []
    for (repeat, fold), rows in splits[splits.part == "train"].groupby(["repeat", "fold"]):
        levels = np.zeros(top + 1, int)
        for _, few in cohort.select(patient_id=rows.patient_id).blocks():
            levels += np.bincount(few.pixels[:][~few.padding], minlength=top + 1)
        black, white = (_percentile(levels, q) / top for q in (low, high))
        if black == white:
            raise ValueError(f"repeat {repeat}, fold {fold}: percentiles {low:g} and {high:g} are the same grey level")
        windows.append({"repeat": repeat, "fold": fold, "black": black, "white": white})
    return pd.DataFrame(windows)


def _percentile(counts: np.ndarray, q: float) -> float:
    """Return `numpy.percentile` of integers of which there are so many each, 0 first."""
    place = (counts.sum() - 1) * (q / 100)
    below = int(place)
    low, high = np.searchsorted(np.cumsum(counts), [below, min(below + 1, counts.sum() - 1)], side="right")
    share = place - below
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share
