"""The run: a folder that knows its parameters, versions, seeds, hardware, what is finished and what it took.

Nothing here knows papermill or loads torch, so every other file may use it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lib.run.files import cannot_write, from_root, shown, write_text
from lib.run.locks import HOLDER, Busy, held_by, holder
from lib.run.settings import flat, prefix_of, settings_of, unlike


class NotYet(FileNotFoundError):
    """A notebook was run before the one that makes what it needs."""


class Damaged(ValueError):
    """A manifest that is no JSON."""


class Run:
    """A run's folder and its `manifest.json`.

    Parameters
    ----------
    run_dir : path
        Created where it is missing; a relative path counts from the repository, wherever the notebook runs.

    Raises
    ------
    OSError
        Where the folder cannot be made or written: no permission, no space, a file in its place.

    Examples
    --------
    >>> run = Run("runs/quick")  # doctest: +SKIP
    >>> table = pd.read_csv(run.require("cohort/table.csv", notebook="01_data_exploration"))  # doctest: +SKIP
    >>> run.record("weights", classifier="random initialisation")  # doctest: +SKIP
    """

    def __init__(self, run_dir: str | Path):
        self.folder = from_root(run_dir)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        if not os.access(self.folder, os.W_OK):
            raise PermissionError(
                f"cannot write to {shown(self.folder)}: change its permissions or take another --run NAME"
            )

    def path(self, *parts: str) -> Path:
        """A path inside the run, its folder made ready for writing."""
        path = self.folder.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path.parent, error) from error
        return path

    def __truediv__(self, part: str) -> Path:
        return self.folder / part

    def __repr__(self) -> str:
        return f"Run({shown(self.folder)!r})"

    def require(self, part: str, notebook: str) -> Path:
        """The path of a file that an earlier notebook has made.

        Raises
        ------
        NotYet
            Where it is missing; the message says which notebook to run first.
        """
        path = self.folder / part
        if not path.exists():
            raise NotYet(
                f"{shown(path)} is missing: run notebook {notebook} first "
                f"(or run_all.py with this run's options and --from {notebook[:2]})"
            )
        return path

    @property
    def manifest(self) -> dict:
        """What `manifest.json` holds; empty before the first record."""
        path = self.folder / "manifest.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise Damaged(f"{shown(path)} is damaged ({error}): delete it, and the run starts over") from error

    def check_parameters(self, notebook: str, values: dict) -> None:
        """Refuse a notebook run by hand before it overwrites what the run made, or writes it beside `run_all.py`.

        Parameters
        ----------
        values : the notebook's `globals()`; `run_all.py` records what it is about to run with first

        Raises
        ------
        Busy
            Where another process holds the run, and did not start this one.
        ValueError
            Where the run was made with other parameters. Those that the notebook does not know any more may differ.
        """
        if os.environ.get(HOLDER) != str(self.folder.resolve()) and (owner := holder(self.folder)) is not None:
            raise Busy(held_by(self.folder, owner))
        past = flat(self.manifest.get("notebooks", {}).get(notebook, {}).get("parameters", {}))
        now = {name: value for name, value in flat(filled(values)).items() if name in past}
        other = [f"{name} = {now[name]!r} (there {past[name]!r})" for name in unlike(past, now) if name in now]
        if other:
            folder, name = shown(self.folder), self.folder.name
            raise ValueError(
                f"{folder} was made with other parameters, and would be overwritten: {', '.join(other)}. Set them as "
                f"there, or work on a copy: `cp -r {folder} {folder}-mine && rm {folder}-mine/manifest.json`, and "
                f'run_dir = "runs/{name}-mine"'
            )

    def record(self, section: str | None = None, /, **facts) -> None:
        """Merge facts into the manifest, into a section of it where one is named.

        >>> run.record(device="cuda: NVIDIA H100")  # doctest: +SKIP
        >>> run.record("weights", perceptual="VGG16, ImageNet")  # doctest: +SKIP
        """
        manifest = self.manifest
        (manifest if section is None else manifest.setdefault(section, {})).update(facts)
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=_plain)
        write_text(self.folder / "manifest.json", text + "\n")

    def differing(self, other: Run, ignoring: tuple[str, ...] = ()) -> dict[str, tuple]:
        """Return parameters with another value in another run: name → (here, there), None where a run lacks the name.

        Settings of a method count each for itself. Notebooks run by hand leave no parameters in the manifest: then
        nothing is known to differ.
        """
        here, there = (flat(run.manifest.get("parameters", {})) for run in (self, other))
        if not here or not there:
            return {}
        return {name: (here.get(name), there.get(name)) for name in unlike(here, there) if name not in ignoring}


def filled(values: Mapping[str, object]) -> dict[str, object]:
    """Complete the dictionaries of settings among parameters with the defaults of all fields that they leave out."""
    full = dict(values)
    for name, value in values.items():
        if (prefix := prefix_of(name, value)) is not None:
            settings = settings_of(prefix).items()
            full[name] = {one: default for one, (default, _) in settings if prefix + one not in values} | value
    return full


def _plain(value):
    """What json cannot write: numpy scalars and arrays as numbers and lists, paths as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
