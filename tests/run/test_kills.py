"""A study of two toy notebooks that use the real lib, killed at random moments, comes to the same results."""

import multiprocessing
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks.kills import killed_runs, notebooks
from lib.checks.verify import compare_runs, report
from lib.run.locks import LOCK, holder

KILLS = 8  # `benchmarks/kills.py` kills the real notebooks twenty times
PARAMETERS = 'run_dir = "runs/quick"\nseed = 0'
DRAWS = """
from lib.data.phantom import Phantom
from lib.run.folder import Run
from lib.data.splits import make_splits
from lib.study import Study
run = Run(run_dir)
run.check_parameters("01_draws", globals())
phantom = Phantom(patients=30, size=32, aff_share=0.4, seed=seed)
cohort = phantom.cohort()
Study(run, cohort, make_splits(cohort.patients, 1, 1, seed), phantom).save()
"""
LEARNS = """
from lib.run import checkpoints
from lib.trials.classifier import Settings
from lib.translators.cyclegan import CycleGAN
from lib.translators.cyclegan import Settings as GANSettings
from lib.report.figures import image_rows, save_figure, save_table
from lib.run.files import write_text
from lib.study import Study
from lib.trials.trials import run_trials
checkpoints.EVERY = (0.0, 0.0)  # after every step
study = Study.open(run_dir, "02_learns", globals())
run, fold = study.run, study.fold()
training = fold.train
few = {"steps": 8, "batch": 2, "width": 4, "blocks": 1, "discriminator_width": 4, "discriminator_layers": 1}
gan = CycleGAN(GANSettings(**few, previews=2))
gan.fit(training, fold.folder("cyclegan"), seed, preview=training.select(label="NFF").first(2))
made = gan.translate(training.select(label="NFF").first(8), "AFF")
made.save(fold.folder("synthetic", "cyclegan"))
save_figure(image_rows({"AFF": made.pixels}), run, "02_synthetic", "Synthetic images.")
settings = Settings(architecture="resnet18", weights="none", steps=3, batch=4, lr=1e-3, validate_every=3)
_, metrics = run_trials(study, ["real", "cyclegan"], [seed], settings)
means = metrics[metrics.metric != "seconds"].pivot_table(index="condition", columns="metric", values="value")
save_table(means, run, "02_metrics", "Metrics.")
write_text(run / "answers.md", f"RQ1: {means.auroc['real']:.3f}.")
"""


def study(folder: Path, name: str) -> None:
    """`run_all.py --run NAME` of the toy notebooks, in a session of its own."""
    os.setsid()
    import run_all
    from lib.run import executing

    executing.describe_environment = dict  # seconds, and none of it a result
    os._exit(run_all.main(["--run", name], folder / "notebooks", folder / "runs"))


class Start:
    """A process with `Popen`'s pid and wait; forked from one that has imported run_all.py, which takes seconds."""

    def __init__(self, context, folder, name):
        self.process = context.Process(target=study, args=(folder, name))
        self.process.start()
        self.pid = self.process.pid
        while os.getpgid(self.pid) != self.pid:
            time.sleep(0.01)

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("run_all", timeout)
        return self.process.exitcode


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no forkserver")
def test_killed_again_and_again_it_comes_to_the_same_results(tmp_path):
    (tmp_path / "notebooks/profiles").mkdir(parents=True)
    (tmp_path / "notebooks/profiles/quick.yaml").write_text("")
    for name, code in (("01_draws", DRAWS), ("02_learns", LEARNS)):
        cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(code)]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"notebooks/{name}.ipynb")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_all"])
    first = context.Process(target=int)  # the imports are no part of the first run's time
    first.start()
    first.join()
    start = partial(Start, context, tmp_path)
    untouched, began = tmp_path / "runs/untouched", time.monotonic()
    assert start("untouched").wait() == 0
    seconds = time.monotonic() - began

    runs, hit = killed_runs(start, untouched, seconds, KILLS, seed=0)
    assert hit.total() > KILLS / 2 and {"01_draws", "02_learns"} <= set(hit), hit
    for run in runs:
        assert [record["state"] for record in notebooks(run).values()] == ["finished"] * 2
        files = compare_runs(untouched, run)
        assert not files.differ.any(), report(files)
        assert {"table", "weights", "array", "text"} == set(files.kind)
        names = [{path.relative_to(folder) for path in folder.rglob("[!.]*")} for folder in (untouched, run)]
        assert names[0] == names[1]  # nothing is missing, nothing else is there
        assert holder(run) is None and (run / LOCK).read_text() == ""
