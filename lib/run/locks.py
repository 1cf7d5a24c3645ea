"""One process at a time: a lock on a folder, which says who holds it and is free when its holder has ended."""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

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
    """Hold a folder, made where it is missing, against every other process; messages name `what` holds it.

    The lock is flock on the folder's `.lock`, so that it is free once its holder and whoever was given the descriptor
    have ended, however they ended. The file says who holds it, and its time is renewed every half minute. Where flock
    ends at the machine (some network file systems) or is missing (Windows, where two that start in the same instant are
    not kept apart), a holder counts that gave a sign of life in the last three minutes. The file is emptied in the end,
    never deleted: others may be waiting at it. (filelock, which comes with torch, neither hands its lock on to
    children nor says who holds it.) Yields the file's descriptor, for processes that shall hold the lock on when this
    one is killed (`Popen(pass_fds=…)`).

    Raises
    ------
    Busy
        Where another process holds it: at once where that process lives; after a minute where it was killed and what it
        started lives on; after its next sign of life, or never, where it was on another machine.
    OSError
        Where the folder cannot be written.
    """
    folder = from_root(folder)
    path, ended, before = folder / LOCK, threading.Event(), os.environ.get(HOLDER)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+", encoding="utf-8"))
            _wait(file, path)
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            file.truncate(0)
            file.write(json.dumps({"host": platform.node(), "pid": os.getpid(), "what": what, "since": since}))
            file.flush()
        except OSError as error:
            raise cannot_write(path, error) from error
        threading.Thread(target=_renew, args=(path, ended), daemon=True).start()
        os.environ[HOLDER] = str(folder.resolve())
        try:
            yield file.fileno()
        finally:
            ended.set()
            os.environ.pop(HOLDER)
            if before is not None:
                os.environ[HOLDER] = before
            with suppress(OSError):
                file.truncate(0)
            with suppress(OSError, AttributeError):
                fcntl.flock(file, fcntl.LOCK_UN)  # for whoever was given the descriptor, too


def holder(folder: Path) -> dict | None:
    """Return who holds a folder: host, pid, what, since, as far as known; None where nobody does."""
    with suppress(OSError), open(folder / LOCK, "r+", encoding="utf-8") as file:
        state, owner = _state(file, folder / LOCK)
        return None if state == "free" else owner
    return None


def held_by(folder: Path, owner: dict) -> str:
    """Return the message that a folder is held by this owner, and what to do."""
    said, remedy = _said(owner), "wait for its end, end it, or take another run"
    if owner.get("host") == platform.node() and not psutil.pid_exists(owner["pid"]):
        said = f"a process that {said} had started, which itself has ended"
        remedy = "end it (a kernel?), or take another run"
    return f"{shown(folder)} is being written by {said}: {remedy}"


def _wait(file: TextIO, path: Path) -> None:
    """Return once the lock is free, and taken; raise Busy where its holder lives."""
    folder, began, beat = shown(path.parent), time.monotonic(), path.stat().st_mtime_ns
    waits = {"orphaned": f"until its kernel has ended, at most {PATIENCE} s"}
    waits |= {"silent": f"for a sign of life, at most {STALE} s"}
    while (found := _state(file, path))[0] != "free":
        state, owner = found
        late = state == "orphaned" and time.monotonic() - began > PATIENCE
        if state == "held" or late or (state == "silent" and path.stat().st_mtime_ns != beat):
            raise Busy(held_by(path.parent, owner))
        if wait := waits.pop(state, ""):
            print(f"{folder} was being written by {_said(owner)}: waiting {wait}", file=sys.stderr, flush=True)
        time.sleep(0.2)
    if found[1]:
        print(f"{folder}: {_said(found[1])} has ended before its end; going on", file=sys.stderr, flush=True)


def _state(file: TextIO, path: Path) -> tuple[str, dict]:
    """Take a lock, or say why not, and whom it names.

    It is "free" (and then taken), "held", held on by what a dead process started ("orphaned"), or was lately another
    machine's ("silent").
    """
    locked = False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        locked = True
    except (OSError, AttributeError):  # there is no flock here
        locked = None
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nobody, or somebody who is just writing their name
        owner = {}
    here = owner.get("host", platform.node()) == platform.node()
    lives = here and "pid" in owner and psutil.pid_exists(owner["pid"])
    fresh = bool(owner) and time.time() - path.stat().st_mtime < STALE
    if locked:
        return "orphaned" if here and not lives else "held", owner
    if here:
        return "held" if locked is None and lives and fresh else "free", owner
    return "silent" if fresh else "free", owner


def _renew(path: Path, ended: threading.Event) -> None:
    """Give signs of life until the holder has ended."""
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _said(owner: dict) -> str:
    if not owner:
        return "another process"
    return f"{owner['what']} (process {owner['pid']} on {owner['host']}, since {owner['since']})"
