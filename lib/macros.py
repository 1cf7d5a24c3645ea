"""Macros: every number that a run reports, as a LaTeX command, so that the thesis never retypes one.

`\\input{runs/NAME/results.tex}` and write `\\RQTwoCycleganRealAurocDifference`; the file lists all of them, by table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from lib.runs import Run, write_text

DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
COUNTS, P_VALUES = ("n", "patients", "images"), ("p", "p_holm")


def macro(*parts: object) -> str:
    """A command's name: letters only, a capital where a word begins, digits as words, so that no two keys share one.

    >>> macro("RQ2", "real", "sensitivity_at_90_specificity")
    'RQTwoRealSensitivityAtNineZeroSpecificity'
    """
    text = " ".join(map(str, parts)).replace("→", " to ").replace("+", " plus ").replace("@", " at ")
    words = re.findall(r"[A-Za-z]+|\d", text)
    return "".join(DIGITS[int(word)] if word.isdigit() else word[0].upper() + word[1:] for word in words)


def number(value: float, name: str) -> str:
    """As the thesis prints what is called so, in text or in an equation: a count, a p-value, else three digits."""
    if pd.isna(value):
        return "--"
    if name in P_VALUES and value < 0.001:
        return r"\ensuremath{<0.001}"
    if name in COUNTS:
        return f"{value:,.0f}"
    return rf"\ensuremath{{{value:.3f}}}"


def results(run: Run) -> Iterator[tuple[str, str, str]]:
    """(heading, name, LaTeX) of every reported number: cohort, fidelity, trials, comparisons.

    Fidelity and metrics are means over cells and seeds; the spread of metrics is their standard deviation.
    """
    table = pd.read_csv(run / "cohort" / "table.csv", dtype=str, keep_default_na=False)
    for label, rows in [("", table), *table.groupby("label")]:
        yield "cohort", macro(label, "patients"), number(rows.patient_id.nunique(), "patients")
        yield "cohort", macro(label, "images"), number(len(rows), "images")

    fidelity = pd.read_csv(run / "fidelity.csv")
    keys = ["method", "direction", "features", "metric"]
    for key, value in fidelity.groupby(keys, sort=False).value.mean().items():
        yield "fidelity: method, direction, features, metric", macro(*key), number(value, key[-1])

    metrics = pd.read_csv(run / "trials" / "metrics.csv")
    for key, values in metrics.groupby(["condition", "metric"], sort=False).value:
        heading = "trials: condition, metric"
        yield heading, macro(*key), number(values.mean(), key[-1])
        yield heading, macro(*key, "spread"), number(values.std(), key[-1])

    comparisons = pd.read_csv(run / "statistics" / "comparisons.csv")
    for row in comparisons.itertuples():
        for name in ("difference", "ci_low", "ci_high", "p", "p_holm", "n", "patients"):
            key = macro(row.question, row.a, row.b, row.metric, name)
            yield "comparisons: question, a, b, metric, number", key, number(getattr(row, name), name)


def write_results(run: Run) -> pd.DataFrame:
    r"""Write `results.tex`: a `\newcommand` for each of `results`.

    Returns
    -------
    DataFrame `heading, name, value`

    Raises
    ------
    ValueError
        Where two numbers would get one name.
    """
    table = pd.DataFrame(results(run), columns=["heading", "name", "value"])
    if (twice := table["name"].duplicated()).any():
        raise ValueError(f"two numbers would be called \\{table['name'][twice].iloc[0]}")
    lines = [f"% Numbers of run {run.folder.name}. Made by lib/macros.py: do not edit."]
    for heading, rows in table.groupby("heading", sort=False):
        lines += ["", f"% {heading}"]
        lines += [rf"\newcommand{{\{name}}}{{{value}}}" for name, value in zip(rows["name"], rows.value, strict=True)]
    write_text(run / "results.tex", "\n".join(lines) + "\n")
    return table
