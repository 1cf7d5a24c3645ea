"""One process at a time: a lock on a folder, which says who holds it and is free when its holder has ended."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psutil

from lib.run.files import cannot_write, from_root, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"  # the file that says who writes a folder
HOLDER = "LIB_SOLE_WRITER"  # environment variable: the folder that this process's starter holds, and so does it
BEAT, STALE = 30, 180  # seconds between a holder's signs of life; without one for so long, it is dead
PATIENCE = 60  # seconds that the kernel of a killed holder is waited for


class Busy(RuntimeError):
    """Another process writes the folder; the message says which, since when, and what to do."""


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
        raise cannot_write(path, error) from error
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
                raise Busy(held_by(folder, owner))
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
            raise cannot_write(path, error) from error
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


def held_by(folder: Path, owner: dict) -> str:
    if owner.get("host") == platform.node() and not psutil.pid_exists(owner["pid"]):
        said = f"a process that {_said(owner)} had started, which itself has ended"
        return f"{shown(folder)} is being written by {said}: end it (a kernel?), or take another run"
    return f"{shown(folder)} is being written by {_said(owner)}: wait for its end, end it, or take another run"
