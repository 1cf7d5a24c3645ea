import re
import shutil

import pytest

from lib.checks.choices import check_choices
from lib.run.notebooks import Mistake, Notebook
from run_all import NOTEBOOKS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conditions": ["real", "oversamplin@0.25"]}, "unknown condition 'oversamplin', did you mean 'oversampling'"),
        ({"methods": ["cyclegam"]}, "unknown 'cyclegam', did you mean 'cyclegan'"),
        ({"learning_curve": ["runs/nothere"]}, "runs/nothere is no run with trials"),
    ],
)
def test_what_a_late_notebook_would_refuse_is_refused_at_once(values, message):
    with pytest.raises(Mistake, match=message):
        check_choices(values)
    check_choices({"conditions": ["real", "cyclegan@0.5", "fake"], "methods": ["noise"], "learning_curve": []})


def test_processes_that_cannot_share_a_batch_are_refused_before_anything_is_touched():
    with pytest.raises(Mistake, match="num_processes: 0; at least one"):
        check_choices({"num_processes": 0})
    with pytest.raises(Mistake, match="3 processes cannot share cyclegan_batch = 4 evenly"):
        check_choices({"num_processes": 3, "cyclegan_batch": 4, "cyclediff_batch": 24})
    check_choices({"num_processes": 4, "cyclegan_batch": 4, "cyclediff_batch": 24})


def test_an_executor_that_cannot_work_is_refused_before_anything_is_touched(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(Mistake, match="executor slurm: there is no sbatch here"):
        check_choices({}, "slurm")
    check_choices({}, "local")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cyclediff_settings": {"joint": "boht"}}, "joint='boht': choose 'both'"),
        ({"cyclediff_settings": {}, "cyclegan_upsampling": "foo"}, "upsampling='foo': choose 'resize' or 'transposed'"),
        ({"cyclediff_settings": {}, "cyclegan_batch": 0}, "batch=0: at least 1"),
        ({"cyclediff_settings": {}, "classifier_lr": float("nan")}, "lr=nan: at least 0"),
        ({"cyclediff_settings": {}, "cyclediff_ablations": [["a"]]}, "no ablation"),
        ({"cyclediff_settings": {}, "learning_curve": [3]}, "3 is no run with trials"),
        ({"cyclediff_settings": {}, "cyclediff_ablations": ["jointly"]}, "no ablation 'jointly'; there are 'as set'"),
        ({"cyclediff_settings": {}, "cyclediff_ablations": ["diffusion only"]}, "changes nothing here"),
    ],
)
def test_what_a_method_would_refuse_after_hours_is_refused_at_once(values, message):
    with pytest.raises(Mistake, match=message):
        check_choices(values)


def test_the_example_of_notebook_03_is_accepted():
    texts = [cell.source for cell in Notebook.read(NOTEBOOKS / "03_cyclediff.ipynb").cells]
    text = next(text for text in texts if "--only 03" in text)
    names = re.search(r'cyclediff_ablations "\[(.*?)\]"', text)[1].split(", ")
    check_choices({"cyclediff_settings": {}, "cyclediff_ablations": names})


def test_settings_are_checked_as_parameters_are():
    with pytest.raises(Mistake, match="3 processes cannot share cyclediff_batch = 4 evenly"):
        check_choices({"num_processes": 3, "cyclediff_settings": {"batch": 4}})
