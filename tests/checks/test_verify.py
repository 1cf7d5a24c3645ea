import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from safetensors.numpy import save_file

import run_all
from lib.checks.verify import compare_runs, report
from lib.run import executing

RESULTS = """
import numpy as np, pandas as pd, time
from safetensors.numpy import save_file
from lib.run.files import write_text
from lib.run.folder import Run
run = Run(run_dir)
rows = pd.DataFrame({"metric": ["auroc", "seconds"], "value": [seed / 3, time.time()]})
write_text(run / "trials" / "metrics.csv", rows.to_csv(index=False))
write_text(run / "answers.md", f"RQ1: {seed}.")
np.save(run.path("cohort", "pixels.npy"), np.full((3, 4, 4), seed, np.uint8))
save_file({"G": np.full(2, seed, np.float32)}, run.path("cyclegan", "weights.safetensors"))
"""
DECIDES = 'decided = (run / "verdicts.csv").read_text() if (run / "verdicts.csv").exists() else ""'


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A finished run `a` of one notebook."""
    (tmp_path / "notebooks/profiles").mkdir(parents=True)
    (tmp_path / "notebooks/profiles/quick.yaml").write_text("")
    cells = [new_code_cell('run_dir = "runs/quick"\nseed = 0', metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(RESULTS), new_code_cell(DECIDES)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks/01_first.ipynb")
    monkeypatch.setattr(executing, "describe_environment", lambda: {"cpu": "toy"})
    monkeypatch.setitem(run_all.BY_HAND, "01_first", "verdicts.csv")
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/verdicts.csv").write_text("image_id,keep\n7,no\n")
    assert command(tmp_path, "-p", "seed", "7", "--run", "a") == 0
    return tmp_path


def command(folder, *arguments):
    return run_all.main(list(arguments), folder / "notebooks", folder / "runs")


def test_a_run_is_reproduced_and_the_repetition_goes(study, capsys):
    before = (study / "runs/a/manifest.json").read_bytes()
    assert command(study, "--verify", "a") == 0
    out = capsys.readouterr().out
    assert "2 of 2 tables are the same (4 cells)" in out  # what was decided by hand, and metrics without seconds
    assert "1 of 1 files of weights are the same (1 tensors)" in out
    assert "1 of 1 arrays are the same (48 elements)" in out
    assert "1 of 1 texts are the same (1 lines)" in out
    assert "runs/a is reproduced" in out
    assert [path.name for path in (study / "runs").iterdir()] == ["a"]
    assert (study / "runs/a/manifest.json").read_bytes() == before


def test_each_difference_is_shown_and_the_repetition_kept_until_the_next(study, capsys):
    run = study / "runs/a"
    rows = pd.read_csv(run / "trials/metrics.csv")
    rows.loc[0, "value"] += 0.25
    rows.to_csv(run / "trials/metrics.csv", index=False)
    np.save(
        run / "cohort/pixels.npy", np.concatenate([np.full((2, 4, 4), 7, np.uint8), np.full((1, 4, 4), 9, np.uint8)])
    )
    save_file({"G": np.array([7, 6.5], np.float32)}, run / "cyclegan/weights.safetensors")
    (run / "extra.csv").write_text("a\n1\n")
    for _ in range(2):
        assert command(study, "--verify", "a") == 1
        out = capsys.readouterr().out
        assert "finished" in out  # made anew the second time
        assert "trials/metrics.csv: 1 of 2 cells differ, largest difference 0.25 (value)" in out
        assert "cohort/pixels.npy: 16 of 48 elements differ, largest difference 2\n" in out
        assert "cyclegan/weights.safetensors: 1 of 1 tensors differ, largest difference 0.5 (G)" in out
        assert re.search(r"extra.csv: 1 of 0 cells differ \(missing in a-verify\)", out)
        assert "runs/a is NOT reproduced; the repetition is kept" in out
        assert (study / "runs/a-verify/answers.md").exists()


def test_what_cannot_be_verified_is_refused(study, capsys):
    assert command(study, "--verify", "b") == 2
    assert "there is no run 'b'; there are a" in capsys.readouterr().err
    notebook = nbformat.read(study / "notebooks/01_first.ipynb", as_version=4)
    nbformat.write(new_notebook(cells=[*notebook.cells, new_code_cell("1")]), study / "notebooks/01_first.ipynb")
    assert command(study, "--verify", "a") == 2
    assert "runs/a was made with other code, " in capsys.readouterr().err
    assert command(study, "-p", "seed", "7", "--run", "a") == 0
    record = json.loads((study / "runs/a/manifest.json").read_text())
    record["notebooks"]["01_first"]["state"] = "failed"
    (study / "runs/a/manifest.json").write_text(json.dumps(record))
    assert command(study, "--verify", "a") == 2
    assert "runs/a is not finished (01_first is failed)" in capsys.readouterr().err
    assert [path.name for path in (study / "runs").iterdir()] == ["a"]


def test_a_run_that_is_no_repetition_is_left_alone(study, capsys):
    shutil.copytree(study / "runs/a", study / "runs/a-verify")
    assert command(study, "--verify", "a") == 2
    assert "runs/a-verify is a run, and no repetition of a: move it elsewhere first" in capsys.readouterr().err
    assert (study / "runs/a-verify/answers.md").exists()


def test_an_interrupted_repetition_goes_on_and_one_of_another_state_does_not(study, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    from lib.checks import verify

    with monkeypatch.context() as patch:
        patch.setattr(verify, "compare_runs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command(study, "--verify", "a")
    shutil.copytree(study / "runs/a-verify", study / "kept")
    assert command(study, "--verify", "a") == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 1
    shutil.copytree(study / "kept", study / "runs/a-verify")
    (study / "runs/a-verify/stale").touch()
    (study / "runs/a/verdicts.csv").write_text("image_id,keep\n7,yes\n")
    assert command(study, "-p", "seed", "7", "--run", "a") == 0
    capsys.readouterr()
    assert command(study, "--verify", "a") == 0
    assert "unchanged, skipped" not in capsys.readouterr().out


def two(tmp_path, name, one, other):
    for run, text in (("a", one), ("b", other)):
        (tmp_path / run).mkdir(exist_ok=True)
        (tmp_path / run / name).write_text(text)
    return compare_runs(tmp_path / "a", tmp_path / "b").iloc[0]


@pytest.mark.parametrize(
    ("one", "other", "compared", "differ"),
    [
        ("a,b\n1,2\n", "a,b\n1,2\n", 2, 0),
        ("a,b\n1,2\n", "a,b\n1,2.0\n", 2, 1),  # as written
        ("a,b\n1,\n", "a,b\n1,\n", 2, 0),
        ("a,b\n1,inf\n", "a,b\n1,inf\n", 2, 0),
        ("a,b\n1,NA\n", "a,b\n1,\n", 2, 1),
        ("a,seconds,hours\n1,2,3\n", "a,seconds,hours\n1,7,8\n", 1, 0),
        ("metric,value\nseconds,1\nauroc,2\n", "metric,value\nseconds,3\nauroc,2\n", 2, 0),
        ("a\n1\n", "a\n1\n2\n", 2, 2),
        ("a\n1\n", "b\n1\n", 1, 1),
        ("a\n", "b\n", 0, 1),
        ("", "", 0, 0),
    ],
)
@pytest.mark.filterwarnings("error")
def test_cells_are_compared_as_written_and_times_are_not(tmp_path, one, other, compared, differ):
    row = two(tmp_path, "table.csv", one, other)
    assert (row.compared, row.differ) == (compared, differ)


def test_temporary_files_are_no_results(tmp_path):
    two(tmp_path, "table.csv", "a\n1\n", "a\n1\n")
    (tmp_path / "a/.12.table.csv").write_text("half")
    assert list(compare_runs(tmp_path / "a", tmp_path / "b").file) == ["table.csv"]


def test_weights_are_compared_bit_by_bit(tmp_path):
    for run, zero in (("a", 0.0), ("b", -0.0)):
        (tmp_path / run).mkdir()
        save_file({"x": np.array([zero], np.float32), "y": np.zeros(3)}, tmp_path / run / "w.safetensors")
    files = compare_runs(tmp_path / "a", tmp_path / "b")
    assert files.iloc[0].tolist() == ["w.safetensors", "weights", 2, 1, 0.0, "x"]
    assert "0 of 1 files of weights are the same (0 tensors)" in report(files)
    assert "w.safetensors: 1 of 2 tensors differ, largest difference 0 (x)" in report(files)
