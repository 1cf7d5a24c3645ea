"""Trials: the same classifier trained under every condition, fold by fold and seed by seed.

A trial is condition × repeat × fold × seed. Its result is one file; the tables are made of these files.
"""

import json
import time
from collections.abc import Sequence
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
from lib.data.splits import PARTS
from lib.fidelity import synthesis
from lib.run.checkpoints import Checkpoint, differences, goes_on, kept_file, set_aside
from lib.run.files import from_root, write_text, write_together
from lib.run.fingerprint import name_of, source_hash
from lib.run.folder import Run
from lib.run.hardware import arithmetic
from lib.run.tasks import Machines, Task, run_tasks
from lib.statistics.metrics import evaluate, recalibrated
from lib.study import Fold, Study
from lib.trials import classifier
from lib.trials.classifier import Settings, evidence_maps, patient_probabilities, predict, require_both_labels
from lib.trials.conditions import Condition, condition, labelled, training_set

NOTEBOOK = "05_classifier_trials"  # which runs them
AGAIN = 1_000_000  # added to the seed of "again"
ERRORS = 8  # a trial keeps this many test images that it is most confidently wrong on
UNLIKE_MAY_BE = (  # parameters in which the points of a learning curve may differ: no classifier is trained by them
    *("run_dir", "training_aff_share", "conditions", "methods", "learning_curve", "sampling_trials", "judge_steps"),
    *("inception_weights", "cyclediff_ablations", "cyclediff_ablation_seeds"),
    *("margin", "worthwhile", "bootstrap_draws", "simulations", "reader", "reader_each"),
)


def run_trials(
    study: Study,
    conditions: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    machines: Machines = Machines(),  # noqa: B008, immutable
    curated: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test every condition (`lib.trials.conditions`) in every fold with every seed, into `trials/`.

    A trial of the same inputs is not run again. `predictions.csv`, `metrics.csv` and `history.csv` hold the trials of
    this call. `curated` leaves out synthetic images that were rejected by hand.

    Returns
    -------
    predictions : condition, repeat, fold, seed, image_id, patient_id, label, probability; real test images
    metrics : condition, repeat, fold, seed, metric, value; those of `lib.statistics.metrics.evaluate` on patients,
        `threshold`, `recalibration`, `brier_recalibrated` (`lib.statistics.metrics.recalibrated`), `image_auroc`,
        `best_step`, and what was spent: `steps`, `images_seen`, `validations`, `seconds`
    """
    chosen, folder = [condition(name) for name in conditions], study.run / "trials"
    needs = () if settings.weights in ("none", "imagenet") else (from_root(settings.weights),)
    tasks, tested = {}, []
    for fold in study.folds:
        parts = fold.parts
        for name, images in zip(PARTS, parts, strict=True):
            require_both_labels(images, f"the {name} part of repeat {fold.repeat}, fold {fold.number}")
        made = synthesis.load(fold, curated)
        for seed in seeds:
            for c in chosen:
                path, key = trial_path(fold, c.name, seed), {"condition": c.name, **fold.key, "seed": seed}
                do = partial(run_trial, c, fold, made, seed, settings)
                tasks[f"{fold.name}-{path.stem}"] = Task(do, path, needs)
                rows = labelled(c, fold, parts)[2].table[["image_id", "patient_id", "label"]]
                tested.append((path, key, rows))
    run_tasks(tasks, folder / "tasks", machines)

    tables = {"history": [], "metrics": [], "predictions": []}
    for path, key, rows in tested:
        result = json.loads(path.read_text(encoding="utf-8"))
        metrics = pd.DataFrame(result["metrics"].items(), columns=["metric", "value"])
        found = pd.DataFrame(result["history"]), metrics, rows.assign(probability=result["probabilities"])
        for parts, table in zip(tables.values(), found, strict=True):
            parts.append(pd.DataFrame({**key, **table.reset_index(drop=True)}, index=range(len(table))))
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    write_together(folder, {f"{name}.csv": table.to_csv(index=False) for name, table in tables.items()})
    return tables["predictions"], tables["metrics"]


def trial_path(fold: Fold, name: str, seed: int) -> Path:
    """Return the file of one finished trial."""
    return fold.folder("trials") / f"{name}-s{seed}.json"


def seconds_needed(fold: Fold, settings: Settings, timed: int = 10) -> float:
    """Estimate how long a trial takes on this machine from a few steps, which are not kept."""
    training, validation = fold.train, fold.validation

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


def run_trial(condition: Condition, fold: Fold, synthetic: dict[str, Cohort], seed: int, settings: Settings) -> None:
    """Write one trial's result into its file, unless that was made from the same inputs."""
    path = trial_path(fold, condition.name, seed)
    training, aff_weight = training_set(condition, fold.train, synthetic, seed)
    parts = training, fold.validation, fold.test
    check_parts(*parts)
    training, validation, test = labelled(condition, fold, parts)
    seed += AGAIN * (condition.balance == "again")
    images = {"training": cohort_hash(training), "validation": cohort_hash(validation), "test": cohort_hash(test)}
    inputs = {
        "condition": condition.name,
        "seed": seed,
        "settings": asdict(settings),
        "weights": classifier.pretrained(settings.architecture, settings.weights)[1],
        **images,
        "source": source_hash(run_trial),
        "arithmetic": arithmetic(),
    }
    checkpoint, start = path.with_suffix(".pt"), time.perf_counter()
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        unlike = differences(there["inputs"], inputs)
        if goes_on(path, unlike, inputs, finished=True, made_before=[*images]):
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
    """Return the test images that a classifier is most confidently wrong on, the most confident first.

    Each has `image_id, label, probability` and `map`, its `evidence_maps` as rows of numbers.
    """
    wrong = np.flatnonzero((probabilities >= threshold) != (test.targets == 1))
    worst = wrong[np.argsort(-abs(probabilities[wrong] - test.targets[wrong]), kind="stable")][:ERRORS]
    maps = evidence_maps(network, test.take(worst)) if len(worst) else []
    rows = test.table.iloc[worst]
    return [
        {"image_id": image, "label": label, "probability": float(p), "map": m.round(3).tolist()}
        for image, label, p, m in zip(rows.image_id, rows.label, probabilities[worst], maps, strict=True)
    ]


def errors_of(fold: Fold, name: str, seed: int) -> tuple[Cohort, np.ndarray, list[str]]:
    """Read the `confident_errors` of one finished trial: images, maps, and titles with label and probability."""
    errors = json.loads(trial_path(fold, name, seed).read_text(encoding="utf-8"))["errors"]
    images = fold.test.find([error["image_id"] for error in errors])
    titles = [f"{error['label']}, p = {error['probability']:.2f}" for error in errors]
    return images, np.array([error["map"] for error in errors]), titles


def read(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the predictions and metrics that `run_trials` has written."""
    predictions = run.require("trials/predictions.csv", NOTEBOOK)
    predictions = pd.read_csv(predictions, dtype={"image_id": str, "patient_id": str}, keep_default_na=False)
    return predictions, pd.read_csv(run.require("trials/metrics.csv", NOTEBOOK))


def learning_curve_of(run: Run, folders: Sequence[str], conditions: Sequence[str]) -> pd.DataFrame:
    """Return the AUROC of the conditions' trials in this and other runs, each with its run's `share` of AFF patients.

    A ValueError where another run tested on other images, or differs in a parameter that trains something. The manifest
    of a run by hand holds no parameters: only its test images are compared.
    """

    def tested(run: Run) -> set[tuple]:
        path = run.require("trials/predictions.csv", NOTEBOOK)
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
            name = other.folder.name
            raise ValueError(f"learning_curve: {name} is no point of this run's curve: {'; '.join(unlike)}")
        found = pd.read_csv(other.require("trials/metrics.csv", NOTEBOOK))
        share = other.manifest.get("parameters", {}).get("training_aff_share", 1.0)
        points.append(found[(found.metric == "auroc") & found.condition.isin(conditions)].assign(share=share))
    return pd.concat(points, ignore_index=True)
