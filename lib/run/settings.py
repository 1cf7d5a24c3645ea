"""Settings: dataclasses whose fields a notebook's parameters override by name.

A parameter cell names the few that a reader changes, `cyclegan_steps = 2200`, and one dictionary, `cyclegan_settings`,
for all others. On the command line and in profiles each has one flat name: the prefix `cyclegan_` and the field.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Self

from lib.run.files import ROOT, shown

SETTINGS = "settings"  # a dictionary parameter's name, behind its prefix


class FromParameters:
    """For dataclasses: build them from the parameters of a notebook."""

    @classmethod
    def from_parameters(cls, values: Mapping[str, object], prefix: str) -> Self:
        """Take the defaults, changed by `prefix + field` and by the dictionary `prefix + "settings"` among the values.

        >>> Settings.from_parameters({"cyclegan_steps": 10, "cyclegan_settings": {"pool": 0}}, "cyclegan_")
        ... # doctest: +SKIP
        Settings(steps=10, …, pool=0, …)
        """
        named = {field.name for field in fields(cls)}
        given = {name: values[prefix + name] for name in named if prefix + name in values}
        seldom = values.get(prefix + SETTINGS, {})
        return cls(**given | {name: value for name, value in seldom.items() if name in named})


def check_names(seldom: Mapping[str, object], prefix: str, *kinds: type) -> None:
    """Raise ValueError where a name of the dictionary `prefix + "settings"` is a field of none of these dataclasses."""
    known = [field.name for kind in kinds for field in fields(kind)]
    for name in seldom:
        if name not in known:
            raise ValueError(f"{prefix}{SETTINGS} has no {name!r}{nearest(name, known)}; there are {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that resembles a wrong one most, as the rest of a sentence; empty where none does."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f", did you mean {match[0]!r}?" if match else ""


def prefix_of(name: str, value: object) -> str | None:
    """Return the prefix of a dictionary of settings; None for every other parameter."""
    return name.removesuffix(SETTINGS) if isinstance(value, dict) and name.endswith("_" + SETTINGS) else None


def flat(values: Mapping[str, object]) -> dict[str, object]:
    """Spread dictionaries of settings into single names, which win over parameters of the same name.

    >>> flat({"cyclegan_steps": 10, "cyclegan_settings": {"pool": 0}})
    {'cyclegan_steps': 10, 'cyclegan_pool': 0}
    """
    prefixes = {name: prefix_of(name, value) for name, value in values.items()}
    single = {name: value for name, value in values.items() if prefixes[name] is None}
    for name, prefix in prefixes.items():
        single |= {prefix + field: value for field, value in values[name].items()} if prefix is not None else {}
    return single


def unlike(here: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    """Return the names, in order, under which two mappings hold other values; NaN is like NaN, a tuple like a list."""

    def same(a, b) -> bool:
        return a == b or json.dumps(a, default=str) == json.dumps(b, default=str)

    return sorted(name for name in here.keys() | there.keys() if not same(here.get(name), there.get(name)))


def settings_of(prefix: str) -> dict[str, tuple[object, str]]:
    """Read the fields that the dictionary `prefix + "settings"` overrides: name → (default, meaning).

    They are those of all dataclasses in `lib/ROOM/PREFIX.py` or `lib/ROOM/PREFIX/` that derive from `FromParameters`;
    the meaning is the comment behind a field. The source is read and not imported, which would load torch.

    Raises
    ------
    ValueError
        Where a default cannot be told without importing the file.
    """
    found, name = {}, prefix.removesuffix("_")
    for path in sorted([*ROOT.glob(f"lib/*/{name}.py"), *ROOT.glob(f"lib/*/{name}/*.py")]):
        source = path.read_text(encoding="utf-8")
        meanings = comments(source)
        for kind in ast.parse(source).body:
            if not isinstance(kind, ast.ClassDef) or "FromParameters" not in ", ".join(map(ast.unparse, kind.bases)):
                continue
            for field in kind.body:
                if isinstance(field, ast.AnnAssign) and field.value is not None:
                    lines = range(field.lineno, field.end_lineno + 1)
                    meaning = next((meanings[line] for line in lines if line in meanings), "")
                    found[field.target.id] = (_default(field, path), meaning)
    return found


def comments(source: str) -> dict[int, str]:
    """Return the comments of Python source by line, counted from 1."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _default(field: ast.AnnAssign, path: Path) -> object:
    """Work out a field's default, which may be arithmetic such as 286 / 256; tuples as lists, as YAML has them."""
    try:
        value = eval(compile(ast.Expression(field.value), str(path), "eval"), {"__builtins__": {}, "float": float})
    except NameError as error:
        where = f"{shown(path)}, line {field.lineno}"
        raise ValueError(f"{where}: the default of {field.target.id} must be a literal ({error})") from error
    return list(value) if isinstance(value, tuple) else value
