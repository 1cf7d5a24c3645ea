"""The work list: independent pieces of work, done here, by several processes, or by the jobs of a Slurm cluster.

A piece leaves its result in files, goes on where it was killed, and ends at once where nothing is left to do: the
training of a cell, a trial. Who does a piece changes nothing in its result where device and threads are the same. What
became of each stands in a file of its own, and all together in a table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
import psutil
import submitit
import torch
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from lib.files import ROOT, from_root, shown, without_paths, write_text, written
from lib.locks import Busy, sole_writer
from lib.runs import progress

OPEN = ("waiting", "running")
STATES = (*OPEN, "done", "failed")
COLUMNS = ("state", "attempts", "job", "started", "seconds", "memory_mb", "log", "error")
SHORT = ["state", "attempts", "seconds", "memory_mb"]
CPUS_BESIDE_GPUS = 4  # a process
ARRAY = 1000  # jobs, the largest array that Slurm takes as it is installed
REQUEUED = 100  # times, at most, that a job whose minutes are over goes on in another
UNSEEN = 15  # seconds that a job may be in no queue before it counts as dead: files may arrive later than that news


@dataclass(frozen=True)
class Piece:
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

    def key(self, code: bytes) -> str:
        """Sixteen hexadecimal digits that change with the code, with what it is given and with what it needs."""
        digest = hashlib.sha256(code + pickle.dumps(self))
        for path in self.needs:
            digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"-")
        return digest.hexdigest()[:16]


class WorkFailed(RuntimeError):
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


class WorkList:
    """Pieces by name, and what became of each.

    `folder/NAME.json` holds a piece's key, state, attempts, job, time of its start, seconds, peak of memory, log and
    error; `folder.csv` the same of all pieces as a table, `folder/pieces.pkl` the pieces for other processes.

    Parameters
    ----------
    pieces : by name, which becomes part of file names
    machines : who does them
    """

    def __init__(self, folder: Path, pieces: dict[str, Piece], machines: Machines):
        self.folder, self.pieces = Path(folder), pieces
        code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted((ROOT / "lib").rglob("*.py")))).digest()
        self.keys = {name: piece.key(code + machines.arithmetic.encode()) for name, piece in pieces.items()}

    @property
    def name(self) -> str:
        """The stage that the list belongs to: `cyclegan` of `runs/quick/cyclegan/work`."""
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
        """Held while a piece is done; see `lib.locks.sole_writer`."""
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
        with written(self.folder / "pieces.pkl") as part:
            part.write_bytes(pickle.dumps(self))

    @staticmethod
    def given_out(folder: Path) -> WorkList:
        """The list that another process wrote with `give_out`."""
        return pickle.loads((Path(folder) / "pieces.pkl").read_bytes())


def carry_out(
    pieces: dict[str, Piece], folder: Path, machines: Machines, data_parallel: bool = False, watch=None
) -> pd.DataFrame:
    """Do all pieces and return `state, attempts, seconds, memory_mb` of each, the short form of `WorkList.table`.

    Parameters
    ----------
    pieces : by name; for other processes they are pickled
    folder : of the list; jobs that an earlier call has sent to the cluster are waited for, not sent again
    data_parallel : whether `num_processes` do each piece together, or as many pieces at a time
    watch : what pieces that are done in this process get as their argument of this name

    Raises
    ------
    WorkFailed
        Where pieces failed in other processes, after all others were done. In this process an error ends the work.
    """
    work = WorkList(folder, pieces, machines)
    if machines.executor == "local":
        call_off(work)
    if machines.here:
        with progress(len(pieces), desc=work.name) as bar:
            for name in pieces:
                bar.set_postfix_str(name)
                work.do(name, **({"watch": watch} if watch else {}))
                bar.update()
        return work.table()[SHORT]

    work.give_out()
    if machines.executor == "slurm":
        through_cluster(work, machines, data_parallel)
    elif data_parallel:
        for name in work.unfinished():
            through_processes(work, machines, name)
    elif work.unfinished():
        through_processes(work, machines)
    table = work.table()
    failed = table[table.state != "done"]
    if len(failed):
        raise WorkFailed(
            f"{len(failed)} of {len(pieces)} pieces of {shown(work.folder)} failed, all others are done; the same "
            "again goes on with what is not:\n" + "\n".join(f"{row.Index}: {said(row)}" for row in failed.itertuples())
        )
    for left in ("pieces.pkl", "jobs.json"):
        (work.folder / left).unlink(missing_ok=True)
    for line in warnings_of(work.folder / "logs"):
        print(line)
    shutil.rmtree(work.folder / "logs", ignore_errors=True)
    return table[SHORT]


def said(row) -> str:
    """Of a row of the table, why the piece is not done."""
    return f"{row.error} (log: {row.log})" if row.state == "failed" else "another process is doing it"


def warnings_of(logs: Path) -> list[str]:
    """What the pieces' logs warn of, each line once."""
    texts = [
        file.read_text(encoding="utf-8", errors="replace") for file in sorted(logs.glob("*")) if file.suffix != ".pkl"
    ]
    lines = [line.strip() for text in texts for line in re.split(r"[\r\n]", text)]
    return list(dict.fromkeys(line for line in lines if line.startswith("WARNING")))


def show_progress(work: WorkList, going_on: Callable[[], bool], every: float) -> None:
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


def through_processes(work: WorkList, machines: Machines, name: str = "") -> None:
    """Let processes do all pieces, each as many as it gets to, or one piece together; returns when they have ended.

    The cores are shared out among them, and GPUs one after the other.
    """
    n, command, logs = machines.num_processes, [sys.executable, "-m"], work.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m"] if name else []
    command += [*together, "lib.work", str(work.folder), *([name] if name else [])]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    if name and gpus != [""] and n > len(gpus):
        raise ValueError(f"num_processes={n}: there are {len(gpus)} GPUs, and each process that trains needs one")
    workers = []
    try:
        for number in range(1 if name else n):
            log = logs / f"{name or f'process{number}'}.log"
            environment = os.environ | {"LIB_PROGRESS": "text", "LIB_PARENT": str(os.getpid()), "LIB_LOG": shown(log)}
            environment |= {"OMP_NUM_THREADS": str(machines.threads), "PYTHONPATH": str(ROOT)}
            if not name and gpus != [""]:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            with open(log, "ab") as file:
                workers.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file))
        show_progress(work, lambda: any(worker.poll() is None for worker in workers), every=0.5)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
    ends = ", ".join(str(worker.returncode) for worker in workers)
    for left in {name} & set(work.unfinished()) if name else work.unfinished():
        log = work.read(left).get("log") or shown(logs)
        work.give_up(left, log=log, error=f"its process ended before it was done (exit status {ends})")


def work_on(work: WorkList, names: Sequence[str], job: str = "", log: str = "") -> bool:
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


def end_with(parent: int) -> None:
    """End this process where the one that started it was killed."""
    while psutil.pid_exists(parent):
        time.sleep(1)
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Do pieces of a work list.")
    parser.add_argument("folder", type=Path, help="of the list")
    parser.add_argument("names", nargs="*", help="of pieces (default: all that nobody has begun)")
    options = parser.parse_args()
    threading.Thread(target=end_with, args=(int(os.environ["LIB_PARENT"]),), daemon=True).start()
    work = WorkList.given_out(options.folder)
    return 0 if work_on(work, options.names, log=os.environ["LIB_LOG"]) else 1


# A cluster -----------------------------------------------------------------------------------------------------------


class Job(Checkpointable):
    """A piece as a job of the cluster; sent there again where the cluster takes its place or its minutes are over."""

    def __call__(self, folder: Path, name: str, key: str, threads: int) -> None:
        environment = submitit.JobEnvironment()
        os.environ["LIB_PROGRESS"] = "text"
        torch.set_num_threads(threads)
        if environment.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        log = shown(environment.paths.stderr)
        work, fine = WorkList.given_out(folder), True
        if work.keys.get(name) != key:
            sys.exit(f"{name} is another piece by now: this job is no longer wanted")
        while fine and (environment.num_tasks > 1 or work.read(name)["state"] in OPEN):
            fine = work_on(work, [name], environment.job_id, log)
            if environment.num_tasks > 1:
                break
            time.sleep(1)  # a job that was called off may still be ending
        if not fine:
            sys.exit(1)


def through_cluster(work: WorkList, machines: Machines, data_parallel: bool) -> None:
    """Send the pieces as arrays of jobs, and wait for them. Jobs of an earlier call are waited for as they are; those
    whose piece has become another are called off."""
    sent_file, everything = work.folder / "jobs.json", work.unfinished()
    sent, queued = call_off(work, keep=work.keys), queue()
    new = [name for name in everything if name not in sent]
    processes = machines.num_processes if data_parallel else 1
    threads = CPUS_BESIDE_GPUS if machines.gpus else machines.threads
    executor = submitit.AutoExecutor(work.folder / "logs", cluster="slurm", slurm_max_num_timeout=REQUEUED)
    executor.update_parameters(
        name=work.name,
        timeout_min=machines.minutes,
        tasks_per_node=processes,
        cpus_per_task=threads,
        **({"gpus_per_node": processes * machines.gpus} if machines.gpus else {}),
        **({"slurm_partition": machines.partition} if machines.partition else {}),
        **({"slurm_account": machines.account} if machines.account else {}),
    )
    for start in range(0, len(new), ARRAY):
        names = new[start : start + ARRAY]
        with executor.batch():
            jobs = [executor.submit(Job(), work.folder, name, work.keys[name], threads) for name in names]
        sent |= {name: job.job_id for name, job in zip(names, jobs, strict=True)}
        write_text(sent_file, json.dumps({name: (job, work.keys[name]) for name, job in sent.items()}, indent=1))
    unseen = {}

    def going_on() -> bool:
        nonlocal queued
        left, queued = work.unfinished(), queue(queued)
        for name in left:
            if sent[name] in queued:
                unseen.pop(name, None)
            elif time.monotonic() - unseen.setdefault(name, time.monotonic()) > UNSEEN:
                log = shown(work.folder / "logs" / f"{sent[name]}_0_log.err")
                error = f"job {sent[name]} ended before it was done: {what_became_of(sent[name])}"
                work.give_up(name, job=sent[name], log=log, error=error)
        return bool(left or queued & set(sent.values()))  # a job that is done still writes into the folder of logs

    try:
        show_progress(work, going_on, every=2)
    except KeyboardInterrupt:
        going = sorted({sent[name].split("_")[0] for name in work.unfinished()})
        print(f"Jobs {' '.join(going)} go on; the same again waits for them, `scancel {' '.join(going)}` ends them.")
        raise


def call_off(work: WorkList, keep: dict[str, str] | None = None) -> dict[str, str]:
    """End the jobs that earlier calls have sent and that still wait or run, but for those of pieces with these keys;
    the jobs that go on, by piece."""
    sent_file, keep = work.folder / "jobs.json", keep or {}
    if not sent_file.exists():
        return {}
    past, queued = json.loads(sent_file.read_text(encoding="utf-8")), queue()
    kept = {name: job for name, (job, key) in past.items() if job in queued and keep.get(name) == key}
    others = {job for job, _ in past.values()} & queued - set(kept.values())
    if others:
        print(f"Jobs {' '.join(sorted(others))} of an earlier call do what is no longer wanted: they are called off.")
        subprocess.run(["scancel", *others], check=True)
    while others & queue():
        time.sleep(1)
    if not kept:
        sent_file.unlink()
    return kept


def queue(before: set[str] | None = None) -> set[str]:
    """The numbers of this user's jobs that wait or run, ARRAY_INDEX in arrays; where Slurm is silent, those before.

    Raises
    ------
    RuntimeError
        Where nothing is known from before, and Slurm has been asked for a minute.
    """
    for _ in range(1 if before is not None else 12):
        asked = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True
        )
        if not asked.returncode:
            return set(asked.stdout.split())
        print(f"Slurm does not answer: {asked.stderr.strip()}")
        if before is not None:
            return before
        time.sleep(5)
    raise RuntimeError("Slurm does not answer, so nobody knows which jobs run. The same again goes on once it does.")


def what_became_of(job: str) -> str:
    """What Slurm still knows of a job that has ended."""
    told = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True).stdout
    found = re.findall(r"\b((?:JobState|Reason|ExitCode)=\S+)", told)
    return ", ".join(found) or "Slurm does not know it any more"


if __name__ == "__main__":
    sys.exit(main())
