import json
import os
import re

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from toy_study import FIRST, SECOND, again, manifest, snapshot, write

import run_all
from lib.run.finished import digest, inputs_of
from lib.run.notebooks import Notebook, read_notebooks


def mark(notebook, parameters, before):
    return digest(parameters, inputs_of(notebook, parameters, before, run_all.named_files))


def test_what_is_finished_and_unchanged_is_skipped(study, capsys):
    before = snapshot(study)
    assert again(study) == 0
    assert snapshot(study) == before
    out = capsys.readouterr().out
    assert out.count("unchanged, skipped") == 2
    assert "RQ1: 7." in out
    assert "runs/a/notebooks/index.html" in out
    assert "runs/a/answers.md" in out


def test_what_was_decided_by_hand_is_a_reason_to_run_again(study, capsys, monkeypatch):
    monkeypatch.setitem(run_all.BY_HAND, "02_second", "answers.csv")
    (study / "runs/a/answers.csv").write_text("reader,number\n")
    assert again(study) == 0
    assert re.search(r"First  unchanged, skipped.*\n.*Second  finished", capsys.readouterr().out)
    assert again(study) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 2


def test_prose_is_no_reason_to_run_again_but_code_is(study, capsys):
    write(study / "notebooks", "01_first", [*FIRST, new_markdown_cell("One more sentence.")])
    write(study / "notebooks", "02_second", [*SECOND, new_code_cell("print('more')")])
    assert again(study) == 0
    assert re.search(r"First  unchanged, skipped.*\n.*Second  finished", capsys.readouterr().out)
    copy = nbformat.read(study / "runs/a/notebooks/02_second.ipynb", as_version=4)
    assert copy.cells[-1].outputs[0].text == "more\n"


def test_fingerprint_follows_code_parameters_table_and_predecessors(study):
    notebook = Notebook.read(study / "notebooks/01_first.ipynb")
    table = study / "cohort.csv"
    table.write_text("path,patient_id,label\n")
    parameters = {"seed": 0, "radiographs_csv": str(table)}
    marks = [
        mark(notebook, parameters, {"00": "a"}),
        mark(notebook, parameters | {"seed": 1}, {"00": "a"}),
        mark(notebook, parameters, {"00": "b"}),
        mark(notebook, parameters | {"radiographs_csv": ""}, {"00": "a"}),
    ]
    table.write_text("path,patient_id,label\na.png,p,AFF\n")
    marks.append(mark(notebook, parameters, {"00": "a"}))
    notebook.cells[2].source += "\nfrom lib.data.cohort import Cohort\nCohort.load"
    marks.append(mark(notebook, parameters, {"00": "a"}))
    assert len(set(marks)) == len(marks)
    assert mark(notebook, parameters, {"00": "a"}) == marks[-1]


def test_another_picture_is_another_fingerprint(study):
    notebook = read_notebooks(study / "notebooks")[0]
    (study / "a.png").write_bytes(b"one")
    (study / "t.csv").write_text("path,patient_id,label\na.png,p,AFF\n")
    marks = [mark(notebook, {"radiographs_csv": str(study / "t.csv")}, {}) for _ in range(2)]
    (study / "a.png").write_bytes(b"another")
    assert marks[0] == marks[1] != mark(notebook, {"radiographs_csv": str(study / "t.csv")}, {})


def test_semicolons_and_capitals_hide_no_picture(study):
    (study / "a.png").write_bytes(b"one")
    (study / "t.csv").write_text("sep=;\nPath;patient_id;label\na.png;pä;AFF\n", encoding="cp1252")
    assert run_all.named_files(study / "t.csv") == [study / "a.png"]
    (study / "t.csv").write_text("nothing")
    assert run_all.named_files(study / "t.csv") == []


def listed(study, capsys, *arguments):
    """What `--list` says that the next call does with each notebook."""
    capsys.readouterr()
    before = snapshot(study)
    assert again(study, *arguments, "--list") == 0
    assert snapshot(study) == before
    return re.findall(r"^  next: (.*)$", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_list_says_beforehand_what_is_made_anew_and_why(study, capsys, monkeypatch):
    assert listed(study, capsys) == ["unchanged, skipped"] * 2
    assert [line.partition(";")[0] for line in listed(study, capsys, "--force", "--only", "02")] == [
        "not asked for", "runs, since --force asks for it",
    ]  # fmt: skip
    first, second = listed(study, capsys, "-p", "rate", "0.5")
    assert re.fullmatch(r"runs, since rate = 0.001 became 0.5; it took \d+ seconds", first)
    assert second.startswith("runs, since it follows from 01_first, which is another now; it took ")
    (study / "runs/a/answers.csv").write_text("reader,number\n")
    with monkeypatch.context() as patch:
        patch.setitem(run_all.BY_HAND, "02_second", "answers.csv")
        assert listed(study, capsys)[1].startswith("runs, since what was decided by hand changed; it took ")
    write(study / "notebooks", "02_second", [*SECOND, new_code_cell("print('more')")])
    first, second = listed(study, capsys)
    assert first == "unchanged, skipped"
    assert second.startswith("runs, since its code changed, or what that calls in lib; it took ")
    assert again(study, "-p", "how", "error", "--force", "--only", "02") == 1
    assert listed(study, capsys, "-p", "how", "error")[1].startswith("runs, since it is failed, not finished; it took ")


def test_the_list_tells_changed_radiographs(study, capsys):
    table = study / "cohort.csv"
    (study / "a.png").write_bytes(b"one")
    table.write_text("path,patient_id,label\na.png,p,AFF\n")
    own = ["-p", "radiographs_csv", str(table), "--run", "b"]
    assert again(study, *own) == 0
    assert listed(study, capsys, *own) == ["unchanged, skipped"] * 2
    (study / "a.png").write_bytes(b"another")
    assert listed(study, capsys, *own)[0].startswith("runs, since the radiographs changed; it took ")


TRAINS = """
import time
from lib.run.files import write_text
from lib.run.folder import Run
write_text(Run(run_dir) / "model" / "r0f0" / "checkpoint.pt", str(seed))
if how == "error":
    raise ValueError("killed")
"""


def test_a_training_that_was_begun_is_refused_other_parameters_as_a_finished_one_is(study, capsys):
    cells = [SECOND[1], new_code_cell(TRAINS)]
    write(study / "notebooks", "02_second", cells)
    other = ["--run", "b", "-p", "how", "error"]
    assert again(study, *other) == 1
    for _ in range(2):  # goes on, and is interrupted before its next checkpoint
        write(study / "notebooks", "02_second", [*cells[:1], new_code_cell("raise ValueError('killed')")])
        assert again(study, *other) == 1
    before = snapshot(study)
    capsys.readouterr()
    assert again(study, "--run", "b") == 2
    message = (
        "runs/b was begun with how = 'error' (02_second), now it is 'no': take another --run NAME, or make 02_second"
    )
    assert message in capsys.readouterr().err
    assert snapshot(study) == before
    write(study / "notebooks", "02_second", cells)
    assert again(study, "--run", "b", "--from", "02", "--force") == 0


def test_what_failed_without_a_training_may_take_other_parameters(study):
    (study / "runs/a/model.pt").write_text("of an earlier notebook")
    os.utime(study / "runs/a/model.pt", (1, 1))
    assert again(study, "-p", "how", "error", "--force", "--only", "02") == 1
    assert again(study) == 0


def test_a_run_of_an_earlier_version_is_read(study, capsys):
    """It holds parameters that notebooks know no more, and no digests of its inputs."""
    record = manifest(study)
    for notebook in record["notebooks"].values():
        notebook["parameters"] |= {"executor": "slurm", "slurm_minutes": 9}
        del notebook["inputs"], notebook["begun"]
        notebook["fingerprint"] = "old"
    (study / "runs/a/manifest.json").write_text(json.dumps(record))
    assert listed(study, capsys)[0].startswith("runs, since another version of the code made it; it took ")
    assert again(study) == 0
