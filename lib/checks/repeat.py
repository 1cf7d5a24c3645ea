"""Is a run reproduced? It is made again beside itself, and both are compared (`lib.checks.verify`)."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from lib.checks import verify
from lib.run.executing import ThisPython, kept, remove_leftovers, run_notebooks
from lib.run.files import shown
from lib.run.finished import Request, check_finished
from lib.run.folder import Run
from lib.run.locks import LOCK, sole_writer
from lib.run.notebooks import Mistake
from lib.run.parameters import defaults

FACTS = ("versions", "device", "cpu", "threads", "commit")  # what may explain a difference


def repeat(request: Request, pages: ModuleType) -> bool:
    """Repeat a finished run, with its parameters, in NAME-verify beside it; whether all is the same.

    The repetition goes on where it was interrupted. It is deleted where all is the same; where not, it is kept until
    the next call.

    Parameters
    ----------
    request : all notebooks of the run; `pages` as for `lib.run.executing.run_notebooks`

    Raises
    ------
    Mistake
        Where the run is not finished, or was made with other code, parameters, radiographs or decisions.
    """
    folder = request.folder
    name, beside = folder.name, folder.with_name(f"{folder.name}-verify")
    with sole_writer(folder, "run_all.py --verify"):
        check_finished(request.notebooks, folder, "verify")
        run = Run(folder)
        manifest = run.manifest
        parameters = defaults(request.notebooks) | manifest["parameters"]
        request = replace(request, parameters=parameters, profile=manifest["profile"])
        for step in request.steps():
            if step.reasons:
                raise Mistake(
                    f"runs/{name} was made with other code, parameters, radiographs or decisions "
                    f"({step.notebook.name}: {step.reasons[0]}): check out its commit, "
                    f"{manifest.get('commit') or 'which is not recorded'}, or run it again first"
                )
        with sole_writer(beside, "run_all.py --verify") as ThisPython.lock:
            again = Run(beside)
            begun = fingerprints(again)
            if "verified" in again.manifest or not begun or not begun.items() <= fingerprints(run).items():
                empty(beside)
            for file in request.by_hand.values():
                if (run / file).exists():
                    shutil.copy2(run / file, again.path(file))
            remove_leftovers(beside)
            if not run_notebooks(replace(request, folder=beside), pages):
                print(kept(beside), file=sys.stderr)
                return False
            files = verify.compare_runs(folder, beside)
            same = not files.differ.any()
            for fact in FACTS:
                if (here := again.manifest.get(fact)) != (there := manifest.get(fact)):
                    print(f"{fact}: {there} in {name}, {here} now")
            print(verify.report(files))
            again.record(verified=same)
            if same:
                shutil.rmtree(beside, ignore_errors=True)
    end = f"is NOT reproduced; the repetition is kept: {shown(beside)}"
    print(f"runs/{name} {'is reproduced' if same else end}")
    return same


def fingerprints(run: Run) -> dict[str, str]:
    """Return of each notebook that has run what its results follow from."""
    return {name: record["fingerprint"] for name, record in run.manifest.get("notebooks", {}).items()}


def empty(folder: Path) -> None:
    """Delete what a folder holds, but for its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
