"""Reporting: what guidelines ask a study like this to report, filled from a run's own files, gaps shown as gaps.

The items are topics that CLAIM (2024, doi:10.1148/ryai.240300), TRIPOD+AI (doi:10.1136/bmj-2023-078378), STARD-AI
(doi:10.1038/s41591-025-03953-8) and REFORMS (doi:10.1126/sciadv.adk3452) share, not their numbered checklists.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort
from lib.data.splits import fold_keys, read_splits
from lib.fidelity.controls import is_control
from lib.run.files import ROOT
from lib.run.folder import Run
from lib.statistics.comparisons import MARGIN, QUESTIONS
from lib.statistics.metrics import KEY_SECONDARY, PRIMARY
from lib.statistics.planning import COMPARISONS, errors_to_detect
from lib.study import Study


class Gap(Exception):
    """An item that this run cannot report; the message says what is missing."""


class Facts:
    """A run's files, read when an item asks for them; one that is missing is a gap."""

    def __init__(self, run: Run):
        self.run, self.manifest = run, run.manifest

    def of_manifest(self, *keys):
        value = self.manifest
        for key in keys:
            value = value.get(key)
            if value is None:
                raise Gap(f"the manifest has no {' '.join(keys)}")
        return value

    def table(self, part: str) -> pd.DataFrame:
        if not (self.run / part).exists():
            raise Gap(f"{part} was not written")
        return pd.read_csv(self.run / part, keep_default_na=False, na_values=[""])

    @property
    def cohort(self) -> Cohort:
        self.table("cohort/table.csv")
        return Cohort.load(self.run / "cohort")

    @property
    def study(self) -> Study:
        return Study(self.run, self.cohort, self.splits)

    @property
    def splits(self) -> pd.DataFrame:
        self.table("cohort/splits.csv")
        return read_splits(self.run / "cohort" / "splits.csv")


def reporting_table(run: Run) -> pd.DataFrame:
    """Each item with what this run says to it.

    Returns
    -------
    DataFrame `item, asked by, this run`; what is missing begins with "gap:"
    """
    facts, rows = Facts(run), []
    for item, asked_by, report in ITEMS:
        try:
            said = report(facts)
        except Gap as gap:
            said = f"gap: {gap}"
        rows.append({"item": item, "asked by": asked_by, "this run": said})
    return pd.DataFrame(rows)


def gap(reason: str) -> Callable[[Facts], str]:
    """An item that no run can know."""

    def report(facts: Facts) -> str:
        raise Gap(reason)

    return report


def question(facts: Facts) -> str:
    families = [family for family, question, *_ in QUESTIONS if question != "control"]
    margin = facts.of_manifest("parameters").get("margin", MARGIN)
    return (
        f"{len(families)} comparisons in {len(set(families))} families, in lib/statistics/comparisons.py, "
        f"whose last change is {last_change('lib/statistics/comparisons.py')}; primary metric {PRIMARY}, "
        f"key secondary {', '.join(KEY_SECONDARY)}; "
        f"margin of no consequence ±{margin:g}"
    )


def last_change(path: str) -> str:
    """Commit and date that last changed a file of the repository, and whether it was changed since; or "unknown"."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments, "--", path], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit, changed = git("log", "-1", "--format=commit %h of %cs"), git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}{', with changes since' * bool(changed)}" if commit else "unknown"


def data(facts: Facts) -> str:
    cohort = facts.cohort
    own = facts.of_manifest("parameters").get("radiographs_csv")
    source = (
        "own radiographs; who was eligible and who was left out is not recorded" if own else "the procedural phantom"
    )
    return f"{len(cohort)} radiographs of {len(cohort.patients)} patients, from {source}"


def partition(facts: Facts) -> str:
    splits = facts.splits
    check = facts.table("audit.csv").query("check == 'patients in two parts'")
    overlap = check.found.sum() if len(check) else "not audited"
    kind = "as the table's own column split says" if "split" in facts.cohort.table else "stratified by label"
    return f"{len(fold_keys(splits))} cells (repeats × folds), by patient, {kind}; patients in two parts: {overlap}"


def characteristics(facts: Facts) -> str:
    counts = facts.study.counts_by_part()
    parts = [
        f"{part}: {row['AFF patients']:.0f} AFF and {row['NFF patients']:.0f} NFF patients, "
        f"{row['AFF images']:.0f} and {row['NFF images']:.0f} images"
        for part, row in counts.iterrows()
    ]
    return f"mean over cells: {'; '.join(parts)}. Age, sex and site are not recorded"


def sample_size(facts: Facts) -> str:
    equal = facts.table("statistics/equivalence.csv")
    equal = equal[equal.question != "control"].dropna(subset="standard_error")
    if not len(equal):
        raise Gap("no declared comparison was run")
    counts, errors = facts.study.counts_by_part(), equal.standard_error
    at_5, first = (
        [row.standard_error * errors_to_detect(row.df, alpha=alpha) for row in equal.itertuples()]
        for alpha in (0.05, 0.05 / COMPARISONS)
    )
    return (
        f"{counts.loc['test', 'AFF patients']:.0f} AFF test patients a cell; standard error of an AUROC difference "
        f"{errors.min():.3f} to {errors.max():.3f}, so a true difference of about {min(at_5):.3f} to {max(at_5):.3f} "
        f"would be found with a probability of 80 % at p < 0.05, one of {min(first):.3f} to {max(first):.3f} at the "
        f"first step of Holm's adjustment over {COMPARISONS} comparisons"
    )


def imbalance(facts: Facts) -> str:
    conditions = facts.table("tables/05_conditions.csv")
    ratio = conditions.AFF * conditions["weight of an AFF"] / conditions.NFF
    each = ", ".join(f"{name} {value:.2f}" for name, value in zip(conditions.condition, ratio, strict=True))
    return f"AFF per NFF in training: {each}; thresholds chosen on real validation patients for each condition"


def preprocessing(facts: Facts) -> str:
    check = facts.table("audit.csv").query("check == 'images that change when prepared alone'")
    if not len(check):
        raise Gap("preprocessing was not audited")
    return f"each image alone; {check.found.sum()} of {check.compared.sum()} test images changed when prepared alone"


def model(facts: Facts) -> str:
    budgets = facts.table("tables/05_budgets.csv")
    spent = budgets[["steps", "images_seen", "validations"]]
    equal = "equal for all" if (spent.nunique() == 1).all() else "NOT equal"
    return (
        f"{facts.of_manifest('weights', 'classifier')}; {spent.steps.iloc[0]:.0f} steps, "
        f"{spent.images_seen.iloc[0]:.0f} images seen, best of {spent.validations.iloc[0]:.0f} validations: {equal} "
        f"{len(budgets)} conditions"
    )


def provenance(facts: Facts) -> str:
    tables = sorted((facts.run / "synthetic").glob("*/*/table.csv"))
    if not tables:
        raise Gap("no synthetic image was made")
    counts = {}
    for path in tables:
        counts.setdefault(path.parts[-3], []).append(len(pd.read_csv(path)))
    each = ", ".join(f"{method} {np.mean(n):.0f}" for method, n in counts.items())
    copied = facts.table("tables/04_memorisation.csv").query("planted == 0 and distance == 'pixels'")
    copies = ", ".join(f"{row.method} {row.copies:.1%}" for row in copied.itertuples())
    return f"AFF images a cell: {each}; none was filtered; nearer to a training image than 99 % of these are: {copies}"


def audit(facts: Facts) -> str:
    checks = facts.table("audit.csv")
    return f"{checks.passed.sum()} of {len(checks)} checks passed: {', '.join(checks.check.unique())}"


def metrics(facts: Facts) -> str:
    thresholds = studied(facts.table("trials/metrics.csv").query("metric == 'threshold'")).value
    share = facts.cohort.patients.eq("AFF").mean()
    return (
        f"{PRIMARY} and {', '.join(KEY_SECONDARY)} at {share:.0%} AFF patients; thresholds {thresholds.min():.2f} to "
        f"{thresholds.max():.2f}, each from validation patients"
    )


def uncertainty(facts: Facts) -> str:
    table = facts.table("statistics/comparisons.csv").query("metric == @PRIMARY and question != 'control'")
    if not len(table):
        raise Gap("no declared comparison was run")
    decided = table.verdict.ne("undecided").sum()
    return (
        f"{', '.join(sorted(set(table.test)))}; 95 % intervals, Holm-adjusted p, two one-sided tests; {decided} of "
        f"{len(table)} declared comparisons decided"
    )


def calibration(facts: Facts) -> str:
    table, groups = (studied(facts.table(f"tables/05_{name}.csv")) for name in ("calibration", "subgroups"))
    worst, kinds = groups.loc[groups.auroc.idxmin()], table.groupby("probabilities", sort=False)
    each = "; ".join(
        f"{kind}: Brier score {rows.brier.min():.3f} to {rows.brier.max():.3f}, calibration slope "
        f"{rows.slope.min():.2f} to {rows.slope.max():.2f}"
        for kind, rows in kinds
    )
    errors = len(list((facts.run / "figures").glob("05_errors_*.png")))
    return (
        f"{each}; worst subgroup {worst['column']} {worst['value']} under {worst['condition']} (AUROC "
        f"{worst['auroc']:.3f}); {errors} pages of most confident errors"
    )


def studied(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of conditions that are no controls."""
    table = table[~table.condition.map(is_control).astype(bool)]
    if not len(table):
        raise Gap("no condition but controls was run")
    return table


def reproducibility(facts: Facts) -> str:
    versions = facts.of_manifest("versions")
    return (
        f"commit {facts.of_manifest('commit')[:10]}{' with changes' * facts.of_manifest('dirty')}, seed "
        f"{facts.of_manifest('seed')}, Python {versions['python']}, PyTorch {versions['torch']}, "
        f"{facts.of_manifest('device')}"
    )


ITEMS = (
    ("question, family, primary metric and margin fixed beforehand", "REFORMS, CLAIM", question),
    ("data source, eligibility, flow", "STARD-AI, CLAIM", data),
    ("reference standard, annotators", "CLAIM, STARD-AI", gap("who read the images, and how, is not recorded")),
    ("partition and its level", "CLAIM, REFORMS", partition),
    ("characteristics of each part", "CLAIM, TRIPOD+AI", characteristics),
    ("sample size and precision", "TRIPOD+AI, CLAIM", sample_size),
    ("class imbalance", "TRIPOD+AI", imbalance),
    ("preprocessing fitted on training alone", "REFORMS", preprocessing),
    ("model, initialisation, budgets, selection", "CLAIM", model),
    ("provenance of synthetic images", "no guideline covers it", provenance),
    ("leakage audit", "REFORMS", audit),
    ("metrics and thresholds", "Metrics Reloaded, CLAIM", metrics),
    ("uncertainty and tests", "CLAIM, REFORMS, TRIPOD+AI", uncertainty),
    ("calibration, subgroups, failures", "TRIPOD+AI, CLAIM", calibration),
    ("reproducibility", "REFORMS, CLAIM", reproducibility),
    ("external validation", "TRIPOD+AI, CLAIM", gap("there is no second, external set of patients")),
)  # fmt: skip


def as_markdown(table: pd.DataFrame) -> str:
    """The text of `reporting.md`."""
    gaps = table["this run"].str.startswith("gap:").sum()
    lines = [f"| {' | '.join(row)} |" for row in [table.columns, ["---"] * 3, *table.to_numpy()]]
    return (
        f"# Reporting items\n\n{len(table) - gaps} of {len(table)} items are filled, {gaps} are gaps.\n\n"
        + "\n".join(lines)
        + "\n"
    )
