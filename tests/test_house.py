"""The house: imports run one way, rooms are small and say what lives in them, notebooks stay quiet."""

import ast
import json
from functools import cache
from pathlib import Path

import pytest

from lib.run.files import ROOT

LIB = ROOT / "lib"
MAY_IMPORT = {  # room → rooms that it may import
    "run": set(),
    "data": {"run"},
    "study": {"run", "data"},
    "statistics": {"data"},  # the simulation splits its patients as the study does
    "radiographs": {"run", "data"},
    "translators": {"run", "data", "study"},
    "fidelity": {"run", "data", "study", "statistics", "translators"},
    "trials": {"run", "data", "study", "statistics", "translators", "fidelity"},
    "report": {"run", "data", "study", "statistics", "radiographs", "translators", "fidelity", "trials"},
    "checks": {"run", "data", "study", "statistics", "radiographs", "translators", "fidelity", "trials", "report"},
}
ROOMS = sorted(path.parent.name for path in LIB.glob("*/__init__.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in LIB.rglob("*.py")}


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of lib that one imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            within = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= within or {node.module}
    return frozenset(found & MODULES.keys())


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_every_room_is_on_the_plan():
    assert {*ROOMS, "study"} == set(MAY_IMPORT)
    assert {path.name for path in LIB.glob("*.py")} == {"__init__.py", "study.py"}


def test_imports_run_one_way():
    arrows = {(room_of(a), room_of(b)) for a in MODULES for b in imported(a)}
    wrong = sorted(f"{a} → {b}" for a, b in arrows if a != b and b not in MAY_IMPORT.get(a, ()))
    assert not wrong


def test_no_module_imports_itself_round_a_circle():
    def walk(module, trail):
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in imported(module):
                walk(other, [*trail, module])
            done.add(module)

    done = set()
    for module in MODULES:
        walk(module, [])


def test_only_notebooks_and_commands_use_the_checks():
    assert not [a for a in MODULES for b in imported(a) if room_of(b) == "checks" != room_of(a)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_lives_in_it_and_stays_small(room):
    source = (LIB / room / "__init__.py").read_text(encoding="utf-8")
    says = ast.get_docstring(ast.parse(source))
    assert len(ast.parse(source).body) == 1, "it re-exports nothing"
    assert 2 <= len(says.splitlines()) <= 10
    files = [path.stem for path in (LIB / room).glob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(files) <= 20
    assert not [file for file in files if file not in says], "each file is named"


def test_every_module_opens_with_what_it_is_for():
    assert all(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in MODULES.values())


def test_run_all_is_one_screen_of_study_and_a_command_line():
    assert len((ROOT / "run_all.py").read_text(encoding="utf-8").splitlines()) <= 200


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def lines(cell: dict) -> int:
    return len("".join(cell["source"]).splitlines())


def test_notebooks_are_quiet():
    lengths = []
    for path in NOTEBOOKS:
        for cell in code_cells(path):
            tagged = "parameters" in cell["metadata"].get("tags", [])
            assert lines(cell) <= 25, f"{path.name}: a cell of {lines(cell)} lines"
            lengths += [] if tagged else [lines(cell)]
            block = [line for line in cell["source"] if line.startswith(("import ", "from "))]
            assert len(block) <= 12, f"{path.name}: {len(block)} imports"
    lengths.sort()
    assert lengths[len(lengths) // 2] <= 5
    assert sum(length > 15 for length in lengths) <= len(lengths) / 10
