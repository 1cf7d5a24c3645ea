"""Reporting: every item says what the run's files say, and a missing file is a gap."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from lib.phantom import Phantom
from lib.reporting import ITEMS, as_markdown, reporting_table
from lib.runs import Run
from lib.splits import make_splits


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
    write("tables/05_calibration.csv", condition=["real"], brier=[0.1], intercept=[0.0], slope=[0.8])
    write("tables/05_subgroups.csv", condition=["real"], column=["view"], value=["lateral"], patients=[9],
          aff_patients=[3], auroc=[0.777])  # fmt: skip
    write("tables/04_memorisation.csv", method=["cyclegan"], distance=["pixels"], planted=[0.0], copies=[0.012])
    write("trials/metrics.csv", condition=["real"], metric=["threshold"], value=[0.37])
    write("statistics/equivalence.csv", question=["RQ2"], standard_error=[0.02])
    write("statistics/comparisons.csv", question=["RQ2", "RQ2"], metric=["auroc", "auprc"],
          test=["DeLong, patients", "patient bootstrap"], verdict=["undecided", "better"])  # fmt: skip
    return run


def said(run):
    return reporting_table(run).set_index("item")["this run"]


def test_items_hold_the_values_of_the_run(run):
    text = said(run)
    expected = {
        "question, family, primary metric and margin fixed beforehand": ["abcdef1234", "±0.02", "7 comparisons"],
        "partition and its level": ["2 cells", "patients in two parts: 0"],
        "sample size and precision": ["standard error of an AUROC difference 0.020", "0.056"],
        "class imbalance": ["real 0.25, cyclegan 1.00"],
        "preprocessing fitted on training alone": ["0 of 8"],
        "model, initialisation, budgets, selection": ["ResNet-18", "120 steps", "equal for all 2 conditions"],
        "provenance of synthetic images": ["cyclegan 5", "cyclegan 1.2%"],
        "leakage audit": ["2 of 2 checks"],
        "metrics and thresholds": ["0.37"],
        "uncertainty and tests": ["DeLong, patients", "0 of 1 declared"],
        "calibration, subgroups, failures": ["0.100", "0.80", "view lateral under real (AUROC 0.777)"],
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
