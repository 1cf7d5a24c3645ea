#!/usr/bin/env python
"""Run the study: papermill over notebooks/, in order, with one set of parameters.

    python run_all.py                                       the quick profile, into runs/quick
    python run_all.py --profile full --run hospital -p radiographs_csv data/cohort.csv
    python run_all.py --list                                notebooks, parameters, what would be made anew and why
    python run_all.py --verify hospital                     run it again and compare: are all results the same?

Finished notebooks whose code, parameters and inputs did not change are skipped. The exit status is 0 only if every
notebook that was asked for has finished: 1 where one failed or could not be written, 2 where the request made no sense
or another process writes the run (nothing is touched).
"""

import argparse
import os
import re
import sys
from pathlib import Path

from lib.run.executing import ThisPython, kept, remove_leftovers, run_notebooks
from lib.run.files import ROOT, shown
from lib.run.finished import Request, check_finished, check_runs
from lib.run.folder import Damaged, Run
from lib.run.listing import show
from lib.run.locks import Busy, sole_writer
from lib.run.notebooks import Mistake, Notebook, read_notebooks, select
from lib.run.parameters import choose_parameters, read_profile

NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"
STUDY = {  # the notebooks, in order, and what each makes in runs/NAME; each needs what those before it made
    "01_data_exploration": "cohort/: radiographs and splits",
    "02_cyclegan": "cyclegan/: a CycleGAN for each fold",
    "03_cyclediff": "cyclediff/: a CycleDiff for each fold",
    "04_synthesis": "synthetic/, fidelity.csv, reader_study/: translated images, measured",
    "05_classifier_trials": "trials/: classifiers under every condition",
    "06_statistics": "statistics/, answers.md: what the numbers prove",
}
BY_HAND = {"05_classifier_trials": "synthetic/verdicts.csv", "06_statistics": "reader_study/answers.csv"}  # and read by


def main(arguments: list[str] | None = None, notebooks_folder: Path = NOTEBOOKS, runs_folder: Path = RUNS) -> int:
    """Do what the command line asks for and return the exit status."""
    options = command_line().parse_args(arguments)
    name = f"{options.verify}-verify" if options.verify else options.publish or options.run or options.profile
    folder = runs_folder / name
    machines = {name.removeprefix("slurm_"): value for name, value in vars(options).items() if "slurm_" in name}
    other_training = "anew" if options.force else "keep" if options.keep_trained else ""
    ThisPython.tell({"executor": options.executor} | machines, other_training)
    try:
        notebooks = read_notebooks(notebooks_folder)
        if options.compare:
            return compare(*options.compare, runs_folder)
        if options.publish:
            return publish(options.publish, notebooks, runs_folder)
        if options.verify:
            return verify(options.verify, notebooks, runs_folder)
        parameters = choose_parameters(notebooks, read_profile(notebooks_folder, options.profile), options.given)
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise Mistake(f"--run {name!r}: a run's name is one folder name, letters, digits, . + - _")
        selected = select(notebooks, options.start, options.only)
        asked = Request(notebooks, selected, parameters, folder, options.profile, BY_HAND, named_files, options.force)
        if options.list:
            show(asked, STUDY)
            return 0
        if not folder.exists():  # a mistake leaves no folder
            check(asked, options)
        from lib.report import pages  # takes seconds

        with sole_writer(folder, "run_all.py") as ThisPython.lock:
            check(asked, options)
            remove_leftovers(folder)
            finished = run_notebooks(asked, pages)
    except BrokenPipeError:
        raise
    except (Mistake, Damaged, Busy) as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run_all.py: {error}\n{kept(folder)}", file=sys.stderr)
        return 1
    if not finished:
        print(kept(folder), file=sys.stderr)
        return 1
    print(f"\npages: {shown(folder / 'notebooks/index.html')}")
    if (answers := folder / "answers.md").exists():
        print(f"answers: {shown(answers)}\n\n{answers.read_text(encoding='utf-8').strip()}")
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="Example: python run_all.py --profile full -p seed 1 --run seed1"
    )
    add = parser.add_argument
    add("--profile", default="quick", help="a file of notebooks/profiles (default: %(default)s)")
    add("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="set a parameter or setting; may be repeated")  # fmt: skip
    add("--run", metavar="NAME", help="folder below runs/ (default: the profile's name)")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--from", dest="start", metavar="NN", help="start at this notebook")
    some.add_argument("--only", metavar="NN", help="run this notebook alone")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--force", action="store_true", help="make anew what was asked for even if it is finished")
    other.add_argument("--keep-trained", action="store_true", help="go on with trainings that other code began")
    add("--executor", choices=("local", "slurm"), default="local", help="who trains (default: %(default)s)")
    add("--slurm-partition", default="", metavar="NAME", help="of the jobs (default: the cluster's own choice)")
    add("--slurm-account", default="", metavar="NAME", help="that pays for them (default: the cluster's own choice)")
    add("--slurm-minutes", type=int, default=240, metavar="N", help="of a job; longer work goes on in another")
    add("--slurm-gpus", type=int, default=1, metavar="N", help="of each process of a job; 0: CPUs")
    add("--compare", nargs=2, metavar="RUN", help="write a page of two runs side by side; run nothing")
    add("--verify", metavar="RUN", help="repeat a finished run and compare: are all results the same?")
    add("--publish", metavar="RUN", help="copy a finished run's figures, captions and answers to figures/")
    add("--list", action="store_true", help="show notebooks, parameters and what would be made anew; run nothing")
    return parser


def named_files(table: Path) -> list[Path]:
    """Return the files that a table of radiographs names, as well as it can be read."""
    from lib.radiographs.table import RadiographsError, read_csv

    try:
        return [table.parent / path for path in read_csv(table, ("path",), ())[0].path]
    except RadiographsError:  # the notebook will say so itself
        return []


def check(asked: Request, options: argparse.Namespace) -> None:
    """Refuse what does not fit the run, or what a late notebook would refuse after hours."""
    from lib.checks.choices import check_choices

    asked.check()
    asked.check_begin(alone=bool(options.only))
    check_choices(asked.parameters, options.executor)


def compare(first: str, second: str, runs: Path) -> int:
    """Print in which parameters two runs differ, and write the page that shows them side by side."""
    from lib.report import pages

    if first == second:
        raise Mistake(f"--compare {first} {second}: name two different runs")
    check_runs(runs, first, second)
    a, b = Run(runs / first), Run(runs / second)
    for name, (here, there) in a.differing(b).items():
        print(f"{name}: {here!r} → {there!r}")
    print(f"page: {shown(pages.compare(a, b))}")
    return 0


def verify(name: str, notebooks: list[Notebook], runs: Path) -> int:
    """Repeat a finished run beside it and compare."""
    from lib.checks.verify import repeat
    from lib.report import pages

    check_runs(runs, name)
    return 0 if repeat(Request(notebooks, notebooks, {}, runs / name, "", BY_HAND, named_files), pages) else 1


def publish(name: str, notebooks: list[Notebook], runs: Path) -> int:
    """Copy a finished run's figures, captions and answers to figures/."""
    from lib.report.publish import publish

    check_runs(runs, name)
    check_finished(notebooks, runs / name, "publish")
    try:
        print(f"published: {shown(publish(runs / name))}")
    except (ValueError, FileExistsError) as error:
        raise Mistake(str(error)) from error
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `run_all.py --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
