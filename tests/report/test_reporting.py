"""Reporting: every item says what the run's files say, and a missing file is a gap."""

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.report import reporting
from lib.report.reporting import ITEMS, as_markdown, last_change, reporting_table
from lib.run.folder import Run
from lib.statistics.planning import detectable


@pytest.fixture
def run(tmp_path):
    """A run's folder with one made-up file of each kind that an item reads."""
    run = Run(tmp_path / "run")
    manifest = {
        "commit": "abcdef1234567890",
        "dirty": False,
        "seed": 7,
        "device": "cpu",
        "parameters": {"margin": 0.02},
        "versions": {"python": "3.12.1", "torch": "2.14.1"},
        "weights": {"classifier": "ResNet-18, random"},
    }
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    cohort = Phantom(patients=40, size=32, aff_share=0.4, seed=1).cohort()
    cohort.save(run / "cohort")
    make_splits(cohort.patients, 1, 2, 0).to_csv(run / "cohort" / "splits.csv", index=False)
    cohort.first(5).save(run.path("synthetic", "cyclegan", "r0f0"))

    def write(name, **columns):
        pd.DataFrame(columns).to_csv(run.path(*name.split("/")), index=False)

    write("audit.csv", check=["patients in two parts", "images that change when prepared alone"], where=["r0f0", "all"],
          compared=[40, 8], found=[0, 0], example=["", ""], passed=[True, True])  # fmt: skip
    write("tables/05_conditions.csv", condition=["real", "cyclegan"], NFF=[60, 60], AFF=[15, 60],
          **{"weight of an AFF": [1.0, 1.0]})  # fmt: skip
    write("tables/05_budgets.csv", condition=["real", "cyclegan"], trials=[2, 2], steps=[120, 120],
          images_seen=[3840, 3840], validations=[4, 4], seconds=[20.0, 21.0])  # fmt: skip
    write("tables/05_calibration.csv", condition=["real", "real", "permuted"], brier=[0.2, 0.1, 0.9],
          probabilities=["as trained", "recalibrated", "as trained"], intercept=[-1.0, 0.0, 0.0],
          slope=[0.9, 0.8, -0.1])  # fmt: skip
    write("tables/05_subgroups.csv", condition=["permuted", "fake@0.5", "real"], column=["view"] * 3, patients=[9] * 3,
          value=["lateral"] * 3, aff_patients=[3] * 3, auroc=[0.4, 0.5, 0.777])  # fmt: skip
    write("tables/04_memorisation.csv", method=["cyclegan"], distance=["pixels"], planted=[0.0], copies=[0.012])
    write("trials/metrics.csv", condition=["real", "permuted"], metric=["threshold"] * 2, value=[0.37, 0.91])
    write("statistics/equivalence.csv", question=["RQ2", "control"], standard_error=[0.02, 0.5], df=[np.inf, 4])
    write("statistics/comparisons.csv", question=["RQ2", "RQ2"], metric=["auroc", "auprc"],
          test=["DeLong, patients", "patient bootstrap"], verdict=["undecided", "better"])  # fmt: skip
    return run


def said(run):
    return reporting_table(run).set_index("item")["this run"]


def test_items_hold_the_values_of_the_run(run):
    text = said(run)
    expected = {
        "question, family, primary metric and margin fixed beforehand": [
            "±0.02",
            "7 comparisons in 2 families",
            "lib/statistics/comparisons.py",
        ],
        "partition and its level": ["2 cells", "stratified by label", "patients in two parts: 0"],
        "sample size and precision": ["standard error of an AUROC difference 0.020", "0.056", "0.068"],
        "class imbalance": ["real 0.25, cyclegan 1.00"],
        "preprocessing fitted on training alone": ["0 of 8"],
        "model, initialisation, budgets, selection": ["ResNet-18", "120 steps", "equal for all 2 conditions"],
        "provenance of synthetic images": ["cyclegan 5", "cyclegan 1.2%"],
        "leakage audit": ["2 of 2 checks passed: patients in two parts, images that change when prepared alone"],
        "metrics and thresholds": ["thresholds 0.37 to 0.37"],
        "uncertainty and tests": ["DeLong, patients", "0 of 1 declared"],
        "calibration, subgroups, failures": [
            "as trained: Brier score 0.200 to 0.200",
            "recalibrated: Brier score 0.100 to 0.100",
            "0.80 to 0.80",
            "view lateral under real (AUROC 0.777)",
        ],
        "reproducibility": ["abcdef1234", "seed 7", "Python 3.12.1", "PyTorch 2.14.1", "cpu"],
    }
    for item, parts in expected.items():
        assert all(part in text[item] for part in parts), (item, text[item])
    gaps = text[text.str.startswith("gap:")]
    assert list(gaps.index) == ["reference standard, annotators", "external validation"]
    assert f"{len(ITEMS) - 2} of {len(ITEMS)} items are filled, 2 are gaps." in as_markdown(reporting_table(run))


@pytest.mark.parametrize(
    ("missing", "item"),
    [("audit.csv", "leakage audit"), ("tables/05_budgets.csv", "model, initialisation, budgets, selection"),
     ("synthetic", "provenance of synthetic images"), ("statistics/comparisons.csv", "uncertainty and tests"),
     ("tables/05_subgroups.csv", "calibration, subgroups, failures"), ("cohort", "characteristics of each part")],
)  # fmt: skip
def test_what_a_run_did_not_write_is_a_gap(run, missing, item):
    assert not said(run)[item].startswith("gap:")
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said(run)[item].startswith("gap:")


def test_unequal_budgets_and_leaks_are_not_hidden(run):
    budgets = pd.read_csv(run / "tables" / "05_budgets.csv")
    budgets.assign(steps=[120, 240]).to_csv(run / "tables" / "05_budgets.csv", index=False)
    audit = pd.read_csv(run / "audit.csv")
    audit.assign(found=[3, 0], passed=[False, True]).to_csv(run / "audit.csv", index=False)
    text = said(run)
    assert "NOT equal" in text["model, initialisation, budgets, selection"]
    assert "patients in two parts: 3" in text["partition and its level"] and "1 of 2" in text["leakage audit"]
    assert np.all(reporting_table(run).notna())


def test_outside_git_the_commit_is_a_gap(run):
    manifest = run.manifest | {"commit": None, "dirty": None}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    text = said(run)
    assert text["reproducibility"] == "gap: the manifest has no commit"
    assert "7 comparisons" in text["question, family, primary metric and margin fixed beforehand"]


def test_the_declaration_is_dated_by_git(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert last_change("plan.py") == "unknown"

    def git(*arguments):
        names = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-02T12:00:00Z")
    git("init")
    (tmp_path / "plan.py").write_text("1")
    assert last_change("plan.py") == "unknown"
    git("add", "plan.py")
    git("commit", "-m", "plan")
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-03-04T12:00:00Z")
    git("commit", "--allow-empty", "-m", "later")
    assert last_change("plan.py").startswith("commit ") and last_change("plan.py").endswith(" of 2026-01-02")
    (tmp_path / "plan.py").write_text("2")
    assert last_change("plan.py").endswith(" of 2026-01-02, with changes since")
    monkeypatch.setenv("PATH", "")
    assert last_change("plan.py") == "unknown"


def test_a_table_s_own_split_is_not_called_stratified(run):
    table = pd.read_csv(run / "cohort" / "table.csv")
    table.assign(split="train").to_csv(run / "cohort" / "table.csv", index=False)
    partition = said(run)["partition and its level"]
    assert "own column split" in partition and "stratified" not in partition


def test_what_was_not_audited_is_not_claimed(run):
    audit = pd.read_csv(run / "audit.csv")
    audit[audit.check != "patients in two parts"].to_csv(run / "audit.csv", index=False)
    text = said(run)
    assert "patients in two parts: not audited" in text["partition and its level"]
    assert text["leakage audit"] == "1 of 1 checks passed: images that change when prepared alone"


def test_controls_alone_describe_nothing(run):
    for name in ("calibration", "subgroups"):
        path = run / "tables" / f"05_{name}.csv"
        table = pd.read_csv(path)
        table[table.condition != "real"].to_csv(path, index=False)
    assert said(run)["calibration, subgroups, failures"] == "gap: no condition but controls was run"


def test_differences_to_be_found_allow_for_few_cells(run):
    """Five cells, 0.02 of standard error: t with 4 degrees of freedom, not 2.8 standard errors."""
    table = pd.DataFrame({"question": ["RQ2"], "standard_error": [0.02], "df": [4.0]})
    table.to_csv(run / "statistics" / "equivalence.csv", index=False)
    ratio = 1 / 4
    expected = detectable(0.02 / np.sqrt(1 / 5 + ratio), 5, ratio)
    assert expected > 1.2 * 2.8 * 0.02
    assert f"{expected:.3f} to {expected:.3f}" in said(run)["sample size and precision"]
