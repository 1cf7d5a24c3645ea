"""Fingerprints: what a result is computed by, as digits that survive a reworded comment and a moved function.

The rule: from a function, follow every name that stands for a definition of `lib`, through the imports, and hash the
syntax trees that are met without what changes no number: comments, docstrings, annotations, texts of errors, prints,
and calls of what is `MUTE`. Of a class those methods count whose names are read as an attribute somewhere in what
counts, and `__special__` ones; where a base class is another package's, all do. Annotations say whose methods are
called, so their classes are followed. In doubt too much is followed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import symtable
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.run.files import ROOT

MUTE = ("lib.run.locks", "lib.run.progress", "lib.translators.training.save_preview")  # whose calls do not count
QUIET = (  # modules and definitions that change no number
    *MUTE,
    *(f"lib.run.{name}" for name in ("checkpoints", "files", "fingerprint", "folder", "local", "slurm", "tasks")),
    *("lib.translators.translator.seconds_needed", "lib.trials.trials.seconds_needed"),
    "lib.translators.methods",  # the table: whoever runs over it names the row's class as code of its own
)
FOREIGN = ("matplotlib", "numpy", "pandas", "PIL", "scipy", "skimage", "sklearn")  # what these return is not of `lib`
SPEAKS = "lib.report"  # what is printed there is a result

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def source_hash(*things: str | Callable, root: Path = ROOT) -> str:
    """Return sixteen hexadecimal digits for all that functions of `lib`, below `root`, are computed by.

    Things are functions, methods (`CycleGAN.fit`), classes, or their names: "lib.trials.trials:run_trial"; a module's
    name alone stands for all that it defines. An inherited method needs its class beside it.
    """
    files = sorted(path for path in root.glob("lib/**/*.*") if path.suffix != ".pyc" and path.is_file())
    return _source_hash(tuple(map(name_of, things)), root, hash(tuple((path, _state(path)) for path in files)))


def code_hash(source: str, root: Path = ROOT) -> str:
    """Return the digits for a notebook's own code with all that it reaches in `lib`, figures included."""
    reach, code = _Reach(root), _Module(root / "notebook.py", "", source)
    reach.visit(code, _Unit(code, code.tree.body))
    return reach.digest()


def name_of(thing: str | Callable) -> str:
    """Return the name of a function or class as `source_hash` takes it: "lib.trials.trials:run_trial"."""
    return thing if isinstance(thing, str) else f"{thing.__module__}:{thing.__qualname__}"


@functools.lru_cache(maxsize=256)
def _source_hash(names: tuple[str, ...], root: Path, state: int) -> str:
    reach = _Reach(root)
    for name in names:
        module_name, _, definition = name.partition(":")
        definition, _, method = definition.partition(".")
        if not _within(module_name, ("lib",)):  # a class of one's own, in a notebook perhaps
            reach.parts.add(_hash(name))
            continue
        module = reach.module(module_name)
        if module is None or (definition and definition not in module.statements):
            raise ValueError(f"there is no {name} in {root / 'lib'}")
        reach.read.add(method)
        reach.define(module, definition, whole=not definition)
    return reach.digest()


@functools.lru_cache(maxsize=256)
def _read(path: Path, name: str, state: tuple[int, int]) -> _Module:
    return _Module(path, name, path.read_text(encoding="utf-8"))


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def _within(name: str, those: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in those)


# Pieces of code -------------------------------------------------------------------------------------------------------


class _Strip(ast.NodeTransformer):
    """Takes out of a tree what changes no number; calls of `mute` names become None, annotations move to `hint`.

    A tree may be stripped twice.
    """

    def __init__(self, mute: set[str]):
        self.mute = mute

    def generic_visit(self, node):
        node.hint = getattr(node, "hint", None) or getattr(node, "annotation", None) or getattr(node, "returns", None)
        for name in {"annotation", "returns", "msg", "cause"} & set(node._fields):
            setattr(node, name, ast.Constant(None) if isinstance(node, ast.AnnAssign) else None)
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]
        return node

    def visit_Call(self, node):
        return ast.Constant(None) if _root(node) in self.mute else self.generic_visit(node)

    def visit_Expr(self, node):
        node = self.generic_visit(node)
        said = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str | None)  # or muted
        return None if said else node

    def visit_Raise(self, node):
        return ast.Raise(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, None)

    def visit_Import(self, node):
        return None

    visit_ImportFrom = visit_Import


class _Unit:
    """A piece of code as it counts: its text, and what leads on from it. The nodes are stripped.

    `uses` are dotted names taken from outside, "np.random.default_rng"; `hints` those in annotations; `attributes` are
    read of what may be of `lib`; `strings` may name files. `owner` is a method's class, `data` what its `self` holds.
    """

    def __init__(self, module: _Module, nodes: list[ast.AST], owner: str = "", data: set[str] = frozenset()):
        tree = _Strip(module.mute).visit(ast.Module(nodes, []))
        parts, code = list(ast.walk(tree)), ast.unparse(tree)
        read = [one for one in parts if isinstance(one, ast.Attribute) and _root(one) not in module.foreign]
        self.text = f"{owner}\n{code}"
        self.attributes = {one.attr for one in read if one.attr not in data or ast.unparse(one.value) != "self"}
        self.strings = {one.value for one in parts if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        outside = _outside(symtable.symtable(code, module.name, "exec"))
        self.uses = {one for one in _dotted(parts) if one.split(".")[0] in outside}
        self.hints = {one for node in parts if getattr(node, "hint", None) for one in _dotted([*ast.walk(node.hint)])}


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


def _root(node: ast.expr) -> str:
    """Return the name that a chain of attributes and calls begins with: "PCA" of `PCA(2).fit(x).transform`."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _bound(statement: ast.stmt) -> set[str]:
    """Return the functions, classes and variables that a statement binds; rather too many."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return {statement.name}
    nodes = list(ast.walk(statement))
    stored = {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return stored | {one.name for one in nodes if isinstance(one, (*FUNCTIONS, ast.ClassDef))}


class _Module:
    """A file of `lib`, or a notebook's code: what it imports, and by name the statements that bind it ("": nothing)."""

    def __init__(self, path: Path, name: str, source: str):
        self.name, self.folder, self.tree = name, path.parent, ast.parse(source)
        package = [*name.split("."), *["__init__"] * (path.name == "__init__.py")]
        self.imports: dict[str, str] = {}
        for node in (one for one in ast.walk(self.tree) if isinstance(one, ast.Import | ast.ImportFrom)):
            above = package[: -node.level] if getattr(node, "level", 0) else []
            base = ".".join([*above, *filter(None, [getattr(node, "module", None)])])
            for alias in node.names:
                whole = alias.name if alias.asname or base else alias.name.split(".")[0]  # `import lib.b` binds lib
                self.imports[alias.asname or whole] = f"{base}.{whole}".strip(".")
        self.statements: dict[str, list[ast.stmt]] = defaultdict(list)
        for statement in self.tree.body:
            if not (isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)):
                for bound in _bound(statement) or {""}:
                    self.statements[bound].append(statement)
        self.foreign = {alias for alias, target in self.imports.items() if _within(target, FOREIGN)}
        names = self.imports | {one: f"{name}.{one}" for one in self.statements}
        self.mute = {one for one, target in names.items() if _within(target, MUTE)}
        self.mute |= set() if not name or _within(name, (SPEAKS,)) else {"print"}
        self.units = functools.cache(self._units)

    def _units(self, name: str) -> tuple[_Unit, list[str], dict[str, _Unit]]:
        """Return what a name is bound to: its code without the methods, its bases, and the methods."""
        statements = self.statements.get(name, [])
        bases, methods, data = [], defaultdict(list), set()
        for it in (one for one in statements if isinstance(one, ast.ClassDef)):
            bases += [ast.unparse(base).split("[")[0] for base in it.bases]
            stored = [one for one in ast.walk(it) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)]
            data |= {one.attr for one in stored if ast.unparse(one.value) == "self"}
            for one in it.body:
                if isinstance(one, FUNCTIONS):
                    methods[one.name].append(one)
                else:
                    data |= _bound(one)
            it.body = [one for one in it.body if not isinstance(one, FUNCTIONS)]
        units = {key: _Unit(self, those, name, data - methods.keys()) for key, those in methods.items()}
        return _Unit(self, statements), bases, units


# What is reached from where -------------------------------------------------------------------------------------------


class _Reach:
    """All code that counts, found from where it starts."""

    def __init__(self, root: Path):
        self.root, self.module = root, functools.cache(self._module)
        self.parts: set[str] = set()  # digests of the code that counts
        self.seen: set[tuple[str, str, bool]] = set()  # definitions
        self.read: set[str] = set()  # attributes, anywhere in it
        self.waiting: list[tuple[str, Callable]] = []  # attributes that nobody has read yet, and what to do then

    def digest(self) -> str:
        while ready := [one for one in self.waiting if one[0] in self.read]:
            self.waiting = [one for one in self.waiting if one[0] not in self.read]
            for _, follow in ready:
                follow()
        return _hash("".join(sorted(self.parts)))[:16]

    def _module(self, name: str) -> _Module | None:
        stem = self.root.joinpath(*name.split("."))
        paths = [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
        return _read(paths[0], name, _state(paths[0])) if paths else None

    def define(self, module: _Module, name: str, whole: bool = False) -> None:
        """Count a definition, or the whole module (""); of a class the methods that are read, or the whole."""
        if (module.name, name, whole) in self.seen:
            return
        self.seen.add((module.name, name, whole))
        for other in module.statements if whole and not name else [""]:  # "": what an import of the file does
            self.define(module, other, whole=bool(other))
        unit, bases, methods = module.units(name)
        whole = whole or any(isinstance(target, str) for base in bases for target in self.targets(module, base))
        self.visit(module, unit)
        for method, unit in methods.items():
            if whole or (method.startswith("__") and method.endswith("__")):
                self.visit(module, unit)
            else:
                self.waiting.append((method, functools.partial(self.visit, module, unit)))

    def visit(self, module: _Module, unit: _Unit) -> None:
        """Count a piece of code with what its names mean, and go where they lead."""
        meanings = {(use, target) for use in unit.uses for target in self.targets(module, use)}
        edges = {f"{use} = {one if isinstance(one, str) else one[0].units(one[1])[0].text}" for use, one in meanings}
        files = [module.folder / one / text for text in unit.strings if len(text) < 60 for one in ("", "templates")]
        edges |= {_hash(path.read_bytes()) for path in files if path.suffix and path.is_file()}
        self.parts.add(_hash("\n".join([unit.text, *sorted(edges)])))
        self.read |= unit.attributes
        found = {target for _, target in meanings} | {one for hint in unit.hints for one in self.targets(module, hint)}
        for target in found:
            if not isinstance(target, str):
                self.define(*target, whole=not target[1])

    def targets(self, module: _Module, use: str) -> Iterator[tuple[_Module, str] | str]:
        """Yield what a dotted name stands for: definitions of `lib` ("": a whole module), or another package's name.

        What is quiet, or the language's own, stands for nothing.
        """
        head, *rest = use.split(".")
        if module.name and head in module.statements:
            yield module, head
        name = module.imports.get(head, "")
        if name.split(".")[0] != "lib":
            yield from filter(None, [name])
            return
        parts = [*name.split("."), *rest]
        depth = next((n for n in range(len(parts), 0, -1) if self.module(".".join(parts[:n]))), 0)
        if depth and not _within(".".join(parts[: depth + 1]), QUIET):
            module, rest = self.module(".".join(parts[:depth])), parts[depth:]
            if rest and (rest[0] in module.statements or rest[0] in module.imports):
                yield from self.targets(module, ".".join(rest))
            else:
                yield module, ""
