"""Jobs of a Slurm cluster that do a list of tasks: sent as arrays, waited for, cancelled.

submitit sends them and sends them again where the cluster takes their place. What it knows of their state comes from
sacct, which clusters without accounting lack, so that dead jobs would be waited for: squeue and scontrol are asked.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import submitit
import torch
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from lib.run.files import shown, write_text

CPUS_BESIDE_GPUS = 4  # a process
ARRAY = 1000  # jobs, the largest array that Slurm takes as it is installed
REQUEUED = 100  # times, at most, that a job whose minutes are over goes on in another
UNSEEN = 15  # seconds that a job may be in no queue before it counts as dead: files may arrive later than that news


class Job(Checkpointable):
    """A task as a job of the cluster; sent there again where the cluster takes its place or its minutes are over."""

    def __call__(self, folder: Path, name: str, key: str, threads: int) -> None:
        environment = submitit.JobEnvironment()
        os.environ["LIB_PROGRESS"] = "text"
        torch.set_num_threads(threads)
        if together := environment.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        todo = pickle.loads((folder / "tasks.pkl").read_bytes())
        if todo.keys.get(name) != key:
            sys.exit(f"{name} is another task by now: this job is no longer wanted")
        while todo.work([name], environment.job_id, shown(environment.paths.stderr)):
            if together or name not in todo.unfinished():
                return
            time.sleep(1)  # a job that was cancelled may still be ending
        sys.exit(1)


def run_jobs(todo, machines, data_parallel: bool) -> None:
    """Send a `TaskList` as arrays of jobs, and wait for them; `data_parallel` gives each job `num_processes`.

    Jobs of an earlier call are waited for as they are; those whose task has become another are cancelled.
    """
    unfinished, logs = todo.unfinished(), todo.folder / "logs"
    sent = cancel_jobs(todo, keep=todo.keys)
    new = [name for name in unfinished if name not in sent]
    processes = machines.num_processes if data_parallel else 1
    threads = CPUS_BESIDE_GPUS if machines.gpus else machines.threads
    executor = submitit.AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=REQUEUED)
    asked = {"name": todo.name, "timeout_min": machines.minutes, "tasks_per_node": processes, "cpus_per_task": threads}
    asked |= {"slurm_partition": machines.partition, "slurm_account": machines.account}
    asked |= {"gpus_per_node": processes * machines.gpus}
    executor.update_parameters(**{option: value for option, value in asked.items() if value})
    for start in range(0, len(new), ARRAY):
        names = new[start : start + ARRAY]
        with executor.batch():
            jobs = [executor.submit(Job(), todo.folder, name, todo.keys[name], threads) for name in names]
        sent |= {name: job.job_id for name, job in zip(names, jobs, strict=True)}
        content = {name: (job, todo.keys[name]) for name, job in sent.items()}
        write_text(todo.folder / "jobs.json", json.dumps(content, indent=1))
    queued, seen = set(sent.values()), dict.fromkeys(sent, time.monotonic())

    def going_on() -> bool:
        nonlocal queued
        left = todo.unfinished()
        with suppress(RuntimeError):  # where Slurm is silent, what it said before
            queued = queue(tries=1)
        for name in left:
            if (job := sent[name]) in queued:
                seen[name] = time.monotonic()
            elif time.monotonic() - seen[name] > UNSEEN:
                error = f"job {job} ended before it was done: {job_status(job)}"
                todo.give_up(name, job=job, log=shown(logs / f"{job}_0_log.err"), error=error)
        return bool(left or queued & set(sent.values()))  # a job that is done still writes into the folder of logs

    try:
        todo.show_progress(going_on, every=2)
    except KeyboardInterrupt:
        going = " ".join(sorted({sent[name].split("_")[0] for name in todo.unfinished()}))
        print(f"Jobs {going} go on; the same again waits for them, `scancel {going}` ends them.")
        raise


def cancel_jobs(todo, keep: dict[str, str] | None = None) -> dict[str, str]:
    """Cancel jobs of earlier calls that still wait or run.

    Those of tasks in `keep` (name → key) go on, and are returned: name → job.
    """
    sent_file, keep = todo.folder / "jobs.json", keep or {}
    if not sent_file.exists():
        return {}
    past, queued = json.loads(sent_file.read_text(encoding="utf-8")), queue()
    kept = {name: job for name, (job, key) in past.items() if job in queued and keep.get(name) == key}
    others = {job for job, _ in past.values()} & queued - set(kept.values())
    if others:
        print(f"Jobs {' '.join(sorted(others))} of an earlier call do what is no longer wanted: they are cancelled.")
        subprocess.run(["scancel", *others], check=True)  # one call; submitit's `Job.cancel` is one for each job
    while others & queue():
        time.sleep(1)
    if not kept:
        sent_file.unlink()
    return kept


def queue(tries: int = 12) -> set[str]:
    """Return this user's jobs that wait or run, ARRAY_INDEX in arrays; RuntimeError where Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    for _ in range(tries):
        told = subprocess.run(command, capture_output=True, text=True)
        if not told.returncode:
            return set(told.stdout.split())
        print(f"Slurm does not answer: {told.stderr.strip()}")
        time.sleep(5)
    raise RuntimeError("Slurm does not answer, so nobody knows which jobs run. The same again goes on once it does.")


def job_status(job: str) -> str:
    """Return what Slurm still knows of a job that has ended."""
    told = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True).stdout
    found = re.findall(r"\b((?:JobState|Reason|ExitCode)=\S+)", told)
    return ", ".join(found) or "Slurm does not know it any more"
