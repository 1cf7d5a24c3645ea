"""The run: a folder that knows its parameters, versions, seeds, hardware, what is finished and what it took.

Nothing here knows papermill or loads torch, so every other file may use it.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from lib.run.files import cannot_write, from_root, shown, write_text
from lib.run.locks import HOLDER, Busy, held_by, holder
from lib.run.settings import changed, filled, flat, unlike


class NotYet(FileNotFoundError):
    """A notebook was run before the one that makes what it needs."""


class Damaged(ValueError):
    """A manifest that is no JSON."""


def read_manifest(folder: Path) -> dict:
    """Return what a run's `manifest.json` holds; nothing where there is none."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
        return manifest
    except ValueError as error:
        raise Damaged(f"{shown(path)} is damaged ({error}): delete it, and the run starts over") from error


class Run:
    """A run's folder and its `manifest.json`.

    The folder is made where it is missing; a relative path counts from the repository. Raises OSError where it cannot
    be made or written.
    """

    def __init__(self, run_dir: str | Path):
        self.folder = from_root(run_dir)
        self.path("manifest.json")
        if not os.access(self.folder, os.W_OK):
            raise cannot_write(self.folder, PermissionError(errno.EACCES, "no permission"))

    def path(self, *parts: str) -> Path:
        """Return a path inside the run, and make its folder."""
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
        """Return the path of a file that an earlier notebook has made; raise NotYet where it is missing."""
        path = self.folder / part
        if not path.exists():
            raise NotYet(
                f"{shown(path)} is missing: run notebook {notebook} first "
                f"(or run_all.py with this run's options and --from {notebook[:2]})"
            )
        return path

    @property
    def manifest(self) -> dict:
        """Read what `manifest.json` holds; empty before the first record."""
        return read_manifest(self.folder)

    def check_parameters(self, notebook: str, values: dict) -> None:
        """Refuse a notebook, with its `globals()`, that would overwrite what the run made.

        Raises Busy where another process holds the run, and did not start this one; ValueError where the run was made
        with other parameters. Those that the notebook does not know any more may differ.
        """
        if os.environ.get(HOLDER) != str(self.folder.resolve()) and (owner := holder(self.folder)) is not None:
            raise Busy(held_by(self.folder, owner))
        past = self.manifest.get("notebooks", {}).get(notebook, {}).get("parameters", {})
        if other := changed(past, filled(values)):
            said = ", ".join(f"{name} = {here!r} (there {there!r})" for name, (there, here) in other.items())
            folder = shown(self.folder)
            raise ValueError(
                f"{folder} was made with other parameters, and would be overwritten: {said}. Set them as there, or "
                f"work on a copy: `cp -r {folder} {folder}-mine && rm {folder}-mine/manifest.json`, and "
                f'run_dir = "runs/{self.folder.name}-mine"'
            )

    def record(self, section: str | None = None, /, **facts) -> None:
        """Merge facts into the manifest, into a section of it where one is named."""
        manifest = self.manifest
        (manifest if section is None else manifest.setdefault(section, {})).update(facts)

        def plain(value):
            return value.tolist() if hasattr(value, "tolist") else str(value)  # of numpy; paths

        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=plain)
        write_text(self.folder / "manifest.json", text + "\n")

    def differing(self, other: Run, ignoring: tuple[str, ...] = ()) -> dict[str, tuple]:
        """Return parameters with another value in another run: name → (here, there), None where a run lacks the name.

        Each setting counts for itself. Where notebooks ran by hand, the manifest has no parameters: none differ then.
        """
        here, there = (flat(run.manifest.get("parameters", {})) for run in (self, other))
        if not here or not there:
            return {}
        return {name: (here.get(name), there.get(name)) for name in unlike(here, there) if name not in ignoring}
