"""Checklists: what guidelines ask a study like this to report, filled from a run's results, gaps shown as gaps.

The items are topics that CLAIM (2024, doi:10.1148/ryai.240300), TRIPOD+AI (doi:10.1136/bmj-2023-078378), STARD-AI
(doi:10.1038/s41591-025-03953-8) and REFORMS (doi:10.1126/sciadv.adk3452) share, not their numbered checklists.
"""

import subprocess
from collections.abc import Callable
from functools import cached_property

import numpy as np
import pandas as pd

from lib.fidelity.controls import is_control
from lib.fidelity.curation import VERDICTS, read_verdicts
from lib.report.answers import markdown_table
from lib.run.files import ROOT
from lib.run.folder import NotYet, Run
from lib.statistics.comparisons import MARGIN, declared, in_thesis
from lib.statistics.metrics import KEY_SECONDARY, PRIMARY, recalibrated_patients, subgroups
from lib.statistics.planning import errors_to_detect
from lib.study import Study
from lib.translators.methods import METHODS
from lib.trials.summary import GIVEN, are_equal, calibrations

ITEMS = []  # name, guidelines that ask for it, what a run says to it


class Gap(Exception):
    """An item that this run cannot report; the message says what is missing."""


class Results:
    """A run's results, read when an item asks for them; one that is missing is a gap."""

    def __init__(self, run: Run):
        self.run, self.manifest = run, run.manifest

    def of_manifest(self, key: str):
        if self.manifest.get(key) is None:
            raise Gap(f"the manifest has no {key}")
        return self.manifest[key]

    def table(self, part: str) -> pd.DataFrame:
        if not (self.run / part).exists():
            raise Gap(f"{part} was not written")
        ids = {"image_id": str, "patient_id": str}
        return pd.read_csv(self.run / part, keep_default_na=False, na_values=[""], dtype=ids)

    def studied(self, part: str) -> pd.DataFrame:
        """Return the rows of conditions that are no controls."""
        table = self.table(part)
        table = table[~table.condition.map(is_control).astype(bool)]
        if not len(table):
            raise Gap("no condition but controls was run")
        return table

    @cached_property
    def study(self) -> Study:
        try:
            return Study.load(self.run)
        except NotYet as missing:
            raise Gap(str(missing)) from missing


def checklist(run: Run) -> pd.DataFrame:
    """Say to each item what this run says: `item, asked by, this run`; what is missing begins with "gap:"."""
    results, rows = Results(run), []
    for name, asked_by, report in ITEMS:
        try:
            said = report(results)
        except Gap as gap:
            said = f"gap: {gap}"
        rows.append({"item": name, "asked by": asked_by, "this run": said})
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """Write the text of `reporting.md`."""
    gaps = table["this run"].str.startswith("gap:").sum()
    summary = f"{len(table) - gaps} of {len(table)} items are filled, {gaps} are gaps."
    return f"# Reporting items\n\n{summary}\n\n{markdown_table(table.columns, table.to_numpy())}\n"


def item(name: str, asked_by: str) -> Callable:
    """Add a function of `Results` to the items."""

    def add(report: Callable[[Results], str]) -> Callable[[Results], str]:
        ITEMS.append((name, asked_by, report))
        return report

    return add


@item("question, family, primary metric and margin fixed beforehand", "REFORMS, CLAIM")
def question(results: Results) -> str:
    asked, declaration = declared(METHODS).query("question != 'control'"), "lib/statistics/comparisons.py"
    margin = results.of_manifest("parameters").get("margin", MARGIN)
    return (
        f"{len(asked)} comparisons in {asked.family.nunique()} families, in {declaration}, whose last change is "
        f"{last_change(declaration)}; primary metric {PRIMARY}, key secondary {', '.join(KEY_SECONDARY)}; "
        f"margin of no consequence ±{margin:g}"
    )


def last_change(path: str) -> str:
    """Return commit and date that last changed a file, and whether it was changed since; or "unknown"."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments, "--", path], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit, changed = git("log", "-1", "--format=commit %h of %cs"), git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}{', with changes since' * bool(changed)}" if commit else "unknown"


@item("data source, eligibility, flow", "STARD-AI, CLAIM")
def data(results: Results) -> str:
    cohort, own = results.study.cohort, results.of_manifest("parameters").get("radiographs_csv")
    source = "own radiographs; who was eligible and who was left out is not recorded"
    return (
        f"{len(cohort)} radiographs of {len(cohort.patients)} patients, from "
        f"{source if own else 'the procedural phantom'}"
    )


@item("reference standard, annotators", "CLAIM, STARD-AI")
def reference_standard(results: Results) -> str:
    raise Gap("who read the images, and how, is not recorded")


@item("partition and its level", "CLAIM, REFORMS")
def partition(results: Results) -> str:
    check = results.table("audit.csv").query("check == 'patients in two parts'")
    overlap = check.found.sum() if len(check) else "not audited"
    kind = "as the table's own column split says" if "split" in results.study.cohort.table else "stratified by label"
    return f"{len(results.study.folds)} folds (of all repeats), by patient, {kind}; patients in two parts: {overlap}"


@item("characteristics of each part", "CLAIM, TRIPOD+AI")
def characteristics(results: Results) -> str:
    parts = [
        f"{part}: {row['AFF patients']:.0f} AFF and {row['NFF patients']:.0f} NFF patients, "
        f"{row['AFF images']:.0f} and {row['NFF images']:.0f} images"
        for part, row in results.study.counts_by_part().iterrows()
    ]
    return f"mean over folds: {'; '.join(parts)}. Age, sex and site are not recorded"


@item("sample size and precision", "TRIPOD+AI, CLAIM")
def sample_size(results: Results) -> str:
    equal = results.table("statistics/equivalence.csv")
    equal = equal[equal.question != "control"].dropna(subset="standard_error")
    if not len(equal):
        raise Gap("no declared comparison was run")
    errors, comparisons = equal.standard_error, in_thesis(declared(METHODS))
    patients = results.study.counts_by_part().loc["test", "AFF patients"]
    at_5, first = (
        [row.standard_error * errors_to_detect(row.df, alpha=alpha) for row in equal.itertuples()]
        for alpha in (0.05, 0.05 / comparisons)
    )
    return (
        f"{patients:.0f} AFF test patients a fold; standard error of an AUROC "
        f"difference {errors.min():.3f} to {errors.max():.3f}, so a true difference of about {min(at_5):.3f} to "
        f"{max(at_5):.3f} would be found with a probability of 80 % at p < 0.05, one of {min(first):.3f} to "
        f"{max(first):.3f} at the first step of Holm's adjustment over {comparisons} comparisons"
    )


@item("class imbalance", "TRIPOD+AI")
def imbalance(results: Results) -> str:
    conditions = results.table("trials/conditions.csv")
    ratio = conditions.AFF * conditions["weight of an AFF"] / conditions.NFF
    each = ", ".join(f"{name} {value:.2f}" for name, value in zip(conditions.condition, ratio, strict=True))
    return f"AFF per NFF in training: {each}; thresholds chosen on real validation patients for each condition"


@item("preprocessing fitted on training alone", "REFORMS")
def preprocessing(results: Results) -> str:
    check = results.table("audit.csv").query("check == 'images that change when prepared alone'")
    if not len(check):
        raise Gap("preprocessing was not audited")
    return f"each image alone; {check.found.sum()} of {check.compared.sum()} test images changed when prepared alone"


@item("model, initialisation, budgets, selection", "CLAIM")
def model(results: Results) -> str:
    classifier, metrics = results.of_manifest("classifier"), results.table("trials/metrics.csv")
    spent = metrics[metrics.metric.isin(GIVEN)].pivot_table("value", "condition", "metric", sort=False)
    if not len(spent):
        raise Gap("trials/metrics.csv says nothing of steps")
    equal = "equal for all" if are_equal(spent) else "NOT equal"
    steps, images, validations = spent[GIVEN].iloc[0]
    return (
        f"{classifier['architecture']}, {classifier['weights']}; {steps:.0f} steps, {images:.0f} images seen, best of "
        f"{validations:.0f} validations: {equal} {len(spent)} conditions"
    )


@item("provenance of synthetic images", "no guideline covers it")
def provenance(results: Results) -> str:
    counts = {}
    for path in sorted((results.run / "synthetic").glob("*/*/table.csv")):
        counts.setdefault(path.parts[-3], []).append(len(pd.read_csv(path)))
    if not counts:
        raise Gap("no synthetic image was made")
    each = ", ".join(f"{method} {np.mean(n):.0f}" for method, n in counts.items())
    copied = results.table("fidelity/memorisation.csv").query("planted == 0 and distance == 'pixels'")
    copies = ", ".join(f"{row.method} {row.copies:.1%}" for row in copied.itertuples())
    filtered = "none was filtered"
    if results.manifest.get("parameters", {}).get("curated"):
        rejected = ~read_verdicts(results.run / "synthetic" / VERDICTS).keep
        filtered = f"{rejected.sum()} were rejected by hand, and left out of training"
    return f"AFF images a fold: {each}; {filtered}; nearer to a training image than 99 % of these are: {copies}"


@item("leakage audit", "REFORMS")
def audit(results: Results) -> str:
    checks = results.table("audit.csv")
    return f"{checks.passed.sum()} of {len(checks)} checks passed: {', '.join(checks.check.unique())}"


@item("metrics and thresholds", "Metrics Reloaded, CLAIM")
def metrics(results: Results) -> str:
    thresholds = results.studied("trials/metrics.csv").query("metric == 'threshold'").value
    share = results.study.cohort.patients.eq("AFF").mean()
    return (
        f"{PRIMARY} and {', '.join(KEY_SECONDARY)} at {share:.0%} AFF patients; thresholds {thresholds.min():.2f} to "
        f"{thresholds.max():.2f}, each from validation patients"
    )


@item("uncertainty and tests", "CLAIM, REFORMS, TRIPOD+AI")
def uncertainty(results: Results) -> str:
    table = results.table("statistics/comparisons.csv").query("metric == @PRIMARY and question != 'control'")
    if not len(table):
        raise Gap("no declared comparison was run")
    decided = table.verdict.ne("undecided").sum()
    return (
        f"{', '.join(sorted(set(table.test)))}; 95 % intervals, Holm-adjusted p, two one-sided tests; {decided} of "
        f"{len(table)} declared comparisons decided"
    )


@item("calibration, subgroups, failures", "TRIPOD+AI, CLAIM")
def calibrated(results: Results) -> str:
    predictions = results.studied("trials/predictions.csv")
    patients = recalibrated_patients(predictions, results.table("trials/metrics.csv"))
    each = [
        f"{kind}: Brier score {rows.brier.min():.3f} to {rows.brier.max():.3f}, calibration slope "
        f"{rows.slope.min():.2f} to {rows.slope.max():.2f}"
        for kind, rows in calibrations(patients).groupby("probabilities", sort=False)
    ]
    groups = subgroups(predictions, results.study.cohort.table)
    worst = "no subgroup has both labels"
    if len(groups):
        low = groups.iloc[0]
        worst = f"worst subgroup {low['column']} {low['value']} under {low['condition']} (AUROC {low['auroc']:.3f})"
    errors = len(list((results.run / "figures").glob("05_errors_*.png")))
    return f"{'; '.join(each)}; {worst}; {errors} pages of most confident errors"


@item("reproducibility", "REFORMS, CLAIM")
def reproducibility(results: Results) -> str:
    versions = results.of_manifest("versions")
    return (
        f"commit {results.of_manifest('commit')[:10]}{' with changes' * results.of_manifest('dirty')}, seed "
        f"{results.of_manifest('seed')}, Python {versions['python']}, PyTorch {versions['torch']}, "
        f"{results.of_manifest('device')}"
    )


@item("external validation", "TRIPOD+AI, CLAIM")
def external_validation(results: Results) -> str:
    raise Gap("there is no second, external set of patients")
