"""The run: a folder that knows its parameters, versions, seeds, hardware, what is finished and what it took.

Nothing here knows papermill, and only `environment` loads torch, so every other file may use it.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path

import psutil
import tqdm
import tqdm.auto
from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]  # the repository
WHERE = ("executor", "slurm_partition", "slurm_gpus", "slurm_minutes", "slurm_account")  # parameters: no result follows
LOCK = ".lock"  # the file that says who writes a folder
HOLDER = "LIB_SOLE_WRITER"  # environment variable: the folder that this process's starter holds, and so does it
BEAT, STALE = 30, 180  # seconds between a holder's signs of life; without one for so long, it is dead
PATIENCE = 60  # seconds that the kernel of a killed holder is waited for


class NotYet(FileNotFoundError):
    """A notebook was run before the one that makes what it needs."""


class Damaged(ValueError):
    """A manifest that is no JSON."""


class Busy(RuntimeError):
    """Another process writes the folder; the message says which, since when, and what to do."""


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
            raise _cannot_write(self.folder, error) from error
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
            raise _cannot_write(path.parent, error) from error
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

    def keep(self, notebook: str, values: dict) -> None:
        """Refuse a notebook run by hand before it overwrites what the run made, or writes it beside `run_all.py`.

        Parameters
        ----------
        values : the notebook's `globals()`; `run_all.py` records what it is about to run with first

        Raises
        ------
        Busy
            Where another process holds the run, and did not start this one.
        ValueError
            Where the run was made with other parameters; those that say only where to train (`WHERE`) may differ.
        """
        if os.environ.get(HOLDER) != str(self.folder.resolve()) and (owner := holder(self.folder)) is not None:
            raise Busy(_held_by(self.folder, owner))
        past = self.manifest.get("notebooks", {}).get(notebook, {}).get("parameters", {})
        unlike = [
            f"{name} = {values[name]!r} (there {old!r})"
            for name, old in past.items()
            if name not in WHERE and values.get(name) != old
        ]
        if unlike:
            folder, name = shown(self.folder), self.folder.name
            raise ValueError(
                f"{folder} was made with other parameters, and would be overwritten: {', '.join(unlike)}. Set them as "
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
        """Parameters that have another value in another run: name → (here, there), None where a run lacks the name.

        Parameters that say only where to train (`WHERE`) are left out. Notebooks run by hand leave no parameters in the
        manifest: then nothing is known to differ.
        """
        here, there = (run.manifest.get("parameters") for run in (self, other))
        if not here or not there:
            return {}
        names = sorted((here.keys() | there.keys()) - {*ignoring, *WHERE})
        return {name: (here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)}


def duration(seconds: float) -> str:
    """How long that is, in the unit one would say it in.

    >>> duration(20), duration(420), duration(9000)
    ('20 seconds', '7.0 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def progress(total: int, initial: int = 0, desc: str = "") -> tqdm.tqdm:
    """A progress bar: a widget in Jupyter, one text line every few seconds in a headless run (LIB_PROGRESS=text)."""
    kind = os.environ.get("LIB_PROGRESS")
    if kind in ("text", "none"):
        return tqdm.tqdm(total=total, initial=initial, desc=desc, mininterval=10, ncols=100, disable=kind == "none")
    return tqdm.auto.tqdm(total=total, initial=initial, desc=desc)


@contextmanager
def no_progress():
    """No progress bars of what runs inside."""
    before, os.environ["LIB_PROGRESS"] = os.environ.get("LIB_PROGRESS"), "none"
    try:
        yield
    finally:
        os.environ.pop("LIB_PROGRESS")
        if before:
            os.environ["LIB_PROGRESS"] = before


@contextmanager
def written(path: str | Path):
    """A path to write to, which becomes `path` when all is written: readers never see half a file.

    The file is on the disk before it takes its place, and its place before this returns, so that a power cut leaves the
    old file or the new one. Where writing fails (a full disk, no permission) the old file stays and the error names the
    file.
    """
    path = Path(path)
    part = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, which tells writers the format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _to_disk(part)
        os.replace(part, path)
        with suppress(OSError):  # Windows opens no folders, and some file systems sync none
            _to_disk(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def sole_writer(folder: str | Path, what: str) -> Iterator[int]:
    """Hold a folder against every other process: `with sole_writer("runs/quick", "run_all.py"): ...`.

    The lock is flock on the folder's `.lock`, so that it is free once its holder and whoever was given the descriptor
    have ended, however they ended. The file says who holds it, and its time is renewed every half minute: where flock
    ends at the machine (some network file systems) or is missing (Windows, where two processes that start in the same
    instant are not kept apart), a holder counts that gave a sign of life in the last three minutes. One that sleeps
    longer, a paused machine's for example, is taken for dead there. The file is emptied in the end, never deleted:
    others may be waiting at it.

    Parameters
    ----------
    folder : created where it is missing
    what : who holds it, as messages name it

    Yields
    ------
    The file's descriptor, for processes that shall hold the lock on when this one is killed (`Popen(pass_fds=…)`).

    Raises
    ------
    Busy
        Where another process holds it: at once where that process lives; after a minute where it was killed and what it
        started lives on; after its next sign of life, or never, where it was on another machine.
    OSError
        Where the folder cannot be written.
    """
    folder = from_root(folder)
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _cannot_write(path, error) from error
    ended, before = threading.Event(), os.environ.get(HOLDER)
    try:
        began, beat = time.monotonic(), path.stat().st_mtime_ns
        state, owner = _state(descriptor, path)
        if state in ("orphaned", "silent"):
            wait = f"waiting until its kernel has ended, at most {PATIENCE} s"
            if state == "silent":
                wait = f"waiting for a sign of life, at most {STALE} s"
            print(f"{shown(folder)} was being written by {_said(owner)}: {wait}", file=sys.stderr, flush=True)
        while state != "free":
            late = state == "orphaned" and time.monotonic() - began > PATIENCE
            if state == "held" or late or (state == "silent" and path.stat().st_mtime_ns != beat):
                raise Busy(_held_by(folder, owner))
            time.sleep(0.2)
            state, owner = _state(descriptor, path)
        if owner:
            print(f"{shown(folder)}: {_said(owner)} has ended before its end; going on", file=sys.stderr, flush=True)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        content = json.dumps({"host": platform.node(), "pid": os.getpid(), "what": what, "since": since})
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, content.encode())
        except OSError as error:
            raise _cannot_write(path, error) from error
        threading.Thread(target=_renew, args=(path, ended), daemon=True).start()
        os.environ[HOLDER] = str(folder.resolve())
        try:
            yield descriptor
        finally:
            ended.set()
            os.environ.pop(HOLDER)
            if before is not None:
                os.environ[HOLDER] = before
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            if fcntl:
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # for whoever was given the descriptor, too
    finally:
        os.close(descriptor)


def holder(folder: Path) -> dict | None:
    """Who holds a folder (`sole_writer`): host, pid, what, since, as far as known; None where nobody does."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        state, owner = _state(descriptor, folder / LOCK)
        return None if state == "free" else owner
    finally:
        os.close(descriptor)


def _state(descriptor: int, path: Path) -> tuple[str, dict]:
    """Whether a lock is "free" (and then taken), "held", held on by what a dead process started ("orphaned"), or was
    lately another machine's ("silent"); and whom it names."""
    locked = False  # None: there is no flock here
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        locked = True
    except OSError:
        locked = None
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nobody, or somebody who is just writing his name
        owner = {}
    here = owner.get("host", platform.node()) == platform.node()
    lives = here and "pid" in owner and psutil.pid_exists(owner["pid"])
    fresh = bool(owner) and time.time() - path.stat().st_mtime < STALE
    if locked:
        return "orphaned" if here and not lives else "held", owner
    if not here:
        return "silent" if fresh else "free", owner
    flock_says = fcntl is not None and locked is not None
    return "held" if lives and fresh and not flock_says else "free", owner


def _renew(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _said(owner: dict) -> str:
    where = f"process {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "another process"
    return f"{owner['what']} ({where})" if owner else where


def _held_by(folder: Path, owner: dict) -> str:
    return f"{shown(folder)} is being written by {_said(owner)}: wait for its end, end it, or take another run"


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written(path) as part:
        part.write_text(text, encoding="utf-8")


def write_together(folder: Path, texts: dict[str, str]) -> None:
    """Write text files of which none may be read beside an old one of another: all are removed first, so that where the
    last is there, all are."""
    for name in reversed(texts):
        (folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def from_root(path: str | Path) -> Path:
    """A path as parameters give it: relative ones count from the repository."""
    return ROOT / Path(path).expanduser()


def shown(path: str | Path) -> str:
    """A path as messages show it: from the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def code_files(source: str, root: Path = ROOT) -> list[Path]:
    """The files of `lib` that some Python source imports, and those that they import in turn, sorted.

    Two runs of a notebook can differ where one of these differs, so they are part of its fingerprint.
    """
    found, queue = set(), [(source, root)]
    while queue:
        source, folder = queue.pop()
        for name in _imported(source, folder.relative_to(root).parts):
            stem = root.joinpath(*name.split("."))
            for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                if file.is_file() and file not in found:
                    found.add(file)
                    queue.append((file.read_text(encoding="utf-8"), file.parent))
    return sorted(found)


def _imported(source: str, package: tuple[str, ...]):
    """Dotted names below `lib` that source, lying in a package, imports; some may be no modules but what they hold."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for parts in (name.split(".") for name in names):
            if parts[0] == "lib":
                yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def environment() -> dict:
    """Versions of Python and of the project's dependencies, commit, device and processor.

    Finding the device may claim the GPU, so `run_all.py` asks for this in a process of its own.
    """
    import torch

    if torch.cuda.is_available():
        device = f"cuda: {torch.cuda.get_device_name()}"
    else:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
    commit, dirty = _commit()
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
    }


def _versions() -> dict[str, str]:
    """Installed versions of the dependencies that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]]
    installed = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in installed.items() if name}
    return {name: normal.get(name.lower(), "not installed") for name in names}


def _commit() -> tuple[str | None, bool | None]:
    """The repository's commit and whether files differ from it; (None, None) outside git."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (model := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        return model[1]
    return platform.processor() or platform.machine()


def _plain(value):
    """What json cannot write: numpy scalars and arrays as numbers and lists, paths as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _cannot_write(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or error
    remedy = "free space, change permissions or take another run"
    message = f"cannot write {shown(path)}: {reason}; {remedy}"
    number = getattr(error, "errno", None)
    return OSError(message) if number is None else OSError(number, message)
