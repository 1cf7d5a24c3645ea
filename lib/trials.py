"""Trials: the same classifier trained under every condition, cell by cell and seed by seed.

A trial is condition × repeat × fold × seed. Conditions are a factorial: how the classes are balanced, times whether the
standard augmentation runs.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from lib import classifier
from lib.classifier import Settings, patient_probabilities, predict, require_both_labels
from lib.cohort import Cohort
from lib.metrics import evaluate
from lib.runs import progress, write_text
from lib.splits import PARTS, cell_name, cells
from lib.training import cohort_hash, generator, source_hash

GENERATORS = ("cyclegan", "cyclediff", "noise")
BALANCE = {
    "real": "the real training images as they are",
    "undersampling": "NFF images dropped, down to the share of AFF that the generators reach",
    "weighted": "AFF images weigh more in the loss, by as much as the generators multiply them",
    "oversampling": "AFF images copied, as many copies as a generator adds: the count-matched control",
    "cyclegan": "AFF images added that CycleGAN translated from NFF training images",
    "cyclediff": "AFF images added that CycleDiff translated from NFF training images",
    "noise": "AFF images added that CycleDiff's AFF diffusion model drew from noise",
}


@dataclass(frozen=True)
class Condition:
    """How a training set is made: `balance` is a key of `BALANCE`, `standard` says whether images are rotated, flipped
    and cropped."""

    balance: str
    standard: bool

    @property
    def name(self) -> str:
        if self.standard:
            return "standard" if self.balance == "real" else f"{self.balance}+standard"
        return self.balance


CONDITIONS = {c.name: c for standard in (False, True) for c in (Condition(balance, standard) for balance in BALANCE)}


class LeakError(ValueError):
    """A classifier would be trained, selected or tested on images it must not see there."""


def condition(name: str) -> Condition:
    """The condition of this name; ValueError with the nearest name where there is none."""
    if name not in CONDITIONS:
        spelled_out = {c.balance + "+standard" * c.standard: known for known, c in CONDITIONS.items()} | {"": "real"}
        nearest = spelled_out[difflib.get_close_matches(name, spelled_out, 1, 0)[0]]
        raise ValueError(f"unknown condition {name!r}, did you mean {nearest!r}? There are: {', '.join(CONDITIONS)}")
    return CONDITIONS[name]


# Training sets -------------------------------------------------------------------------------------------------------


def images_to_add(real: Cohort, synthetic: dict[str, Cohort]) -> int:
    """How many AFF images every balanced condition adds: as many as each generator made.

    Without any generator, as many as make AFF and NFF images equal in number.
    """
    counts = {method: int(images.targets.sum()) for method, images in synthetic.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise ValueError(f"generators must add equally many AFF images to be compared, not {each}")
    n_aff = int(real.targets.sum())
    return next(iter(counts.values())) if counts else max(len(real) - 2 * n_aff, 0)


def training_set(condition: Condition, real: Cohort, synthetic: dict[str, Cohort], seed: int) -> tuple[Cohort, float]:
    """The images a condition trains on, and the weight of an AFF image in the loss.

    Undersampling, weighted, oversampling and the generators all reach the same ratio of AFF to NFF, in images or in
    weight, so that a difference between them is not one of class balance.

    Parameters
    ----------
    real : the cell's training part
    synthetic : images of each of `GENERATORS` that ran in this cell; their AFF images join
    seed : which images are dropped or copied

    Raises
    ------
    LeakError
        Where a synthetic image was not made from the training part.
    """
    aff, nff = np.flatnonzero(real.targets == 1), np.flatnonzero(real.targets == 0)
    added, order = images_to_add(real, synthetic), generator(seed)
    match condition.balance:
        case "real":
            return real, 1.0
        case "undersampling":
            kept = order.permutation(nff)[: round(len(nff) * len(aff) / (len(aff) + added))]
            return real.take(np.sort(np.concatenate([aff, kept]))), 1.0
        case "weighted":
            return real, (len(aff) + added) / len(aff)
        case "oversampling":
            return real.join(copies(real, np.resize(order.permutation(aff), added))), 1.0
    if condition.balance not in synthetic:
        raise ValueError(f"condition {condition.name!r} needs images of {condition.balance}: synthesise them first")
    joining = synthetic[condition.balance].select(label="AFF")
    if condition.balance != "noise":  # which has no source
        check_sources(joining, real)
    return real.join(joining), 1.0


def copies(cohort: Cohort, rows: np.ndarray) -> Cohort:
    """The images at these positions, which may repeat, under new ids and with the provenance of synthetic images."""
    table = cohort.table.iloc[rows]
    table = table.assign(
        source_image_id=table.image_id,
        source_label=table.label,
        image_id=[f"oversampling-{i}-{image_id}" for i, image_id in enumerate(table.image_id)],
        method="oversampling",
    )
    return Cohort(table, cohort.pixels[rows])


def is_synthetic(cohort: Cohort) -> np.ndarray:
    """(N,) bool: which images some method made."""
    return cohort.table.method.notna().to_numpy() if "method" in cohort.table else np.zeros(len(cohort), bool)


def check_sources(synthetic: Cohort, real: Cohort) -> None:
    """Every synthetic image comes from an image of the training part and belongs to its patient."""
    made = synthetic.table
    patient = made.source_image_id.map(real.table.set_index("image_id").patient_id)
    for image in made[patient.isna()].itertuples():
        raise LeakError(f"{image.image_id} was made from {image.source_image_id}, not an image of the training part")
    for image in made[patient != made.patient_id].itertuples():
        raise LeakError(f"{image.image_id} belongs to patient {image.patient_id}, its source to {patient[image.Index]}")


def check_parts(training: Cohort, validation: Cohort, test: Cohort) -> None:
    """No patient in two parts, and nothing synthetic where classifiers are selected and tested."""
    parts = {"training": training, "validation": validation, "test": test}
    for a, b in (("training", "validation"), ("training", "test"), ("validation", "test")):
        if shared := sorted(set(parts[a].table.patient_id) & set(parts[b].table.patient_id)):
            raise LeakError(f"patient {shared[0]} is in the {a} and in the {b} images ({len(shared)} such patients)")
    for name in ("validation", "test"):
        if (synthetic := is_synthetic(parts[name])).any():
            raise LeakError(f"{parts[name].table.image_id[synthetic].iloc[0]} is synthetic and in the {name} part")


# Running -------------------------------------------------------------------------------------------------------------


def run_trials(
    cohort: Cohort,
    splits: pd.DataFrame,
    synthetic: Callable[[int, int], dict[str, Cohort]],
    conditions: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test every condition in every cell with every seed.

    Each trial is written when it is finished, into `folder/cells`; a trial that is there already, from the same inputs,
    is not run again. `predictions.csv`, `metrics.csv` and `history.csv` in `folder` hold those of this call.

    Parameters
    ----------
    splits : repeat, fold, patient_id, part (see `lib.splits`)
    synthetic : (repeat, fold) → the synthetic cohort of each generator, made from that cell's training part
    conditions : names, see `CONDITIONS`

    Returns
    -------
    predictions : condition, repeat, fold, seed, image_id, patient_id, label, probability; real test images
    metrics : condition, repeat, fold, seed, metric, value; those of `lib.metrics.evaluate` on patients, `threshold`,
        `image_auroc`, `best_step` and `steps`
    """
    chosen = [condition(name) for name in conditions]
    for repeat, fold in cells(splits):
        for part in PARTS:
            images = cohort.part(splits, repeat, fold, part)
            require_both_labels(images, f"the {part} part of repeat {repeat}, fold {fold}")

    predictions, metrics, histories = [], [], []
    with progress(len(cells(splits)) * len(seeds) * len(chosen), desc="trials") as bar:
        for repeat, fold in cells(splits):
            real, validation, test = (cohort.part(splits, repeat, fold, part) for part in PARTS)
            made = synthetic(repeat, fold)
            for seed in seeds:
                for c in chosen:
                    bar.set_postfix_str(f"{cell_name(repeat, fold)} {c.name} seed {seed}")
                    training, aff_weight = training_set(c, real, made, seed)
                    check_parts(training, validation, test)
                    path = Path(folder, "cells", cell_name(repeat, fold), f"{c.name}-s{seed}.json")
                    result = run_trial(c, training, aff_weight, validation, test, settings, seed, path)
                    key = {"condition": c.name, "repeat": repeat, "fold": fold, "seed": seed}
                    rows = test.table[["image_id", "patient_id", "label"]].assign(probability=result["probabilities"])
                    predictions.append(keyed(key, rows))
                    metrics.append(keyed(key, pd.DataFrame(result["metrics"].items(), columns=["metric", "value"])))
                    histories.append(keyed(key, pd.DataFrame(result["history"])))
                    bar.update()
    tables = {"predictions": predictions, "metrics": metrics, "history": histories}
    tables = {name: pd.concat(rows, ignore_index=True) for name, rows in tables.items()}
    for name, table in tables.items():
        write_text(Path(folder, f"{name}.csv"), table.to_csv(index=False))
    return tables["predictions"], tables["metrics"]


def run_trial(
    condition: Condition,
    training: Cohort,
    aff_weight: float,
    validation: Cohort,
    test: Cohort,
    settings: Settings,
    seed: int,
    path: Path,
) -> dict:
    """One trial's result, read from its file where that was made from the same inputs, else trained and written."""
    inputs = {
        "condition": condition.name,
        "seed": seed,
        "settings": asdict(settings),
        "weights": classifier.pretrained(settings.architecture, settings.weights)[1],
        "training": cohort_hash(training),
        "validation": cohort_hash(validation),
        "test": cohort_hash(test),
        "source": source_hash("trials"),
    }
    if path.exists() and (result := json.loads(path.read_text(encoding="utf-8")))["inputs"] == inputs:
        return result
    checkpoint = path.with_suffix(".pt")
    trained = classifier.train(
        training, validation, settings, seed, aff_weight=aff_weight, standard=condition.standard, checkpoint=checkpoint
    )
    probabilities = predict(trained.network, test)
    result = {
        "inputs": inputs,
        "classifier": trained.description,
        "images": {"NFF": int((training.targets == 0).sum()), "AFF": int((training.targets == 1).sum())},
        "metrics": {
            **evaluate(*patient_probabilities(test, probabilities), trained.threshold),
            "threshold": trained.threshold,
            "image_auroc": float(roc_auc_score(test.targets, probabilities)),
            "best_step": trained.best_step,
            "steps": settings.steps,
        },
        "history": trained.history.to_dict("list"),
        "probabilities": probabilities.tolist(),
    }
    write_text(path, json.dumps(result, indent=1))
    checkpoint.unlink(missing_ok=True)
    return result


def keyed(key: dict, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with a trial's key in front."""
    return pd.DataFrame({**key, **rows.reset_index(drop=True)}, index=range(len(rows)))
