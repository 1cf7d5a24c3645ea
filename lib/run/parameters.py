"""Parameters: defaults of the notebooks and of the methods' settings, changed by a profile and by the command line."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import yaml

from lib.run.files import ROOT, from_root, shown
from lib.run.notebooks import Mistake, Notebook
from lib.run.settings import filled, flat, nearest, prefixes, same, settings_of


def defaults(notebooks: list[Notebook]) -> dict[str, object]:
    """Return every parameter of every notebook; one that several share has one default."""
    found = {}
    for notebook in notebooks:
        for name, (value, _) in notebook.parameters.items():
            other, where = found.setdefault(name, (value, notebook.name))
            if not same(other, value):
                raise Mistake(f"parameter {name} is {other!r} in {where} but {value!r} in {notebook.name}: make it one")
    return {name: value for name, (value, _) in found.items()}


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
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise Mistake(f"{shown(path)} must hold 'parameter: value' lines")
    return values


def choose_parameters(notebooks: list[Notebook], profile: dict, given: list[tuple[str, str]]) -> dict[str, object]:
    """Return the defaults, changed by the profile, changed by what the command line gives; `run_dir` is left out.

    They are those of the notebooks' cells; dictionaries of settings hold all fields that no cell names.
    """
    cells = defaults(notebooks)
    for name, prefix in prefixes(cells).items():
        fields = [prefix + field for field in settings_of(prefix)]
        check_known(flat({name: cells[name]}), fields, f"{name} of the notebook")
    whole = filled(cells)
    usual = flat(whole)
    values, settable = dict(usual), usual | cells
    for where, changes in (("the profile", profile.items()), ("-p", given)):
        for name, value in changes:
            if name == "run_dir":
                raise Mistake("run_dir is not a parameter to set: --run NAME chooses the run folder")
            check_known([name], settable, where)
            if where == "-p":
                value = typed(name, value, settable[name])
                if name.endswith("_csv") and value:
                    value = os.path.abspath(Path(value).expanduser())
            parts = flat({name: cast(name, value, settable[name])})
            check_known(parts, usual, name)
            values |= {one: cast(one, part, usual[one]) for one, part in parts.items()}
    for name, value in values.items():
        if name.endswith("_csv") and value:
            if not from_root(value).is_file():
                raise Mistake(f"parameter {name}: there is no file {value}")
            values[name] = within_repository(from_root(value))
    for name, prefix in prefixes(whole).items():
        values[name] = {field: values[prefix + field] for field in whole[name]}
    return {name: values[name] for name in cells if name != "run_dir"}


def check_known(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse names that are no parameters."""
    for name in names:
        if name not in known:
            raise Mistake(f"unknown parameter {name!r} in {where}{nearest(name, known)}; --list shows all")


def to_tell(notebook: Notebook, parameters: dict[str, object]) -> dict[str, object]:
    """Return what a notebook has to be told: parameters unlike its own, of settings those unlike their defaults."""
    told, own = dict(parameters), notebook.parameters
    for name, prefix in prefixes(parameters).items():
        usual = settings_of(prefix)
        told[name] = {field: one for field, one in parameters[name].items() if one != usual[field][0]}
    return {name: value for name, value in told.items() if not same(value, own[name][0])}


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
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise Mistake(f"parameter {name}: the keys of {value!r} must be names of settings")
    if default is None or (type(value) is kind and kind is not list):
        return value
    if kind is float and type(value) in (int, str):
        with suppress(ValueError):
            return float(value)
    if kind is list and isinstance(value, list):
        return [cast(name, item, default[0]) for item in value] if default else value
    example = ", like '[0, 1]'" if kind is list else ""
    raise Mistake(f"parameter {name} must be {kind.__name__}{example} (default {default!r}), not {value!r}")
