"""Settings: dataclasses whose fields a notebook's parameters override by name.

A parameter cell names the few that a reader changes, `cyclegan_steps = 2200`, and one dictionary, `cyclegan_settings`,
for all others. On the command line and in profiles each has one flat name: the prefix `cyclegan_` and the field.
"""

import ast
import difflib
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Self

from lib.run.files import ROOT, shown


class FromParameters:
    """For dataclasses: build them from the parameters of a notebook."""

    @classmethod
    def from_parameters(cls, values: Mapping[str, object], prefix: str) -> Self:
        """Take the defaults, changed by `prefix + field` and by the dictionary `prefix + "settings"`."""
        given, named = flat(values), {field.name: prefix + field.name for field in fields(cls)}
        return cls(**{field: given[name] for field, name in named.items() if name in given})


def check_names(seldom: Mapping[str, object], prefix: str, *kinds: type) -> None:
    """Raise ValueError where a name of the dictionary `prefix + "settings"` is a field of none of these dataclasses."""
    known = [field.name for kind in kinds for field in fields(kind)]
    for name in seldom:
        if name not in known:
            raise ValueError(f"{prefix}settings has no {name!r}{nearest(name, known)}; there are {', '.join(known)}")


def check_choices(settings: FromParameters, **choices: tuple) -> None:
    """Raise ValueError where a field is set to none of its choices."""
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise ValueError(f"{name}={getattr(settings, name)!r}: choose {' or '.join(map(repr, known))}")


def check_least(settings: FromParameters, **lowest: float) -> None:
    """Raise ValueError where a field lies below its lowest value, or is NaN."""
    for name, least in lowest.items():
        if not getattr(settings, name) >= least:
            raise ValueError(f"{name}={getattr(settings, name)}: at least {least}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that resembles a wrong one most, as the rest of a sentence; empty where none does."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f", did you mean {match[0]!r}?" if match else ""


# Dictionaries of settings among parameters ----------------------------------------------------------------------------


def prefixes(values: Mapping[str, object]) -> dict[str, str]:
    """Return which parameters are dictionaries of settings: name → prefix."""
    dictionaries = (name for name, value in values.items() if isinstance(value, dict))
    return {name: name.removesuffix("settings") for name in dictionaries if name.endswith("_settings")}


def flat(values: Mapping[str, object]) -> dict[str, object]:
    """Spread dictionaries of settings into single names, which win over parameters of the same name.

    >>> flat({"cyclegan_steps": 10, "cyclegan_settings": {"pool": 0}})
    {'cyclegan_steps': 10, 'cyclegan_pool': 0}
    """
    found = prefixes(values)
    single = {name: value for name, value in values.items() if name not in found}
    return single | {prefix + field: one for name, prefix in found.items() for field, one in values[name].items()}


def filled(values: Mapping[str, object]) -> dict[str, object]:
    """Complete dictionaries of settings with the defaults of all fields that are no parameters themselves."""
    full = dict(values)
    for name, prefix in prefixes(values).items():
        usual = {field: one for field, (one, _) in settings_of(prefix).items() if prefix + field not in values}
        full[name] = usual | values[name]
    return full


def same(a: object, b: object) -> bool:
    """Tell whether two values are the same: NaN is like NaN, a tuple like a list."""
    return a == b or json.dumps(a, default=str) == json.dumps(b, default=str)


def unlike(here: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    """Return the names, in order, under which two mappings hold other values; one that is missing counts as None."""
    return sorted(name for name in here.keys() | there.keys() if not same(here.get(name), there.get(name)))


def changed(past: Mapping[str, object], now: Mapping[str, object]) -> dict[str, tuple]:
    """Return the parameters that both know with other values: flat name → (then, now)."""
    past, now = flat(past), flat(now)
    shared = sorted(past.keys() & now.keys())
    return {name: (past[name], now[name]) for name in shared if not same(past[name], now[name])}


# Read from the source, since an import would load torch ---------------------------------------------------------------


def settings_of(prefix: str) -> dict[str, tuple[object, str]]:
    """Read the fields that the dictionary `prefix + "settings"` overrides: name → (default, meaning).

    They are those of all dataclasses in `lib/ROOM/PREFIX.py` or `lib/ROOM/PREFIX/` that derive from `FromParameters`;
    the meaning is the comment behind a field. A default must be a literal, or arithmetic such as 286 / 256.
    """
    found, module = {}, prefix.removesuffix("_")
    for path in sorted([*ROOT.glob(f"lib/*/{module}.py"), *ROOT.glob(f"lib/*/{module}/*.py")]):
        source = path.read_text(encoding="utf-8")
        kinds = [kind for kind in ast.parse(source).body if isinstance(kind, ast.ClassDef)]
        settings = [kind for kind in kinds if "FromParameters" in map(ast.unparse, kind.bases)]
        meanings = comments(source) if settings else {}
        for field in (
            line for kind in settings for line in kind.body if isinstance(line, ast.AnnAssign) and line.value
        ):
            name, lines = field.target.id, range(field.lineno, field.end_lineno + 1)
            try:
                default = eval(ast.unparse(field.value), {"__builtins__": {}, "float": float})
            except NameError as error:
                where = f"{shown(path)}, line {field.lineno}"
                raise ValueError(f"{where}: the default of {name} must be a literal ({error})") from error
            default = list(default) if isinstance(default, tuple) else default  # as YAML has them
            found[name] = default, next((meanings[line] for line in lines if line in meanings), "")
    return found


def comments(source: str) -> dict[int, str]:
    """Return the comments of Python source by line, counted from 1."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
