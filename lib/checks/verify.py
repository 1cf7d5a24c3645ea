"""Verify: is a run reproduced? It is made again beside itself, and the two runs are compared exactly.

Table cells are compared as they are written, tensors bit for bit. Columns and rows that hold times may differ.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from safetensors import deserialize

from lib.run.checkpoints import SET_ASIDE
from lib.run.executing import ThisPython, kept, remove_leftovers, run_notebooks
from lib.run.files import shown
from lib.run.finished import Request, check_finished
from lib.run.folder import Run
from lib.run.locks import LOCK, sole_writer
from lib.run.notebooks import Mistake
from lib.run.parameters import defaults

FACTS = ("versions", "device", "cpu", "threads", "commit")  # what may explain a difference
TIMES = ("seconds", "hours")  # columns of time, and values of a column `metric`
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}

Found = tuple[int, int, float, str]  # compared, differ, largest, note: see `compare_runs`


def repeat(request: Request, pages: ModuleType) -> bool:
    """Repeat a finished run, with its parameters, in NAME-verify beside it, and return whether all is the same.

    An interrupted repetition goes on. It is deleted where all is the same, else kept until the next call. The request
    names all notebooks of the run; `pages` are as in `lib.run.executing.run_notebooks`. Mistake where the run is not
    finished, or was made with other code, parameters, radiographs or decisions.
    """
    folder = request.folder
    name, beside = folder.name, folder.with_name(f"{folder.name}-verify")
    with sole_writer(folder, "run_all.py --verify"):
        check_finished(request.notebooks, folder, "verify")
        run = Run(folder)
        manifest = run.manifest
        parameters = defaults(request.notebooks) | manifest["parameters"]
        request = replace(request, parameters=parameters, profile=manifest["profile"])
        for step in request.steps():
            if step.reasons:
                raise Mistake(
                    f"runs/{name} was made with other code, parameters, radiographs or decisions "
                    f"({step.notebook.name}: {step.reasons[0]}): check out its commit, "
                    f"{manifest.get('commit') or 'which is not recorded'}, or run it again first"
                )
        with sole_writer(beside, "run_all.py --verify") as ThisPython.lock:
            again = Run(beside)
            holds = any(path.name != LOCK for path in beside.iterdir())
            if holds and again.manifest.get("repeats") != name:
                raise Mistake(f"runs/{beside.name} is a run, and no repetition of {name}: move it elsewhere first")
            begun = fingerprints(again)
            if "verified" in again.manifest or not begun or not begun.items() <= fingerprints(run).items():
                empty(beside)
            again.record(repeats=name)
            for file in request.by_hand.values():
                if (run / file).exists():
                    shutil.copy2(run / file, again.path(file))
            remove_leftovers(beside)
            if not run_notebooks(replace(request, folder=beside), pages):
                print(kept(beside), file=sys.stderr)
                return False
            files = compare_runs(folder, beside)
            same = not files.differ.any()
            for fact in FACTS:
                if (here := again.manifest.get(fact)) != (there := manifest.get(fact)):
                    print(f"{fact}: {there} in {name}, {here} now")
            print(report(files))
            again.record(verified=same)
            if same:
                empty(beside)
        if same:
            shutil.rmtree(beside, ignore_errors=True)
    end = f"is NOT reproduced; the repetition is kept: {shown(beside)}"
    print(f"runs/{name} {'is reproduced' if same else end}")
    return same


def fingerprints(run: Run) -> dict[str, str]:
    """Return the fingerprint of each notebook that has run: what its results follow from."""
    return {name: record["fingerprint"] for name, record in run.manifest.get("notebooks", {}).items()}


def empty(folder: Path) -> None:
    """Delete all in a folder but its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def compare_runs(a: Path, b: Path) -> pd.DataFrame:
    """Compare every table, every file of weights, every array and the answers of two run folders.

    Returns
    -------
    DataFrame, a row a file: `file, kind` (of `KINDS`), `compared` (how many cells, tensors, elements or lines),
    `differ` (how many of them), `largest` (difference of two numbers, NaN where there is none) and `note` (in which
    columns or tensors, or which run lacks the file)
    """
    rows = []
    for kind, (pattern, compare, *_) in KINDS.items():
        files = {path.relative_to(run).as_posix() for run in (a, b) for path in run.glob(pattern)}
        files = {file for file in files if f"/{SET_ASIDE}" not in file}  # no longer the run's
        for file in sorted(file for file in files if not file.endswith("tasks.csv")):  # who did what, and when
            missing = [run.name for run in (a, b) if not (run / file).exists()]
            row = (0, 1, np.nan, f"missing in {missing[0]}") if missing else compare(a / file, b / file)
            rows.append((file, kind, *row))
    return pd.DataFrame(rows, columns=["file", "kind", "compared", "differ", "largest", "note"])


def _tables(a: Path, b: Path) -> Found:
    x, y = (_read(path) for path in (a, b))
    if list(x) != list(y) or len(x) != len(y):
        return max(x.size, y.size), max(x.size, y.size, 1), np.nan, "other columns or other numbers of rows"
    unlike = (x != y).to_numpy(bool)
    numbers = [table.apply(pd.to_numeric, errors="coerce").to_numpy(float) for table in (x, y)]
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        largest = np.abs(numbers[0] - numbers[1])[unlike]
    return x.size, int(unlike.sum()), pd.Series(largest).max(), ", ".join(x.columns[unlike.any(0)])


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    if "metric" in table:
        table = table[~table.metric.isin(TIMES)].reset_index(drop=True)
    return table.drop(columns=[name for name in TIMES if name in table])


def _weights(a: Path, b: Path) -> Found:
    x, y = (dict(deserialize(path.read_bytes())) for path in (a, b))
    unlike = [name for name in {**x, **y} if x.get(name) != y.get(name)]
    largest = np.nan
    for name in unlike:
        if name in x and name in y and x[name]["shape"] == y[name]["shape"] and x[name]["dtype"] in FLOATS:
            u, v = (np.frombuffer(w[name]["data"], FLOATS[w[name]["dtype"]]).astype(float) for w in (x, y))
            largest = np.fmax(largest, pd.Series(np.abs(u - v)).max())
    return len({**x, **y}), len(unlike), float(largest), ", ".join(unlike[:3]) + ", …" * (len(unlike) > 3)


def _arrays(a: Path, b: Path) -> Found:
    x, y = (np.load(path, mmap_mode="r") for path in (a, b))
    if x.shape != y.shape or x.dtype != y.dtype:
        return max(x.size, y.size), max(x.size, y.size, 1), np.nan, f"{x.dtype} {x.shape} and {y.dtype} {y.shape}"
    differ, largest = 0, np.nan
    for start in range(0, len(x), 256):  # a few images at a time
        u, v = (np.asarray(array[start : start + 256]) for array in (x, y))
        unlike = u != v
        if unlike.any():
            differ += int(unlike.sum())
            largest = np.fmax(largest, np.abs(u[unlike].astype(float) - v[unlike].astype(float)).max())
    return x.size, differ, float(largest), ""


def _texts(a: Path, b: Path) -> Found:
    x, y = (path.read_text(encoding="utf-8").splitlines() for path in (a, b))
    lines = max(len(x), len(y))
    differ = sum(u != v for u, v in zip(x, y, strict=False)) + lines - min(len(x), len(y))
    return lines, differ, np.nan, ""


KINDS = {  # files, what compares them, what they are called, what is compared of them
    "table": ("**/[!.]*.csv", _tables, "tables", "cells"),
    "weights": ("**/[!.]*.safetensors", _weights, "files of weights", "tensors"),
    "array": ("**/[!.]*.npy", _arrays, "arrays", "elements"),
    "text": ("answers.md", _texts, "texts", "lines"),
}


def report(files: pd.DataFrame) -> str:
    """Report `compare_runs` in lines: how much is the same, then each difference."""
    lines = []
    for kind, (*_, name, unit) in KINDS.items():
        rows = files[files.kind == kind]
        same = rows[rows.differ == 0]
        lines.append(f"{len(same)} of {len(rows)} {name} are the same ({same.compared.sum():,} {unit})")
    for row in files[files.differ > 0].itertuples():
        largest = "" if np.isnan(row.largest) else f", largest difference {row.largest:g}"
        about = f" ({row.note})" if row.note else ""
        lines.append(f"{row.file}: {row.differ:,} of {row.compared:,} {KINDS[row.kind][-1]} differ{largest}{about}")
    return "\n".join(lines)
