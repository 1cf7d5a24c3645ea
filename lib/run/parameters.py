"""Parameters: defaults of the notebooks and of the methods' settings, changed by a profile and by the command line."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import yaml

from lib.run.files import ROOT, from_root, shown
from lib.run.notebooks import Mistake, Notebook
from lib.run.settings import SETTINGS, flat, nearest, prefix_of, settings_of, unlike


def defaults(notebooks: list[Notebook]) -> dict[str, object]:
    """Return every parameter of every notebook; one that several share has one default."""
    found = {}
    for notebook in notebooks:
        for name, (value, _) in notebook.parameters.items():
            other, where = found.setdefault(name, (value, notebook.name))
            if unlike({name: other}, {name: value}):
                raise Mistake(
                    f"parameter {name} is {other!r} in {where} but {value!r} in {notebook.name}: make them one"
                )
    return {name: value for name, (value, _) in found.items()}


def settings_behind(name: str, cells: dict[str, object]) -> dict[str, tuple[object, str]]:
    """Read the settings that a dictionary among the parameters may change: flat name → (default, meaning).

    Fields that are parameters themselves are left out; there are none where the parameter is no such dictionary.
    """
    prefix = prefix_of(name, cells[name])
    if prefix is None:
        return {}
    fields = {prefix + field: found for field, found in settings_of(prefix).items()}
    for one in flat({name: cells[name]}):
        if one not in fields:
            raise Mistake(f"unknown parameter {one!r} in {name} of the notebook{nearest(one, fields)}")
    return {one: found for one, found in fields.items() if one not in cells}


def read_profile(folder: Path, profile: str) -> dict[str, object]:
    """Read the flat `parameter: value` file of a profile."""
    path = folder / "profiles" / f"{profile}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise Mistake(f"unknown profile {profile!r}{nearest(profile, known)}; there are {', '.join(known) or 'none'}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise Mistake(f"{shown(path)} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise Mistake(f"{shown(path)} must hold 'parameter: value' lines")
    return values


def choose_parameters(notebooks: list[Notebook], profile: dict, given: list[tuple[str, str]]) -> dict[str, object]:
    """Return the defaults, changed by the profile, changed by what the command line gives.

    Returns
    -------
    dict
        The parameters of the notebooks' cells, without `run_dir`; dictionaries of settings hold all fields that no cell
        names.
    """
    cells = defaults(notebooks)
    dictionaries = {name: settings_behind(name, cells) for name in cells if prefix_of(name, cells[name]) is not None}
    known = {one: default for found in dictionaries.values() for one, (default, _) in found.items()} | flat(cells)
    values = dict(known)
    for where, changes in (("the profile", profile.items()), ("-p", given)):
        for name, value in changes:
            if name == "run_dir":
                raise Mistake("run_dir is not a parameter to set: --run NAME chooses the run folder")
            if name not in known and name not in cells:
                raise Mistake(f"unknown parameter {name!r} in {where}{nearest(name, known)}; --list shows all")
            default = cells[name] if name in dictionaries else known[name]
            if where == "-p":
                value = typed(name, value, default)
                if name.endswith("_csv") and value:
                    value = os.path.abspath(Path(value).expanduser())
            value = cast(name, value, default)
            for one, part in flat({name: value}).items():
                if one not in known:
                    raise Mistake(f"unknown parameter {one!r} in {name}{nearest(one, known)}; --list shows all")
                values[one] = cast(one, part, known[one])
    for name, value in values.items():
        if name.endswith("_csv") and value:
            if not from_root(value).is_file():
                raise Mistake(f"parameter {name}: there is no file {value}")
            values[name] = within_repository(from_root(value))
    return {name: gathered(name, values, dictionaries) for name in cells if name != "run_dir"}


def gathered(name: str, values: dict[str, object], dictionaries: dict[str, dict]) -> object:
    """Take a cell's parameter from flat names: a dictionary of settings is put together again."""
    if name not in dictionaries:
        return values[name]
    prefix = name.removesuffix(SETTINGS)
    return {one.removeprefix(prefix): values[one] for one in dictionaries[name]}


def changed(name: str, value: object, default: object) -> object:
    """Return what a notebook has to be told of a parameter: of settings those that differ from their defaults."""
    prefix = prefix_of(name, default)
    if prefix is None:
        return value
    settled = settings_of(prefix)
    return {field: one for field, one in value.items() if field not in settled or repr(one) != repr(settled[field][0])}


def within_repository(csv: Path) -> str:
    """Return a table's path as the run records it. One that lies elsewhere is reached through a link in data/: no path
    of this machine, which may name somebody, gets into the run."""
    csv = Path(os.path.abspath(csv))
    if not csv.is_relative_to(ROOT):
        folder = hashlib.sha256(str(csv.parent.resolve()).encode()).hexdigest()[:8]
        link = ROOT / "data" / f"linked-{folder}"
        with suppress(OSError):  # there already, or a system without links: then the path stays
            link.symlink_to(csv.parent, target_is_directory=True)
        if (link / csv.name).is_file():
            csv = link / csv.name
    return shown(csv)


def typed(name: str, text: str, default):
    """Return what the command line's text means: itself where the default is text, else YAML (`3`, `[0, 1]`)."""
    if isinstance(default, str):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Mistake(f"parameter {name}: {text!r} is not a YAML value") from error


def cast(name: str, value, default):
    """Return a value in the type of the default: 3 may stand for a float, and so may `1e-4`, which is text to YAML."""
    kind = type(default)
    if default is None or (type(value) is kind and kind is not list):
        return value
    if kind is float and type(value) in (int, str):
        try:
            return float(value)
        except ValueError:
            pass
    if kind is list and isinstance(value, list):
        return [cast(name, item, default[0]) for item in value] if default else value
    example = ", like '[0, 1]'" if kind is list else ""
    raise Mistake(f"parameter {name} must be {kind.__name__}{example} (default {default!r}), not {value!r}")
