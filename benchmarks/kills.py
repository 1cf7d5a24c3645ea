"""A run that is killed again and again: does it come to the same results as one that is left alone?

    python benchmarks/kills.py --kills 20 --seed 0

Runs a profile untouched, then into another run, which is killed (SIGKILL) at random moments and started again until it
finishes; then compares the two with `lib.verify`. Every other time the kernel is left alive, so that the next start
meets a lock that is still held. Each moment is drawn from its share of the time that is left: early ones first, so that
every notebook is hit. Exit status 0 where all results are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from lib.runs import ROOT
from lib.verify import compare_runs, report


def notebooks(run: Path) -> dict[str, dict]:
    """What the run's manifest says of its notebooks; nothing where there is none yet."""
    try:
        return json.loads((run / "manifest.json").read_text(encoding="utf-8")).get("notebooks", {})
    except FileNotFoundError:
        return {}


def kill(process: subprocess.Popen, with_kernel: bool) -> None:
    """SIGKILL to the process and its group, and first to its kernels, which have groups of their own, if wanted."""
    started = psutil.Process(process.pid).children(recursive=True) if with_kernel else []
    os.killpg(process.pid, signal.SIGKILL)
    for one in started:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def killed_run(
    start: Callable[[], subprocess.Popen], run: Path, untouched: Path, seconds: float, kills: int, seed: int
) -> Counter:
    """Start, kill and start again, then let it finish.

    Parameters
    ----------
    start : begins the command, in a session of its own
    run, untouched : its folder, and that of the run that was left alone
    seconds : that the untouched run took
    kills : how often it is killed; fewer where it finishes before

    Returns
    -------
    Counter
        The notebook that was running → how many kills hit it; "" between or before notebooks.

    Raises
    ------
    RuntimeError
        Where a start ends otherwise than killed or well.
    """
    moments, hit = random.Random(seed), Counter()
    took = {name: record["seconds"] for name, record in notebooks(untouched).items()}
    for number in range(kills):
        finished = [name for name, record in notebooks(run).items() if record["state"] == "finished"]
        left = seconds - sum(took[name] for name in finished)
        moment = left * (number + moments.random()) / kills
        process = start()
        try:
            status = process.wait(moment)
        except subprocess.TimeoutExpired:
            running = next((name for name, record in notebooks(run).items() if record["state"] == "running"), "")
            kill(process, with_kernel=number % 2 == 0)
            alive = "" if number % 2 == 0 else ", its kernel left alive"
            hit[running] += 1
            print(f"kill {number + 1}: after {moment:.1f} s, {running or 'between notebooks'}{alive}", flush=True)
            continue
        if status:
            raise RuntimeError(f"start {number + 1} ended with status {status}")
        print(f"start {number + 1} finished before it was killed ({moment:.1f} s)", flush=True)
        break
    if status := start().wait():
        raise RuntimeError(f"the last start ended with status {status}")
    return hit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = ("kills-untouched", "kills-killed")
    runs = [ROOT / "runs" / name for name in names]
    for run in runs:
        shutil.rmtree(run, ignore_errors=True)

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, ROOT / "run_all.py", "--profile", options.profile, "--run", name]
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    if status := start(names[0]).wait():
        return status
    seconds = time.monotonic() - began
    print(f"untouched: {seconds:.0f} s; seed {options.seed}", flush=True)
    hit = killed_run(lambda: start(names[1]), runs[1], runs[0], seconds, options.kills, options.seed)
    print(f"{hit.total()} kills: " + ", ".join(f"{n} in {name or 'between'}" for name, n in sorted(hit.items())))
    files = compare_runs(*runs)
    print(report(files))
    leftovers = [path for path in runs[1].rglob(".*") if path.name != ".lock"]
    print(f"temporary files left: {len(leftovers)}")
    return int(files.differ.any())


if __name__ == "__main__":
    sys.exit(main())
