"""How much sooner trials are done by two processes than by one, of one thread each: `python benchmarks/processes.py`.

The same eight trials of a ResNet-18 at 64 px, in folders of their own, alternating; medians of three. What a process
needs to start counts.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.run.folder import Run
from lib.run.tasks import Machines
from lib.study import Study
from lib.trials.classifier import Settings
from lib.trials.trials import run_trials

SETTINGS = Settings("resnet18", "none", steps=60, batch=32, lr=1e-3, validate_every=30)


def main() -> None:
    torch.set_num_threads(1)  # and of two processes each gets one, at least
    took = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        Phantom(200, 64, seed=0).cohort().save(Path(folder) / "cohort")
        cohort = Cohort.load(Path(folder) / "cohort")
        splits, conditions = make_splits(cohort.patients, 1, 1, seed=0), ["real", "oversampling"]
        for repeat in range(3):
            for processes in took:
                study = Study(Run(Path(folder) / f"{processes}-{repeat}"), cohort, splits)
                start = time.perf_counter()
                run_trials(study, conditions, range(4), SETTINGS, Machines(num_processes=processes))
                took[processes].append(time.perf_counter() - start)
    one, two = (statistics.median(took[processes]) for processes in (1, 2))
    print(f"8 trials: {one:.0f} s by one process, {two:.0f} s by two: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
