"""run.local"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

from lib.run.files import ROOT, shown
from lib.run.tasklist import Machines, TaskList, show_progress, work_on


def through_processes(work: TaskList, machines: Machines, name: str = "") -> None:
    """Let processes do all pieces, each as many as it gets to, or one piece together; returns when they have ended.

    The cores are shared out among them, and GPUs one after the other.
    """
    n, command, logs = machines.num_processes, [sys.executable, "-m"], work.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    together = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m"] if name else []
    command += [*together, "lib.run.local", str(work.folder), *([name] if name else [])]
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
    work = TaskList.given_out(options.folder)
    return 0 if work_on(work, options.names, log=os.environ["LIB_LOG"]) else 1


if __name__ == "__main__":
    sys.exit(main())
