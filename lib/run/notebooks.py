"""The notebooks of a study, as run_all.py reads them: titles, code and parameters."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from lib.run.files import shown
from lib.run.settings import comments, nearest


class Mistake(Exception):
    """A request that makes no sense; the message says what to do."""


@dataclass(frozen=True)
class Notebook:
    """One step of the study: `notebooks/NN_name.ipynb`."""

    path: Path
    cells: list

    @classmethod
    def read(cls, path: Path) -> Notebook:
        return cls(path, nbformat.read(path, as_version=4).cells)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def title(self) -> str:
        """The heading of the first cell."""
        return self._opening[0].lstrip("# ") or self.name

    @property
    def question(self) -> str:
        """The paragraph below the title."""
        return " ".join(self._opening[1].split())

    @property
    def _opening(self) -> list[str]:
        """The paragraphs of the first cell, two at least."""
        text = self.cells[0].source if self.cells and self.cells[0].cell_type == "markdown" else ""
        return [*re.split(r"\n\s*\n", text.strip()), ""]

    @property
    def code(self) -> str:
        """All code cells; IPython's % and ! lines, which are no Python, made comments."""
        source = "\n\n".join(cell.source for cell in self.cells if cell.cell_type == "code")
        return re.sub(r"^(\s*)([%!])", r"\1pass  # \2", source, flags=re.MULTILINE)

    @property
    def parameters(self) -> dict[str, tuple[object, str]]:
        """name → (default, meaning) of the cell tagged `parameters`; the meaning is the comment behind the value.

        papermill's own `inspect_notebook` gives defaults as text and drops lines with a second = in them.
        """
        tagged = [cell.source for cell in self.cells if "parameters" in cell.metadata.get("tags", [])]
        if not tagged:
            raise Mistake(f"{shown(self.path)} has no cell tagged 'parameters'")
        try:
            lines, meanings = ast.parse(tagged[0]).body, comments(tagged[0])
            return {line.targets[0].id: (_literal(line.value), meanings.get(line.end_lineno, "")) for line in lines}
        except (SyntaxError, ValueError, AttributeError) as error:
            message = f"{shown(self.path)}: the parameters cell must hold 'name = literal' lines ({error})"
            raise Mistake(message) from error


def _literal(node: ast.expr) -> object:
    """Evaluate a literal; `float("nan")` and `float("inf")` count as such."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "float" and len(node.args) == 1:
        return float(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def read_notebooks(folder: Path) -> list[Notebook]:
    """Read `NN_*.ipynb` of a folder, in order."""
    notebooks = [Notebook.read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    if not notebooks:
        raise Mistake(f"no notebooks NN_name.ipynb in {shown(folder)}")
    return notebooks


def select(notebooks: list[Notebook], start: str | None, only: str | None) -> list[Notebook]:
    """Return the notebooks that `--from` or `--only` ask for, by number or by the beginning of the name."""
    wanted = start if only is None else only
    if wanted is None:
        return notebooks
    matches = [i for i, notebook in enumerate(notebooks) if notebook.name.startswith(wanted)]
    if len(matches) != 1:
        names = [notebook.name for notebook in notebooks]
        there = f"{nearest(wanted, names)}; there are {', '.join(names)}"
        raise Mistake(f"{wanted!r} names {len(matches)} notebooks{there}")
    return notebooks[matches[0] :][: 1 if only else None]
