"""Fingerprints: what a result is computed by, as digits that survive a reworded comment and a moved function.

The rule: from a function, follow every name that stands for a definition of `lib`, through the imports, and hash the
syntax trees that are met without what changes no number: comments, docstrings, annotations, texts of errors, prints,
and calls of what is `QUIET`. Of a class those methods count whose names are read as an attribute somewhere in what
counts, and `__special__` ones; where a base class is another package's, all do. Annotations say whose methods are
called, so their classes are followed. In doubt too much is followed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import symtable
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.run.files import ROOT

QUIET = (  # modules and definitions that change no number
    *("lib.run.checkpoints", "lib.run.files", "lib.run.fingerprint", "lib.run.folder", "lib.run.local"),
    *("lib.run.locks", "lib.run.progress", "lib.run.slurm", "lib.run.tasks"),
    *("lib.translators.training.save_preview", "lib.translators.translator.seconds_needed"),
    "lib.trials.trials.seconds_needed",
)
MUTE = ("lib.run.locks", "lib.run.progress", "lib.translators.training.save_preview")  # their calls are left out, too
FOREIGN = ("matplotlib", "numpy", "pandas", "PIL", "scipy", "skimage", "sklearn")  # what these return is not of `lib`
SPEAKS = "lib.report"  # what is printed there is a result
TABLES = {"lib.translators.methods": ".translator."}  # modules whose names are followed where code holds this text

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def source_hash(*things: str | Callable, root: Path = ROOT) -> str:
    """Return sixteen hexadecimal digits for all that functions of `lib` are computed by.

    Parameters
    ----------
    things : functions, methods (`CycleGAN.fit`), classes, or their names: "lib.trials.trials:run_trial"; a module's
        name alone stands for all that it defines. An inherited method needs its class beside it.
    root : the folder that holds `lib`
    """
    files = sorted(path for path in root.glob("lib/**/*.*") if path.suffix != ".pyc" and path.is_file())
    return _source_hash(tuple(map(name_of, things)), root, hash(tuple((path, _state(path)) for path in files)))


@functools.lru_cache(maxsize=256)
def _source_hash(names: tuple[str, ...], root: Path, state: int) -> str:
    reach = _Reach(root)
    for name in names:
        reach.start(name)
    return reach.digest()


def code_hash(source: str, root: Path = ROOT) -> str:
    """Return the digits for a notebook's own code with all that it reaches in `lib`, figures included.

    Raises
    ------
    SyntaxError
        Where it is no Python.
    """
    reach = _Reach(root)
    code = _Module("", source, root, speaks=True)
    reach.visit(code, _Unit(code, [one for one in code.tree.body if not isinstance(one, ast.Import | ast.ImportFrom)]))
    return reach.digest()


def name_of(thing: str | Callable) -> str:
    """Return the name of a function or class as `source_hash` takes it: "lib.trials.trials:run_trial"."""
    return thing if isinstance(thing, str) else f"{thing.__module__}:{thing.__qualname__}"


class _Strip(ast.NodeTransformer):
    """Takes out of a tree what changes no number; calls of `mute` names become None."""

    def __init__(self, mute: set[str]):
        self.mute = mute

    def generic_visit(self, node):
        for name in {"annotation", "returns"} & set(node._fields):
            setattr(node, name, ast.Constant(None) if isinstance(node, ast.AnnAssign) else None)
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]
        return node

    def visit_Call(self, node):
        return ast.Constant(None) if _root(node) in self.mute else self.generic_visit(node)

    def visit_Expr(self, node):
        node = self.generic_visit(node)
        return None if isinstance(node.value, ast.Constant) else node

    def visit_Raise(self, node):
        return ast.Raise(exc=node.exc.func if isinstance(node.exc, ast.Call) else node.exc, cause=None)

    def visit_Assert(self, node):
        node.msg = None
        return self.generic_visit(node)

    def visit_Import(self, node):
        return None

    visit_ImportFrom = visit_Import


class _Unit:
    """A piece of code as it counts: its text, and what leads on from it.

    `uses` are dotted names taken from outside, "np.random.default_rng"; `hints` those in annotations; `attributes` are
    read of what may be of `lib`; `texts` may name files. `owner` is a method's class, `data` what `self` holds besides
    methods. The nodes are stripped.
    """

    def __init__(self, module: _Module, nodes: list[ast.AST], owner: str = "", data: set[str] = frozenset()):
        parts = [one for node in nodes for one in ast.walk(node)]
        hints = [getattr(one, name, None) for one in parts for name in ("annotation", "returns")]
        self.hints = _dotted([one for hint in hints if hint for one in ast.walk(hint)])
        tree = _Strip(module.mute).visit(ast.Module(nodes, []))
        parts, code = list(ast.walk(tree)), ast.unparse(tree)
        read = [one for one in parts if isinstance(one, ast.Attribute) and _root(one) not in module.foreign]
        self.text = f"{owner}\n{code}"
        self.attributes = {one.attr for one in read if one.attr not in data or ast.unparse(one.value) != "self"}
        self.texts = {one.value for one in parts if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        outside = _outside(symtable.symtable(code, module.name, "exec"))
        self.uses = {one for one in _dotted(parts) if one.split(".")[0] in outside}


def _dotted(nodes: list[ast.AST]) -> set[str]:
    """Return names with the attributes that follow them, "np.random.default_rng"."""
    inner = {id(one.value) for one in nodes if isinstance(one, ast.Attribute)}
    outer = (one for one in nodes if isinstance(one, ast.Name | ast.Attribute) and id(one) not in inner)
    return {text for text in map(ast.unparse, outer) if text.replace(".", "").isidentifier()}


def _outside(table: symtable.SymbolTable) -> set[str]:
    """Return the names that code takes from its module."""
    top = table.get_type() == "module"
    found = {one.get_name() for one in table.get_symbols() if one.is_referenced() and (top or one.is_global())}
    return found.union(*map(_outside, table.get_children()))


class _Module:
    """A file of `lib`, or a notebook's code: what it imports, and by name the statements that bind it ("": nothing)."""

    def __init__(self, name: str, source: str, folder: Path, package: tuple[str, ...] = (), speaks: bool = False):
        self.name, self.folder, self.tree = name, folder, ast.parse(source)
        self.imports: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    self.imports[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else ()
                base = ".".join([*above, *filter(None, [node.module])])
                self.imports |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
        self.statements: dict[str, list[ast.stmt]] = defaultdict(list)
        for statement in self.tree.body:
            if not (isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)):
                for bound in _bound(statement) or {""}:
                    self.statements[bound].append(statement)
        self.foreign = {alias for alias, target in self.imports.items() if _within(target, FOREIGN)}
        self.mute = {alias for alias, target in self.imports.items() if _within(target, MUTE)}
        self.mute |= {one for one in self.statements if _within(f"{name}.{one}", MUTE)}
        if not speaks:
            self.mute.add("print")
        self.units = functools.cache(self._units)

    def _units(self, name: str) -> tuple[_Unit, list[str], dict[str, _Unit]]:
        """Return what a name is bound to: its code without the methods, its bases, and the methods."""
        statements = self.statements.get(name, [])
        bases, methods, data = [], defaultdict(list), set()
        for it in (one for one in statements if isinstance(one, ast.ClassDef)):
            bases += [ast.unparse(base).split("[")[0] for base in it.bases]
            stored = [one for one in ast.walk(it) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)]
            data |= {one.attr for one in stored if ast.unparse(one.value) == "self"}
            data |= {one for inner in it.body if not isinstance(inner, FUNCTIONS) for one in _bound(inner)}
            for one in filter(lambda one: isinstance(one, FUNCTIONS), it.body):
                methods[one.name].append(one)
            it.body = [one for one in it.body if not isinstance(one, FUNCTIONS)]
        units = {key: _Unit(self, those, name, data - methods.keys()) for key, those in methods.items()}
        return _Unit(self, statements), bases, units


def _bound(statement: ast.stmt) -> set[str]:
    """Names of functions, classes and variables that a statement binds; rather too many."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return {statement.name}
    nodes = list(ast.walk(statement))
    return {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)} | {
        one.name for one in nodes if isinstance(one, (*FUNCTIONS, ast.ClassDef))
    }


def _root(node: ast.expr) -> str:
    """Return the name that a chain of attributes and calls begins with: "PCA" of `PCA(2).fit(x).transform`."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _within(name: str, those: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in those)


def _hash(text: str | bytes) -> str:
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


@functools.lru_cache(maxsize=256)
def _read(path: Path, name: str, state: tuple[int, int]) -> _Module:
    """Return the module in a file, parsed once for each state of the file."""
    parts = tuple(name.split("."))
    package = parts if path.name == "__init__.py" else parts[:-1]
    return _Module(name, path.read_text(encoding="utf-8"), path.parent, package, _within(name, (SPEAKS,)))


def _state(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_size


class _Reach:
    """All code that counts, found from where it starts."""

    def __init__(self, root: Path):
        self.root = root
        self.module = functools.cache(self._module)
        self.parts: set[str] = set()  # digests of the code that counts
        self.seen: set[tuple[str, str, bool]] = set()
        self.read: set[str] = set()  # attributes, anywhere in it
        self.waiting: list[tuple[str, Callable]] = []  # attributes that nobody has read yet, and what to do then

    def digest(self) -> str:
        while ready := [one for one in self.waiting if one[0] in self.read]:
            self.waiting = [one for one in self.waiting if one[0] not in self.read]
            for _, follow in ready:
                follow()
        return _hash("".join(sorted(self.parts)))[:16]

    def start(self, name: str) -> None:
        """Count a module, a definition or a method, as `source_hash` takes its name."""
        module_name, _, path = name.partition(":")
        module = self.module(module_name)
        definition, _, method = path.partition(".")
        if module is None or (definition and definition not in module.statements):
            raise ValueError(f"there is no {name} in {self.root / 'lib'}")
        self.read.add(method)
        self.define(module, definition, whole=not definition)

    def _module(self, name: str) -> _Module | None:
        stem = self.root.joinpath(*name.split("."))
        paths = [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
        return _read(paths[0], name, _state(paths[0])) if paths else None

    def define(self, module: _Module, name: str, whole: bool = False) -> None:
        """Count a definition of a module ("": all of them); of a class all methods, or those that are read."""
        if (module.name, name, whole) in self.seen:
            return
        self.seen.add((module.name, name, whole))
        if not name and whole:
            for one in module.statements:
                self.define(module, one, whole=bool(one))
        if name:
            self.define(module, "")  # what its file does when it is imported
        unit, bases, methods = module.units(name)
        whole = whole or any(isinstance(target, str) for base in bases for target in self.targets(module, base))
        self.visit(module, unit)
        for method, unit in methods.items():
            if whole or (method.startswith("__") and method.endswith("__")):
                self.visit(module, unit)
            else:
                self.waiting.append((method, functools.partial(self.visit, module, unit)))

    def visit(self, module: _Module, unit: _Unit) -> None:
        """Count a piece of code, and go where its names lead."""
        edges = set()
        for use in unit.uses:
            for target in self.targets(module, use):
                meaning = target if isinstance(target, str) else target[0].units(target[1])[0].text
                edges.add(f"{use} = {_hash(meaning)}")
        for place in (module.folder / folder / text for text in unit.texts for folder in (".", "templates")):
            if len(place.name) < 60 and place.suffix and place.is_file():
                edges.add(_hash(place.read_bytes()))
        self.parts.add(_hash("\n".join([unit.text, *sorted(edges)])))
        if module.name in TABLES:
            self.waiting.append((TABLES[module.name], functools.partial(self.follow, module, unit)))
        else:
            self.follow(module, unit)

    def follow(self, module: _Module, unit: _Unit) -> None:
        self.read |= unit.attributes | {one for one in TABLES.values() if one in unit.text}
        for target in (target for use in unit.uses | unit.hints for target in self.targets(module, use)):
            if not isinstance(target, str):
                self.define(*target, whole=not target[1])

    def targets(self, module: _Module, use: str) -> Iterator[tuple[_Module, str] | str]:
        """Yield what a dotted name stands for: definitions of `lib` ("": a whole module), or another package's name.

        What is quiet, or the language's own, stands for nothing.
        """
        head, *rest = use.split(".")
        if module.name and head in module.statements:
            yield module, head
        if (name := module.imports.get(head, "")).split(".")[0] != "lib":
            yield from [name] if name else []
            return
        parts = [*name.split("."), *rest]
        depth = next((n for n in range(len(parts), 0, -1) if self.module(".".join(parts[:n]))), 0)
        if not depth or _within(".".join(parts[: depth + 1]), QUIET):
            return
        module, rest = self.module(".".join(parts[:depth])), parts[depth:]
        if rest and (rest[0] in module.statements or rest[0] in module.imports):
            yield from self.targets(module, ".".join(rest))
        else:
            yield module, ""
