"""Fingerprints: what a result is computed by, as digits that survive a reworded comment and a moved function.

A fingerprint covers syntax trees of definitions (functions, classes, constants), not bytes of files. It starts at a
function, follows its names through the imports of `lib`, and leaves out what changes no number: comments, docstrings,
annotations (but for the classes that they lead to), texts of errors, prints, and all of `QUIET`. Of a class those
methods count whose names are called somewhere in what counts, besides `__special__` ones; where a base class is not
`lib`'s own, all do.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lib.run.files import ROOT

MUTE = ("lib.run.locks", "lib.run.progress", "lib.translators.training.save_preview")  # their calls do not count either
QUIET = (  # modules and definitions that change no number
    *MUTE,
    *(f"lib.run.{name}" for name in ("checkpoints", "files", "fingerprint", "folder", "local", "slurm", "tasks")),
    "lib.translators.methods",  # the table: whoever runs over it names the row's class as code of its own
    "lib.translators.translator.seconds_needed",
    "lib.trials.trials.seconds_needed",
)
FOREIGN = ("matplotlib", "numpy", "pandas", "PIL", "scipy", "skimage", "sklearn")  # what these return is not of `lib`
SPEAKS = "lib.report"  # what is printed there is a result

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def source_hash(*things: str | Callable, root: Path = ROOT) -> str:
    """Return sixteen hexadecimal digits for all that functions of `lib` are computed by.

    Parameters
    ----------
    things : functions, methods (`CycleGAN.fit`), classes, or their names: "lib.trials.trials:run_trial"; a module's
        name alone stands for all that it defines. An inherited method needs its class beside it.
    root : the folder that holds `lib`
    """
    names = tuple(map(name_of, things))
    digest, files = _found.get((names, root), ("", {}))
    if not digest or any(_state(path) != state for path, state in files.items()):
        reach = _Reach(root)
        for name in names:
            reach.start(name)
        digest, _ = _found[names, root] = reach.digest(), reach.files
    return digest


def code_hash(source: str, root: Path = ROOT) -> str:
    """Return the digits for a notebook's own code with all that it reaches in `lib`, figures included.

    Raises
    ------
    SyntaxError
        Where it is no Python.
    """
    reach, code = _Reach(root), Module("", source, root, speaks=True)
    reach.visit(code, code.whole())
    return reach.digest()


def name_of(thing: str | Callable) -> str:
    """Return the name of a function or class as `source_hash` takes it: "lib.trials.trials:run_trial"."""
    return thing if isinstance(thing, str) else f"{thing.__module__}:{thing.__qualname__}"


_found: dict[tuple, tuple[str, dict[Path, tuple[int, int]]]] = {}  # digests, with the files that they follow from


def _state(path: Path) -> tuple[int, int] | None:
    """Time and size of a file; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


# What is left of code -------------------------------------------------------------------------------------------------


class _Clean(ast.NodeTransformer):
    """Takes out of a definition what changes no number.

    Parameters
    ----------
    mute : names whose calls are left out, and what they return with them
    speaks : whether prints stay
    """

    def __init__(self, mute: set[str], speaks: bool):
        self.mute, self.speaks = set(mute), speaks

    def generic_visit(self, node):
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]
        return node

    def _muted(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Call | ast.Attribute):
            node = node.func if isinstance(node, ast.Call) else node.value
        return isinstance(node, ast.Name) and node.id in self.mute

    def visit_FunctionDef(self, node):
        node.hint, node.returns = node.returns, None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node):
        node.hint, node.annotation = node.annotation, None
        return node

    def visit_AnnAssign(self, node):
        if not isinstance(node.annotation, ast.Constant):
            node.hint, node.annotation = node.annotation, ast.Constant(None)
        return self.generic_visit(node)

    def visit_Expr(self, node):
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return None
        if isinstance(value, ast.Call):
            prints = isinstance(value.func, ast.Name) and value.func.id == "print" and not self.speaks
            if prints or self._muted(value):
                return None
        return self.generic_visit(node)

    def visit_Assign(self, node):
        if isinstance(node.value, ast.Call) and self._muted(node.value):
            self.mute |= _bound([node])
            return None
        return self.generic_visit(node)

    def visit_With(self, node):
        for item in filter(lambda item: self._muted(item.context_expr), node.items):
            self.mute |= _bound([item])
        node.items = [item for item in node.items if not self._muted(item.context_expr)]
        node = self.generic_visit(node)
        return node if node.items else node.body

    def visit_Raise(self, node):
        exc = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=exc, cause=None)

    def visit_Assert(self, node):
        node.msg = None
        return self.generic_visit(node)


def _bound(nodes: list[ast.AST]) -> set[str]:
    """Names that statements bind in their own scope; imports aside."""
    names, queue = set(), list(nodes)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
            continue
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
        elif isinstance(node, ast.Lambda):
            continue
        elif isinstance(node, COMPREHENSIONS):
            queue += [inner.target for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
            continue
        queue += ast.iter_child_nodes(node)
    return names


@dataclass
class Unit:
    """A piece of code as it counts.

    Parameters
    ----------
    text : the code itself
    uses : dotted names that it takes from outside: "np.random.default_rng", "controls.fake"
    hints : those of its annotations, which say whose methods it calls
    attributes : names of attributes of anything that may be of `lib`
    files : constants that could name a file
    """

    text: str
    uses: set[str] = field(default_factory=set)
    hints: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, nodes: list[ast.AST], foreign: set[str], owner: str = "", data: frozenset[str] = frozenset()) -> Unit:
        """Make a unit; `owner` is the class that a method belongs to, `data` what its `self` holds besides methods."""
        unit = cls(owner + "".join(f"\n{ast.unparse(node)}" for node in nodes))
        for node in nodes:
            unit._collect(node, frozenset(), foreign)
        for one in (one for node in nodes for one in ast.walk(node) if data and isinstance(one, ast.Attribute)):
            if not (isinstance(one.value, ast.Name) and one.value.id == "self" and one.attr in data):
                data -= {one.attr}  # named of something else, too
        unit.attributes -= data
        return unit

    def _collect(self, node: ast.AST, local: frozenset[str], foreign: set[str]) -> None:
        """Note what a tree names, besides what is `local` to the scope that it lies in."""
        children, inner = ast.iter_child_nodes(node), local
        match node:
            case ast.Name():
                self.uses |= {node.id} - local
                return
            case ast.Attribute():
                parts, base = [node.attr], node.value
                while isinstance(base, ast.Attribute):
                    parts, base = [base.attr, *parts], base.value
                if isinstance(base, ast.Name) and base.id not in local:
                    self.uses.add(".".join([base.id, *parts]))
                else:
                    self._collect(base, local, foreign)
                while isinstance(base, ast.Attribute | ast.Call):  # PCA(2).fit(x).transform: of another package
                    base = base.func if isinstance(base, ast.Call) else base.value
                if not (isinstance(base, ast.Name) and base.id in foreign - local):
                    self.attributes |= {*parts}
                return
            case ast.Constant(value=str(text)) if len(text) < 60 and re.fullmatch(r"[\w/-]+\.[\w.]{2,12}", text):
                self.files.add(text)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                self.attributes.add(name)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                body = node.body if isinstance(node.body, list) else [node.body]
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments += filter(None, [node.args.vararg, node.args.kwarg])
                for child in [node.args, *getattr(node, "decorator_list", ())]:
                    self._collect(child, local, foreign)
                outer = {name for one in body if isinstance(one, ast.Global) for name in one.names}
                inner = local | {argument.arg for argument in arguments} | (_bound(body) - outer)
                children = body
            case ast.ClassDef():
                for child in [*node.decorator_list, *node.bases, *node.keywords]:
                    self._collect(child, local, foreign)
                own = local | _bound(node.body)
                for child in node.body:
                    self._collect(child, local if isinstance(child, FUNCTIONS) else own, foreign)
                return
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                inner = local | _bound([generator.target for generator in node.generators])
        if hint := getattr(node, "hint", None):
            said = Unit("")
            said._collect(hint, local, foreign)
            self.hints |= said.uses
        for child in children:
            self._collect(child, inner, foreign)


@dataclass
class Definition:
    """What a module binds to a name: the code itself, and of a class the methods beside it."""

    unit: Unit
    bases: list[str] = field(default_factory=list)
    methods: dict[str, Unit] = field(default_factory=dict)


class Module:
    """A file of `lib`, or a notebook's code: what it defines and imports."""

    def __init__(self, name: str, source: str, folder: Path, package: tuple[str, ...] = (), speaks: bool = False):
        self.name, self.folder, self.speaks = name, folder, speaks
        tree = ast.parse(source)
        inside = re.search(r"^\s+(from|import)\s", source, re.MULTILINE)  # imports in functions
        nodes = ast.walk(tree) if inside else tree.body
        self.imports: dict[str, str] = {}
        self.statements: dict[str, list[ast.stmt]] = {}  # by what they bind; "" binds nothing
        for node in nodes:
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        first = alias.name.split(".")[0]
                        self.imports[alias.asname or first] = alias.name if alias.asname else first
                case ast.ImportFrom(names=names):
                    above = package[: len(package) - node.level + 1] if node.level else ()
                    base = ".".join([*above, *filter(None, [node.module])])
                    self.imports |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in names}
        self.foreign = {alias for alias, target in self.imports.items() if _within(target, FOREIGN)}
        self.mute = {alias for alias, target in self.imports.items() if _within(target, MUTE)}
        for statement in tree.body:
            main = isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
            if not main and not isinstance(statement, ast.Import | ast.ImportFrom):
                for bound in _bound([statement]) or {""}:
                    self.statements.setdefault(bound, []).append(statement)
        self.mute |= {one for one in self.statements if _within(f"{name}.{one}", MUTE)}
        self.definition = functools.cache(self._definition)

    def _clean(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        return _Clean(self.mute, self.speaks).visit(ast.Module(statements, [])).body

    def whole(self) -> Unit:
        """Return all that a notebook does, in its order."""
        found = {id(one): one for statements in self.statements.values() for one in statements}
        return Unit.of(self._clean(sorted(found.values(), key=lambda one: one.lineno)), self.foreign)

    def _definition(self, name: str) -> Definition:
        statements = self._clean(self.statements.get(name, []))
        if len(statements) == 1 and isinstance(statements[0], ast.ClassDef):
            (it,) = statements
            methods = {}
            for one in it.body:
                if isinstance(one, FUNCTIONS):
                    methods.setdefault(one.name, []).append(one)
            it.body = [one for one in it.body if not isinstance(one, FUNCTIONS)] or [ast.Pass()]
            bases = [ast.unparse(base).split("[")[0] for base in it.bases]
            everything = ast.walk(ast.Module([*it.body, *(one for those in methods.values() for one in those)], []))
            stored = (one for one in everything if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store))
            data = {one.attr for one in stored if isinstance(one.value, ast.Name) and one.value.id == "self"}
            data = frozenset((data | _bound(it.body)) - methods.keys())
            units = {key: Unit.of(those, self.foreign, name, data) for key, those in methods.items()}
            return Definition(Unit.of([it], self.foreign), bases, units)
        return Definition(Unit.of(statements, self.foreign, name))


def _within(name: str, those: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in those)


@functools.lru_cache(maxsize=256)
def _read(path: Path, name: str, state: tuple[int, int]) -> Module:
    """The module in a file, parsed once for each state of the file."""
    parts = tuple(name.split("."))
    package = parts if path.name == "__init__.py" else parts[:-1]
    return Module(name, path.read_text(encoding="utf-8"), path.parent, package, _within(name, (SPEAKS,)))


# What is reached from where -------------------------------------------------------------------------------------------


class _Reach:
    """All code that counts, found from where it starts."""

    def __init__(self, root: Path):
        self.root = root
        self.modules: dict[str, Module | None] = {}
        self.files: dict[Path, tuple[int, int] | None] = {}  # their states
        self.parts: set[str] = set()  # digests of the code that counts
        self.seen: set[tuple[str, str, bool]] = set()
        self.called: set[str] = set()  # attributes named anywhere in it
        self.waiting: dict[str, list[tuple[Module, Unit]]] = {}  # methods that nobody has named yet

    def digest(self) -> str:
        return hashlib.sha256("".join(sorted(self.parts)).encode()).hexdigest()[:16]

    def start(self, name: str) -> None:
        """Count a module, a definition or a method, as `source_hash` takes its name."""
        module_name, _, path = name.partition(":")
        if not _within(
            module_name, ("lib",)
        ):  # a class of one's own, in a notebook for example: its name stands for it
            self.parts.add(_hash(name))
            return
        module = self.module(module_name)
        definition, _, method = path.partition(".")
        if module is None or (definition and definition not in module.statements):
            raise ValueError(f"there is no {name} in {self.root / 'lib'}")
        self.call({method} - {""})
        if definition:
            self.define(module, definition)
        else:
            self.all_of(module)

    def module(self, name: str) -> Module | None:
        """Return a module of `lib`, where there is one of this name."""
        if name not in self.modules:
            self.modules[name], stem = None, self.root.joinpath(*name.split("."))
            for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                if path.is_file():
                    self.files[path] = _state(path)
                    self.modules[name] = _read(path, name, self.files[path])
        return self.modules[name]

    def all_of(self, module: Module) -> None:
        for name in module.statements:
            self.define(module, name, whole=True)

    def define(self, module: Module, name: str, whole: bool = False) -> None:
        """Count a definition of a module; of a class all methods, or those that are called."""
        if (key := (module.name, name, whole)) in self.seen:
            return
        self.seen.add(key)
        if name:
            self.define(module, "")  # what its file does when it is imported
        found = module.definition(name)
        whole = whole or any(self.from_elsewhere(module, base) for base in found.bases)
        self.visit(module, found.unit)
        for method, unit in found.methods.items():
            if whole or method in self.called or (method.startswith("__") and method.endswith("__")):
                self.visit(module, unit)
            else:
                self.waiting.setdefault(method, []).append((module, unit))

    def from_elsewhere(self, module: Module, base: str) -> bool:
        """Whether a base class is of another package, which may call any method."""
        targets = list(self.targets(module, base))
        return not all(isinstance(target, tuple) or target == "typing.Protocol" for target in targets)

    def visit(self, module: Module, unit: Unit) -> None:
        """Count a piece of code, and go where its names lead."""
        edges = []
        for use in sorted(unit.uses):
            for target in self.targets(module, use):
                if isinstance(target, str):
                    edges.append(f"{use.split('.')[0]} = {target}")
                elif target[1]:
                    edges.append(f"{use} = {_hash(target[0].definition(target[1]).unit.text)}")
                    self.define(*target)
                else:
                    edges.append(f"{use} = all")
                    self.all_of(target[0])
        for target in (target for hint in sorted(unit.hints) for target in self.targets(module, hint)):
            if isinstance(target, tuple) and target[1]:
                self.define(*target)
        for file in sorted(unit.files):
            for path in (module.folder / file, module.folder / "templates" / file):
                self.files[path] = _state(path)
                if path.is_file():
                    edges.append(f"{file} = {hashlib.sha256(path.read_bytes()).hexdigest()}")
        self.parts.add(_hash("\n".join([unit.text, *sorted(set(edges))])))
        self.call(unit.attributes)

    def call(self, attributes: set[str]) -> None:
        new = attributes - self.called
        self.called |= new
        for name in new:
            for module, unit in self.waiting.pop(name, ()):
                self.visit(module, unit)

    def targets(self, module: Module, use: str) -> Iterator[tuple[Module, str] | str]:
        """What a dotted name stands for: definitions of `lib` ("" for a whole module), or what is imported of other
        packages, by its name. What is quiet, or the language's own, stands for nothing."""
        head, *rest = use.split(".")
        if module.name and head in module.statements:
            yield module, head
        if head in module.imports:
            yield from self.imported(".".join([module.imports[head], *rest]), module.imports[head])
        elif module.name and head not in module.statements and not hasattr(builtins, head) and head[:2] != "__":
            yield module, ""

    def imported(self, name: str, imported: str) -> Iterator[tuple[Module, str] | str]:
        parts = name.split(".")
        if parts[0] != "lib":
            yield imported
            return
        depth = next((n for n in range(len(parts), 0, -1) if self.module(".".join(parts[:n]))), 0)
        base, rest = ".".join(parts[:depth]), parts[depth:]
        if not depth or _within(".".join(parts[: depth + 1]), QUIET):
            return
        module = self.module(base)
        if rest and (rest[0] in module.statements or rest[0] in module.imports):
            yield from self.targets(module, ".".join(rest))
        else:
            yield module, ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
