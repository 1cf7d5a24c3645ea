"""Synthesis: the images that generators add to a training set, and the test images they translate, with provenance.

Each set of images has a folder below `synthetic/` of the run. Its chunks stay on disk until the set is whole, so a
killed synthesis goes on where it was. A set that was made from the same inputs is not made again.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort, save_blocks
from lib.data.hashes import cohort_hashes, file_hash
from lib.data.pixels import blocks
from lib.fidelity import controls
from lib.fidelity.curation import VERDICTS, without_rejected
from lib.run.checkpoints import differences, set_aside
from lib.run.files import write_text, written
from lib.run.fingerprint import name_of, source_hash
from lib.run.hardware import arithmetic
from lib.run.progress import no_progress, progress
from lib.run.randomness import generator
from lib.run.tasks import Machines, Task, run_tasks
from lib.study import Fold, Study
from lib.translators.methods import DRAWS_NOISE, METHODS, NOISE, Method
from lib.translators.training import WEIGHTS

CHUNK = 32  # images between two files: the batch of a translation, so that chunks change no image
INPUTS, CHUNKS = "inputs.json", "chunks"  # in a set's folder: what it is made from, and what is finished of it

MakeChunk = Callable[[], Cohort]


# Which methods, which images -----------------------------------------------------------------------------------------


def known_methods() -> list[str]:
    """Return the names of all that makes AFF images: translators, noise, controls."""
    return [*METHODS, NOISE, *controls.CONTROL_GENERATORS]


def trained(method: str) -> Method | None:
    """Return the translator whose weights a method needs; None for a control."""
    return METHODS.get(DRAWS_NOISE if method == NOISE else method)


def check_methods(study: Study, methods: Sequence[str]) -> None:
    """Raise where a method is unknown (ValueError), or its translator is not trained in every fold (NotYet)."""
    if unknown := set(methods) - set(known_methods()):
        raise ValueError(f"methods: unknown {sorted(unknown)}; there are {', '.join(known_methods())}")
    for of in filter(None, map(trained, methods)):
        for fold in study.folds:
            study.run.require(f"{of.name}/{fold.name}/{WEIGHTS}", of.notebook)


def images_needed(training: Cohort, ratio: float) -> int:
    """Count the AFF images that bring a training set to `ratio` AFF images per NFF image (1: balanced)."""
    aff = int(training.targets.sum())
    return max(round(ratio * (len(training) - aff)) - aff, 0)


def chosen_sources(training: Cohort, number: int, seed: int) -> Cohort:
    """Draw NFF training images to translate, without repetition; a ValueError where there are too few."""
    nff = training.select(label="NFF")
    if number > len(nff):
        raise ValueError(
            f"{number} AFF images are to be made from {len(nff)} NFF training images, each used once: "
            "lower synthetic_ratio"
        )
    return nff.take(np.sort(generator(seed).permutation(len(nff))[:number]))


# Making them ---------------------------------------------------------------------------------------------------------


def make_sets(study: Study, methods: Sequence[str], ratio: float, seed: int, machines: Machines) -> pd.DataFrame:
    """Make all sets of a run (`synthesise`, `translate_test`), set others aside, and return each task's state."""
    check_methods(study, methods)
    (study.run / "fidelity.csv").unlink(missing_ok=True)  # of images that were there before
    set_others_aside(study, methods)
    tasks = {}
    for fold in study.folds:
        for method in methods:
            home, of = fold.folder("synthetic", method), trained(method)
            follows = ((fold.folder(of.name) / WEIGHTS,), (of.translator,)) if of else ()
            name, test = f"{fold.name}-{method}", home / "test" / "table.csv"
            tasks[name] = Task(partial(synthesise, fold, method, ratio, seed), home / "table.csv", *follows)
            if method in METHODS:
                tasks[f"{name}-test"] = Task(partial(translate_test, fold, method), test, *follows)
    return run_tasks(tasks, study.run / "synthetic" / "tasks", machines)


def synthesise(fold: Fold, method: str, ratio: float, seed: int) -> Cohort:
    """Make the AFF images that a method (`known_methods`) adds to a fold's training part, in `synthetic/METHOD/FOLD`.

    With them the training set has `ratio` AFF images per NFF image. The seed draws the sources, and noise. A ValueError
    where the training part has that ratio already, or too few NFF images to translate.
    """
    training = fold.train
    needed = images_needed(training, ratio)
    if not needed:
        raise ValueError(f"fold {fold.name} has no fewer AFF than asked for: raise synthetic_ratio")
    sources = chosen_sources(training, needed, seed)
    home, inputs = fold.folder("synthetic", method), {"method": method, "seed": seed, "sources": cohort_hashes(sources)}
    if method in controls.CONTROL_GENERATORS:
        hidden, phantom = fold.unused.select(label="AFF"), fold.phantom
        inputs |= {"training": cohort_hashes(training), "hidden": cohort_hashes(hidden), "phantom": repr(phantom)}
        make = {
            "fake": partial(controls.fake, training, needed, seed),
            "useless": partial(controls.useless, sources),
            "oracle": partial(controls.oracle, sources, hidden, phantom, seed),
        }[method]
        if _unfinished(home, inputs, synthesise):
            make().save(home)
        return Cohort.load(home)
    of = trained(method)
    weights = fold.folder(of.name) / WEIGHTS
    if _unfinished(home, inputs | {"weights": file_hash(weights)}, synthesise, of.translator):
        model = of.translator.load(weights.parent)
        if method == NOISE:
            table = model.noise_table(needed, "AFF", seed)
            makers = [
                partial(model.sample, len(rows), "AFF", seed, like=training, batch=CHUNK, first=rows[0])
                for rows in blocks(needed, CHUNK)
            ]
        else:
            table, makers = _translations(model, method, sources, "AFF")
        _make(home, table, makers, f"{method} {fold.name}")
    return Cohort.load(home)


def translate_test(fold: Fold, method: str) -> Cohort:
    """Translate a fold's test images to their other label, NFF first, into `synthetic/METHOD/FOLD/test`.

    Fidelity is measured on them. `method` is one of `lib.translators.methods.METHODS`.
    """
    test, of = fold.test, METHODS[method]
    home, weights = fold.folder("synthetic", method) / "test", fold.folder(method) / WEIGHTS
    inputs = {"method": method, "sources": cohort_hashes(test), "weights": file_hash(weights)}
    if _unfinished(home, inputs, translate_test, of.translator):
        model = of.translator.load(weights.parent)
        ways = [(test.select(label="NFF"), "AFF"), (test.select(label="AFF"), "NFF")]
        tables, makers = zip(*(_translations(model, method, *way) for way in ways), strict=True)
        _make(home, pd.concat(tables, ignore_index=True), [*makers[0], *makers[1]], f"{method} {fold.name}, test")
    return Cohort.load(home)


def _translations(model, method: str, sources: Cohort, to: str) -> tuple[pd.DataFrame, list[MakeChunk]]:
    """Return the table of the translated images, and what makes them chunk by chunk."""
    table = sources.provenance(to, method, model.metadata.get("patients_hash"))
    return table, [partial(model.translate, few, to, batch=CHUNK) for _, few in sources.blocks(CHUNK)]


def _unfinished(home: Path, inputs: dict, *by: Callable) -> bool:
    """Return whether a set of these inputs still lacks images; a set of other inputs is set aside."""
    inputs = inputs | {"code": [*map(name_of, by)], "source": source_hash(*by), "arithmetic": arithmetic()}
    text, path, table = json.dumps(inputs, indent=1), home / INPUTS, home / "table.csv"
    there = path.read_text(encoding="utf-8") if path.exists() else "{}"
    if there != text:
        took = table.stat().st_mtime - path.stat().st_mtime if path.exists() and table.exists() else 0
        names = ("table.csv", "pixels.npy", CHUNKS, INPUTS)
        set_aside(home, names, differences(json.loads(there), inputs), {"seconds": took})
        write_text(path, text)
    elif table.exists():
        shutil.rmtree(home / CHUNKS, ignore_errors=True)  # of a process that was killed at its very end
        return False
    return True


def _make(home: Path, table: pd.DataFrame, makers: list[MakeChunk], name: str) -> None:
    """Make the chunks of a set that are missing, save its cohort of all, and remove the chunks."""
    chunks = [home / CHUNKS / f"{number:06d}.npy" for number in range(len(makers))]
    with progress(len(chunks), sum(chunk.exists() for chunk in chunks), name) as bar, no_progress():
        for chunk, make in zip(chunks, makers, strict=True):
            if not chunk.exists():
                with written(chunk) as path:
                    np.save(path, make().pixels)
                bar.update()
    save_blocks(home, table, map(np.load, chunks))
    shutil.rmtree(home / CHUNKS)


# What was made -------------------------------------------------------------------------------------------------------


def sets(fold: Fold) -> dict[str, Path]:
    """Return the folder of each method's images of a fold; NotYet where one is not finished."""
    return {
        method: fold.run.require(f"synthetic/{method}/{fold.name}/table.csv", "04_synthesis").parent
        for method in known_methods()
        if (fold.run / "synthetic" / method).exists()
    }


def load(fold: Fold, curated: bool = False) -> dict[str, Cohort]:
    """Load the AFF images of each method for a fold's training part; `curated`: without those rejected by hand."""
    found = {method: Cohort.load(home) for method, home in sets(fold).items()}
    return without_rejected(found, fold.run / "synthetic" / VERDICTS) if curated else found


def load_test(fold: Fold) -> dict[str, Cohort]:
    """Load the test images that each translator has translated both ways."""
    return {method: Cohort.load(home / "test") for method, home in sets(fold).items() if method in METHODS}


def set_others_aside(study: Study, methods: Sequence[str]) -> None:
    """Set aside what `synthetic/` of the run holds of other methods or folds."""
    folds = {fold.name for fold in study.folds}
    for home in (study.run / "synthetic" / method for method in known_methods()):
        for of_fold in sorted(home.glob("*/")):
            if home.name not in methods or of_fold.name not in folds:
                set_aside(home.parent, [f"{home.name}/{of_fold.name}"], {"asked for": ("yes", "no")}, {})
        if home.exists() and not any(home.iterdir()):
            home.rmdir()
