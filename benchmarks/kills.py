"""A run that is killed again and again: does it come to the same results as one that is left alone?

    python benchmarks/kills.py --kills 20 --seed 0

Runs a profile untouched, then into other runs, killed (SIGKILL) at random moments and started again until they finish;
then compares them with `lib.checks.verify`. Every other time the kernel is left alive, so that the next start
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

from lib.checks.verify import compare_runs, report
from lib.run.files import ROOT
from lib.run.locks import LOCK


def notebooks(run: Path) -> dict[str, dict]:
    """Return what the run's manifest says of its notebooks; nothing where there is none yet."""
    try:
        return json.loads((run / "manifest.json").read_text(encoding="utf-8")).get("notebooks", {})
    except FileNotFoundError:
        return {}


def kill(process: subprocess.Popen, with_kernel: bool) -> None:
    """Kill the process and its group; if wanted, its kernels too, which have groups of their own."""
    started = psutil.Process(process.pid).children(recursive=True) if with_kernel else []
    os.killpg(process.pid, signal.SIGKILL)
    for one in started:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def killed_runs(
    start: Callable[[str], subprocess.Popen], untouched: Path, seconds: float, kills: int, seed: int
) -> tuple[list[Path], Counter]:
    """Start, kill and start again at so many moments, then let it finish. Where a run finishes before its moment has
    come, the next one begins.

    Parameters
    ----------
    start : begins the command for a run of this name, in a session of its own
    untouched : folder of the run that was left alone, beside which the others are made
    seconds : that it took

    Returns
    -------
    runs : the finished ones, `killed-1` and on
    hit : the notebook that was running → how many kills hit it; "" between or before notebooks

    Raises
    ------
    RuntimeError
        Where a start ends otherwise than killed or well.
    """
    moments, hit, runs = random.Random(seed), Counter(), [untouched.with_name("killed-1")]
    took = {name: record["seconds"] for name, record in notebooks(untouched).items()}
    for number in range(kills):
        run = runs[-1]
        finished = [name for name, record in notebooks(run).items() if record["state"] == "finished"]
        left = seconds - sum(took[name] for name in finished)
        moment = left * (number + moments.random()) / kills
        process = start(run.name)
        try:
            if status := process.wait(moment):
                raise RuntimeError(f"start {number + 1} ended with status {status}")
            print(f"start {number + 1}: finished before it was killed ({moment:.1f} s)", flush=True)
            runs.append(run.with_name(f"killed-{len(runs) + 1}"))
        except subprocess.TimeoutExpired:
            running = next((name for name, record in notebooks(run).items() if record["state"] == "running"), "")
            kill(process, with_kernel=number % 2 == 0)
            alive = "" if number % 2 == 0 else ", its kernel left alive"
            hit[running] += 1
            print(f"kill {number + 1}: after {moment:.1f} s, {running or 'between notebooks'}{alive}", flush=True)
    if not notebooks(runs[-1]):  # the last moment was too late, and none is left for another
        return runs[:-1], hit
    if status := start(runs[-1].name).wait():
        raise RuntimeError(f"the last start ended with status {status}")
    return runs, hit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    untouched = ROOT / "runs" / "untouched"
    for run in (untouched, *untouched.parent.glob("killed-*")):
        shutil.rmtree(run, ignore_errors=True)

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, ROOT / "run_all.py", "--profile", options.profile, "--run", name]
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    if status := start(untouched.name).wait():
        return status
    seconds = time.monotonic() - began
    print(f"untouched: {seconds:.0f} s; seed {options.seed}", flush=True)
    runs, hit = killed_runs(start, untouched, seconds, options.kills, options.seed)
    print(f"{hit.total()} kills: " + ", ".join(f"{n} in {name or 'between'}" for name, n in sorted(hit.items())))
    unlike = 0
    for run in runs:
        files = compare_runs(untouched, run)
        unlike += int(files.differ.sum())
        leftovers = [path for path in run.rglob(".*") if path.name != LOCK]
        print(f"{run.name}: {report(files)}\ntemporary files left: {len(leftovers)}")
    return int(unlike > 0)


if __name__ == "__main__":
    sys.exit(main())
