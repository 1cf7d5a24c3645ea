"""Executing notebooks: kernels of this Python, what they print and take, and what the run records of them."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from lib.run.files import ROOT, shown, without_paths, write_text
from lib.run.finished import Step
from lib.run.folder import Run
from lib.run.notebooks import Notebook
from lib.run.parameters import changed
from lib.run.settings import unlike

MACHINES, OTHER_TRAINING = "LIB_MACHINES", "LIB_OTHER_TRAINING"  # environment variables of kernels
CLEAR_LINE = "\r\x1b[2K"


class Failure(Exception):
    """A notebook that did not reach its end; the message says where and why."""


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
    environment: ClassVar[dict[str, str]] = {}  # variables beside those above

    @classmethod
    def tell(cls, machines: dict[str, object], other_training: str) -> None:
        """Say to kernels who trains, as `lib.run.tasks.Machines` reads it, and what becomes of trainings that no longer
        fit, as `lib.run.checkpoints` does: "", "keep" or "anew"."""
        cls.environment = {MACHINES: json.dumps(machines)}
        if other_training:
            cls.environment[OTHER_TRAINING] = other_training

    async def start_kernel(self, **options) -> None:
        if self.lock is not None and os.name == "posix":
            options["pass_fds"] = (self.lock,)
        options["env"] = {**options.get("env", os.environ), **self.environment}
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
    steps: Iterable[Step],
    selected: list[Notebook],
    total: int,
    run: Run,
    pages: ModuleType,
    facts: Callable[[], dict],
) -> bool:
    """Execute or skip each selected notebook; whether all have finished.

    Parameters
    ----------
    steps : up to the last selected notebook, each planned when it is reached
    total : how many notebooks the study has
    pages : `lib.report.pages`, which this room does not know
    facts : what the manifest says of the run, asked for once and only where a notebook is executed
    """
    described = False
    for number, step in enumerate(steps, 1):
        label = f"{number}/{total}  {step.notebook.title}"
        if step.notebook not in selected:
            if step.record and step.reasons:
                print(f"{label}  has changed since it was run; going on with what it made then")
            continue
        if not step.reasons:
            print(f"{label}  unchanged, skipped  ({step.record['seconds']:.0f} s when it ran)")
            continue
        if not described:
            run.record(**facts())
            described = True
        if not run_notebook(step, label, run, pages):
            return False
    page, manifest = run / "notebooks" / "index.html", run / "manifest.json"
    if not page.exists() or page.stat().st_mtime_ns < manifest.stat().st_mtime_ns:  # an earlier call ended in between
        pages.index(run)
    return True


def run_notebook(step: Step, label: str, run: Run, pages: ModuleType) -> bool:
    """Execute one notebook, write its page and record what came of it; whether it finished.

    It counts as finished when its page is there: a run that is killed just before executes it again. `label` begins its
    lines in the terminal.
    """
    notebook, defaults = step.notebook, step.notebook.parameters
    copy = run.path("notebooks", notebook.path.name)
    for old in (copy, copy.with_suffix(".html")):
        old.unlink(missing_ok=True)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    past = step.record if step.record.get("state") != "finished" else {}
    goes_on = past and not unlike(past["parameters"], step.parameters)
    record = {
        "title": notebook.title,
        "question": notebook.question,
        "state": "running",
        "started": now,
        "begun": past.get("begun", past["started"]) if goes_on else now,  # before it was interrupted
        "parameters": step.parameters,
        "inputs": step.inputs,
        "fingerprint": step.fingerprint,
    }
    run.record("notebooks", **{notebook.name: record})
    pages.index(run)  # without what it made before
    told = {name: changed(name, value, defaults[name][0]) for name, value in step.parameters.items()}
    injected = {name: told[name] for name in unlike(told, {name: defaults[name][0] for name in told})}
    if "run_dir" in defaults:
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
    record_kept(run)
    pages.index(run)
    return record["state"] == "finished"


def record_kept(run: Run) -> None:
    """Record the trainings that were kept though other code made them: path → what differs."""
    from lib.run import checkpoints  # loads torch

    if (trainings := checkpoints.kept(run.folder)) or "kept" in run.manifest:
        run.record(kept=trainings)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files (`lib.run.files.written`) of killed processes.

    One of the last minute may be another machine's, which cannot be asked.
    """
    for path in folder.rglob(".*.*"):
        found = re.match(r"\.(\d+)\..", path.name)
        with suppress(OSError):
            if found and not psutil.pid_exists(int(found[1])) and time.time() - path.stat().st_mtime > 60:
                path.unlink()


def kept(folder: Path) -> str:
    """Say what a run that stopped has kept, and how it goes on."""
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


def describe_environment() -> dict:
    """Return versions, commit, hardware and what is not deterministic on it, from a process that gives the GPU back."""
    code = "import json; from lib.run import hardware; facts = hardware.environment()"
    code += "; facts['not_deterministic'] = hardware.not_deterministic(); print(json.dumps(facts))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(told.stdout)
