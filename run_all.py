#!/usr/bin/env python
"""Run the study: papermill over notebooks/, in order, with one set of parameters.

    python run_all.py                                       the quick profile, into runs/quick
    python run_all.py --profile full --run hospital -p radiographs_csv data/cohort.csv
    python run_all.py --list                                notebooks, their state, their parameters
    python run_all.py --verify hospital                     run it again and compare: are all results the same?

Finished notebooks whose code, parameters and inputs did not change are skipped. The exit status is 0 only if every
notebook that was asked for has finished: 1 where one failed or could not be written, 2 where the request made no sense
or another process writes the run (nothing is touched).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tokenize
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nbformat
import papermill
import psutil
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from lib.radiographs.table import RadiographsError, read_csv
from lib.report import pages
from lib.run.files import ROOT, from_root, shown, without_paths, write_text
from lib.run.fingerprint import code_hash
from lib.run.folder import WHERE, Damaged, Run
from lib.run.locks import LOCK, Busy, sole_writer

NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"
BY_HAND = {"05_classifier_trials": "synthetic/verdicts.csv", "06_statistics": "reader_study/answers.csv"}  # and read by
CLEAR_LINE = "\r\x1b[2K"


class Mistake(Exception):
    """A request that makes no sense; the message says what to do."""


class Failure(Exception):
    """A notebook that did not reach its end; the message says where and why."""


@dataclass(frozen=True)
class Notebook:
    """One step of the study: `notebooks/NN_name.ipynb`."""

    path: Path
    cells: list

    @classmethod
    def read(cls, path: Path) -> Notebook:
        return cls(path, nbformat.read(path, as_version=4).cells)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def title(self) -> str:
        """The heading of the first cell."""
        return self._opening[0].lstrip("# ") or self.name

    @property
    def question(self) -> str:
        """The paragraph below the title."""
        return " ".join(self._opening[1].split()) if len(self._opening) > 1 else ""

    @property
    def _opening(self) -> list[str]:
        cell = self.cells[0] if self.cells else None
        return re.split(r"\n\s*\n", cell.source.strip()) if cell and cell.cell_type == "markdown" else [""]

    @property
    def code(self) -> str:
        """All code cells; IPython's % and ! lines, which are no Python, made comments."""
        source = "\n\n".join(cell.source for cell in self.cells if cell.cell_type == "code")
        return re.sub(r"^(\s*)([%!])", r"\1pass  # \2", source, flags=re.MULTILINE)

    @property
    def parameters(self) -> dict[str, tuple[object, str]]:
        """name → (default, help) of the cell tagged `parameters`; help is the comment behind the value.

        papermill's own `inspect_notebook` gives defaults as text and drops lines with a second = in them.
        """
        for cell in self.cells:
            if "parameters" in cell.metadata.get("tags", []):
                break
        else:
            raise Mistake(f"{shown(self.path)} has no cell tagged 'parameters'")
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(cell.source).readline)
            if token.type == tokenize.COMMENT
        }
        try:
            return {
                node.targets[0].id: (ast.literal_eval(node.value), comments.get(node.end_lineno, ""))
                for node in ast.parse(cell.source).body
            }
        except (SyntaxError, ValueError, AttributeError) as error:
            raise Mistake(
                f"{shown(self.path)}: the parameters cell must hold 'name = literal' lines ({error})"
            ) from error


def read_notebooks(folder: Path) -> list[Notebook]:
    """`NN_*.ipynb` of a folder, in order."""
    notebooks = [Notebook.read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    if not notebooks:
        raise Mistake(f"no notebooks NN_name.ipynb in {shown(folder)}")
    return notebooks


# Parameters


def defaults(notebooks: list[Notebook]) -> dict[str, object]:
    """Every parameter of every notebook; one that several share has one default."""
    found = {}
    for notebook in notebooks:
        for name, (value, _) in notebook.parameters.items():
            other, where = found.setdefault(name, (value, notebook.name))
            if other != value:
                raise Mistake(
                    f"parameter {name} is {other!r} in {where} but {value!r} in {notebook.name}: make them one"
                )
    return {name: value for name, (value, _) in found.items()}


def read_profile(folder: Path, profile: str) -> dict[str, object]:
    """The flat `parameter: value` file of a profile."""
    path = folder / "profiles" / f"{profile}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise Mistake(f"unknown profile {profile!r}{nearest(profile, known)}; there are {', '.join(known) or 'none'}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise Mistake(f"{shown(path)} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise Mistake(f"{shown(path)} must hold 'parameter: value' lines")
    return values


def choose_parameters(notebooks: list[Notebook], profile: dict, given: list[tuple[str, str]]) -> dict[str, object]:
    """Defaults, changed by the profile, changed by what the command line gives."""
    known = defaults(notebooks)
    values = dict(known)
    for where, changes in (("the profile", profile.items()), ("-p", given)):
        for name, value in changes:
            if name == "run_dir":
                raise Mistake("run_dir is not a parameter to set: --run NAME chooses the run folder")
            if name not in known:
                raise Mistake(f"unknown parameter {name!r} in {where}{nearest(name, known)}; --list shows all")
            if where == "-p":
                value = typed(name, value, known[name])
                if name.endswith("_csv") and value:
                    value = os.path.abspath(Path(value).expanduser())
            values[name] = cast(name, value, known[name])
    for name, value in values.items():
        if name.endswith("_csv") and value:
            if not from_root(value).is_file():
                raise Mistake(f"parameter {name}: there is no file {value}")
            values[name] = within_repository(from_root(value))
    return values


def within_repository(csv: Path) -> str:
    """A table's path as the run records it. One that lies elsewhere is reached through a link in data/: no path of this
    machine, which may name somebody, gets into the run."""
    csv = Path(os.path.abspath(csv))
    if not csv.is_relative_to(ROOT):
        folder = hashlib.sha256(str(csv.parent.resolve()).encode()).hexdigest()[:8]
        link = ROOT / "data" / f"linked-{folder}"
        with suppress(OSError):  # there already, or a system without links: then the path stays
            link.symlink_to(csv.parent, target_is_directory=True)
        if (link / csv.name).is_file():
            csv = link / csv.name
    return shown(csv)


def check_choices(values: dict[str, object]) -> None:
    """Refuse conditions, methods and run folders that notebooks 04 and 05 would refuse after hours of training."""
    n = values.get("num_processes", 1)
    if n < 1:
        raise Mistake(f"parameter num_processes: {n}; at least one process must work")
    for name in ("cyclegan_batch", "cyclediff_batch"):
        if values.get(name, n) % n:
            raise Mistake(f"parameter num_processes: {n} processes cannot share {name} = {values[name]} evenly")
    if values.get("executor", "local") != "local":
        if values["executor"] != "slurm":
            raise Mistake(f"parameter executor: {values['executor']!r}; there are 'local' and 'slurm'")
        if not shutil.which("sbatch"):
            raise Mistake("parameter executor: there is no sbatch here; start this on a machine of the Slurm cluster")
    if not {"conditions", "methods", "learning_curve"} & set(values):
        return
    from lib.fidelity.controls import CONTROL_GENERATORS
    from lib.translators.methods import GENERATORS
    from lib.trials.conditions import condition

    try:
        for name in values.get("conditions", ()):
            condition(name)
    except ValueError as error:
        raise Mistake(f"parameter conditions: {error}") from error
    known = [*GENERATORS, *CONTROL_GENERATORS]
    for name in values.get("methods", ()):
        if name not in known:
            raise Mistake(f"parameter methods: unknown {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    for folder in values.get("learning_curve", ()):
        if not (from_root(folder) / "trials" / "metrics.csv").is_file():
            raise Mistake(f"parameter learning_curve: {folder} is no run with trials (trials/metrics.csv)")


def nearest(name: str, known) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f", did you mean {match[0]!r}?" if match else ""


def typed(name: str, text: str, default):
    """What the command line's text means: itself where the default is text, else YAML (`3`, `true`, `[0, 1]`)."""
    if isinstance(default, str):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Mistake(f"parameter {name}: {text!r} is not a YAML value") from error


def cast(name: str, value, default):
    """The value in the type of the default: whole numbers may stand for floats, and so may `1e-4`, text to YAML."""
    kind = type(default)
    if default is None or (type(value) is kind and kind is not list):
        return value
    if kind is float and type(value) in (int, str):
        try:
            return float(value)
        except ValueError:
            pass
    if kind is list and isinstance(value, list):
        return [cast(name, item, default[0]) for item in value] if default else value
    example = ", like '[0, 1]'" if kind is list else ""
    raise Mistake(f"parameter {name} must be {kind.__name__}{example} (default {default!r}), not {value!r}")


# What is finished


def fingerprint(notebook: Notebook, parameters: dict, before: list[str | None], run: Run | None = None) -> str:
    """sha256 of all that a notebook's results follow from: its code, what that imports of lib, its parameters,
    the table of radiographs and sizes and times of its files, what was decided by hand in the run, and the fingerprints
    of the notebooks before it. Prose does not count, nor do parameters that say only where to train (`WHERE`)."""
    parameters = {name: value for name, value in parameters.items() if name not in WHERE}
    try:
        code = code_hash(notebook.code)
    except SyntaxError:  # the notebook will say so itself
        code = notebook.code
    tables = [from_root(value) for name, value in parameters.items() if name.endswith("_csv") and value]
    decided = [run / file for name, file in BY_HAND.items() if run and name == notebook.name and (run / file).exists()]
    content = [file.read_bytes() for file in tables + decided]
    pictures = [file_state(path) for table in tables for path in named_files(table)]
    parts = [code, json.dumps(parameters, sort_keys=True), repr(before), repr(pictures)]
    digests = [hashlib.sha256(part).hexdigest() for part in [*(part.encode() for part in parts), *content]]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def named_files(table: Path) -> list[Path]:
    """The files that a table of radiographs names, as well as it can be read."""
    try:
        return [table.parent / path for path in read_csv(table, ("path",), ())[0].path]
    except RadiographsError:  # the notebook will say so itself
        return []


def file_state(path: Path) -> tuple[int, int] | None:
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except (OSError, ValueError):
        return None


def check_run_folder(notebooks: list[Notebook], past: dict, parameters: dict, redone: set[str], name: str) -> None:
    """What was finished with other parameters must not mix with what comes now."""
    for notebook in notebooks:
        record = past.get(notebook.name, {})
        if record.get("state") != "finished" or notebook.name in redone:
            continue
        for parameter, old in record["parameters"].items():
            if parameter in notebook.parameters and parameter not in WHERE and parameters[parameter] != old:
                raise Mistake(
                    f"runs/{name} was made with {parameter} = {old!r} ({notebook.name}), now it is "
                    f"{parameters[parameter]!r}: take another --run NAME, or make {notebook.name} anew with --force"
                )


def select(notebooks: list[Notebook], start: str | None, only: str | None) -> list[Notebook]:
    """The notebooks that `--from` or `--only` ask for, by number or by the beginning of the name."""
    wanted = start if only is None else only
    if wanted is None:
        return notebooks
    matches = [i for i, notebook in enumerate(notebooks) if notebook.name.startswith(wanted)]
    if len(matches) != 1:
        names = [notebook.name for notebook in notebooks]
        raise Mistake(
            f"{wanted!r} names {len(matches)} notebooks{nearest(wanted, names)}; there are {', '.join(names)}"
        )
    return notebooks[matches[0] : matches[0] + 1] if only else notebooks[matches[0] :]


# Running


class ThisPython(AsyncKernelManager):
    """Starts kernels with this interpreter and this repository's lib, whichever others the user has."""

    kernel_spec = KernelSpec(
        **get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]),
        env={
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONHASHSEED": "0",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "LIB_PROGRESS": "text",  # see lib.run.progress.progress
            "TQDM_MININTERVAL": "10",  # seconds; for the bars of other libraries
            "TQDM_NCOLS": "80",  # both given, bars ask no terminal for its size
            "TQDM_NROWS": "20",
        },
    )
    lock: int | None = None  # descriptor of the run's lock, which a kernel holds on where this process is killed

    async def start_kernel(self, **options) -> None:
        if self.lock is not None and os.name == "posix":
            options["pass_fds"] = (self.lock,)
        await super().start_kernel(**options)


class Live:
    """Where a kernel's text goes while it runs: the latest line on a terminal, one every half minute in a log."""

    def __init__(self, label: str, every: float = 30):
        self.label, self.every = label, every
        self.tty = sys.stdout.isatty()
        self.start = self.last = time.monotonic()
        self.write(" ")

    def write(self, text: str) -> None:
        lines = [line.rstrip() for line in re.split(r"[\r\n]", plain(text)) if line.strip()]
        lines = [re.sub(r"%\|.*?\|", "%", line) for line in lines[-1:]]  # a progress bar's numbers are enough
        now = time.monotonic()
        line = f"{self.label}  {self.seconds:.0f} s  {''.join(lines)}"
        if self.tty:
            print(CLEAR_LINE + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        elif lines and now - self.last > self.every:
            self.last = now
            print(line, flush=True)

    def flush(self) -> None:
        """papermill asks for it; `write` has already flushed."""

    def done(self, state: str) -> None:
        print(f"{CLEAR_LINE if self.tty else ''}{self.label}  {state}  {self.seconds:.0f} s", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


class PeakMemory:
    """The most memory, in MB, that the processes below this one (a kernel and what it starts) hold together inside the
    `with`; looked at twice a second, and each one's own peak where the system keeps it (VmHWM)."""

    def __enter__(self) -> PeakMemory:
        self.mb, self._ended = 0.0, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._watch.join()

    def _look(self) -> None:
        while True:
            resident, peaks = 0, [0]
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError):
                    resident += process.memory_info().rss
                    status = Path(f"/proc/{process.pid}/status")
                    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
                        peaks.append(1024 * int(peak[1]))
            self.mb = max(self.mb, resident / 1e6, max(peaks) / 1e6)
            if self._ended.wait(0.5):
                break


def plain(text: str) -> str:
    """Text without terminal colours and cursor moves."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def execute(notebook: Notebook, parameters: dict, copy: Path, live: Live) -> None:
    """Run one notebook from top to bottom into its executed copy.

    Raises
    ------
    Failure
        For whatever kept it from its last cell: an error, a dead kernel, a time-out, an early exit, Ctrl-C.
    """
    for logger in ("papermill", "traitlets"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    for attempt in ("first", "second"):
        try:
            papermill.execute_notebook(
                notebook.path, copy, parameters, kernel_name="python3", language="python", cwd=notebook.path.parent,
                progress_bar=False, stdout_file=live, stderr_file=live, kernel_manager_class=ThisPython,
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            raise Failure(
                where(notebook, copy) + tail(error.traceback or [f"{error.ename}: {error.evalue}"])
            ) from error
        except KeyboardInterrupt as error:
            raise Failure(where(notebook, copy) + "interrupted from the keyboard") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES):
                raise Failure(where(notebook, copy) + f"{type(error).__name__}: {error}") from error
            raise Failure(where(notebook, copy) + f"cannot write {shown(copy)}: {error.strerror}") from error
        except Exception as error:
            # Kernels choose a free port before they take it, so another program can be quicker.
            if attempt == "first" and re.search("Kernel died before replying|Address already in use", str(error)):
                continue
            raise Failure(where(notebook, copy) + f"{type(error).__name__}: {plain(str(error)).strip()}") from error
        break
    if any(cell.metadata.papermill.status != "completed" for cell in read_copy(copy)):
        raise Failure(where(notebook, copy) + "left the notebook before its end (exit or quit)")


def read_copy(copy: Path) -> list:
    """The cells of an executed copy; none where it was never written, or cut short by a full disk."""
    try:
        return nbformat.read(copy, as_version=4).cells
    except (FileNotFoundError, ValueError):
        return []


def where(notebook: Notebook, copy: Path) -> str:
    """The cell that was reached, counted in the source notebook, and its first line."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [cell for cell in read_copy(copy) if not added & set(cell.metadata.get("tags", []))]
    reached = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    if not reached:
        return f"{shown(notebook.path)}, before its first cell\n"
    first_line = next(iter(cells[reached[-1]].source.strip().splitlines()), "")
    return f"{shown(notebook.path)}, cell {reached[-1] + 1}: {first_line}\n"


def tail(traceback: list[str], lines: int = 12) -> str:
    return "\n".join(plain("\n".join(traceback)).rstrip().splitlines()[-lines:])


def run_notebooks(
    notebooks: list[Notebook], selected: list[Notebook], parameters: dict, run: Run, profile: str, force: bool
) -> bool:
    """Execute or skip each selected notebook; whether all have finished."""
    described = False
    for number, notebook in enumerate(notebooks[: notebooks.index(selected[-1]) + 1], 1):
        label = f"{number}/{len(notebooks)}  {notebook.title}"
        own, mark = inputs_of(notebook, notebooks, parameters, run)
        record = run.manifest.get("notebooks", {}).get(notebook.name, {})
        unchanged = record.get("state") == "finished" and record["fingerprint"] == mark
        if notebook not in selected:
            if record and not unchanged:
                print(f"{label}  has changed since it was run; going on with what it made then")
            continue
        if unchanged and not force:
            print(f"{label}  unchanged, skipped  ({record['seconds']:.0f} s when it ran)")
            continue
        if not described:
            run.record(profile=profile, parameters=parameters, seed=parameters.get("seed"), **describe_environment())
            described = True
        if not run_notebook(notebook, label, own, mark, run):
            return False
    page, manifest = run / "notebooks" / "index.html", run / "manifest.json"
    if not page.exists() or page.stat().st_mtime_ns < manifest.stat().st_mtime_ns:  # an earlier call ended in between
        pages.index(run)
    return True


def inputs_of(notebook: Notebook, notebooks: list[Notebook], parameters: dict, run: Run) -> tuple[dict, str]:
    """A notebook's own parameters, and its fingerprint after what the notebooks before it have made in this run."""
    past = run.manifest.get("notebooks", {})
    earlier = [one.name for one in notebooks[: notebooks.index(notebook)]]
    own = {name: parameters[name] for name in notebook.parameters if name != "run_dir"}
    return own, fingerprint(notebook, own, [past[name]["fingerprint"] for name in earlier if name in past], run)


def run_notebook(notebook: Notebook, label: str, own: dict, mark: str, run: Run) -> bool:
    """Execute one notebook with its own parameters, write its page and record what came of it; whether it finished.

    It counts as finished when its page is there: a run that is killed just before executes it again.
    """
    copy = run.path("notebooks", notebook.path.name)
    for old in (copy, copy.with_suffix(".html")):
        old.unlink(missing_ok=True)
    record = {
        "title": notebook.title,
        "question": notebook.question,
        "state": "running",
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "parameters": own,
        "fingerprint": mark,
    }
    run.record("notebooks", **{notebook.name: record})
    pages.index(run)  # without what it made before
    injected = {name: value for name, value in own.items() if value != notebook.parameters[name][0]}
    if "run_dir" in notebook.parameters:
        injected["run_dir"] = shown(run.folder)
    live = Live(label)
    with PeakMemory() as memory:
        try:
            execute(notebook, injected, copy, live)
            record["state"] = "finished"
        except Failure as failure:
            record |= {"state": "failed", "error": without_paths(str(failure))}
    record |= {"seconds": round(live.seconds, 1), "memory_mb": round(memory.mb)}
    live.done(record["state"])
    if "error" in record:
        print(f"\n{record['error']}", file=sys.stderr)
    if read_copy(copy):
        write_text(copy, without_paths(copy.read_text(encoding="utf-8")))
        pages.render(copy)
        if "error" in record:
            print(f"\npartly executed copy: {shown(copy)}", file=sys.stderr)
    run.record("notebooks", **{notebook.name: record})
    pages.index(run)
    return record["state"] == "finished"


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files (`lib.run.files.written`) of killed processes. One that was written within the last
    minute
    may be another machine's, which cannot be asked."""
    for path in folder.rglob(".*.*"):
        found = re.match(r"\.(\d+)\..", path.name)
        with suppress(OSError):
            if found and not psutil.pid_exists(int(found[1])) and time.time() - path.stat().st_mtime > 60:
                path.unlink()


def kept(folder: Path) -> str:
    """What a run that stopped has kept, and how it goes on."""
    try:
        notebooks = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["notebooks"]
    except (OSError, ValueError, KeyError):
        notebooks = {}
    finished = [name for name, record in notebooks.items() if record["state"] == "finished"]
    lists = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*/*/jobs.json")]
    jobs = " ".join(sorted({job.split("_")[0] for sent in lists for job, _ in sent.values()}))
    going = f"; jobs {jobs}, where they still wait or run, go on and are waited for (`scancel {jobs}` ends them)"
    return (
        f"finished notebooks are kept ({', '.join(finished) or 'none yet'}), and the last checkpoint of what was being "
        f"trained{going if jobs else ''}; the same command goes on (runs/{folder.name})"
    )


def compare(first: str, second: str, runs_folder: Path) -> int:
    """Print in which parameters two runs differ, and write the page that shows them side by side."""
    runs = []
    if first == second:
        raise Mistake(f"--compare {first} {second}: name two different runs")
    for name in (first, second):
        if not (runs_folder / name / "manifest.json").is_file():
            known = sorted(path.parent.name for path in runs_folder.glob("*/manifest.json"))
            raise Mistake(f"there is no run {name!r}{nearest(name, known)}; there are {', '.join(known) or 'none'}")
        runs.append(Run(runs_folder / name))
    for name, (here, there) in runs[0].differing(runs[1]).items():
        print(f"{name}: {here!r} → {there!r}")
    print(f"page: {shown(pages.compare(*runs))}")
    return 0


def verify(name: str, notebooks_folder: Path, runs_folder: Path) -> int:
    """Repeat a finished run, with its parameters, in runs/NAME-verify, and compare; the exit status.

    The repetition goes on where it was interrupted. It is deleted where all is the same, and kept to be looked at where
    not; the next call then makes a new one.
    """
    from lib.checks.verify import compare_runs, report

    if not (runs_folder / name / "manifest.json").is_file():
        known = sorted(path.parent.name for path in runs_folder.glob("*/manifest.json"))
        raise Mistake(f"there is no run {name!r}{nearest(name, known)}; there are {', '.join(known) or 'none'}")
    notebooks = read_notebooks(notebooks_folder)
    with sole_writer(runs_folder / name, "run_all.py --verify"):
        run = Run(runs_folder / name)
        manifest, records = run.manifest, run.manifest.get("notebooks", {})
        for notebook in notebooks:
            if (state := records.get(notebook.name, {}).get("state", "not run")) != "finished":
                raise Mistake(
                    f"runs/{name} is not finished ({notebook.name} is {state}), so there is nothing to verify"
                )
        parameters = defaults(notebooks) | manifest["parameters"]
        marks = {notebook.name: records[notebook.name]["fingerprint"] for notebook in notebooks}
        changed = [one.name for one in notebooks if inputs_of(one, notebooks, parameters, run)[1] != marks[one.name]]
        if changed:
            raise Mistake(
                f"runs/{name} was made with other code, parameters, radiographs or decisions (the fingerprint of "
                f"{changed[0]} differs): check out its commit, {manifest.get('commit') or 'which is not recorded'}, or "
                "run it again first"
            )
        with sole_writer(runs_folder / f"{name}-verify", "run_all.py --verify") as ThisPython.lock:
            again = Run(runs_folder / f"{name}-verify")
            begun = again.manifest
            made = {one: record["fingerprint"] for one, record in begun.get("notebooks", {}).items()}
            if "verified" in begun or not made or any(marks.get(one) != mark for one, mark in made.items()):
                empty(again.folder)
            for file in BY_HAND.values():
                if (run / file).exists():
                    shutil.copy2(run / file, again.path(file))
            remove_leftovers(again.folder)
            if not run_notebooks(notebooks, notebooks, parameters, again, manifest["profile"], force=False):
                print(kept(again.folder), file=sys.stderr)
                return 1
            files = compare_runs(run.folder, again.folder)
            same = not files.differ.any()
            for fact in ("versions", "device", "cpu", "threads", "commit"):
                if (here := again.manifest.get(fact)) != (there := manifest.get(fact)):
                    print(f"{fact}: {there} in {name}, {here} now")
            print(report(files))
            again.record(verified=same)
            if same:
                empty(again.folder)
        if same:
            shutil.rmtree(again.folder, ignore_errors=True)
    if same:
        print(f"runs/{name} is reproduced")
        return 0
    print(f"runs/{name} is NOT reproduced; the repetition is kept: {shown(again.folder)}")
    return 1


def empty(folder: Path) -> None:
    """Delete what a folder holds, but for its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def describe_environment() -> dict:
    """Versions, commit and hardware, and what is not deterministic on it, from a process that gives the GPU back."""
    code = "import json; from lib.run import hardware; facts = hardware.environment()"
    code += "; facts['not_deterministic'] = hardware.not_deterministic(); print(json.dumps(facts))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(told.stdout)


def show(notebooks: list[Notebook], parameters: dict, manifest: dict) -> None:
    """Notebooks with title, question, state, seconds and peak memory; parameters with default, value and meaning."""
    for notebook in notebooks:
        record = manifest.get("notebooks", {}).get(notebook.name, {})
        took = f", {record['seconds']:.0f} s" if "seconds" in record else ""
        took += f", {record['memory_mb']} MB" if "memory_mb" in record else ""
        print(f"{notebook.name}  {record.get('state', 'not run')}{took}\n  {notebook.title}\n  {notebook.question}")
        for name, (default, meaning) in notebook.parameters.items():
            value = "" if name == "run_dir" or parameters[name] == default else f" → {parameters[name]!r}"
            print(f"    {name} = {default!r}{value}" + (f"  # {meaning}" if meaning else ""))
        print()


def check(
    notebooks: list[Notebook],
    selected: list[Notebook],
    parameters: dict,
    manifest: dict,
    options: argparse.Namespace,
    name: str,
) -> None:
    """Refuse what does not fit the run, or what a late notebook would refuse after hours."""
    past = manifest.get("notebooks", {})
    redone = {notebook.name for notebook in selected} if options.force else set()
    try:
        check_run_folder(notebooks, past, parameters, redone, name)
    except Mistake as mistake:
        if (profile := manifest.get("profile", options.profile)) == options.profile:
            raise
        raise Mistake(f"{mistake} (it was made with --profile {profile}, this is {options.profile})") from None
    for notebook in notebooks[: notebooks.index(selected[0])]:
        state = past.get(notebook.name, {}).get("state", "not run")
        if state != "finished" and not (options.only and state == "not run"):  # it says itself what it misses
            raise Mistake(f"{notebook.name} is {state} in runs/{name}: start with --from {notebook.name[:2]}")
    check_choices(parameters)


def main(arguments: list[str] | None = None, notebooks_folder: Path = NOTEBOOKS, runs_folder: Path = RUNS) -> int:
    """The command; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="Example: python run_all.py --profile full -p seed 1 --run seed1"
    )
    parser.add_argument("--profile", default="quick", help="a file of notebooks/profiles (default: %(default)s)")
    parser.add_argument("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="set a parameter; may be repeated")  # fmt: skip
    parser.add_argument("--run", metavar="NAME", help="folder below runs/ (default: the profile's name)")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--from", dest="start", metavar="NN", help="start at this notebook")
    some.add_argument("--only", metavar="NN", help="run this notebook alone")
    parser.add_argument("--force", action="store_true", help="run what was asked for even if it is finished")
    parser.add_argument("--compare", nargs=2, metavar="RUN", help="write a page of two runs side by side; run nothing")
    parser.add_argument("--verify", metavar="RUN", help="repeat a finished run and compare: are all results the same?")
    parser.add_argument("--list", action="store_true", help="show notebooks, state and parameters; run nothing")
    options = parser.parse_args(arguments)
    name = options.run or options.profile
    try:
        if options.compare:
            return compare(*options.compare, runs_folder)
        if options.verify:
            name = f"{options.verify}-verify"
            return verify(options.verify, notebooks_folder, runs_folder)
        notebooks = read_notebooks(notebooks_folder)
        parameters = choose_parameters(notebooks, read_profile(notebooks_folder, options.profile), options.given)
        parameters.pop("run_dir", None)
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise Mistake(f"--run {name!r}: a run's name is one folder name, letters, digits, . + - _")
        folder = runs_folder / name
        if options.list:
            show(notebooks, parameters, Run(folder).manifest if folder.exists() else {})
            return 0
        selected = select(notebooks, options.start, options.only)
        if not folder.exists():  # a mistake leaves no folder
            check(notebooks, selected, parameters, {}, options, name)
        with sole_writer(folder, "run_all.py") as ThisPython.lock:
            run = Run(folder)
            check(notebooks, selected, parameters, run.manifest, options, name)
            remove_leftovers(folder)
            finished = run_notebooks(notebooks, selected, parameters, run, options.profile, options.force)
    except BrokenPipeError:
        raise
    except (Mistake, Damaged, Busy) as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run_all.py: {error}\n{kept(runs_folder / name)}", file=sys.stderr)
        return 1
    if not finished:
        print(kept(folder), file=sys.stderr)
        return 1
    print(f"\npages: {shown(run / 'notebooks/index.html')}")
    if (answers := run / "answers.md").exists():
        print(f"answers: {shown(answers)}\n\n{answers.read_text(encoding='utf-8').strip()}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `run_all.py --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
