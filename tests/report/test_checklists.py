"""Checklists: every item says what the run's results say, and a missing one is a gap."""

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.report import checklists
from lib.report.checklists import ITEMS, as_markdown, checklist, last_change
from lib.run.folder import Run
from lib.statistics.metrics import subgroups
from lib.statistics.planning import detectable

TRIAL = ["condition", "repeat", "fold", "seed"]


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
        "classifier": {"architecture": "ResNet-18", "weights": "random"},
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
    write("trials/conditions.csv", condition=["real", "cyclegan"], NFF=[60, 60], AFF=[15, 60],
          **{"weight of an AFF": [1.0, 1.0]})  # fmt: skip
    write("fidelity/memorisation.csv", method=["cyclegan"], distance=["pixels"], planted=[0.0], copies=[0.012])
    values = {"threshold": 0.37, "recalibration": -0.4, "steps": 120, "images_seen": 3840, "validations": 4}
    rows = [("real", 0, 0, 0, metric, value) for metric, value in values.items()]
    rows += [("permuted", 0, 0, 0, metric, value) for metric, value in (values | {"threshold": 0.91}).items()]
    write("trials/metrics.csv", **dict(zip([*TRIAL, "metric", "value"], zip(*rows, strict=True), strict=True)))
    images, rng = cohort.table[["image_id", "patient_id", "label"]], np.random.default_rng(0)
    probability = np.clip((images.label == "AFF") * 0.2 + rng.uniform(0.1, 0.7, len(images)), 0, 1)
    trials = [images.assign(condition=name, repeat=0, fold=0, seed=0, probability=probability)
              for name in ("real", "permuted", "fake@0.5")]  # fmt: skip
    pd.concat(trials).to_csv(run / "trials" / "predictions.csv", index=False)
    write("statistics/equivalence.csv", question=["RQ2", "control"], standard_error=[0.02, 0.5], df=[np.inf, 4])
    write("statistics/comparisons.csv", question=["RQ2", "RQ2"], metric=["auroc", "auprc"],
          test=["DeLong, patients", "patient bootstrap"], verdict=["undecided", "better"])  # fmt: skip
    return run


def said(run):
    return checklist(run).set_index("item")["this run"]


def test_items_hold_the_values_of_the_run(run):
    text = said(run)
    predictions = pd.read_csv(run / "trials" / "predictions.csv").query("condition == 'real'")
    low = subgroups(predictions, pd.read_csv(run / "cohort" / "table.csv")).iloc[0]
    patients = predictions.groupby(["patient_id", "label"]).probability.mean().reset_index()
    moved = expit(logit(patients.probability) - 0.4)
    brier = {"as trained": patients.probability, "recalibrated": moved}
    brier = {kind: ((p - (patients.label == "AFF")) ** 2).mean() for kind, p in brier.items()}
    expected = {
        "question, family, primary metric and margin fixed beforehand": [
            "±0.02",
            "7 comparisons in 2 families",
            "lib/statistics/comparisons.py",
        ],
        "partition and its level": ["2 folds", "stratified by label", "patients in two parts: 0"],
        "sample size and precision": ["standard error of an AUROC difference 0.020", "0.056", "0.068"],
        "class imbalance": ["real 0.25, cyclegan 1.00"],
        "preprocessing fitted on training alone": ["0 of 8"],
        "model, initialisation, budgets, selection": ["ResNet-18", "120 steps", "equal for all 2 conditions"],
        "provenance of synthetic images": ["cyclegan 5", "cyclegan 1.2%"],
        "leakage audit": ["2 of 2 checks passed: patients in two parts, images that change when prepared alone"],
        "metrics and thresholds": ["thresholds 0.37 to 0.37"],
        "uncertainty and tests": ["DeLong, patients", "0 of 1 declared"],
        "calibration, subgroups, failures": [
            *(f"{kind}: Brier score {value:.3f} to {value:.3f}" for kind, value in brier.items()),
            f"view {low.value} under real (AUROC {low.auroc:.3f})",
        ],
        "reproducibility": ["abcdef1234", "seed 7", "Python 3.12.1", "PyTorch 2.14.1", "cpu"],
    }
    for item, parts in expected.items():
        assert all(part in text[item] for part in parts), (item, text[item])
    gaps = text[text.str.startswith("gap:")]
    assert list(gaps.index) == ["reference standard, annotators", "external validation"]
    assert f"{len(ITEMS) - 2} of {len(ITEMS)} items are filled, 2 are gaps." in as_markdown(checklist(run))


@pytest.mark.parametrize(
    ("missing", "item"),
    [("audit.csv", "leakage audit"), ("trials/metrics.csv", "model, initialisation, budgets, selection"),
     ("synthetic", "provenance of synthetic images"), ("statistics/comparisons.csv", "uncertainty and tests"),
     ("trials/predictions.csv", "calibration, subgroups, failures"), ("trials/conditions.csv", "class imbalance"),
     ("fidelity/memorisation.csv", "provenance of synthetic images"), ("cohort", "characteristics of each part")],
)  # fmt: skip
def test_what_a_run_did_not_write_is_a_gap(run, missing, item):
    assert not said(run)[item].startswith("gap:")
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said(run)[item].startswith("gap:")


def test_unequal_budgets_and_leaks_are_not_hidden(run):
    metrics = pd.read_csv(run / "trials" / "metrics.csv")
    more = metrics.value.mask((metrics.metric == "steps") & (metrics.condition == "permuted"), 240)
    metrics.assign(value=more).to_csv(run / "trials" / "metrics.csv", index=False)
    audit = pd.read_csv(run / "audit.csv")
    audit.assign(found=[3, 0], passed=[False, True]).to_csv(run / "audit.csv", index=False)
    text = said(run)
    assert "NOT equal" in text["model, initialisation, budgets, selection"]
    assert "patients in two parts: 3" in text["partition and its level"] and "1 of 2" in text["leakage audit"]
    assert np.all(checklist(run).notna())


def test_outside_git_the_commit_is_a_gap(run):
    manifest = run.manifest | {"commit": None, "dirty": None}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    text = said(run)
    assert text["reproducibility"] == "gap: the manifest has no commit"
    assert "7 comparisons" in text["question, family, primary metric and margin fixed beforehand"]


def test_the_declaration_is_dated_by_git(tmp_path, monkeypatch):
    monkeypatch.setattr(checklists, "ROOT", tmp_path)
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
    path = run / "trials" / "predictions.csv"
    table = pd.read_csv(path)
    table[table.condition != "real"].to_csv(path, index=False)
    assert said(run)["calibration, subgroups, failures"] == "gap: no condition but controls was run"


def test_differences_to_be_found_allow_for_few_folds(run):
    """Five folds, 0.02 of standard error: t with 4 degrees of freedom, not 2.8 standard errors."""
    table = pd.DataFrame({"question": ["RQ2"], "standard_error": [0.02], "df": [4.0]})
    table.to_csv(run / "statistics" / "equivalence.csv", index=False)
    ratio = 1 / 4
    expected = detectable(0.02 / np.sqrt(1 / 5 + ratio), 5, ratio)
    assert expected > 1.2 * 2.8 * 0.02
    assert f"{expected:.3f} to {expected:.3f}" in said(run)["sample size and precision"]


def test_items_do_not_read_what_was_written_for_print(run):
    assert not (run / "tables").exists()
    assert said(run).str.startswith("gap:").sum() == 2


def test_images_that_were_rejected_by_hand_are_not_hidden(run):
    verdicts = pd.DataFrame({"image_id": ["a", "b"], "pixels": ["1", "2"], "keep": [True, False], "reason": ["", "x"]})
    verdicts.to_csv(run / "synthetic" / "verdicts.csv", index=False)

    def said():
        return checklist(run).set_index("item").loc["provenance of synthetic images", "this run"]

    assert "none was filtered" in said()
    run.record("parameters", curated=True)
    assert "1 were rejected by hand, and left out of training" in said()
