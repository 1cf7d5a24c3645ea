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
from lib.run.finished import Request, Step
from lib.run.folder import Run, read_manifest
from lib.run.notebooks import Notebook
from lib.run.parameters import to_tell
from lib.run.settings import unlike

CLEAR_LINE = "\r\x1b[2K"
NOT_WRITTEN = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES)


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
        """Tell kernels who trains (`lib.run.tasks.Machines`), and what becomes of other trainings (`checkpoints`)."""
        told = {"LIB_MACHINES": json.dumps(machines), "LIB_OTHER_TRAINING": other_training}
        cls.environment = {name: value for name, value in told.items() if value}

    async def start_kernel(self, **options) -> None:
        if self.lock is not None and os.name == "posix":
            options["pass_fds"] = (self.lock,)
        options["env"] = {**options.get("env", os.environ), **self.environment}
        await super().start_kernel(**options)


class Live:
    """Where a kernel's text goes while it runs: the latest line on a terminal, one every half minute in a log."""

    def __init__(self, label: str):
        self.label, self.tty = label, sys.stdout.isatty()
        self.start = self.last = time.monotonic()
        self.write("")

    def write(self, text: str) -> None:
        lines = [line.rstrip() for line in re.split(r"[\r\n]", plain(text)) if line.strip()]
        latest = re.sub(r"%\|.*?\|", "%", lines[-1]) if lines else ""  # a progress bar's numbers are enough
        line = f"{self.label}  {self.seconds:.0f} s  {latest}"
        if self.tty:
            print(CLEAR_LINE + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        elif latest and time.monotonic() - self.last > 30:
            self.last = time.monotonic()
            print(line, flush=True)

    def flush(self) -> None:
        """Do nothing: papermill asks for it, and `write` has flushed."""

    def done(self, state: str) -> None:
        print(f"{CLEAR_LINE if self.tty else ''}{self.label}  {state}  {self.seconds:.0f} s", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


class PeakMemory(threading.Thread):
    """The most memory, in MB, that the processes below this one (a kernel and what it starts) hold together inside the
    `with`; looked at twice a second, and each one's own peak where the system keeps it (VmHWM)."""

    def __enter__(self) -> PeakMemory:
        self.mb, self.ended, self.daemon = 0.0, threading.Event(), True
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            resident, peaks = 0, [0]
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError):
                    resident += process.memory_info().rss
                    status = Path(f"/proc/{process.pid}/status")
                    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
                        peaks.append(1024 * int(peak[1]))
            self.mb = max(self.mb, resident / 1e6, max(peaks) / 1e6)


def plain(text: str) -> str:
    """Return text without terminal colours and cursor moves."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def execute(notebook: Notebook, parameters: dict, copy: Path, live: Live) -> str:
    """Run one notebook into its executed copy; return where and why it stopped before its end, "" where it did not."""
    for logger in ("papermill", "traitlets"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    for attempt in ("first", "second"):
        try:
            papermill.execute_notebook(
                notebook.path, copy, parameters, kernel_name="python3", language="python", cwd=notebook.path.parent,
                progress_bar=False, stdout_file=live, stderr_file=live, kernel_manager_class=ThisPython,
            )  # fmt: skip
            ended = all(cell.metadata.papermill.status == "completed" for cell in read_copy(copy))
            why = "" if ended else "left the notebook before its end (exit or quit)"
        except papermill.PapermillExecutionError as error:
            traceback = plain("\n".join(error.traceback or [f"{error.ename}: {error.evalue}"]))
            why = "\n".join(traceback.rstrip().splitlines()[-12:])
        except KeyboardInterrupt:
            why = "interrupted from the keyboard"
        except Exception as error:
            # Kernels choose a free port before they take it, so another program can be quicker.
            if attempt == "first" and re.search("Kernel died before replying|Address already in use", str(error)):
                continue
            unwritten = isinstance(error, OSError) and error.errno in NOT_WRITTEN
            why = f"cannot write {shown(copy)}: {error.strerror}" if unwritten else f"{type(error).__name__}: {error}"
            why = plain(why).strip()
        return why and f"{where(notebook, copy)}\n{why}"


def read_copy(copy: Path) -> list:
    """Return the cells of an executed copy; none where it was never written, or cut short by a full disk."""
    try:
        return nbformat.read(copy, as_version=4).cells
    except (FileNotFoundError, ValueError):
        return []


def where(notebook: Notebook, copy: Path) -> str:
    """Return the cell that was reached, counted in the source notebook, and its first line."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [cell for cell in read_copy(copy) if not added & set(cell.metadata.get("tags", []))]
    reached = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    if not reached:
        return f"{shown(notebook.path)}, before its first cell"
    first_line = cells[reached[-1]].source.strip().partition("\n")[0]
    return f"{shown(notebook.path)}, cell {reached[-1] + 1}: {first_line}"


def run_notebooks(request: Request, pages: ModuleType) -> bool:
    """Execute or skip each selected notebook; whether all have finished.

    `pages` is `lib.report.pages`, which this room does not know.
    """
    run, described = Run(request.folder), False
    for number, step in enumerate(request.steps(), 1):
        label = f"{number}/{len(request.notebooks)}  {step.notebook.title}"
        if not step.wanted:
            if step.record and step.reasons:
                print(f"{label}  has changed since it was run; going on with what it made then")
        elif not step.reasons:
            print(f"{label}  unchanged, skipped  ({step.record['seconds']:.0f} s when it ran)")
        else:
            if not described:  # takes seconds, so only where something runs
                about = {"profile": request.profile, "parameters": request.parameters}
                run.record(**about, seed=request.parameters.get("seed"), **describe_environment())
                described = True
            if not run_notebook(step, label, run, pages):
                return False
        if step.notebook is request.selected[-1]:
            break
    page, manifest = run / "notebooks" / "index.html", run / "manifest.json"
    if not page.exists() or page.stat().st_mtime_ns < manifest.stat().st_mtime_ns:  # an earlier call ended in between
        pages.index(run)
    return True


def run_notebook(step: Step, label: str, run: Run, pages: ModuleType) -> bool:
    """Execute one notebook, write its page and record what came of it; whether it finished.

    It counts as finished when its page is there: a run that is killed just before executes it again. `label` begins its
    lines in the terminal.
    """
    from lib.run import checkpoints  # loads pandas

    notebook = step.notebook
    copy = run.path("notebooks", notebook.path.name)
    for old in (copy, copy.with_suffix(".html")):
        old.unlink(missing_ok=True)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    past = step.record
    goes_on = past and past["state"] != "finished" and not unlike(past["parameters"], step.parameters)
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
    told = to_tell(notebook, step.parameters)
    if "run_dir" in notebook.parameters:
        told["run_dir"] = shown(run.folder)
    live = Live(label)
    with PeakMemory() as memory:
        error = execute(notebook, told, copy, live)
    record |= {"state": "failed", "error": without_paths(error)} if error else {"state": "finished"}
    record |= {"seconds": round(live.seconds, 1), "memory_mb": round(memory.mb)}
    live.done(record["state"])
    if error:
        print(f"\n{record['error']}", file=sys.stderr)
    if read_copy(copy):
        write_text(copy, without_paths(copy.read_text(encoding="utf-8")))
        pages.render(copy)
        if error:
            print(f"\npartly executed copy: {shown(copy)}", file=sys.stderr)
    run.record("notebooks", **{notebook.name: record})
    if (trainings := checkpoints.kept(run.folder)) or "kept" in run.manifest:
        run.record(kept=trainings)  # though other code made them: path → what differs
    pages.index(run)
    return not error


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files (`lib.run.files.written`) of dead processes; new ones may be another machine's."""
    for path in folder.rglob(".*.*"):
        found = re.match(r"\.(\d+)\..", path.name)
        with suppress(OSError):
            if found and not psutil.pid_exists(int(found[1])) and time.time() - path.stat().st_mtime > 60:
                path.unlink()


def kept(folder: Path) -> str:
    """Say what a run that stopped has kept, and how it goes on."""
    notebooks = {}
    with suppress(OSError, ValueError):
        notebooks = read_manifest(folder).get("notebooks", {})
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
    code = "import json; from lib.run.hardware import environment; print(json.dumps(environment()))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(told.stdout)
