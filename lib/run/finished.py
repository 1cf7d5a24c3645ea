"""What is finished, what the next call would make anew and why, and which requests do not fit what is there."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lib.run.files import from_root
from lib.run.fingerprint import code_hash
from lib.run.folder import read_manifest
from lib.run.notebooks import Mistake, Notebook
from lib.run.settings import changed, flat, nearest, unlike

CHANGED = {  # what a notebook's results follow from, besides parameters and earlier notebooks: what is said of it
    "code": "its code changed, or what that calls in lib",
    "radiographs": "the radiographs changed",
    "decisions": "what was decided by hand changed",
}
NamedFiles = Callable[[Path], list[Path]]  # gives the files that a table of radiographs names


@dataclass(frozen=True)
class Step:
    """What a call does with one notebook."""

    notebook: Notebook
    parameters: dict[str, object]  # its own, without `run_dir`
    inputs: dict[str, object]  # digests of what else its results follow from
    record: dict  # what the manifest knows of it
    wanted: bool  # whether the call is asked for it
    reasons: list[str]  # why it is made anew; none: it is finished and unchanged

    @property
    def fingerprint(self) -> str:
        return digest(self.parameters, self.inputs)


@dataclass(frozen=True)
class Request:
    """What a call of run_all.py is asked to do."""

    notebooks: list[Notebook]  # all of the study, in order
    selected: list[Notebook]  # those that the call is asked for
    parameters: dict[str, object]  # of all notebooks, without `run_dir`
    folder: Path  # of the run
    profile: str  # whose parameters they are
    by_hand: Mapping[str, str]  # notebook → the file of decisions made by hand that it reads
    named_files: NamedFiles
    force: bool = False  # whether what is finished is made anew, too

    def steps(self) -> Iterator[Step]:
        """Yield for each notebook, in order, what the call would do with it.

        Each is looked at when it is reached: what came before may have been made anew meanwhile.
        """
        before = {}
        for notebook in self.notebooks:
            record = read_manifest(self.folder).get("notebooks", {}).get(notebook.name, {})
            own = {name: self.parameters[name] for name in notebook.parameters if name != "run_dir"}
            decided = self.folder / self.by_hand[notebook.name] if notebook.name in self.by_hand else None
            inputs = inputs_of(notebook, own, before, self.named_files, decided)
            wanted = notebook in self.selected
            reasons = reasons_to_run(record, own, inputs)
            if self.force and wanted:
                reasons = reasons or ["--force asks for it"]
            step = Step(notebook, own, inputs, record, wanted, reasons)
            yield step
            if wanted and reasons:
                before = before | {notebook.name: step.fingerprint}
            elif record:
                before = before | {notebook.name: record["fingerprint"]}

    def check(self) -> None:
        """Raise Mistake where parameters are unlike those of what was made, or of the trainings that were begun."""
        manifest = read_manifest(self.folder)
        other = manifest.get("profile", self.profile)
        for notebook in self.notebooks:
            record = manifest.get("notebooks", {}).get(notebook.name)
            if not record or (self.force and notebook in self.selected):
                continue
            made = "made" if record["state"] == "finished" else "begun"
            if made == "begun" and not has_trained(self.folder, record):
                continue
            own = {name: self.parameters.get(name) for name in notebook.parameters}
            for name, (then, now) in changed(record["parameters"], own).items():
                raise Mistake(
                    f"runs/{self.folder.name} was {made} with {name} = {then!r} ({notebook.name}), now it is {now!r}: "
                    f"take another --run NAME, or make {notebook.name} anew with --force"
                    + (f" (it was made with --profile {other}, this is {self.profile})" * (other != self.profile))
                )

    def check_begin(self, alone: bool) -> None:
        """Refuse to begin after a notebook that is not finished; one that runs `alone` says itself what it misses."""
        records = read_manifest(self.folder).get("notebooks", {})
        for notebook in self.notebooks[: self.notebooks.index(self.selected[0])]:
            state = records.get(notebook.name, {}).get("state", "not run")
            if state != "finished" and not (alone and state == "not run"):
                begin = f"start with --from {notebook.name[:2]}"
                raise Mistake(f"{notebook.name} is {state} in runs/{self.folder.name}: {begin}")


def inputs_of(
    notebook: Notebook, parameters: dict, before: dict, named_files: NamedFiles, decided: Path | None = None
) -> dict[str, object]:
    """Digest what a notebook's results follow from, besides its parameters; prose does not count."""
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
    """Say why a notebook is made anew: nothing where it is finished, and made from the same."""
    if not record:
        return ["it has not run"]
    reasons = [f"it is {record['state']}, not finished"] if record["state"] != "finished" else []
    past, known = record["parameters"], record.get("inputs", {})
    reasons += [f"{name} = {then!r} became {now!r}" for name, (then, now) in changed(past, parameters).items()]
    reasons += [said for part, said in CHANGED.items() if part in known and known[part] != inputs[part]]
    for name in unlike(known.get("before", {}), inputs["before"]) if known else ():
        reasons.append(f"it follows from {name}, which is another now")
    if not reasons and record["fingerprint"] != digest(parameters, inputs):
        new = ", ".join(sorted(flat(parameters).keys() ^ flat(past).keys()))
        reasons.append(f"parameters came or went: {new}" if known and new else "another version of the code made it")
    return reasons


def has_trained(folder: Path, record: dict) -> bool:
    """Tell whether a notebook that did not reach its end has left trainings, begun or finished, in the run's folder."""
    since = datetime.fromisoformat(record.get("begun", record["started"])).timestamp()
    files = [path for path in folder.rglob("[!.]*") if path.suffix in (".pt", ".safetensors")]
    return any(path.stat().st_mtime >= since for path in files)


def check_runs(runs: Path, *names: str) -> None:
    """Refuse names of runs that are not there."""
    known = sorted(path.parent.name for path in runs.glob("*/manifest.json"))
    for name in names:
        if name not in known:
            raise Mistake(f"there is no run {name!r}{nearest(name, known)}; there are {', '.join(known) or 'none'}")


def check_finished(notebooks: list[Notebook], folder: Path, to_do: str) -> None:
    """Refuse a run that is not finished, or whose notebooks do not belong together: nothing to verify or to publish."""
    records = read_manifest(folder).get("notebooks", {})
    for notebook in notebooks:
        record = records.get(notebook.name, {})
        if (state := record.get("state", "not run")) != "finished":
            why = f"({notebook.name} is {state})"
            raise Mistake(f"runs/{folder.name} is not finished {why}, so there is nothing to {to_do}")
        for name, fingerprint in record.get("inputs", {}).get("before", {}).items():
            if records[name]["fingerprint"] != fingerprint:
                why = f"{notebook.name} follows from {name} as it was before it ran again"
                again = f"run it with --from {notebook.name[:2]}"
                raise Mistake(f"runs/{folder.name}: {why}, so there is nothing to {to_do}; {again} first")
