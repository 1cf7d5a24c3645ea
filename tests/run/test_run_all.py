import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import run_all
from lib.report import pages
from lib.run.files import write_text
from lib.run.locks import HOLDER, sole_writer

FIRST = [
    new_markdown_cell("# 01 · First\n\nWhat is $x_1$? See [the second](02_second.ipynb).\n\nReads nothing."),
    new_code_cell(
        'run_dir = "runs/quick"\nseed = 0  # any whole number = fine\nrate = 1e-4  # Adam\nsizes = [8, 16]\n'
        'radiographs_csv = ""  # empty: none',
        metadata={"tags": ["parameters"]},
    ),
    new_code_cell(
        "import os, sys\nfrom pathlib import Path\nimport matplotlib.pyplot as plt\n"
        "from lib.report.figures import save_figure\n"
        "from lib.run.folder import Run\nrun = Run(run_dir)"
    ),
    new_markdown_cell("$$\\frac{a}{b}$$\n\n\\begin{align}x &= \\sqrt{2}\\end{align}"),
    new_code_cell(
        'run.record("seen", seed=seed, rate=rate, sizes=sizes, python=sys.executable, folder=Path.cwd().name,\n'
        '           hash_seed=os.environ["PYTHONHASHSEED"])'
    ),
    new_code_cell("for i in range(3):\n    print(f'\\rstep {i}', end='', flush=True)"),
    new_code_cell('fig, ax = plt.subplots()\nsave_figure(fig, run, "empty", "Nothing in it.")'),
]
SECOND = [
    new_markdown_cell("# 02 · Second\n\nDoes it fail?"),
    new_code_cell('run_dir = "runs/quick"\nseed = 0\nhow = "no"', metadata={"tags": ["parameters"]}),
    new_code_cell(
        'import os, sys, time\nif how == "error":\n    raise ValueError("row 3 has no label")\nif how == "die":\n'
        '    os._exit(1)\nif how == "exit":\n    sys.exit(0)\nif how == "wait":\n    time.sleep(60)'
    ),
    new_code_cell(
        "from lib.run.files import write_text\nfrom lib.run.folder import Run\n"
        "write_text(Run(run_dir) / 'answers.md', f'# Answers\\n\\nRQ1: {seed}.')"
    ),
]


def write(folder, name, cells):
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A study of two notebooks that ran once, with a profile and a parameter from the command line."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "notebooks/profiles").mkdir(parents=True)
    (folder / "notebooks/profiles/quick.yaml").write_text("# nothing differs\n")
    (folder / "notebooks/profiles/small.yaml").write_text("sizes: [4]\nrate: 1e-3\n")
    (folder / "notebooks/profiles/wrong.yaml").write_text("imagesize: 4\n")
    write(folder / "notebooks", "01_first", FIRST)
    write(folder / "notebooks", "02_second", SECOND)
    with pytest.MonkeyPatch.context() as patch:
        spec = folder / "jupyter/kernels/python3/kernel.json"  # another python3 that the user has installed
        spec.parent.mkdir(parents=True)
        spec.write_text('{"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}')
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("MPLBACKEND", "Agg")
        assert command(folder, "--profile", "small", "-p", "seed", "7", "--run", "a") == 0
    return folder


@pytest.fixture
def study(executed, tmp_path, monkeypatch):
    """A copy of it to spoil."""
    shutil.copytree(executed, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(run_all, "describe_environment", dict)
    return tmp_path


def command(folder, *arguments):
    return run_all.main(list(arguments), folder / "notebooks", folder / "runs")


def again(folder, *arguments):
    return command(folder, "--profile", "small", "-p", "seed", "7", "--run", "a", *arguments)


def manifest(folder, run="a"):
    return json.loads((folder / f"runs/{run}/manifest.json").read_text())


def states(folder, run="a"):
    return {name: record["state"] for name, record in manifest(folder, run)["notebooks"].items()}


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.name != ".lock"}


# One run


def test_notebooks_run_in_order_with_their_parameters(executed):
    record = manifest(executed)
    assert states(executed) == {"01_first": "finished", "02_second": "finished"}
    assert record["notebooks"]["01_first"]["started"] <= record["notebooks"]["02_second"]["started"]
    assert record["parameters"] == {"seed": 7, "rate": 1e-3, "sizes": [4], "radiographs_csv": "", "how": "no"}
    assert record["notebooks"]["02_second"]["parameters"] == {"seed": 7, "how": "no"}
    assert record["seed"] == 7
    assert record["versions"]["papermill"] == papermill.__version__
    assert {"commit", "device", "cpu", "cores"} <= set(record)
    seen = record["seen"]
    assert (seen["seed"], seen["rate"], seen["sizes"]) == (7, 1e-3, [4])
    assert (seen["python"], seen["folder"], seen["hash_seed"]) == (sys.executable, "notebooks", "0")


def test_a_figure_is_shown_once_with_its_caption(executed):
    cells = nbformat.read(executed / "runs/a/notebooks/01_first.ipynb", as_version=4).cells
    data = [output.data for output in cells[-1].outputs]
    assert [sorted(d) for d in data if "image/png" in d] == [["image/png", "text/plain"]]
    assert [d["text/markdown"] for d in data if "text/markdown" in d] == ["*Nothing in it.*"]


def test_pages_are_self_contained(executed):
    pages = {file.name: file.read_text() for file in (executed / "runs/a/notebooks").glob("*.html")}
    assert sorted(pages) == ["01_first.html", "02_second.html", "index.html"]
    for page in pages.values():
        assert "<script" not in page
        assert "@import" not in page
        addresses = re.findall(r"""(?:src|href|data|poster)\s*=\s*["']?([^"' >]+)|url\(([^)]+)""", page)
        for address in (a or b for a, b in addresses):
            assert address.startswith(("data:", "#")) or address in pages
    first = pages["01_first.html"]
    assert first.count("<math") == 3
    assert "<mfrac>" in first
    assert "<msqrt>" in first
    assert 'href="02_second.html"' in first
    assert 'src="data:image/webp;base64' in first
    assert 'alt="Nothing in it."' in first
    assert "step 2" in first
    assert "step 1" not in first
    assert re.search(r"<details class=.code.>", first)
    index = pages["index.html"]
    assert index.index("RQ1: 7.") < index.index("01 · First") < index.index("02 · Second") < index.index("seed = 7")


def test_what_is_finished_and_unchanged_is_skipped(study, capsys):
    before = snapshot(study)
    assert again(study) == 0
    assert snapshot(study) == before
    out = capsys.readouterr().out
    assert out.count("unchanged, skipped") == 2
    assert "RQ1: 7." in out
    assert "runs/a/notebooks/index.html" in out
    assert "runs/a/answers.md" in out


def test_a_run_is_not_compared_with_itself(study, capsys):
    assert command(study, "--compare", "a", "a") == 2
    assert "name two different runs" in capsys.readouterr().err


def test_another_profile_is_named_where_parameters_differ(study, capsys):
    assert command(study, "--run", "a", "-p", "seed", "7") == 2
    assert "(it was made with --profile small, this is quick)" in capsys.readouterr().err


def test_the_list_may_be_cut_short():
    run = f"{sys.executable} run_all.py --list | head -1"
    done = subprocess.run(run, shell=True, cwd=run_all.ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_what_was_decided_by_hand_is_a_reason_to_run_again(study, capsys, monkeypatch):
    monkeypatch.setitem(run_all.BY_HAND, "02_second", "answers.csv")
    (study / "runs/a/answers.csv").write_text("reader,number\n")
    assert again(study) == 0
    assert re.search(r"First  unchanged, skipped.*\n.*Second  finished", capsys.readouterr().out)
    assert again(study) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 2


def test_a_page_of_an_earlier_version_stops_nothing(study):
    (study / "runs/a/notebooks/01_first.html").write_text("<body><h1>old</h1></body>")
    assert again(study, "--only", "02", "--force") == 0
    assert "01 · First" in (study / "runs/a/notebooks/index.html").read_text(encoding="utf-8")


def test_prose_is_no_reason_to_run_again_but_code_is(study, capsys):
    write(study / "notebooks", "01_first", [*FIRST, new_markdown_cell("One more sentence.")])
    write(study / "notebooks", "02_second", [*SECOND, new_code_cell("print('more')")])
    assert again(study) == 0
    assert re.search(r"First  unchanged, skipped.*\n.*Second  finished", capsys.readouterr().out)
    copy = nbformat.read(study / "runs/a/notebooks/02_second.ipynb", as_version=4)
    assert copy.cells[-1].outputs[0].text == "more\n"


def test_fingerprint_follows_code_parameters_table_and_predecessors(study):
    notebook = run_all.Notebook.read(study / "notebooks/01_first.ipynb")
    table = study / "cohort.csv"
    table.write_text("path,patient_id,label\n")
    parameters = {"seed": 0, "radiographs_csv": str(table)}
    marks = [
        run_all.fingerprint(notebook, parameters, ["a"]),
        run_all.fingerprint(notebook, parameters | {"seed": 1}, ["a"]),
        run_all.fingerprint(notebook, parameters, ["b"]),
        run_all.fingerprint(notebook, parameters | {"radiographs_csv": ""}, ["a"]),
    ]
    table.write_text("path,patient_id,label\na.png,p,AFF\n")
    marks.append(run_all.fingerprint(notebook, parameters, ["a"]))
    notebook.cells[2].source += "\nfrom lib import cohort"
    marks.append(run_all.fingerprint(notebook, parameters, ["a"]))
    assert len(set(marks)) == len(marks)
    assert run_all.fingerprint(notebook, parameters, ["a"]) == marks[-1]
    assert run_all.fingerprint(notebook, parameters | {"executor": "slurm"}, ["a"]) == marks[-1]


# Failures


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


# One writer at a time


def test_a_second_writer_touches_nothing(study, capsys):
    before = snapshot(study)
    with sole_writer(study / "runs/a", "training"):
        lock = (study / "runs/a/.lock").read_text()
        assert again(study, "--force") == 2
        assert again(study, "--list") == 0
        assert (study / "runs/a/.lock").read_text() == lock
    assert snapshot(study) == before
    assert re.search(r"runs/a is being written by training \(process \d+ on .+, since 20", capsys.readouterr().err)
    assert again(study, "--only", "02", "--force") == 0
    assert (study / "runs/a/.lock").read_text() == ""


def test_a_kernel_of_run_all_may_write_its_run_and_one_by_hand_may_not(study, capsys):
    cells = [
        new_code_cell('run_dir = "runs/quick"', metadata={"tags": ["parameters"]}),
        new_code_cell(
            "from lib.run.locks import holder\nfrom lib.run.folder import Run\n"
            "run = Run(run_dir)\nrun.check_parameters('03_third', globals())"
        ),
        new_code_cell("run.record(held_by=holder(run.folder)['what'])"),
    ]
    write(study / "notebooks", "03_third", cells)
    assert again(study, "--from", "03") == 0
    assert manifest(study)["held_by"] == "run_all.py"
    with sole_writer(study / "runs/a", "run_all.py"):
        command = f"from lib.run.folder import Run; Run({str(study / 'runs/a')!r}).check_parameters('03_third', {{}})"
        other = {name: value for name, value in os.environ.items() if name != HOLDER}
        by_hand = subprocess.run(
            [sys.executable, "-c", command], env=other, cwd=run_all.ROOT, capture_output=True, text=True
        )
        assert "Busy: " in by_hand.stderr and "is being written by run_all.py" in by_hand.stderr
        assert (
            subprocess.run([sys.executable, "-c", command], cwd=run_all.ROOT).returncode == 0
        )  # started by the holder


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


# Killed in between


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
    with run_all.PeakMemory() as memory:
        subprocess.run(
            [sys.executable, "-c", "import time; x = b'1' * 300_000_000; del x; time.sleep(1.5)"], check=True
        )
    assert 300 < memory.mb < 3000  # by VmHWM, though it is gone when one looks


# Requests that make no sense


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sead", "1"], "unknown parameter 'sead' in -p, did you mean 'seed'?"),
        (["--profile", "wrong"], "unknown parameter 'imagesize' in the profile"),
        (["--profile", "smal"], "unknown profile 'smal', did you mean 'small'?; there are quick, small, wrong"),
        (["-p", "seed", "x"], "parameter seed must be int (default 0), not 'x'"),
        (["-p", "seed", "true"], "parameter seed must be int"),
        (["-p", "seed", "1.5"], "parameter seed must be int"),
        (["-p", "rate", "fast"], "parameter rate must be float"),
        (["-p", "sizes", "8"], "parameter sizes must be list, like '[0, 1]'"),
        (["-p", "sizes", "[8, big]"], "parameter sizes must be int"),
        (["-p", "sizes", "[8"], "parameter sizes: '[8' is not a YAML value"),
        (["-p", "run_dir", "elsewhere"], "--run NAME chooses the run folder"),
        (["-p", "radiographs_csv", "missing.csv"], "parameter radiographs_csv: there is no file"),
        (["-p", "seed", "8"], "runs/a was made with seed = 7 (01_first), now it is 8: take another --run NAME"),
        (["-p", "seed", "8", "--only", "02", "--force"], "runs/a was made with seed = 7 (01_first)"),
        (["--only", "03"], "'03' names 0 notebooks"),
        (["--from", "0"], "'0' names 2 notebooks"),
        (["--run", "../a"], "a run's name is one folder name"),
        (["--run", "b", "--from", "02_second"], "01_first is not run in runs/b"),
    ],
)
def test_bad_requests_touch_nothing(study, capsys, arguments, message):
    before = snapshot(study)
    assert again(study, *arguments) == 2
    assert message in capsys.readouterr().err
    assert snapshot(study) == before


def test_only_needs_no_earlier_notebook_but_none_that_failed(study, capsys):
    write(study / "notebooks", "03_third", [new_code_cell("run_dir = 'runs/quick'", metadata={"tags": ["parameters"]})])
    assert again(study, "--run", "b", "--only", "02") == 0
    assert states(study, "b") == {"02_second": "finished"}
    assert again(study, "--run", "c", "-p", "how", "error", "--only", "02") == 1
    capsys.readouterr()
    assert again(study, "--run", "c", "-p", "how", "error", "--only", "03") == 2
    assert "02_second is failed in runs/c: start with --from 02" in capsys.readouterr().err


def test_force_takes_other_parameters(study):
    assert again(study, "-p", "seed", "8", "--force") == 0
    assert manifest(study)["seen"]["seed"] == manifest(study)["seed"] == 8


def test_shared_parameters_have_one_default(study, capsys):
    write(study / "notebooks", "03_third", [new_code_cell("seed = 1", metadata={"tags": ["parameters"]})])
    assert command(study) == 2
    assert "parameter seed is 0 in 01_first but 1 in 03_third" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["size = 2 * 3", "size = ", "print(1)", "a.b = 1"])
def test_parameters_are_literals(study, capsys, source):
    write(study / "notebooks", "03_third", [new_code_cell(source, metadata={"tags": ["parameters"]})])
    assert command(study) == 2
    assert "03_third.ipynb: the parameters cell must hold 'name = literal' lines" in capsys.readouterr().err


def test_values_take_the_type_of_the_default(study):
    notebooks = run_all.read_notebooks(study / "notebooks")
    table = study / "cohort.csv"
    table.touch()
    given = [("rate", "2"), ("how", "3"), ("sizes", "[]"), ("radiographs_csv", str(table))]
    values = run_all.choose_parameters(notebooks, {"rate": "1e-3"}, given)
    assert {name: values[name] for name, _ in given} == {
        "rate": 2.0, "how": "3", "sizes": [], "radiographs_csv": values["radiographs_csv"],
    }  # fmt: skip
    assert type(values["rate"]) is float
    linked = values["radiographs_csv"]
    assert linked.startswith("data/linked-") and run_all.from_root(linked).samefile(table)
    assert run_all.within_repository(run_all.ROOT / linked) == linked
    of_profile = run_all.choose_parameters(notebooks, {"radiographs_csv": str(table)}, [])
    assert of_profile["radiographs_csv"] == linked


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
        assert f"{run_all.ROOT}/" not in path.read_text() and f"{Path.home()}/x" not in path.read_text(), path


def test_list_shows_titles_states_and_parameters(study, capsys):
    before = snapshot(study)
    assert again(study, "--list") == 0
    out = capsys.readouterr().out
    assert re.search(r"01_first  finished, \d+ s, \d+ MB\n  01 · First\n  What is \$x_1\$\?", out)
    assert "    seed = 0 → 7  # any whole number = fine\n" in out
    assert "    sizes = [8, 16] → [4]\n" in out
    assert "    how = 'no'\n" in out
    assert snapshot(study) == before


def test_the_command_itself_ends_with_the_status():
    command = [sys.executable, run_all.ROOT / "run_all.py", "--profile", "enormous"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("run_all.py: ")


def test_two_runs_side_by_side(study, capsys):
    assert command(study, "--run", "b", "-p", "seed", "8") == 0
    for name, value in (("a", 0.5), ("b", 0.75)):
        (study / "runs" / name / "trials").mkdir()
        rows = f"condition,metric,value\nreal,auroc,{value}\nreal,auroc,{value}\n"
        (study / "runs" / name / "trials" / "metrics.csv").write_text(rows)
    capsys.readouterr()
    assert command(study, "--compare", "a", "b") == 0
    assert "seed: 7 → 8" in capsys.readouterr().out
    page = (study / "runs" / "a-against-b.html").read_text()
    assert re.search(r"<td>0\.500</td>\s*<td>0\.750</td>\s*<td>0\.250</td>", page)
    assert page.count('<img alt="Nothing in it."') == 2 and 'src="http' not in page
    assert command(study, "--compare", "a", "c") == 2
    assert "there is no run 'c'; there are a, b" in capsys.readouterr().err


def test_another_picture_is_another_fingerprint(study):
    notebook = run_all.read_notebooks(study / "notebooks")[0]
    (study / "a.png").write_bytes(b"one")
    (study / "t.csv").write_text("path,patient_id,label\na.png,p,AFF\n")
    marks = [run_all.fingerprint(notebook, {"radiographs_csv": str(study / "t.csv")}, []) for _ in range(2)]
    (study / "a.png").write_bytes(b"another")
    assert marks[0] == marks[1] != run_all.fingerprint(notebook, {"radiographs_csv": str(study / "t.csv")}, [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conditions": ["real", "oversamplin@0.25"]}, "unknown condition 'oversamplin', did you mean 'oversampling'"),
        ({"methods": ["cyclegam"]}, "unknown 'cyclegam', did you mean 'cyclegan'"),
        ({"learning_curve": ["runs/nothere"]}, "runs/nothere is no run with trials"),
    ],
)
def test_what_a_late_notebook_would_refuse_is_refused_at_once(values, message):
    with pytest.raises(run_all.Mistake, match=message):
        run_all.check_choices(values)
    run_all.check_choices({"conditions": ["real", "cyclegan@0.5", "fake"], "methods": ["noise"], "learning_curve": []})


def test_what_stopped_says_what_is_kept_and_which_jobs_go_on(tmp_path):
    notebooks = {"01_x": {"state": "finished"}, "02_y": {"state": "failed"}}
    write_text(tmp_path / "a" / "manifest.json", json.dumps({"notebooks": notebooks}))
    assert "(01_x), and the last checkpoint of what was being trained; the same command" in run_all.kept(tmp_path / "a")
    sent = {"r0f0": ["7_0", "k"], "r0f1": ["7_1", "k"]}
    write_text(tmp_path / "a" / "cyclegan" / "tasks" / "jobs.json", json.dumps(sent))
    assert "jobs 7, where they still wait or run, go on" in run_all.kept(tmp_path / "a")


def test_processes_that_cannot_share_a_batch_are_refused_before_anything_is_touched():
    with pytest.raises(run_all.Mistake, match="num_processes: 0; at least one"):
        run_all.check_choices({"num_processes": 0})
    with pytest.raises(run_all.Mistake, match="3 processes cannot share cyclegan_batch = 4 evenly"):
        run_all.check_choices({"num_processes": 3, "cyclegan_batch": 4, "cyclediff_batch": 24})
    run_all.check_choices({"num_processes": 4, "cyclegan_batch": 4, "cyclediff_batch": 24})


def test_an_executor_that_cannot_work_is_refused_before_anything_is_touched(monkeypatch):
    with pytest.raises(run_all.Mistake, match=r"executor: 'sge'; there are 'local' and 'slurm'"):
        run_all.check_choices({"executor": "sge"})
    monkeypatch.setattr(run_all.shutil, "which", lambda program: None)
    with pytest.raises(run_all.Mistake, match="executor: there is no sbatch here"):
        run_all.check_choices({"executor": "slurm"})
    run_all.check_choices({"executor": "local"})
