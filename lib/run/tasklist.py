"""The work list: independent pieces of work, done here, by several processes, or by the jobs of a Slurm cluster.

A piece leaves its result in files, goes on where it was killed, and ends at once where nothing is left to do: the
training of a cell, a trial. Who does a piece changes nothing in its result where device and threads are the same. What
became of each stands in a file of its own, and all together in a table.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.run.files import from_root, without_paths, write_text, written
from lib.run.fingerprint import source_hash
from lib.run.locks import Busy, sole_writer
from lib.run.progress import progress

OPEN = ("waiting", "running")
STATES = (*OPEN, "done", "failed")
COLUMNS = ("state", "attempts", "job", "started", "seconds", "memory_mb", "log", "error")
LARGE = 2**20  # bytes from which an array's digest stands for it in a task's key
SHORT = ["state", "attempts", "seconds", "memory_mb"]


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Parameters
    ----------
    do : called without arguments, or with `watch`; for other processes it is pickled. It returns True where it was
        stopped by hand before its end.
    result : the file or folder that is there when it is done
    needs : files that its result follows from, besides what `do` is given: where one changes, it is done again
    """

    do: Callable[..., object]
    result: Path
    needs: tuple[Path, ...] = ()

    def key(self, arithmetic: str, arrays: dict[int, tuple[np.ndarray, str]]) -> str:
        """Return sixteen hexadecimal digits that change with its code, with what it is given and with what it needs.

        Parameters
        ----------
        arithmetic : see `Machines.arithmetic`
        arrays : by `id`, large arrays that other tasks were given, and their digests; filled
        """
        digest = hashlib.sha256(arithmetic.encode() + source_hash(*callables(self.do)).encode())
        digest.update(_Short.dumps(self, arrays))
        for path in self.needs:
            digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"-")
        return digest.hexdigest()[:16]


class _Short(pickle.Pickler):
    """Pickles with digests in the place of large arrays, each made once for all tasks that are given the array."""

    def __init__(self, file, arrays: dict[int, tuple[np.ndarray, str]]):
        super().__init__(file)
        self.arrays = arrays

    def persistent_id(self, thing) -> str | None:
        if type(thing) is not np.ndarray or thing.dtype.hasobject or thing.nbytes < LARGE:
            return None
        if id(thing) not in self.arrays:  # held as long as its number stands for it
            digest = hashlib.sha256(f"{thing.dtype.str} {thing.shape}".encode())
            digest.update(np.ascontiguousarray(thing).data.cast("B"))
            self.arrays[id(thing)] = thing, digest.hexdigest()
        return self.arrays[id(thing)][1]

    @classmethod
    def dumps(cls, thing, arrays: dict[int, tuple[np.ndarray, str]]) -> bytes:
        cls(file := io.BytesIO(), arrays).dump(thing)
        return file.getvalue()


def callables(do: Callable) -> list[Callable]:
    """Return the functions and classes of `lib` that a task calls: its own, and those that it is given."""
    if isinstance(do, partial):
        return [one for part in (do.func, *do.args, *do.keywords.values()) for one in callables(part)]
    named = callable(do) and hasattr(do, "__qualname__")
    return [do] if named and (do.__module__ or "").startswith("lib.") else []


class TasksFailed(RuntimeError):
    """Some pieces have failed; all others are done."""


@dataclass(frozen=True)
class Machines:
    """Who does the work.

    Parameters
    ----------
    executor : "local", this machine, or "slurm", the cluster that this machine belongs to
    num_processes : that train one translator together, each on its part of a batch, or do as many trials at a time; 1,
        on this machine: all in this process
    partition, account, minutes : of Slurm's jobs
    gpus : of each process of a job; 0: CPUs. What else a cluster asks for is set by Slurm's own environment
        variables, for example SBATCH_QOS or SBATCH_MEM_PER_CPU
    """

    executor: str = "local"
    num_processes: int = 1
    partition: str = ""
    account: str = ""
    minutes: int = 240
    gpus: int = 0

    def __post_init__(self):
        if self.executor not in ("local", "slurm"):
            raise ValueError(f"executor={self.executor!r}: there are 'local' and 'slurm'")
        if self.num_processes < 1:
            raise ValueError(f"num_processes={self.num_processes}: at least one process must work")

    @property
    def threads(self) -> int:
        """Of a process: the cores are shared out. The same everywhere, since sums on a CPU depend on it in their last
        bits."""
        return max(torch.get_num_threads() // self.num_processes, 1)

    @property
    def arithmetic(self) -> str:
        """What the last bits of results depend on besides inputs; what was done on another kind is done again."""
        gpu = torch.cuda.is_available() if self.executor == "local" else self.gpus
        return "GPU" if gpu else f"CPU, {self.threads} threads"

    @property
    def here(self) -> bool:
        """Whether all is done in this process, where it can be watched."""
        return self.executor == "local" and self.num_processes == 1


# The list ------------------------------------------------------------------------------------------------------------


class TaskList:
    """Pieces by name, and what became of each.

    `folder/NAME.json` holds a piece's key, state, attempts, job, time of its start, seconds, peak of memory, log and
    error; `folder.csv` the same of all pieces as a table, `folder/tasks.pkl` the pieces for other processes.

    Parameters
    ----------
    pieces : by name, which becomes part of file names
    machines : who does them
    """

    def __init__(self, folder: Path, pieces: dict[str, Task], machines: Machines):
        self.folder, self.pieces = Path(folder), pieces
        arrays: dict[int, tuple[np.ndarray, str]] = {}
        self.keys = {name: piece.key(machines.arithmetic, arrays) for name, piece in pieces.items()}

    @property
    def name(self) -> str:
        """The stage that the list belongs to: `cyclegan` of `runs/quick/cyclegan/tasks`."""
        return self.folder.parent.name

    def read(self, name: str) -> dict:
        """What is known of a piece of these inputs and code; any other waits, and so does one whose result is gone."""
        path = self.folder / f"{name}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        lost = known.get("state") == "done" and not self.pieces[name].result.exists()
        return known if known.get("key") == self.keys[name] and not lost else {"state": "waiting", "attempts": 0}

    def note(self, name: str, known: dict) -> None:
        write_text(self.folder / f"{name}.json", json.dumps({"key": self.keys[name]} | known, indent=1))
        self.table()

    def lock(self, name: str):
        """Held while a piece is done; see `lib.run.locks.sole_writer`."""
        return sole_writer(self.folder / "locks" / name, f"{self.name} {name}")

    def give_up(self, name: str, **facts) -> None:
        """Note that a piece failed whose process is gone, unless another one does it."""
        with suppress(Busy), self.lock(name):
            if (known := self.read(name))["state"] in OPEN:
                self.note(name, known | {"state": "failed"} | facts)

    def unfinished(self) -> list[str]:
        """The names of pieces that wait or are being done."""
        return [name for name in self.pieces if self.read(name)["state"] in OPEN]

    def counts(self) -> dict[str, int]:
        """How many pieces are in each state."""
        states = [self.read(name)["state"] for name in self.pieces]
        return {state: states.count(state) for state in STATES if state in states}

    def newest(self) -> str:
        """The last line of the log of the first piece that runs."""
        for name in self.pieces:
            if (known := self.read(name))["state"] == "running" and (log := from_root(known["log"])).is_file():
                with open(log, "rb") as file:
                    file.seek(max(log.stat().st_size - 400, 0))
                    lines = re.split(r"[\r\n]+", file.read().decode(errors="ignore").strip())
                return re.sub(r"\|.*?\|", " ", lines[-1])
        return ""

    def table(self) -> pd.DataFrame:
        """`piece, state, attempts, job, started, seconds, memory_mb, log, error` of all pieces, written and returned.

        `job` is the number of a process or of a job of the cluster, `memory_mb` the peak of the process until then.
        """
        rows = {name: self.read(name) for name in self.pieces}
        table = pd.DataFrame.from_dict(rows, "index").reindex(columns=COLUMNS).rename_axis("piece")
        write_text(self.folder.with_suffix(".csv"), table.to_csv())
        return table

    def do(self, name: str, states: Sequence[str] = STATES, job: str = "", log: str = "", **how) -> None:
        """Do one piece, if it is in one of these states, and note what became of it; `how` goes to the piece.

        Raises
        ------
        Busy
            Where another process is doing it.
        """
        with self.lock(name):
            start, known = time.perf_counter(), self.read(name)
            if known["state"] not in states:
                return
            known = {"state": "running", "attempts": known["attempts"] + 1, "job": job or str(os.getpid()), "log": log}
            known["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
            self.note(name, known)
            try:
                stopped = self.pieces[name].do(**how) is True
                known |= {"state": "waiting" if stopped else "done", "log": ""}
            except Exception as error:
                known |= {"state": "failed", "error": without_paths(f"{type(error).__name__}: {error}")}
                raise
            finally:
                known["seconds"] = round(time.perf_counter() - start, 1)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                known["memory_mb"] = round(peak / (2**20 if sys.platform == "darwin" else 2**10))
                self.note(name, known)

    def give_out(self) -> None:
        """Write the pieces for other processes; those that failed, or whose process is dead, wait again."""
        for name in self.pieces:
            known = self.read(name)
            with suppress(Busy):
                if known["state"] == "running":
                    with self.lock(name):
                        known["state"] = "failed"
                if known["state"] == "failed":
                    self.note(name, {"state": "waiting", "attempts": known["attempts"]})
        with written(self.folder / "tasks.pkl") as part:
            part.write_bytes(pickle.dumps(self))

    @staticmethod
    def given_out(folder: Path) -> TaskList:
        """The list that another process wrote with `give_out`."""
        return pickle.loads((Path(folder) / "tasks.pkl").read_bytes())


def show_progress(work: TaskList, going_on: Callable[[], bool], every: float) -> None:
    """A progress bar over the pieces, and the table written anew, as long as something goes on."""
    counts = work.counts()
    with progress(len(work.pieces), counts.get("done", 0), desc=work.name) as bar:
        more = True
        while more:
            more = going_on()
            now = work.counts()
            if now != counts:
                work.table()
                bar.update(now.get("done", 0) - counts.get("done", 0))
                counts = now
            states = ", ".join(f"{n} {state}" for state, n in counts.items() if state != "done")
            bar.set_postfix_str("; ".join(filter(None, [states, work.newest()])))
            if more:
                time.sleep(every)


# Several processes on this machine -----------------------------------------------------------------------------------


def work_on(work: TaskList, names: Sequence[str], job: str = "", log: str = "") -> bool:
    """Do pieces that wait; whether none failed. Of a group of processes the first notes what became of a piece.

    Without names all that wait. One that was being done when its process died is done again only by its name, since it
    may be what it died of.
    """
    fine, together = True, "RANK" in os.environ
    states = STATES if together else OPEN if names else ("waiting",)  # a group does not ask, it might hear two answers
    for name in names or work.pieces:
        try:
            if os.environ.get("RANK", "0") == "0":
                work.do(name, states, job, log)
            else:
                work.pieces[name].do()
        except Busy:
            if together:  # others wait for this process
                raise
        except Exception:
            traceback.print_exc()
            fine = False
    return fine
