"""Trials: the same classifier trained under every condition, cell by cell and seed by seed.

A trial is condition × repeat × fold × seed. Conditions are a factorial: how the classes are balanced, times whether the
standard augmentation runs. Beside it stand smaller doses of what is added, and controls (`lib.fidelity.controls`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from lib.data.cohort import Cohort
from lib.data.hashes import cohort_hash
from lib.data.leaks import check_parts
from lib.data.splits import PARTS, fold_keys, fold_name
from lib.run.checkpoints import Checkpoint, differences, goes_on, kept_file, set_aside
from lib.run.files import from_root, write_text, write_together
from lib.run.fingerprint import name_of, source_hash
from lib.run.folder import Run
from lib.run.hardware import arithmetic
from lib.run.tasklist import Machines, Task
from lib.run.tasks import run_tasks
from lib.statistics.metrics import evaluate, recalibrated
from lib.trials import classifier
from lib.trials.classifier import Settings, evidence_maps, patient_probabilities, predict, require_both_labels
from lib.trials.conditions import Condition, condition, labelled, training_set

AGAIN = 1_000_000  # added to the seed of "again"
ERRORS = 8  # a trial keeps this many test images that it is most confidently wrong on
UNLIKE_MAY_BE = (  # parameters in which the points of a learning curve may differ: no classifier is trained by them
    *("run_dir", "training_aff_share", "conditions", "methods", "learning_curve", "sampling_trials", "judge_steps"),
    *("inception_weights", "cyclediff_ablations", "cyclediff_ablation_seeds"),
    *("margin", "worthwhile", "bootstrap_draws", "simulations", "reader", "reader_each"),
)


# Training sets -------------------------------------------------------------------------------------------------------


# Running -------------------------------------------------------------------------------------------------------------


def run_trials(
    cohort: Cohort,
    splits: pd.DataFrame,
    synthetic: Callable[[int, int], dict[str, Cohort]],
    conditions: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    folder: Path,
    machines: Machines = Machines(),  # noqa: B008, immutable
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test every condition in every cell with every seed.

    Each trial is written when it is finished, into `folder/cells`; a trial that is there already, from the same inputs,
    is not run again. `predictions.csv`, `metrics.csv` and `history.csv` in `folder` hold those of this call.

    Parameters
    ----------
    splits : repeat, fold, patient_id, part (see `lib.data.splits`)
    synthetic : (repeat, fold) → the synthetic cohort of each generator, made from that cell's training part
    conditions : names, see `condition`
    machines : who runs the trials; their list is `folder/tasks.csv`

    Returns
    -------
    predictions : condition, repeat, fold, seed, image_id, patient_id, label, probability; real test images
    metrics : condition, repeat, fold, seed, metric, value; those of `lib.statistics.metrics.evaluate` on patients,
    `threshold`,
        `recalibration` and `brier_recalibrated` (`lib.statistics.metrics.recalibrated`), `image_auroc`, `best_step`,
        and what was
        spent: `steps`, `images_seen`, `validations`, `seconds`
    """
    chosen, folder = [condition(name) for name in conditions], Path(folder)
    needs = () if settings.weights in ("none", "imagenet") else (from_root(settings.weights),)
    trials, tested = {}, {}
    for cell in fold_keys(splits):
        parts = [cohort.part(splits, *cell, part) for part in PARTS]
        for name, images in zip(PARTS, parts, strict=True):
            require_both_labels(images, f"the {name} part of repeat {cell[0]}, fold {cell[1]}")
        made = synthetic(*cell)
        for seed in seeds:
            for c in chosen:
                path = trial_path(folder, cell, c.name, seed)
                trial = partial(run_trial, c, cell, parts, made, seed, settings, path)
                trials[c.name, *cell, seed] = Task(trial, path, needs)
                tested[c.name, *cell, seed] = labelled(c, cell, parts)[2].table[["image_id", "patient_id", "label"]]
    pieces = {f"{fold_name(*cell)}-{name}-s{seed}": trial for (name, *cell, seed), trial in trials.items()}
    run_tasks(pieces, folder / "tasks", machines)

    predictions, metrics, histories = [], [], []
    for (name, *cell, seed), rows in tested.items():
        result = json.loads(trial_path(folder, cell, name, seed).read_text(encoding="utf-8"))
        key = {"condition": name, "repeat": cell[0], "fold": cell[1], "seed": seed}
        predictions.append(keyed(key, rows.assign(probability=result["probabilities"])))
        metrics.append(keyed(key, pd.DataFrame(result["metrics"].items(), columns=["metric", "value"])))
        histories.append(keyed(key, pd.DataFrame(result["history"])))
    tables = {"predictions": predictions, "metrics": metrics, "history": histories}
    tables = {name: pd.concat(rows, ignore_index=True) for name, rows in tables.items()}
    texts = {f"{name}.csv": tables[name].to_csv(index=False) for name in ("history", "metrics", "predictions")}
    write_together(folder, texts)
    return tables["predictions"], tables["metrics"]


def trial_path(folder: Path, cell: tuple[int, int], name: str, seed: int) -> Path:
    """The file of one finished trial."""
    return Path(folder, "cells", fold_name(*cell), f"{name}-s{seed}.json")


def seconds_needed(cohort: Cohort, splits: pd.DataFrame, settings: Settings, timed: int = 10) -> float:
    """About how long a trial of the first cell takes on this machine: a few steps are timed, nothing is kept."""
    training, validation = (cohort.part(splits, *fold_keys(splits)[0], part) for part in PARTS[:2])

    def took(steps: int) -> tuple[float, torch.nn.Module]:
        start, few = time.perf_counter(), replace(settings, steps=steps, validate_every=steps)
        network = classifier.train(training, validation, few, seed=0).network
        return time.perf_counter() - start, network

    took(2)  # the first steps of a process are slow
    (base, network), (more, _) = took(2), took(2 + timed)
    start = time.perf_counter()
    predict(network, validation)
    looks = (settings.steps // settings.validate_every) * (time.perf_counter() - start)
    return base + settings.steps * max(more - base, 0) / timed + looks


def run_trial(
    condition: Condition,
    cell: tuple[int, int],
    parts: Sequence[Cohort],
    synthetic: dict[str, Cohort],
    seed: int,
    settings: Settings,
    path: Path,
) -> None:
    """Write one trial's result into its file, unless that was made from the same inputs.

    Parameters
    ----------
    parts : the cell's real training, validation and test images
    synthetic : images of each generator of the cell, see `training_set`
    """
    training, aff_weight = training_set(condition, parts[0], synthetic, seed)
    check_parts(training, *parts[1:])
    training, validation, test = labelled(condition, cell, (training, *parts[1:]))
    seed += AGAIN * (condition.balance == "again")
    inputs = {
        "condition": condition.name,
        "seed": seed,
        "settings": asdict(settings),
        "weights": classifier.pretrained(settings.architecture, settings.weights)[1],
        "training": cohort_hash(training),
        "validation": cohort_hash(validation),
        "test": cohort_hash(test),
        "source": source_hash(run_trial),
        "arithmetic": arithmetic(),
    }
    checkpoint, start = path.with_suffix(".pt"), time.perf_counter()
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        unlike = differences(there["inputs"], inputs)
        images = ("training", "validation", "test")
        if goes_on(path, unlike, inputs, finished=True, made_before=images, started=path.stat().st_mtime):
            Checkpoint.remove(checkpoint)  # of a process that was killed when it had written the result
            return
        set_aside(path.parent, [path.name, kept_file(path).name], unlike, there)
    trained = classifier.train(
        training, validation, settings, seed, aff_weight=aff_weight, standard=condition.standard, checkpoint=checkpoint
    )
    probabilities = predict(trained.network, test)
    labels, of_patients = patient_probabilities(test, probabilities)
    result = {
        "inputs": inputs,
        "code": name_of(run_trial),
        "seconds": time.perf_counter() - start,
        "classifier": trained.description,
        "images": {"NFF": int((training.targets == 0).sum()), "AFF": int((training.targets == 1).sum())},
        "metrics": {
            **evaluate(labels, of_patients, trained.threshold),
            "threshold": trained.threshold,
            "recalibration": trained.recalibration,
            "brier_recalibrated": float(brier_score_loss(labels, recalibrated(of_patients, trained.recalibration))),
            "image_auroc": float(roc_auc_score(test.targets, probabilities)),
            "best_step": trained.best_step,
            **asdict(trained.spent),
            "validations": len(trained.history),
            "seconds": time.perf_counter() - start,  # since the last interruption
        },
        "errors": confident_errors(trained.network, trained.threshold, test, probabilities),
        "history": trained.history.to_dict("list"),
        "probabilities": probabilities.tolist(),
    }
    write_text(path, json.dumps(result, indent=1))
    Checkpoint.remove(checkpoint)


def confident_errors(network, threshold: float, test: Cohort, probabilities: np.ndarray) -> list[dict]:
    """The test images that a classifier is most confidently wrong on, and where it looked (`evidence_maps`).

    Returns
    -------
    Of each, the most confident first: `image_id, label, probability, map` (rows of numbers from 0 to 1)
    """
    wrong = np.flatnonzero((probabilities >= threshold) != (test.targets == 1))
    worst = wrong[np.argsort(-abs(probabilities[wrong] - test.targets[wrong]), kind="stable")][:ERRORS]
    maps = evidence_maps(network, test.take(worst)) if len(worst) else []
    rows = test.table.iloc[worst]
    return [
        {"image_id": image, "label": label, "probability": float(p), "map": m.round(3).tolist()}
        for image, label, p, m in zip(rows.image_id, rows.label, probabilities[worst], maps, strict=True)
    ]


def read_errors(folder: Path, cell: tuple[int, int], name: str, seed: int) -> list[dict]:
    """The `confident_errors` of one finished trial."""
    return json.loads(trial_path(folder, cell, name, seed).read_text(encoding="utf-8"))["errors"]


def learning_curve_of(run: Run, folders: Sequence[str], conditions: Sequence[str]) -> pd.DataFrame:
    """AUROC of this run's and other runs' trials, each with its run's share of AFF training patients.

    Parameters
    ----------
    folders : of the other runs
    conditions : names; those are kept that a run has

    Returns
    -------
    DataFrame `condition, repeat, fold, seed, metric, value, share`

    Raises
    ------
    ValueError
        Where another run tested on other images, or differs in a parameter that trains something. Of runs by hand,
        whose manifest holds no parameters, only the test images are compared.
    """

    def tested(run: Run) -> set[tuple]:
        path = run.require("trials/predictions.csv", notebook="05_classifier_trials")
        rows = pd.read_csv(path, dtype=str, keep_default_na=False).query("condition != 'permuted'")  # labels shuffled
        return set(rows[["repeat", "fold", "image_id", "patient_id", "label"]].itertuples(index=False))

    points = []
    for other in [run, *map(Run, folders)]:
        unlike = [
            f"{name} = {there!r}, here {here!r}" for name, (here, there) in run.differing(other, UNLIKE_MAY_BE).items()
        ]
        if tested(other) != tested(run):
            unlike.append("other test images")
        if unlike:
            raise ValueError(
                f"learning_curve: {other.folder.name} is no point of this run's curve: {'; '.join(unlike)}"
            )
        found = pd.read_csv(other.require("trials/metrics.csv", notebook="05_classifier_trials"))
        share = other.manifest.get("parameters", {}).get("training_aff_share", 1.0)
        points.append(found[(found.metric == "auroc") & found.condition.isin(conditions)].assign(share=share))
    return pd.concat(points, ignore_index=True)


def keyed(key: dict, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with a trial's key in front."""
    return pd.DataFrame({**key, **rows.reset_index(drop=True)}, index=range(len(rows)))
