"""Every reported number as a LaTeX command."""

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.report.latex import escaped, macro, number, write_document, write_results
from lib.run.folder import Run


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "small")
    auroc = {"condition": ["real", "real", "cyclegan@0.5"], "metric": "auroc", "value": [0.8, 0.9, 1.0]}
    kid = {"method": "cyclegan", "direction": "NFF→AFF", "features": "judge", "metric": "kid", "value": [0.1, 0.3]}
    comparison = {
        "question": ["RQ2"], "a": "cyclegan", "b": "real", "metric": "auroc", "n": 3019, "patients": 840,
        "difference": -0.0124, "ci_low": -0.1, "ci_high": 0.08, "p": 2e-5, "p_holm": float("nan"),
    }  # fmt: skip
    cohort = {"image_id": ["a", "b", "c"], "patient_id": ["p", "p", "q"], "label": ["AFF", "AFF", "NFF"]}
    pd.DataFrame(cohort).to_csv(run.path("cohort", "table.csv"), index=False)
    pd.DataFrame(kid).to_csv(run / "fidelity.csv", index=False)
    pd.DataFrame(auroc).to_csv(run.path("trials", "metrics.csv"), index=False)
    pd.DataFrame(comparison).to_csv(run.path("statistics", "comparisons.csv"), index=False)
    return run


def test_every_number_is_a_command(run):
    write_results(run)
    text = (run / "results.tex").read_text()
    found = dict(re.findall(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}\n", text))
    assert text.count("newcommand") == len(found) == 4 + 2 + 1 + 4 + 7
    assert found["AFFPatients"] == "1" and found["Images"] == "3"
    assert found["CycleganNFFToAFFJudgeKid"] == r"\ensuremath{0.200}"
    assert found["RealAuroc"] == r"\ensuremath{0.850}" and found["CycleganAtZeroFiveAuroc"] == r"\ensuremath{1.000}"
    assert found["RQTwoCycleganRealAurocDifference"] == r"\ensuremath{-0.012}"
    assert found["RQTwoCycleganRealAurocP"] == r"\ensuremath{<0.001}"
    assert found["RQTwoCycleganRealAurocPHolm"] == "--" and found["RQTwoCycleganRealAurocN"] == "3,019"


def test_two_numbers_of_one_name_are_refused(run):
    metrics = pd.read_csv(run / "trials/metrics.csv")
    more = pd.DataFrame({"condition": ["cyclegan at 0.5"], "metric": ["auroc"], "value": [0.5]})
    pd.concat([metrics, more]).to_csv(run / "trials/metrics.csv", index=False)
    with pytest.raises(ValueError, match="CycleganAtZeroFiveAuroc"):
        write_results(run)


@given(st.lists(st.text(), min_size=1))
def test_names_are_letters(parts):
    assert re.fullmatch("[A-Za-z]*", macro(*parts))


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [(0.04996, "p", r"\ensuremath{0.050}"), (0.0, "auroc", r"\ensuremath{0.000}"), (1462, "images", "1,462")],
)
def test_numbers_as_the_thesis_prints_them(value, name, text):
    assert number(value, name) == text


def test_symbols_are_commands_in_and_out_of_equations():
    assert escaped("σ of 5 % in $λ_1$, a_b") == r"$\sigma$ of 5 \% in $\lambda_1$, a\_b"
    assert escaped(r"\$5 × 2") == r"\$5 $\times$ 2"


def test_what_a_killed_process_was_writing_is_in_no_document(run):
    for name in (
        "figures/01_a.pdf",
        "figures/01_a.txt",
        "figures/.12.01_b.pdf",
        "tables/01_c.tex",
        "tables/.12.01_d.tex",
    ):
        run.path(*name.split("/")).write_text("Caption.")
    write_document(run, write_results(run))
    text = (run / "study.tex").read_text()
    assert "01_a" in text and "01_c" in text and "01_b" not in text and "01_d" not in text
