import json
import os
import re
import shutil
import subprocess
import sys
from types import ModuleType

import papermill
import pytest
from nbformat.v4 import new_code_cell
from toy_study import FIRST, again, command, manifest, snapshot, states, write

import run_all
from lib.run import checkpoints
from lib.run.files import write_text
from lib.run.locks import HOLDER, sole_writer

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


def test_a_page_of_an_earlier_version_stops_nothing(study):
    (study / "runs/a/notebooks/01_first.html").write_text("<body><h1>old</h1></body>")
    assert again(study, "--only", "02", "--force") == 0
    assert "01 · First" in (study / "runs/a/notebooks/index.html").read_text(encoding="utf-8")


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


def test_the_study_is_the_notebooks():
    assert list(run_all.STUDY) == [path.stem for path in sorted(run_all.NOTEBOOKS.glob("*.ipynb"))]
    assert set(run_all.BY_HAND) <= set(run_all.STUDY)


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["-p", "cyclegan_stepz", "1"], ["--executor", "sge"]])
def test_what_runs_nothing_loads_no_torch(tmp_path, arguments):
    code = (
        "import pathlib, sys, run_all\n"
        f"try: run_all.main({arguments}, runs_folder=pathlib.Path({str(tmp_path)!r}))\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=run_all.ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


TELLS = """
import json, os
from lib.run.folder import Run
told = {name: os.environ.get(name) for name in ("LIB_MACHINES", "LIB_OTHER_TRAINING")}
Run(run_dir).record(told=told)
"""


def test_kernels_are_told_who_trains_and_what_to_do_with_other_trainings(study, monkeypatch):
    cells = [new_code_cell('run_dir = "runs/quick"', metadata={"tags": ["parameters"]}), new_code_cell(TELLS)]
    write(study / "notebooks", "03_third", cells)
    assert again(study) == 0
    told, here = manifest(study)["told"], {"partition": "", "account": "", "minutes": 240, "gpus": 1}
    assert json.loads(told["LIB_MACHINES"]) == {"executor": "local"} | here
    assert told["LIB_OTHER_TRAINING"] is None
    write(study / "notebooks", "03_third", [*cells, new_code_cell("1")])
    assert again(study, "--keep-trained") == 0
    assert manifest(study)["told"]["LIB_OTHER_TRAINING"] == "keep"
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    slurm = ["--executor", "slurm", "--slurm-partition", "gpu", "--slurm-account", "thesis", "--slurm-minutes", "480",
             "--slurm-gpus", "0"]  # fmt: skip
    assert again(study, "--only", "03", "--force", *slurm) == 0
    told, there = manifest(study)["told"], {"partition": "gpu", "account": "thesis", "minutes": 480, "gpus": 0}
    assert json.loads(told["LIB_MACHINES"]) == {"executor": "slurm"} | there
    assert told["LIB_OTHER_TRAINING"] == "anew"
    assert again(study, *slurm) == 0  # where it trains changes nothing


def test_an_executor_without_a_cluster_touches_nothing(study, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    before = snapshot(study)
    assert again(study, "--executor", "slurm") == 2
    assert "--executor slurm: there is no sbatch here" in capsys.readouterr().err
    assert snapshot(study) == before


def test_kept_and_other_trainings_are_recorded_and_listed(study, capsys, monkeypatch):
    kept = {"model/r0f0/checkpoint": "source: 1 then, 2 now"}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "kept", lambda run: kept)
        assert again(study, "--only", "02", "--force") == 0
        assert manifest(study)["kept"] == kept
        assert again(study, "--list") == 0
    assert (
        "Kept, though other code made it:\n    model/r0f0/checkpoint  source: 1 then, 2 now" in capsys.readouterr().out
    )
    assert again(study, "--only", "02", "--force") == 0
    assert manifest(study)["kept"] == {}


def test_trainings_that_no_longer_fit_are_listed_with_what_they_took(study, capsys):
    record = {"code": ["lib.run.randomness:generator"], "source": "of older code", "seconds": 7200.0}
    write_text(study / "runs/a/model/r0f0.json", json.dumps(record))
    assert again(study, "--list") == 0
    out = capsys.readouterr().out
    assert "Made by other code: set aside and made anew, unless --keep-trained is given.\n    model/r0f0.json  " in out
    assert "model/r0f0.json  finished; making it anew takes 2.0 hours\n" in out


def test_only_a_finished_run_is_published(study, capsys, monkeypatch):
    published = ModuleType("lib.report.publish")
    published.publish = lambda folder: folder / "figures"
    monkeypatch.setitem(sys.modules, "lib.report.publish", published)
    assert command(study, "--publish", "a") == 0
    assert "runs/a/figures" in capsys.readouterr().out
    assert command(study, "--publish", "b") == 2
    assert "there is no run 'b'; there are a" in capsys.readouterr().err
    assert again(study, "-p", "how", "error", "--only", "02", "--force") == 1
    assert command(study, "--publish", "a") == 2
    assert "runs/a is not finished (02_second is failed), so there is nothing to publish" in capsys.readouterr().err


def test_a_run_whose_notebooks_do_not_belong_together_is_not_published(study, capsys):
    write(study / "notebooks", "01_first", [*FIRST, new_code_cell("print('more')")])
    assert again(study, "--only", "01") == 0
    assert command(study, "--publish", "a") == 2
    said = "02_second follows from 01_first as it was before it ran again, so there is nothing to publish; run it with"
    assert said in capsys.readouterr().err
