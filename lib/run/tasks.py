"""Tasks: what is to be done, by whom, and what became of it.

A task leaves its result in files, goes on where it was killed, and ends at once where nothing is left to do: the
training of a fold, a trial. Who does it changes nothing in its result where device and threads are the same.
Processes of this machine do a list of tasks in `lib.run.local`, jobs of a Slurm cluster in `lib.run.slurm`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.run import local, slurm
from lib.run.files import from_root, shown, without_paths, write_text, written
from lib.run.fingerprint import source_hash
from lib.run.locks import Busy, sole_writer
from lib.run.progress import progress

OPEN = ("waiting", "running")
STATES = (*OPEN, "done", "failed")
COLUMNS = ("state", "attempts", "job", "started", "seconds", "memory_mb", "log", "error")
LARGE = 2**20  # bytes from which an array's digest stands for it in a task's key
SHORT = ["state", "attempts", "seconds", "memory_mb"]
CHOSEN = "LIB_MACHINES"  # environment variable: the fields of `Machines` but num_processes, as JSON


@dataclass(frozen=True)
class Task:
    """One thing to do.

    `do` is called without arguments, or with `watch`, and pickled for other processes. It returns True where it was
    stopped by hand before its end.
    """

    do: Callable[..., object]
    result: Path  # the file or folder that is there when it is done
    needs: tuple[Path, ...] = ()  # files that its result follows from, besides what `do` is given
    code: tuple[Callable, ...] = ()  # of `lib` that it runs, besides `do` and what that is given

    def key(self, arithmetic: str, arrays: dict[int, tuple[np.ndarray, str]]) -> str:
        """Return sixteen hexadecimal digits that change with its code, with what it is given and with what it needs.

        `arrays` holds, by `id`, large arrays that tasks were given, and their digests.
        """
        digest = hashlib.sha256(arithmetic.encode() + source_hash(*callables(self.do), *self.code).encode())
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
    """Some tasks have failed; all others are done."""


@dataclass(frozen=True)
class Machines:
    """Who does tasks.

    `num_processes` train one translator together, each on its part of a batch, or do as many tasks at a time. What else
    a cluster asks for is set by Slurm's own environment variables, for example SBATCH_QOS or SBATCH_MEM_PER_CPU.
    """

    executor: str = "local"  # this machine, or "slurm", the cluster that it belongs to
    num_processes: int = 1  # 1 on this machine: everything in this process
    partition: str = ""  # of Slurm's jobs, as are account and minutes; "": the cluster's own choice
    account: str = ""
    minutes: int = 240
    gpus: int = 1  # of each process of a job; 0: CPUs

    def __post_init__(self):
        if self.executor not in ("local", "slurm"):
            raise ValueError(f"executor={self.executor!r}: choose 'local' or 'slurm' (run_all.py --executor)")
        if self.num_processes < 1:
            raise ValueError(f"num_processes={self.num_processes}: at least one process must work")

    @classmethod
    def chosen(cls, num_processes: int = 1) -> Machines:
        """Return those that `run_all.py --executor` chose, through LIB_MACHINES; without it, this machine."""
        text = os.environ.get(CHOSEN) or "{}"
        try:
            return cls(num_processes=num_processes, **json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{CHOSEN}={text!r} is no JSON of executor, partition, account, minutes and gpus ({error}): unset it, "
                "and choose with run_all.py --executor"
            ) from error

    @property
    def threads(self) -> int:
        """Of a process: the cores are shared out. The same everywhere, since sums on a CPU depend on it."""
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


def run_tasks(
    tasks: dict[str, Task], folder: Path, machines: Machines, data_parallel: bool = False, watch=None
) -> pd.DataFrame:
    """Do all tasks and return `state, attempts, seconds, memory_mb` of each.

    Raises TasksFailed where tasks failed in other processes, after all others were done. In this process an error ends
    the work.

    Parameters
    ----------
    tasks : by name, which becomes part of file names
    folder : of the list, `runs/NAME/STAGE/tasks`; jobs that an earlier call has sent are waited for, not sent again
    data_parallel : whether `num_processes` do each task together, or as many tasks at a time
    watch : what tasks that are done in this process get as their argument of this name
    """
    todo = TaskList(folder, tasks, machines)
    if machines.executor == "local":
        slurm.cancel_jobs(todo)
    if machines.here:
        with progress(len(tasks), desc=todo.name) as bar:
            for name in tasks:
                bar.set_postfix_str(name)
                todo.do(name, **({"watch": watch} if watch else {}))
                bar.update()
        return todo.table()[SHORT]

    todo.give_out()
    if machines.executor == "slurm":
        slurm.run_jobs(todo, machines, data_parallel)
    elif data_parallel:
        for name in todo.unfinished():
            local.run_processes(todo, machines, name)
    elif todo.unfinished():
        local.run_processes(todo, machines)
    table, logs = todo.table(), todo.folder / "logs"
    failed = table[table.state == "failed"]
    reasons = [f"{name}: {row.error} (log: {row.log})" for name, row in failed.iterrows()]
    reasons += [f"{name}: another process is doing it" for name in todo.unfinished()]
    if reasons:
        raise TasksFailed(
            f"{len(reasons)} of {len(tasks)} tasks of {shown(todo.folder)} failed, all others are done; the same again "
            "goes on with what is not:\n" + "\n".join(reasons)
        )
    files = [file for file in sorted(logs.glob("*")) if file.suffix != ".pkl"]
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    for warning in dict.fromkeys(re.findall(r"^WARNING.*", text, re.MULTILINE)):  # each once
        print(warning)
    shutil.rmtree(logs, ignore_errors=True)
    for left in ("tasks.pkl", "jobs.json"):
        (todo.folder / left).unlink(missing_ok=True)
    return table[SHORT]


class TaskList:
    """Tasks by name, and what became of each.

    `folder/NAME.json` holds a task's key, state, attempts, job, start, seconds, peak of memory, log and error;
    `folder.csv` the same of all tasks as a table; `folder/tasks.pkl` this list, for other processes.
    """

    def __init__(self, folder: Path, tasks: dict[str, Task], machines: Machines):
        self.folder, self.tasks = Path(folder), tasks
        arrays: dict[int, tuple[np.ndarray, str]] = {}
        self.keys = {name: task.key(machines.arithmetic, arrays) for name, task in tasks.items()}

    @property
    def name(self) -> str:
        """The stage that the list belongs to: `cyclegan` of `runs/quick/cyclegan/tasks`."""
        return self.folder.parent.name

    def read(self, name: str) -> dict:
        """Return what is known of a task of these inputs and code; others wait, and those whose result is gone."""
        path = self.folder / f"{name}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        lost = known.get("state") == "done" and not self.tasks[name].result.exists()
        return known if known.get("key") == self.keys[name] and not lost else {"state": "waiting", "attempts": 0}

    def note(self, name: str, known: dict) -> None:
        """Write what is known of a task, and the table."""
        write_text(self.folder / f"{name}.json", json.dumps({"key": self.keys[name]} | known, indent=1))
        self.table()

    def table(self) -> pd.DataFrame:
        """Write and return `task, state, attempts, job, started, seconds, memory_mb, log, error` of all tasks.

        `job` is the number of a process or of a job of the cluster, `memory_mb` the peak of the process until then.
        """
        rows = {name: self.read(name) for name in self.tasks}
        table = pd.DataFrame.from_dict(rows, "index").reindex(columns=COLUMNS).rename_axis("task")
        write_text(self.folder.with_suffix(".csv"), table.to_csv())
        return table

    def states(self) -> dict[str, str]:
        """Return the state of each task, by name."""
        return {name: self.read(name)["state"] for name in self.tasks}

    def unfinished(self) -> list[str]:
        """Return the names of tasks that wait or are being done."""
        return [name for name, state in self.states().items() if state in OPEN]

    def lock(self, name: str):
        """Hold a task while it is done; see `lib.run.locks.sole_writer`."""
        return sole_writer(self.folder / "locks" / name, f"{self.name} {name}")

    def do(self, name: str, states: Sequence[str] = STATES, job: str = "", log: str = "", **how) -> None:
        """Do one task, if it is in one of these states, and note what became of it; `how` goes to the task.

        Raises Busy where another process is doing it.
        """
        with self.lock(name):
            start, known = time.perf_counter(), self.read(name)
            if known["state"] not in states:
                return
            known = {"state": "running", "attempts": known["attempts"] + 1, "job": job or str(os.getpid()), "log": log}
            known["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
            self.note(name, known)
            try:
                stopped = self.tasks[name].do(**how) is True
                known |= {"state": "waiting" if stopped else "done", "log": ""}
            except Exception as error:
                known |= {"state": "failed", "error": without_paths(f"{type(error).__name__}: {error}")}
                raise
            finally:
                known["seconds"] = round(time.perf_counter() - start, 1)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                known["memory_mb"] = round(peak / (2**20 if sys.platform == "darwin" else 2**10))
                self.note(name, known)

    def work(self, names: Sequence[str] = (), job: str = "", log: str = "") -> bool:
        """Do tasks that wait, and return whether none failed. Of a group of processes the first takes notes.

        Without names all that wait. One that was being done when its process died is done again only by its name,
        since it may be what it died of.
        """
        fine, together, first = True, "RANK" in os.environ, os.environ.get("RANK", "0") == "0"
        states = STATES if together else OPEN if names else ("waiting",)  # a group might hear two answers: it asks not
        for name in names or self.tasks:
            try:
                if first:
                    self.do(name, states, job, log)
                else:
                    self.tasks[name].do()
            except Busy:
                if together:  # others wait for this process
                    raise
            except Exception:
                traceback.print_exc()
                fine = False
        return fine

    def give_out(self) -> None:
        """Write the list for other processes; tasks that failed, or whose process is dead, wait again."""
        for name in [name for name, state in self.states().items() if state in ("running", "failed")]:
            with suppress(Busy), self.lock(name):
                if (known := self.read(name))["state"] != "done":
                    self.note(name, {"state": "waiting", "attempts": known["attempts"]})
        with written(self.folder / "tasks.pkl") as part:
            part.write_bytes(pickle.dumps(self))

    def give_up(self, name: str, **facts) -> None:
        """Note that a task failed whose process is gone, unless another one does it."""
        with suppress(Busy), self.lock(name):
            if (known := self.read(name))["state"] in OPEN:
                self.note(name, known | {"state": "failed"} | facts)

    def show_progress(self, going_on: Callable[[], bool], every: float) -> None:
        """Show a bar, and keep the table up to date, as long as `going_on()`, asked every so many seconds."""
        before, more = Counter(self.states().values()), True
        with progress(len(self.tasks), before["done"], desc=self.name) as bar:
            while more:
                more, counts = going_on(), Counter(self.states().values())
                if counts != before:
                    self.table()
                    bar.update(counts["done"] - before["done"])
                states = [f"{counts[state]} {state}" for state in STATES if counts[state] and state != "done"]
                bar.set_postfix_str("; ".join(filter(None, [", ".join(states), self.newest()])))
                before = counts
                if more:
                    time.sleep(every)

    def newest(self) -> str:
        """Return the last line of the log of the first task that runs."""
        for name in self.tasks:
            if (known := self.read(name))["state"] == "running" and (log := from_root(known["log"])).is_file():
                lines = log.read_text(encoding="utf-8", errors="ignore").strip().split("\n")
                return re.sub(r"\|.*?\|", " ", lines[-1])
        return ""
