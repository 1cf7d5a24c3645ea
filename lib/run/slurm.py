"""run.slurm"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import submitit
import torch
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from lib.run.files import shown, write_text
from lib.run.tasklist import OPEN, Machines, TaskList, show_progress, work_on

CPUS_BESIDE_GPUS = 4  # a process


ARRAY = 1000  # jobs, the largest array that Slurm takes as it is installed


REQUEUED = 100  # times, at most, that a job whose minutes are over goes on in another


UNSEEN = 15  # seconds that a job may be in no queue before it counts as dead: files may arrive later than that news


class Job(Checkpointable):
    """A piece as a job of the cluster; sent there again where the cluster takes its place or its minutes are over."""

    def __call__(self, folder: Path, name: str, key: str, threads: int) -> None:
        environment = submitit.JobEnvironment()
        os.environ["LIB_PROGRESS"] = "text"
        torch.set_num_threads(threads)
        if environment.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        log = shown(environment.paths.stderr)
        work, fine = TaskList.given_out(folder), True
        if work.keys.get(name) != key:
            sys.exit(f"{name} is another piece by now: this job is no longer wanted")
        while fine and (environment.num_tasks > 1 or work.read(name)["state"] in OPEN):
            fine = work_on(work, [name], environment.job_id, log)
            if environment.num_tasks > 1:
                break
            time.sleep(1)  # a job that was called off may still be ending
        if not fine:
            sys.exit(1)


def through_cluster(work: TaskList, machines: Machines, data_parallel: bool) -> None:
    """Send the pieces as arrays of jobs, and wait for them. Jobs of an earlier call are waited for as they are; those
    whose piece has become another are called off."""
    sent_file, everything = work.folder / "jobs.json", work.unfinished()
    sent, queued = cancel_jobs(work, keep=work.keys), queue()
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
                error = f"job {sent[name]} ended before it was done: {job_status(sent[name])}"
                work.give_up(name, job=sent[name], log=log, error=error)
        return bool(left or queued & set(sent.values()))  # a job that is done still writes into the folder of logs

    try:
        show_progress(work, going_on, every=2)
    except KeyboardInterrupt:
        going = sorted({sent[name].split("_")[0] for name in work.unfinished()})
        print(f"Jobs {' '.join(going)} go on; the same again waits for them, `scancel {' '.join(going)}` ends them.")
        raise


def cancel_jobs(work: TaskList, keep: dict[str, str] | None = None) -> dict[str, str]:
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


def job_status(job: str) -> str:
    """What Slurm still knows of a job that has ended."""
    told = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True).stdout
    found = re.findall(r"\b((?:JobState|Reason|ExitCode)=\S+)", told)
    return ", ".join(found) or "Slurm does not know it any more"
