import json
import os
import subprocess

import numpy as np
import pytest

from lib.run import files, hardware
from lib.run.folder import Damaged, NotYet, Run
from lib.run.hardware import environment
from lib.run.progress import duration


def test_relative_run_folder_counts_from_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    run = Run("runs/quick")
    assert run.folder == tmp_path / "runs/quick"
    assert run / "cohort" == tmp_path / "runs/quick/cohort"


def test_path_makes_its_folder(tmp_path):
    path = Run(tmp_path / "run").path("cohort", "table.csv")
    assert path == tmp_path / "run/cohort/table.csv"
    assert path.parent.is_dir()
    assert not path.exists()


def test_records_merge_and_numpy_values_become_plain(tmp_path):
    run = Run(tmp_path)
    run.record("weights", vgg="ImageNet", classifier="random")
    run.record("weights", classifier="ImageNet")
    run.record(seed=np.int64(3), size=np.array([1, 2]), file=tmp_path / "a")
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "weights": {"vgg": "ImageNet", "classifier": "ImageNet"},
        "seed": 3,
        "size": [1, 2],
        "file": str(tmp_path / "a"),
    }
    assert os.listdir(tmp_path) == ["manifest.json"]  # no temporary files


def test_require_names_the_file_and_the_notebook(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(NotYet, match=r"cohort/table\.csv is missing: run notebook 01_data_exploration.*--from 01"):
        run.require("cohort/table.csv", notebook="01_data_exploration")
    run.path("cohort", "table.csv").touch()
    assert run.require("cohort/table.csv", notebook="01_data_exploration") == tmp_path / "cohort/table.csv"


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path):
    (tmp_path / "quick").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*quick"):
        Run(tmp_path / "quick")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write"):
        Run(tmp_path / "quick")
    with pytest.raises(PermissionError, match="cannot write"):
        Run(tmp_path)


def test_a_damaged_manifest_is_a_clear_error(tmp_path):
    (tmp_path / "manifest.json").write_text('{"seed": ')
    with pytest.raises(Damaged, match=r"manifest\.json is damaged"):
        Run(tmp_path).record(seed=1)
    assert (tmp_path / "manifest.json").read_text() == '{"seed": '


def test_differing_parameters_with_both_values(tmp_path):
    one, other, by_hand = (Run(tmp_path / name) for name in ("one", "other", "by_hand"))
    one.record(parameters={"seed": 0, "image_size": 64, "seeds": [0, 1], "share": 1.0, "old": 3})
    other.record(parameters={"seed": 1, "image_size": 64, "seeds": [0, 1, 2], "share": 0.5, "new": ""})
    found = one.differing(other, ignoring=("share",))
    assert found == {"seed": (0, 1), "seeds": ([0, 1], [0, 1, 2]), "old": (3, None), "new": (None, "")}
    assert one.differing(one) == {}
    by_hand.record("weights", classifier="random")
    assert one.differing(by_hand) == by_hand.differing(one) == {}


def test_the_environment_names_versions_and_machine():
    facts = environment()
    import torch

    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "not installed" not in facts["versions"].values()
    assert facts["device"].startswith(("cpu", "cuda", "mps"))
    assert facts["cores"] >= 1


def test_commit_and_changes_come_from_this_repository_alone(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    assert hardware._commit() == (None, None)
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--no-verify", "-m", "one")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert hardware._commit() == (commit, False)
    (tmp_path / "a").write_text("2")
    assert hardware._commit() == (commit, True)
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(hardware, "ROOT", tmp_path / "unpacked")  # a copy inside somebody else's repository
    assert hardware._commit() == (None, None)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 seconds"), (89, "89 seconds"), (420, "7.0 minutes"), (9000, "2.5 hours")]
)
def test_durations_are_said_in_a_fitting_unit(seconds, said):
    assert duration(seconds) == said


def test_a_notebook_run_by_hand_does_not_overwrite_what_has_other_parameters(tmp_path):
    run = Run(tmp_path / "thesis")
    run.check_parameters("02_cyclegan", {"steps": 5})
    run.record("notebooks", **{"02_cyclegan": {"parameters": {"steps": 120_000, "sizes": [1, 2]}}})
    run.check_parameters("02_cyclegan", {"steps": 120_000, "sizes": [1, 2], "more": 1})
    with pytest.raises(ValueError, match=r"steps = 5 \(there 120000\)\. Set them as there, or work on a copy"):
        run.check_parameters("02_cyclegan", {"steps": 5, "sizes": [1, 2]})


def test_parameters_that_a_notebook_knows_no_more_are_no_difference(tmp_path):
    run = Run(tmp_path)
    run.record(notebooks={"02": {"parameters": {"seed": 0, "executor": "slurm"}}})
    run.check_parameters("02", {"seed": 0})


def test_what_cannot_be_compared_is_compared_as_it_is_written(tmp_path):
    one, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    one.record(parameters={"limit": float("nan"), "sizes": [1, 2], "rate": 1.0})
    other.record(parameters={"limit": float("nan"), "sizes": [1, 2], "rate": 1})
    assert one.differing(other) == {}
