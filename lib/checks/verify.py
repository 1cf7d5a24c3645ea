"""Is a run that is repeated the same? Tables, weights, pixels and answers of two runs, compared exactly.

Cells are compared as they are written, tensors bit for bit. What took time may differ: columns and rows that hold it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import deserialize

from lib.run.checkpoints import SET_ASIDE

TIMES = ("seconds", "hours")  # columns of time, and values of a column `metric`
TEXTS = ("answers.md",)
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
KINDS = {"*.csv": "table", "*.safetensors": "weights", "*.npy": "array"}  # and "text"


def compare_runs(a: Path, b: Path) -> pd.DataFrame:
    """Every table, every file of weights, every array and the answers of two run folders, side by side.

    Returns
    -------
    DataFrame
        One row a file: `file, kind` ("table", "weights", "array" or "text"), `compared` (how many cells, tensors,
        elements or lines), `differ` (how many of them), `largest` (difference of two numbers; NaN where none can be
        told) and `note` (in which columns or tensors; what a run lacks).
    """
    of_kind = {"table": _tables, "weights": _weights, "array": _arrays, "text": _texts}
    files = {name: "text" for name in TEXTS if (a / name).exists() or (b / name).exists()}
    for pattern, kind in KINDS.items():
        found = {path.relative_to(run).as_posix() for run in (a, b) for path in run.rglob(f"[!.]{pattern}")}
        found = {name for name in found if not name.endswith("tasks.csv")}  # who did what, and when
        found = {name for name in found if f"/{SET_ASIDE}" not in name}  # no longer the run's
        files |= dict.fromkeys(sorted(found), kind)
    rows = []
    for file, kind in files.items():
        missing = [run.name for run in (a, b) if not (run / file).exists()]
        row = (0, 1, np.nan, f"missing in {missing[0]}") if missing else of_kind[kind](a / file, b / file)
        rows.append((file, kind, *row))
    return pd.DataFrame(rows, columns=["file", "kind", "compared", "differ", "largest", "note"])


def _tables(a: Path, b: Path) -> tuple[int, int, float, str]:
    x, y = (_read(path) for path in (a, b))
    if list(x) != list(y) or len(x) != len(y):
        return max(x.size, y.size), max(x.size, y.size, 1), np.nan, "other columns or other numbers of rows"
    unlike = (x != y).to_numpy(bool)
    numbers = [table.apply(pd.to_numeric, errors="coerce").to_numpy(float) for table in (x, y)]
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        largest = np.abs(numbers[0] - numbers[1])[unlike]
    return x.size, int(unlike.sum()), _max(largest), ", ".join(x.columns[unlike.any(0)])


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    if "metric" in table:
        table = table[~table.metric.isin(TIMES)].reset_index(drop=True)
    return table.drop(columns=[name for name in TIMES if name in table])


def _weights(a: Path, b: Path) -> tuple[int, int, float, str]:
    x, y = (dict(deserialize(path.read_bytes())) for path in (a, b))
    unlike = [name for name in {**x, **y} if x.get(name) != y.get(name)]
    differences = []
    for name in unlike:
        if name in x and name in y and x[name]["shape"] == y[name]["shape"] and x[name]["dtype"] in FLOATS:
            u, v = (np.frombuffer(w[name]["data"], FLOATS[w[name]["dtype"]]).astype(float) for w in (x, y))
            differences.append(np.abs(u - v))
    largest = _max(np.concatenate(differences)) if differences else np.nan
    return len({**x, **y}), len(unlike), largest, ", ".join(unlike[:3]) + ", …" * (len(unlike) > 3)


def _arrays(a: Path, b: Path) -> tuple[int, int, float, str]:
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


def _texts(a: Path, b: Path) -> tuple[int, int, float, str]:
    x, y = (path.read_text(encoding="utf-8").splitlines() for path in (a, b))
    lines = max(len(x), len(y))
    differ = sum(u != v for u, v in zip(x, y, strict=False)) + lines - min(len(x), len(y))
    return lines, differ, np.nan, ""


def _max(differences: np.ndarray) -> float:
    told = differences[~np.isnan(differences)]
    return float(told.max()) if len(told) else np.nan


def report(files: pd.DataFrame) -> str:
    """The comparison in lines: counts of what is the same, then each difference."""
    units = {"table": "cells", "weights": "tensors", "array": "elements", "text": "lines"}
    names = {"table": "tables", "weights": "files of weights", "array": "arrays", "text": "texts"}
    lines = []
    for kind, unit in units.items():
        rows = files[files.kind == kind]
        same = rows[rows.differ == 0]
        lines.append(f"{len(same)} of {len(rows)} {names[kind]} are the same ({same.compared.sum():,} {unit})")
    for row in files[files.differ > 0].itertuples():
        largest = "" if np.isnan(row.largest) else f", largest difference {row.largest:g}"
        about = f" ({row.note})" if row.note else ""
        lines.append(f"{row.file}: {row.differ:,} of {row.compared:,} {units[row.kind]} differ{largest}{about}")
    return "\n".join(lines)
