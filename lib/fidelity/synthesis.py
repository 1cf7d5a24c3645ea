"""Synthesis: the images that generators add to a training set, and the test images they translate, with provenance.

Each set of images has a folder below `synthetic/` of the run. It is made in chunks that stay on disk until the set is
whole, so a synthesis that was killed goes on where it was; a set that is there from the same inputs is not made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort, save_blocks
from lib.data.hashes import cohort_hashes
from lib.data.phantom import Phantom
from lib.data.pixels import blocks
from lib.data.splits import fold_keys, fold_name
from lib.fidelity import controls
from lib.run.checkpoints import differences, set_aside
from lib.run.files import write_text, written
from lib.run.fingerprint import name_of, source_hash
from lib.run.hardware import arithmetic
from lib.run.progress import no_progress, progress
from lib.run.randomness import generator
from lib.run.tasklist import Task
from lib.run.weights import weights_metadata
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclegan import CycleGAN
from lib.translators.training import WEIGHTS

TRANSLATORS = {"cyclegan": CycleGAN, "cyclediff": CycleDiff}
METHODS = (*TRANSLATORS, "noise", *controls.CONTROL_GENERATORS)
CHUNK = 32  # images between two files: the batch of a translation, so that chunks change no image
INPUTS, CHUNKS = "inputs.json", "chunks"  # in a set's folder: what it is made from, and what is finished of it

Chunk = Callable[[], Cohort]  # makes the images of one


# Which images --------------------------------------------------------------------------------------------------------


def images_needed(training: Cohort, ratio: float) -> int:
    """How many AFF images bring a training set to `ratio` AFF images per NFF image (1: balanced)."""
    aff = int(training.targets.sum())
    return max(round(ratio * (len(training) - aff)) - aff, 0)


def chosen_sources(training: Cohort, number: int, seed: int) -> Cohort:
    """`number` NFF images of the training part, drawn without repetition: what is to be translated.

    Raises
    ------
    ValueError
        Where there are fewer NFF images than that.
    """
    nff = training.select(label="NFF")
    if number > len(nff):
        raise ValueError(
            f"{number} AFF images are to be made from {len(nff)} NFF training images, each used once: "
            "lower synthetic_ratio"
        )
    return nff.take(np.sort(generator(seed).permutation(len(nff))[:number]))


# Making them ---------------------------------------------------------------------------------------------------------


def synthesise(
    folder: Path,
    method: str,
    cell: tuple[int, int],
    cohort: Cohort,
    splits: pd.DataFrame,
    ratio: float,
    seed: int,
    phantom: Phantom | None = None,
) -> Cohort:
    """The AFF images that a method adds to a cell's training part, in `synthetic/METHOD/CELL`.

    Parameters
    ----------
    folder : of the run, which holds the trained translators
    method : one of `METHODS`
    ratio : AFF images per NFF image of the training set, with those that are added
    seed : of the sources that are drawn, and of noise
    phantom : what the cohort was drawn from, None: real radiographs

    Raises
    ------
    ValueError
        Where there are no fewer AFF images than asked for, or too few NFF images to make them of.
    """
    training = cohort.part(splits, *cell, "train")
    needed = images_needed(training, ratio)
    if not needed:
        raise ValueError(f"cell {fold_name(*cell)} has no fewer AFF than asked for: raise synthetic_ratio")
    sources = chosen_sources(training, needed, seed)
    home, inputs = _home(folder, method, cell), {"method": method, "seed": seed, "sources": cohort_hashes(sources)}
    if method in controls.CONTROL_GENERATORS:
        hidden = controls.hidden_aff(cohort, splits, cell)
        inputs |= {"training": cohort_hashes(training), "hidden": cohort_hashes(hidden), "phantom": repr(phantom)}
        make = {
            "fake": partial(controls.fake, training, needed, seed),
            "useless": partial(controls.useless, sources),
            "oracle": partial(controls.oracle, sources, hidden, phantom, seed),
        }[method]
        if _unfinished(home, inputs, synthesise):
            make().save(home)
        return Cohort.load(home)
    weights = Path(folder, "cyclediff" if method == "noise" else method, fold_name(*cell), WEIGHTS)
    if _unfinished(home, inputs | {"weights": _sha256(weights.read_bytes())}, synthesise):
        if method == "noise":
            model = CycleDiff.load(weights.parent)
            table = model.noise_table(needed, "AFF", seed)
            makers = [
                partial(model.sample, len(rows), "AFF", seed, like=training, batch=CHUNK, first=rows[0])
                for rows in blocks(needed, CHUNK)
            ]
        else:
            table = sources.provenance("AFF", method, _trained_on(weights))
            makers = list(_translations(TRANSLATORS[method].load(weights.parent), sources, "AFF"))
        _make(home, table, makers, f"{method} {fold_name(*cell)}")
    return Cohort.load(home)


def translate_test(folder: Path, method: str, cell: tuple[int, int], cohort: Cohort, splits: pd.DataFrame) -> Cohort:
    """A cell's test images translated to their other label, NFF to AFF first, in `synthetic/METHOD/CELL/test`: what
    fidelity is measured on.

    Parameters
    ----------
    folder : of the run, which holds the trained translators
    method : one of `TRANSLATORS`
    """
    test = cohort.part(splits, *cell, "test")
    home, weights = _home(folder, method, cell) / "test", Path(folder, method, fold_name(*cell), WEIGHTS)
    inputs = {"method": method, "sources": cohort_hashes(test), "weights": _sha256(weights.read_bytes())}
    if _unfinished(home, inputs, translate_test):
        model = TRANSLATORS[method].load(weights.parent)
        ways = [(test.select(label="NFF"), "AFF"), (test.select(label="AFF"), "NFF")]
        tables = [sources.provenance(to, method, _trained_on(weights)) for sources, to in ways]
        makers = [make for sources, to in ways for make in _translations(model, sources, to)]
        _make(home, pd.concat(tables, ignore_index=True), makers, f"{method} {fold_name(*cell)}, test")
    return Cohort.load(home)


def tasks_of(
    folder: Path,
    methods: list[str],
    cohort: Cohort,
    splits: pd.DataFrame,
    ratio: float,
    seed: int,
    phantom: Phantom | None,
) -> dict[str, Task]:
    """By name, the making of all sets of a run: `synthesise` and, of translators, `translate_test` in every cell."""
    pieces = {}
    for cell in fold_keys(splits):
        for method in methods:
            given, name = (folder, method, cell, cohort, splits), f"{fold_name(*cell)}-{method}"
            home, trained = _home(folder, method, cell), "cyclediff" if method == "noise" else method
            needs = (Path(folder, trained, fold_name(*cell), WEIGHTS),) if trained in TRANSLATORS else ()
            pieces[name] = Task(partial(synthesise, *given, ratio, seed, phantom), home / "table.csv", needs)
            if method in TRANSLATORS:
                pieces[f"{name}-test"] = Task(partial(translate_test, *given), home / "test" / "table.csv", needs)
    return pieces


def remove_others(folder: Path, methods: list[str], splits: pd.DataFrame) -> None:
    """Remove sets of an earlier run with other methods or cells from `synthetic/` of the run in this folder."""
    names = {fold_name(*cell) for cell in fold_keys(splits)}
    for home in (Path(folder, "synthetic", method) for method in METHODS):
        for of_cell in home.glob("*/"):
            if home.name not in methods or of_cell.name not in names:
                shutil.rmtree(of_cell)
        if home.exists() and not any(home.iterdir()):
            home.rmdir()


def _home(folder: Path, method: str, cell: tuple[int, int]) -> Path:
    return Path(folder, "synthetic", method, fold_name(*cell))


def _trained_on(weights: Path) -> str | None:
    return weights_metadata(weights).get("patients_hash")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _translations(model, sources: Cohort, to: str) -> Iterator[Chunk]:
    return (partial(model.translate, few, to, batch=CHUNK) for _, few in sources.blocks(CHUNK))


def _unfinished(home: Path, inputs: dict, by: Callable) -> bool:
    """Whether a set of images is to be made, or made on, from these inputs; one of others is set aside."""
    inputs = inputs | {"code": name_of(by), "source": source_hash(by), "arithmetic": arithmetic()}
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


def _make(home: Path, table: pd.DataFrame, makers: list[Chunk], name: str) -> None:
    """Make a set of images: the chunks that are not there yet, then its cohort of all, then remove the chunks."""
    chunks = [home / CHUNKS / f"{number:06d}.npy" for number in range(len(makers))]
    with progress(len(chunks), sum(chunk.exists() for chunk in chunks), name) as bar, no_progress():
        for chunk, make in zip(chunks, makers, strict=True):
            if not chunk.exists():
                with written(chunk) as path:
                    np.save(path, make().pixels)
                bar.update()
    save_blocks(home, table, map(np.load, chunks))
    shutil.rmtree(home / CHUNKS)
