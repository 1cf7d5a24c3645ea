"""Checkpoints: trainings that go on where they were killed, and what becomes of those that no longer fit.

Nothing that took long is deleted. A training that was made by other code or with other settings is set aside in its
folder, `before-YYYYMMDD-HHMMSS/`, unless `LIB_OTHER_TRAINING` says otherwise (`other_training`). torch is loaded where
it is needed: `run_all.py --list` only asks what lies there.
"""

import json
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pandas as pd

from lib.run.files import shown, write_text, written
from lib.run.fingerprint import name_of, source_hash
from lib.run.progress import duration

EVERY = (120.0, 285.0)  # seconds between two checkpoints, at least and at most
OTHER_TRAINING = "LIB_OTHER_TRAINING"  # environment variable: "" (the default), "keep" or "anew", see `other_training`
SOURCE = "source"  # among a result's inputs: the fingerprint of its code
RECORD = "training.json"  # in a checkpoint's archive: all but the tensors
SET_ASIDE = "before-"  # what folders of trainings that no longer fit begin with
MACHINE = ("precision", "arithmetic")  # inputs that follow from the computer
MISSING = "missing"  # in differences: what one of the two lacks


class Checkpoint:
    """Everything a training needs to go on, in a file that is replaced in a single step; the one before is kept.

    A file that was torn, by a failing disk for example, is known by the checksums of its records (`torch.save` writes
    a zip file, with a CRC-32 of each); then the one before is used.

    Parameters
    ----------
    path : the file; the one before has `.before` in its name
    inputs : what the training's result depends on: settings, seed, data hash; `steps` among them says when it is
        finished. `self.inputs` also holds the fingerprint of the code.
    objects : by name, whatever has `state_dict` and `load_state_dict` (networks, optimisers, EMA, history)
    code : functions that train, as for `lib.run.fingerprint.source_hash`
    results : names of files and folders that the training leaves beside the checkpoint
    made_before : inputs that follow from earlier results, so that nobody can set them as they were
    """

    def __init__(
        self,
        path: Path,
        inputs: dict,
        objects: dict,
        code: Sequence[str | Callable] = (),
        results: Sequence[str] = (),
        made_before: Sequence[str] = (),
    ):
        self.path, self.objects, self.results, self.made_before = Path(path), objects, results, made_before
        self.inputs = json.loads(json.dumps(inputs | ({SOURCE: source_hash(*code)} if code else {})))
        self.code = [name_of(thing) for thing in code]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.step, self.saved_at, self.every = 0, time.monotonic(), EVERY[0]
        self.begun_with, self.seconds = self.inputs, 0.0
        self.unlike: dict[str, tuple] = {}  # in what another training differs that lies here
        self.other: dict = {}  # the record of that training

    @staticmethod
    def files(path: Path) -> tuple[Path, Path]:
        """Of a checkpoint the file, and the one before."""
        return path, path.with_name(f"{path.stem}.before{path.suffix}")

    @classmethod
    def remove(cls, path: Path) -> None:
        """Delete the checkpoint of a training whose result is written."""
        for file in cls.files(path):
            file.unlink(missing_ok=True)

    def load(self) -> int:
        """Restore the objects and return the number of steps done: 0 where there is nothing to continue.

        Nothing is moved or deleted yet: several processes may be reading. `make_room` does, called by one of them.
        Raises ValueError where a training lies here that may neither go on nor be set aside: see `goes_on`.
        """
        import torch

        for path in filter(Path.exists, self.files(self.path)):
            try:
                state = read_whole(path)
            except ValueError as error:
                print(f"WARNING: {error}; the checkpoint before is used, where there is one.")
                self.unlike = {"checkpoint": ("torn", "needed")}
                continue
            past = json.loads(state["inputs"])
            self.other = {name: value for name, value in state.items() if name != "objects"} | {"inputs": past}
            self.unlike = differences(past, self.inputs)
            finished = state["step"] >= past.get("steps", float("inf"))
            if not goes_on(self.path, self.unlike, self.inputs, finished, self.made_before):
                return 0  # and the one before is older than what those inputs have left here
            try:
                for name, thing in self.objects.items():
                    thing.load_state_dict(state["objects"][name])
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                if not self.unlike:
                    raise
                kept_file(self.path).unlink(missing_ok=True)
                raise ValueError(
                    f"{shown(self.path)} does not fit what the code now builds ({type(error).__name__}: {error}): run "
                    "without --keep-trained to set it aside, or check out the commit that it was made with"
                ) from error
            self.step, self.begun_with, self.seconds = state["step"], past, state.get("seconds", 0.0)
            self.saved_at = time.monotonic()
            if state["threads"] != torch.get_num_threads() and not torch.cuda.is_available():
                print(
                    f"WARNING: {shown(path)} was made by {state['threads']} threads, and goes on with "
                    f"{torch.get_num_threads()}: sums will differ in their last bits from an uninterrupted "
                    f"training's. OMP_NUM_THREADS={state['threads']} keeps them the same."
                )
            break
        return self.step

    def make_room(self) -> None:
        """Set aside what another training has left here; call it, in one process, where `load` returned 0."""
        names = [*(file.name for file in (*self.files(self.path), kept_file(self.path))), *self.results]
        set_aside(self.path.parent, names, self.unlike or {"checkpoint": (MISSING, "needed")}, self.other)

    def due(self) -> bool:
        """Whether it is time to save: after two minutes, or later where saving takes more than a sixtieth of that."""
        return time.monotonic() - self.saved_at > self.every

    def save(self, step: int) -> None:
        """Write the state after `step` steps; raise OSError, with the step that is kept, where that fails."""
        import torch

        start, (path, before) = time.monotonic(), self.files(self.path)
        seconds = round(self.seconds + start - self.saved_at, 1)
        record = {"step": step, "inputs": json.dumps(self.begun_with), "code": self.code, "seconds": seconds}
        record["threads"] = torch.get_num_threads()
        state = {name: thing.state_dict() for name, thing in self.objects.items()}
        try:
            with written(path) as part:
                torch.save(record | {"objects": state}, part)
                with zipfile.ZipFile(part, "a") as archive:  # below the folder of the others, or torch refuses it
                    top = next(iter(archive.namelist()), "training").split("/")[0]
                    archive.writestr(f"{top}/{RECORD}", json.dumps(record))
                if path.exists():
                    os.replace(path, before)
        except OSError as error:
            raise OSError(f"{error}; step {self.step:,} is kept, and the same again goes on from there") from error
        self.step, self.seconds, self.saved_at = step, seconds, time.monotonic()
        self.every = min(max(60 * (self.saved_at - start), EVERY[0]), EVERY[1])


def read_whole(path: Path) -> dict:
    """Read what `torch.save` wrote; raise ValueError where a byte of it is missing or has changed."""
    import torch

    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as records:
                torn = records.testzip()
            file.seek(0)
            if not torn:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # nearly any, where what is read is not what was written
            torn = error
    raise ValueError(f"{shown(path)} is torn ({torn})")


def read_record(path: Path) -> dict:
    """Return what a checkpoint tells of its training, without its tensors: `step, inputs, code, seconds`.

    Raises ValueError where it is torn, or of an older version of the code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(f"/{RECORD}"))
            record = json.loads(archive.read(name))
            return record | {"inputs": json.loads(record["inputs"])}
    except (StopIteration, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{shown(path)} tells nothing of its training") from error


# What no longer fits --------------------------------------------------------------------------------------------------


def other_training() -> str:
    """Return what to do with trainings that do not fit: what `LIB_OTHER_TRAINING` says.

    "" sets aside and trains anew where code differs, or a finished training's settings; a half-done training with other
    settings is refused. "keep" (`run_all.py --keep-trained`) goes on with what was made by other code. "anew"
    (`--force`) sets everything aside that does not fit.
    """
    mode = os.environ.get(OTHER_TRAINING, "")
    if mode not in ("", "keep", "anew"):
        raise ValueError(f"{OTHER_TRAINING}={mode!r}: there are '', 'keep' and 'anew'")
    return mode


def differences(past: dict, now: dict) -> dict[str, tuple]:
    """Return the inputs in which two trainings differ: dotted name → (then, now)."""

    def flat(values: dict, above: str = "") -> dict:
        found = {}
        for name, value in values.items():
            found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
        return found

    past, now = flat(json.loads(json.dumps(past))), flat(json.loads(json.dumps(now)))
    both = {name: (past.get(name, MISSING), now.get(name, MISSING)) for name in sorted(past | now)}
    unlike = {name: (then, now) for name, (then, now) in both.items() if then != now}
    twice = {
        name for name in unlike for other in unlike if other.endswith(f".{name}") and unlike[name] == unlike[other]
    }
    return {name: unlike[name] for name in unlike if name not in twice}  # `steps` beside `settings.steps`


def goes_on(
    path: Path, unlike: dict[str, tuple], inputs: dict, finished: bool, made_before: Sequence[str] = ()
) -> bool:
    """Tell whether the training or result at `path` is used, though it differs by `unlike` (see `differences`).

    Otherwise it is to be set aside, and a new training begins with `inputs`. An input that only one of the two
    trainings has was set by no user, so it counts as code. Where a training goes on by "keep", a file beside it says
    so, and the next call needs no "keep". Raises ValueError where only the number of processes differs; and where a
    half-done training has other settings, seed or cohort, with each value then and now.
    """
    mode = other_training()
    if mode == "anew" and unlike:
        return False
    code = {name for name, values in unlike.items() if name.startswith(SOURCE) or MISSING in values} - {"processes"}
    chosen = {name: unlike[name] for name in unlike if name not in code and name.split(".")[0] not in made_before}
    if list(chosen) == ["processes"] and (len(unlike) == 1 or mode == "keep"):
        n = 1 if unlike["processes"][0] == MISSING else unlike["processes"][0]
        raise ValueError(
            f"{shown(path)} was made by {n} process{'es' if n > 1 else ''}, and this would be another training, "
            f"from its first step: set num_processes to {n}, or delete the file"
        )
    refused = chosen.keys() - (MACHINE if mode == "keep" else ())
    if refused and (mode == "keep" or not finished):
        raise ValueError(
            f"{shown(path)} is of a {'finished' if finished else 'half-done'} training with other settings ("
            f"{said(chosen)}): set them as then, take another run folder, or set it aside with run_all.py --force "
            f"(by hand: {OTHER_TRAINING}=anew)"
        )
    if not unlike or kept_for(path) == inputs:
        return True
    if mode == "keep" and set(unlike) <= {*code, *MACHINE}:
        print(f"{shown(path)} is kept, though it was made by other code ({said(unlike)}).")
        write_text(kept_file(path), json.dumps({"differs": unlike, "inputs": inputs}, indent=1))
        return True
    return False


def said(unlike: dict[str, tuple]) -> str:
    """Return differences as messages name them."""
    return "; ".join(f"{name}: {then} then, {now} now" for name, (then, now) in unlike.items())


def set_aside(folder: Path, names: Sequence[str], unlike: dict[str, tuple], record: dict) -> Path | None:
    """Move a result that no longer fits into `before-YYYYMMDD-HHMMSS/` of its folder, and say what that costs.

    Moves those of the `names` that exist. Writes `unlike` (see `differences`) and the `record` of the result (`step,
    inputs, seconds`) beside them. Returns the new folder; None where there was nothing to move.
    """
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return None
    place = folder / f"{SET_ASIDE}{datetime.now():%Y%m%d-%H%M%S}"
    while any((place / name).exists() for name in there):
        place = place.with_name(f"{place.name}-")
    about = {name: record.get(name) for name in ("step", "seconds", "code", "inputs")} | {"differs": unlike}
    write_text((place / there[0]).with_suffix(".why.json"), json.dumps(about, indent=1))
    for name in there:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, place / name)
    seconds = whole_seconds(record)
    took = f"; making it anew takes about {duration(seconds)}, as it did then" if seconds else ""
    print(f"{shown(folder / there[0])} no longer fits ({said(unlike)}) and is set aside in {place.name}{took}.")
    return place


def whole_seconds(record: dict) -> float:
    """Return how long all steps of a training take, from what those took that were done; 0 where it is not known."""
    steps, step = (record.get("inputs") or {}).get("steps"), record.get("step")
    return record.get("seconds", 0.0) * (steps / step if steps and step else 1)


def kept_file(path: Path) -> Path:
    """Return the file that says that a checkpoint or result is kept though other code made it."""
    return path.with_suffix(".kept.json")


def kept_for(path: Path) -> dict | None:
    """Return the inputs for which a checkpoint or result is kept; None where it is not."""
    file = kept_file(path)
    return json.loads(file.read_text(encoding="utf-8"))["inputs"] if file.exists() else None


# What a run holds -----------------------------------------------------------------------------------------------------


def _files(run: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return files of a run in order; what is set aside, or is just being written, is left out."""
    files = sorted(path for path in Path(run).rglob("*.*") if path.name.endswith(suffixes) and path.name[0] != ".")
    return [path for path in files if not any(part.startswith(SET_ASIDE) for part in path.relative_to(run).parts)]


def trainings(run: Path) -> pd.DataFrame:
    """Return what took a run's time, and whether it fits the code as it is now; no tensor is read.

    A row is a checkpoint, trial, set of images or measurement: `path` (from the run's folder), `state` ("finished",
    "half-done", "torn"), `seconds` (spent so far), `anew` (seconds for all steps; NaN where unknown), `then` and `now`
    (fingerprints), `fits` (as it is, or since it is kept).
    """
    rows = []
    for path in _files(run, (".pt", ".json")):
        if path.name.endswith((".before.pt", ".kept.json")):
            continue
        try:
            record = read_record(path) if path.suffix == ".pt" else json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or "code" not in record:  # no result
                continue
        except ValueError:
            record = {}
        inputs, code = record.get("inputs") or {}, record.get("code", [])
        then, now = inputs.get(SOURCE, record.get(SOURCE)), None
        with suppress(ValueError):  # a function of another name
            now = source_hash(*([code] if isinstance(code, str) else code)) if code else None
        finished = path.suffix == ".json" or record.get("step") == inputs.get("steps")
        state = "torn" if not record else "finished" if finished else "half-done"
        fits = now is not None and now in (then, (kept_for(path) or {}).get(SOURCE))
        seconds, anew = record.get("seconds"), whole_seconds(record) or None
        rows.append((path.relative_to(run).as_posix(), state, seconds, anew, then, now, fits))
    columns = ["path", "state", "seconds", "anew", "then", "now", "fits"]
    return pd.DataFrame(rows, columns=columns).astype({"seconds": float, "anew": float})


def kept(run: Path) -> dict[str, str]:
    """Return what a run has kept though other code made it: path from the run's folder → what differs."""
    differs = {path: json.loads(path.read_text(encoding="utf-8"))["differs"] for path in _files(run, (".kept.json",))}
    return {path.relative_to(run).as_posix()[: -len(".kept.json")]: said(unlike) for path, unlike in differs.items()}
