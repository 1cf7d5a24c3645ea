import errno
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell
from toy_study import again, command, manifest, states, write

from lib.report import pages
from lib.run.executing import PeakMemory, kept
from lib.run.files import ROOT, write_text


def test_a_figure_is_shown_once_with_its_caption(executed):
    cells = nbformat.read(executed / "runs/a/notebooks/01_first.ipynb", as_version=4).cells
    data = [output.data for output in cells[-1].outputs]
    assert [sorted(d) for d in data if "image/png" in d] == [["image/png", "text/plain"]]
    assert [d["text/markdown"] for d in data if "text/markdown" in d] == ["*Nothing in it.*"]


def fail(study, capsys, how):
    status = again(study, "-p", "how", how, "--only", "02", "--force")
    assert status == 1
    assert states(study) == {"01_first": "finished", "02_second": "failed"}
    assert (study / "runs/a/notebooks/01_first.html").exists()
    captured = capsys.readouterr()
    assert re.search(r"2/2  02 · Second  failed  \d+ s", captured.out)
    assert re.search(r"notebooks/02_second.ipynb, cell 3: import os, sys, time\n", captured.err)
    assert "partly executed copy: " in captured.err
    assert (study / "runs/a/notebooks/02_second.ipynb").exists()
    return captured.err


def test_an_error_stops_the_run_and_what_was_finished_stays(study, capsys):
    error = fail(study, capsys, "error")
    assert "ValueError: row 3 has no label" in error
    assert "\x1b[" not in error
    assert "row 3 has no label" in (study / "runs/a/notebooks/02_second.html").read_text()
    assert again(study) == 0  # corrected: goes on where it stopped
    assert re.search(r"First  unchanged, skipped.*\n.*Second  finished", capsys.readouterr().out)


def test_a_dead_kernel_is_a_failure(study, capsys):
    assert "Kernel died" in fail(study, capsys, "die")


def test_leaving_early_is_a_failure(study, capsys):
    assert "left the notebook before its end" in fail(study, capsys, "exit")


def test_a_time_out_is_a_failure(study, capsys, monkeypatch):
    limited = functools.partial(papermill.execute_notebook, execution_timeout=1)
    monkeypatch.setattr(papermill, "execute_notebook", limited)
    assert "timed out" in fail(study, capsys, "wait")


@pytest.mark.parametrize(("starts", "status"), [(2, 0), (3, 1)])
def test_a_kernel_that_lost_the_race_for_a_port_is_started_once_more(study, capsys, monkeypatch, starts, status):
    calls = []

    def execute(source, copy, *_, **__):
        calls.append(source.stem)
        if len(calls) < starts:
            raise RuntimeError("Kernel died before replying to kernel_info")
        notebook = nbformat.read(source, as_version=4)
        for cell in notebook.cells:
            cell.metadata["papermill"] = {"status": "completed", "start_time": "now"}
        nbformat.write(notebook, copy)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    assert again(study, "--only", "02", "--force") == status
    assert calls == ["02_second"] * 2
    if status:
        assert "02_second.ipynb, before its first cell\nRuntimeError: Kernel died" in capsys.readouterr().err


def test_ctrl_c_is_a_failure_that_says_so(study, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", interrupted)
    assert again(study, "--force", "--from", "01") == 1
    assert states(study) == {"01_first": "failed", "02_second": "finished"}
    assert "interrupted from the keyboard" in capsys.readouterr().err


def test_temporary_files_of_killed_processes_go(study):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = study / "runs/a/figures"
    names = [
        f".{dead.pid}.old.png",
        f".{dead.pid}.new.png",
        f".{os.getpid()}.mine.png",
        ".hidden.old.png",
        "01.old.png",
    ]
    for name in names:
        (folder / name).touch()
        if "new" not in name:
            os.utime(folder / name, (1, 1))
    assert again(study) == 0
    assert [name for name in names if (folder / name).exists()] == names[1:]


def test_a_notebook_is_finished_when_its_page_is_there(study, capsys, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    index = pages.index
    with monkeypatch.context() as patch:
        patch.setattr(pages, "render", killed)
        with pytest.raises(KeyboardInterrupt):
            again(study, "--only", "02", "--force")
    assert states(study)["02_second"] == "running"
    assert not (study / "runs/a/notebooks/02_second.html").exists()
    with monkeypatch.context() as patch:
        patch.setattr(pages, "index", lambda run: index(run) if states(study)["02_second"] == "running" else killed())
        with pytest.raises(KeyboardInterrupt):
            again(study)
    assert states(study)["02_second"] == "finished"
    assert '"running">running' in (study / "runs/a/notebooks/index.html").read_text()
    assert again(study) == 0
    assert '"running">running' not in (study / "runs/a/notebooks/index.html").read_text()
    assert capsys.readouterr().out.rstrip().count("unchanged, skipped") == 3


def test_what_cannot_be_written_is_named_and_so_is_what_is_safe(study, capsys, monkeypatch):
    def full(notebook, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(papermill, "execute_notebook", full)
        assert again(study, "--only", "02", "--force") == 1
    error = capsys.readouterr().err
    assert "cannot write " in error and "runs/a/notebooks/02_second.ipynb: No space left on device" in error
    assert "finished notebooks are kept (01_first)" in error

    replace = os.replace

    def full_for_manifests(part, path):
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_for_manifests)
        assert again(study, "--only", "02", "--force") == 1
    error = capsys.readouterr().err
    assert re.search(r"run_all.py: .*cannot write .*runs/a/manifest.json: No space left on device; free space", error)
    assert "finished notebooks are kept (01_first)" in error
    assert again(study) == 0
    assert states(study) == {"01_first": "finished", "02_second": "finished"}


def test_peak_memory_counts_the_kernel(executed):
    record = manifest(executed)["notebooks"]["01_first"]
    assert 30 < record["memory_mb"] < 4000
    with PeakMemory() as memory:
        subprocess.run(
            [sys.executable, "-c", "import time; x = b'1' * 300_000_000; del x; time.sleep(1.5)"], check=True
        )
    assert 300 < memory.mb < 3000  # by VmHWM, though it is gone when one looks


def test_a_failed_notebook_tells_no_paths(study):
    write(study / "notebooks", "02_second", [
        new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        new_code_cell("from pathlib import Path\nimport lib.run.folder as runs"),
        new_code_cell("raise ValueError(f'{Path.home()}/x {runs.__file__}')"),
    ])  # fmt: skip
    assert command(study, "--only", "02") == 1
    run = study / "runs" / "quick"
    assert (
        "~/x ./lib/run/folder.py" in json.loads((run / "manifest.json").read_text())["notebooks"]["02_second"]["error"]
    )
    for path in (*(run / "notebooks").iterdir(), run / "manifest.json"):
        assert f"{ROOT}/" not in path.read_text() and f"{Path.home()}/x" not in path.read_text(), path


def test_what_stopped_says_what_is_kept_and_which_jobs_go_on(tmp_path):
    notebooks = {"01_x": {"state": "finished"}, "02_y": {"state": "failed"}}
    write_text(tmp_path / "a" / "manifest.json", json.dumps({"notebooks": notebooks}))
    assert "(01_x), and the last checkpoint of what was being trained; the same command" in kept(tmp_path / "a")
    sent = {"r0f0": ["7_0", "k"], "r0f1": ["7_1", "k"]}
    write_text(tmp_path / "a" / "cyclegan" / "tasks" / "jobs.json", json.dumps(sent))
    assert "jobs 7, where they still wait or run, go on" in kept(tmp_path / "a")
