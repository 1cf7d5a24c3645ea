"""What is finished, what the next call would make anew and why, and which requests do not fit what is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lib.run.files import from_root
from lib.run.fingerprint import code_hash
from lib.run.folder import Run
from lib.run.notebooks import Mistake, Notebook
from lib.run.settings import flat, nearest, unlike

CHANGED = {  # what a notebook's results follow from, besides parameters and earlier notebooks: what is said of it
    "code": "its code changed, or what that calls in lib",
    "radiographs": "the radiographs changed",
    "decisions": "what was decided by hand changed",
}
TRAININGS = ("*.pt", "*.safetensors")  # files that trainings leave, whether or not they have ended


@dataclass(frozen=True)
class Step:
    """What a call does with one notebook.

    Parameters
    ----------
    parameters : its own, without `run_dir`
    inputs : digests of what else its results follow from
    record : what the manifest knows of it
    reasons : why it is made anew; none: it is finished and unchanged
    """

    notebook: Notebook
    parameters: dict[str, object]
    inputs: dict[str, object]
    record: dict
    reasons: list[str]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.parameters, self.inputs)


def plan(
    notebooks: list[Notebook],
    selected: list[Notebook],
    parameters: dict[str, object],
    folder: Path,
    by_hand: Mapping[str, str],
    named_files: Callable[[Path], list[Path]],
    force: bool = False,
) -> Iterator[Step]:
    """Yield for each notebook, in order, what a call would do with it.

    Each is looked at when it is reached: what came before may have been made anew meanwhile.

    Parameters
    ----------
    selected : those that the call is asked for
    by_hand : notebook → the file of decisions made by hand that it reads
    named_files : gives the files that a table of radiographs names
    """
    before = {}
    for notebook in notebooks:
        record = (Run(folder).manifest if folder.exists() else {}).get("notebooks", {}).get(notebook.name, {})
        own = {name: parameters[name] for name in notebook.parameters if name != "run_dir"}
        decided = folder / by_hand[notebook.name] if notebook.name in by_hand else None
        inputs = inputs_of(notebook, own, before, named_files, decided)
        reasons = reasons_to_run(record, own, inputs)
        if force and notebook in selected and not reasons:
            reasons = ["--force asks for it"]
        step = Step(notebook, own, inputs, record, reasons)
        yield step
        if notebook in selected and reasons:
            before = before | {notebook.name: step.fingerprint}
        elif record:
            before = before | {notebook.name: record["fingerprint"]}


def inputs_of(
    notebook: Notebook,
    parameters: dict[str, object],
    before: dict[str, str],
    named_files: Callable[[Path], list[Path]],
    decided: Path | None = None,
) -> dict[str, object]:
    """Digest what a notebook's results follow from, besides its parameters: its code with what that reaches in lib, the
    table of radiographs with sizes and times of its files, decisions made by hand, the notebooks before. Prose does not
    count."""
    try:
        code = code_hash(notebook.code)
    except SyntaxError:  # the notebook will say so itself
        code = digest(notebook.code)
    tables = [from_root(value) for name, value in parameters.items() if name.endswith("_csv") and value]
    pictures = [file_state(path) for table in tables for path in named_files(table)]
    return {
        "code": code,
        "radiographs": digest([digest(table.read_bytes()) for table in tables], pictures),
        "decisions": digest(decided.read_bytes()) if decided and decided.exists() else "",
        "before": before,
    }


def fingerprint(parameters: dict[str, object], inputs: dict[str, object]) -> str:
    """Return one digest of all that a notebook's results follow from."""
    return digest(parameters, inputs)


def digest(*things) -> str:
    """Return the sha256 of bytes, text, or what JSON can hold."""
    content = things[0] if isinstance(things[0], bytes) else json.dumps(things, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def file_state(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; None where it cannot be looked at."""
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except (OSError, ValueError):
        return None


def reasons_to_run(record: dict, parameters: dict[str, object], inputs: dict[str, object]) -> list[str]:
    """Say why a notebook is made anew: nothing where it is finished, and made from the same.

    Parameters
    ----------
    record : what the manifest knows of the notebook; empty: it has never run
    """
    if not record:
        return ["it has not run"]
    reasons = [f"it is {record['state']}, not finished"] if record["state"] != "finished" else []
    past, now = flat(record["parameters"]), flat(parameters)
    shared = [name for name in unlike(past, now) if name in past and name in now]
    reasons += [f"{name} = {past[name]!r} became {now[name]!r}" for name in shared]
    known = record.get("inputs", {})
    reasons += [said for part, said in CHANGED.items() if part in known and known[part] != inputs[part]]
    for name in unlike(known.get("before", {}), inputs["before"]) if known else ():
        reasons.append(f"it follows from {name}, which is another now")
    if not reasons and record["fingerprint"] != fingerprint(parameters, inputs):
        new = ", ".join(sorted(now.keys() ^ past.keys()))
        reasons.append(f"parameters came or went: {new}" if known and new else "another version of the code made it")
    return reasons


# Requests that do not fit ---------------------------------------------------------------------------------------------


def check_run_folder(notebooks: list[Notebook], parameters: dict, redone: set[str], folder: Path) -> None:
    """Refuse parameters unlike those with which a run was made, or with which its trainings began.

    Parameters
    ----------
    redone : names of notebooks that are made anew whatever is there
    """
    manifest = Run(folder).manifest if folder.exists() else {}
    for notebook in notebooks:
        record = manifest.get("notebooks", {}).get(notebook.name, {})
        if not record or notebook.name in redone:
            continue
        begun = record["state"] != "finished"
        if begun and not half_done(folder, record):
            continue
        past, now = flat(record["parameters"]), flat({name: parameters.get(name) for name in notebook.parameters})
        for name in unlike(past, now):
            if name in past and name in now:
                verb = "begun" if begun else "made"
                raise Mistake(
                    f"runs/{folder.name} was {verb} with {name} = {past[name]!r} ({notebook.name}), now it is "
                    f"{now[name]!r}: take another --run NAME, or make {notebook.name} anew with --force"
                )


def half_done(folder: Path, record: dict) -> bool:
    """Tell whether a notebook that did not reach its end has left trainings, begun or finished, in the run's folder."""
    since = datetime.fromisoformat(record.get("begun", record["started"])).timestamp()
    return any(path.stat().st_mtime >= since for kind in TRAININGS for path in folder.rglob(f"[!.]{kind}"))


def check_request(
    notebooks: list[Notebook],
    selected: list[Notebook],
    parameters: dict[str, object],
    folder: Path,
    profile: str,
    force: bool,
    alone: bool,
) -> None:
    """Refuse what does not fit the run.

    Parameters
    ----------
    alone : whether one notebook was asked for, which says itself what it misses

    Raises
    ------
    Mistake
        Where parameters are unlike those of the run, or a notebook before the first selected one is not finished.
    """
    manifest = Run(folder).manifest if folder.exists() else {}
    try:
        check_run_folder(notebooks, parameters, {notebook.name for notebook in selected} if force else set(), folder)
    except Mistake as mistake:
        if (other := manifest.get("profile", profile)) == profile:
            raise
        raise Mistake(f"{mistake} (it was made with --profile {other}, this is {profile})") from None
    for notebook in notebooks[: notebooks.index(selected[0])]:
        state = manifest.get("notebooks", {}).get(notebook.name, {}).get("state", "not run")
        if state != "finished" and not (alone and state == "not run"):
            raise Mistake(f"{notebook.name} is {state} in runs/{folder.name}: start with --from {notebook.name[:2]}")


def check_runs(runs: Path, *names: str) -> None:
    """Refuse names of runs that are not there."""
    known = sorted(path.parent.name for path in runs.glob("*/manifest.json"))
    for name in names:
        if name not in known:
            raise Mistake(f"there is no run {name!r}{nearest(name, known)}; there are {', '.join(known) or 'none'}")


def check_finished(notebooks: list[Notebook], folder: Path, to_do: str) -> None:
    """Refuse a run that is not finished, since then there is nothing to verify or to publish."""
    records = Run(folder).manifest.get("notebooks", {})
    for notebook in notebooks:
        if (state := records.get(notebook.name, {}).get("state", "not run")) != "finished":
            raise Mistake(
                f"runs/{folder.name} is not finished ({notebook.name} is {state}), so there is nothing to {to_do}"
            )
