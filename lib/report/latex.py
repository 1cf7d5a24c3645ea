"""What the thesis includes: every number that a run reports as a LaTeX command, tables, a document of everything.

`\\input{runs/NAME/results.tex}` and write `\\RQTwoCycleganRealAurocDifference`, so that no number is retyped;
`\\input{runs/NAME/tables/06_primary.tex}`; `pdflatex study.tex` in the run's folder shows all there is to include.
"""

import re
from collections.abc import Iterator

import jinja2
import pandas as pd

from lib.run.files import write_text
from lib.run.folder import Run

PAGE = 40  # rows of a table that still fit on one
SYMBOLS = {  # what pdfLaTeX does not know as a letter
    "σ": r"$\sigma$", "λ": r"$\lambda$", "ε": r"$\varepsilon$", "→": r"$\rightarrow$", "±": r"$\pm$",
    "×": r"$\times$", "−": "$-$", "–": "--", "°": r"$^\circ$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$",
    "…": r"\dots{}", "½": r"$\frac{1}{2}$",
    "·": r"$\cdot$", "²": "$^2$", "√": r"$\surd$", "μ": r"$\mu$", "α": r"$\alpha$",
}  # fmt: skip
TEMPLATES = jinja2.Environment(  # LaTeX is full of braces
    loader=jinja2.PackageLoader("lib.report"), trim_blocks=True, keep_trailing_newline=True,
    variable_start_string="<<", variable_end_string=">>", block_start_string="<%", block_end_string="%>",
    comment_start_string="<#", comment_end_string="#>",
)  # fmt: skip

DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
COUNTS, P_VALUES = ("n", "patients", "images"), ("p", "p_holm")


def escaped(text: str) -> str:
    """Return text with LaTeX's special characters escaped, outside $equations$."""
    parts = re.split(r"(?<!\\)\$", text)
    parts[::2] = [re.sub(r"(?<!\\)[&%#_]", r"\\\g<0>", part) for part in parts[::2]]
    return symbols("$".join(parts))


def symbols(latex: str) -> str:
    """Return LaTeX with the characters of `SYMBOLS` as commands, inside $equations$ too."""
    parts = re.split(r"(?<!\\)\$", latex)
    parts[::2] = [part.translate(str.maketrans(SYMBOLS)) for part in parts[::2]]
    inside = {symbol: command.strip("$") for symbol, command in SYMBOLS.items()}
    parts[1::2] = [part.translate(str.maketrans(inside)) for part in parts[1::2]]
    return "$".join(parts)


def table(frame: pd.DataFrame, name: str, caption: str, digits: int) -> str:
    """Return a booktabs table, rounded, no wider than the text; of PAGE rows or more a longtable.

    The index is printed where it has a name, or one of its levels has.
    """
    named = any(level is not None for level in frame.index.names)
    frame = frame.rename_axis([level and escaped(level) for level in frame.index.names])
    style = frame.style.format(precision=digits, escape="latex", na_rep="–").format_index(escape="latex", axis=1)
    style = style.format_index(label, escape="latex", axis=0) if named else style.hide(axis="index")
    if len(frame) >= PAGE:
        style = style.set_caption(escaped(caption))
        return symbols(
            style.to_latex(hrules=True, multirow_align="naive", environment="longtable", label=f"tab:{name}")
        )
    body = symbols(_one_header(style.to_latex(hrules=True, multirow_align="naive")))
    return TEMPLATES.get_template("table.tex").render(caption=escaped(caption), name=name, body=body)


def label(value) -> str:
    """Return a row's label; numbers without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_header(latex: str) -> str:
    """Join the names of columns and of the index, which pandas puts into two lines."""
    head, rule, rest = latex.partition("\\midrule")
    *before, upper, lower = head.splitlines()
    if not (upper.startswith(" &") and lower.endswith(r"&  \\")):
        return latex
    cells = [line.removesuffix(r" \\").split(" & ") for line in (upper, lower)]
    both = " & ".join(a.strip() or b.strip() for a, b in zip(*cells, strict=True)) + r" \\"
    return "\n".join([*before, both, rule + rest])


def macro(*parts: object) -> str:
    """Return a command's name: letters only, a capital where a word begins, digits as words.

    >>> macro("RQ2", "real", "sensitivity_at_90_specificity")
    'RQTwoRealSensitivityAtNineZeroSpecificity'
    """
    text = " ".join(map(str, parts)).replace("→", " to ").replace("+", " plus ").replace("@", " at ")
    words = re.findall(r"[A-Za-z]+|\d", text)
    return "".join(DIGITS[int(word)] if word.isdigit() else word[0].upper() + word[1:] for word in words)


def number(value: float, name: str) -> str:
    """Return a number as the thesis prints it, in text or in an equation: a count, a p-value, else three digits."""
    if pd.isna(value):
        return "--"
    if name in P_VALUES and value < 0.001:
        return r"\ensuremath{<0.001}"
    if name in COUNTS:
        return f"{value:,.0f}"
    return rf"\ensuremath{{{value:.3f}}}"


def results(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield (heading, name, LaTeX) of every reported number: cohort, fidelity, trials, comparisons.

    Fidelity and metrics are means over folds and seeds; the spread of metrics is their standard deviation.
    """
    images = pd.read_csv(run / "cohort" / "table.csv", dtype=str, keep_default_na=False)
    for kind, rows in [("", images), *images.groupby("label")]:
        yield "cohort", macro(kind, "patients"), number(rows.patient_id.nunique(), "patients")
        yield "cohort", macro(kind, "images"), number(len(rows), "images")

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
    r"""Write `results.tex`: a `\newcommand` for each of `results`, returned as a table `heading, name, value`.

    ValueError where two numbers would get one name.
    """
    numbers = pd.DataFrame(results(run), columns=["heading", "name", "value"])
    if (twice := numbers["name"].duplicated()).any():
        raise ValueError(f"two numbers would be called \\{numbers['name'][twice].iloc[0]}")
    text = TEMPLATES.get_template("results.tex").render(run=run.folder.name, numbers=numbers)
    write_text(run / "results.tex", text)
    return numbers


def write_document(run: Run, numbers: pd.DataFrame) -> None:
    """Write `study.tex`: a document that includes every figure, table and number (of `write_results`) of the run."""
    text = TEMPLATES.get_template("study.tex").render(
        run=run.folder.name,
        captions={name: escaped(caption) for name, caption in captions(run).items()},
        tables=sorted(path.name for path in (run / "tables").glob("[!.]*.tex")),
        numbers=numbers,
    )
    write_text(run / "study.tex", text)


def captions(run: Run) -> dict[str, str]:
    """Return the captions of a run's figures by name; those that are still being written are left out."""
    texts = {path.stem: path.with_suffix(".txt") for path in sorted((run / "figures").glob("[!.]*.pdf"))}
    return {name: text.read_text(encoding="utf-8").strip() for name, text in texts.items()}
