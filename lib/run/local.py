"""Processes of this machine that do a list of tasks: `python -m lib.run.local FOLDER [NAME]` is one of them."""

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

from lib.run.files import ROOT, shown


def run_processes(todo, machines, name: str = "") -> None:
    """Let processes do the tasks of a `TaskList`, and wait for them; with a name they do that task together.

    The cores are shared out among them, and GPUs one after the other.
    """
    n, logs = machines.num_processes, todo.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m"] if name else []
    command = [sys.executable, "-m", *launcher, "lib.run.local", str(todo.folder), *([name] if name else [])]
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
        todo.show_progress(lambda: any(worker.poll() is None for worker in workers), every=0.5)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
    ends = ", ".join(str(worker.returncode) for worker in workers)
    for left in {name} & set(todo.unfinished()) if name else todo.unfinished():
        log = todo.read(left).get("log") or shown(logs)
        todo.give_up(left, log=log, error=f"its process ended before it was done (exit status {ends})")


def end_with(parent: int) -> None:
    """End this process where the one that started it was killed."""
    while psutil.pid_exists(parent):
        time.sleep(1)
    os._exit(1)


def main() -> int:
    """Do tasks of the list that `TaskList.give_out` wrote; the exit status."""
    folder, *names = sys.argv[1:]
    threading.Thread(target=end_with, args=(int(os.environ["LIB_PARENT"]),), daemon=True).start()
    todo = pickle.loads(Path(folder, "tasks.pkl").read_bytes())
    return 0 if todo.work(names, log=os.environ["LIB_LOG"]) else 1


if __name__ == "__main__":
    sys.exit(main())
