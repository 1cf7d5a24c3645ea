"""The answers: RQ1, RQ2 and RQ3 in plain sentences, every number taken from the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lib.fidelity.controls import CONTROLS
from lib.fidelity.distances import FID_COMPONENTS
from lib.fidelity.measures import OF_JUDGE, closer_by_space
from lib.run.weights import weights_metadata
from lib.statistics.comparisons import MARGIN, QUESTIONS
from lib.statistics.metrics import KEY_SECONDARY, METRICS, PRIMARY
from lib.statistics.planning import COMPARISONS, detectable, patients_needed
from lib.translators.methods import METHODS as TRANSLATION_METHODS
from lib.translators.training import WEIGHTS

WORTHWHILE = 0.02  # an AUROC difference worth finding: most of what is left above 0.95
CHOICES = ("t_max", "start_t", "cycle", "identity", "perceptual", "contrastive")  # numbers that are no matter of size
NAMES = {"cyclegan": "CycleGAN", "cyclediff": "CycleDiff"}
WITH = {  # completes "with …"
    "cyclegan": "images added by CycleGAN",
    "cyclediff": "images added by CycleDiff",
    "real": "real images alone",
    "standard": "rotation, flipping and cropping",
    "oversampling": "as many duplicates of real AFF images",
}
FIDELITY = {
    "kid": "KID (lower is better)",
    "fid": "FID of the leading directions (lower is better)",
    "fid_infinity": "the same, extrapolated",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "transfer": "taken for the target class by the judge",
    "transfer_blurred": "so after a blur",
    "transfer_noised": "so after noise",
    "neither": "taken for neither class",
    "change_in_zone": "share of the change inside the fracture zone",
    "zone_share": "the zone's share of the image",
    "ssim_outside": "SSIM to the source outside the fracture zone",
    "counterfactual_inside": "SSIM to the counterfactual inside the fracture zone",
    "counterfactual_outside": "SSIM to the counterfactual outside it",
}
METHODS = {
    **NAMES,
    "noise": "sampled from noise",
    "real": "real against real",
    "source": "untranslated",
    "counterfactual": "counterfactual (a perfect translation)",
}
TESTS = {
    "DeLong, patients": "DeLong's test",
    "DeLong, patients and seeds": "DeLong's test with the spread between training seeds",
    "clustered AUC, patients": "clustered AUC test",
    "clustered AUC, patients and seeds": "clustered AUC test with the spread between training seeds",
    "corrected t": "corrected t-test over {n} cells",
    "patient bootstrap": "patient bootstrap",
}
AGAINST = {"real": "real images alone", "oversampling": "oversampling", "chance": "guessing"}
EXPECTED = {  # of each control: in words, and the verdict that fits
    "again": ("no difference", "equivalent"),
    "fake": ("the same as oversampling", "equivalent"),
    "oracle": ("to help", "better"),
    "useless": ("to hurt", "worse"),
    "permuted": ("an AUROC of 0.5", "equivalent"),
}
TITLES = {
    "RQ1": "RQ1. Which of CycleGAN and CycleDiff makes the better synthetic images?",
    "RQ2": "RQ2. Is a classifier better for adding generated images to the real ones?",
    "RQ3": "RQ3. Is generative augmentation better than rotation, flipping and cropping?",
    "oversampling": "Beyond the three: is it better than oversampling?",
}


def answer(
    comparisons: pd.DataFrame,
    fidelity: pd.DataFrame,
    metrics: pd.DataFrame,
    facts: dict,
    equal: pd.DataFrame | None = None,
) -> str:
    """The text of `answers.md`.

    Parameters
    ----------
    comparisons : what `lib.statistics.comparisons.compare` returned; the rows of RQ1 on KID come from its `extra`
    fidelity : `method, repeat, fold, direction, features, metric, value, ci_low, ci_high, n`
    metrics : `condition, repeat, fold, seed, metric, value`
    facts : `data` ("phantom" or "own radiographs"), `profile`, `cells`, `test_patients`, `test_aff_patients`, `seeds`,
        `architecture`, `weights`, `worthwhile` (an AUROC difference worth finding, to plan with), and where `compare`
        was given another than the default, its `margin`
    equal : what `lib.statistics.comparisons.equivalence` returned; without it nothing is said of practical equivalence

    Returns
    -------
    str, markdown
    """
    sections, short = [], []
    for question, title in TITLES.items():
        parts = [_pair(comparisons, metrics, facts, equal, *pair[1:]) for pair in QUESTIONS if pair[1] == question]
        if question == "RQ1":
            parts = [_fidelity(comparisons, fidelity), *parts]
        headlines = [headline for headline, _ in parts]
        short.append(f"- {question.capitalize() if question.islower() else question}: {'; '.join(headlines)}.")
        if question == "RQ1":
            short += [f"- {sentence}" for sentence in _not_shown_closer(fidelity)]
        text = [f"**{_sentence(headline)}.** {body}" for headline, body in parts]
        if question == "RQ1" and (remark := _disagreement(comparisons)):
            text.append(remark)
        sections += [f"## {title}", *text]
    if controls := _controls(comparisons):
        sections += ["## Controls", *controls]
    return "\n\n".join(
        ["# Answers", "\n".join(short), _setting(facts), *sections, "## Scores", _scores(metrics, facts),
         "## How to read this", _reading(facts)]
    ) + "\n"  # fmt: skip


def trained_how(name: str, folder: Path) -> str:
    """How long a translator was trained, and how long its paper trained it; `folder` is that of one cell."""
    path = Path(folder) / WEIGHTS
    if not path.exists():
        return f"{name} was not trained."
    metadata = weights_metadata(path)
    published = {"CycleGAN": "200 epochs of single images", "CycleDiff": "100,000 steps of 24 images"}[name]
    settings, steps = metadata["settings"], metadata["steps"]
    own = settings["autoencoder_steps"] if settings.get("autoencoder") == "kl" else 0  # the published figure is without
    batch, stopped = _count(settings["batch"], "image"), metadata.get("stopped_at")
    ended = f"; ended by hand; {steps - own:,} were meant" if stopped else ""
    done = (stopped or steps) - own
    return f"{name} was trained for {done:,} steps of {batch} of each class (published: {published}{ended})."


def unlike_published(name: str, folder: Path) -> str:
    """A sentence on what a translator's paper has otherwise, sizes and amounts aside; empty where nothing differs."""
    path = Path(folder) / WEIGHTS
    if not path.exists():
        return ""
    metadata = weights_metadata(path)
    published = TRANSLATION_METHODS[name.lower()].published
    chosen = metadata["settings"] | metadata.get("sampler", {})
    unlike = [
        f"{key} = {value:g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in chosen.items()
        if value != published[key] and (isinstance(value, (bool, str)) or value == 0 or key in CHOICES)
    ]
    said = f"Chosen otherwise than in the paper of {name}, sizes, steps and rates aside"
    return f"{said}: {', '.join(unlike)}." if unlike else ""


def _setting(facts: dict) -> str:
    """What was studied, and how far it carries."""
    if facts["data"] == "phantom":
        data = "Data: simulated radiographs (the phantom), so these answers are about drawn femurs, not about patients"
    else:
        data = f"Data: {facts['data']}"
    sentences = [
        f"{data}; profile {facts['profile']}.",
        f"The classifier is {facts['architecture']} (initial weights: {facts['weights']}), "
        f"{_count(facts['seeds'], 'seed')} a condition.",
        f"It was tested on real images of {_count(facts['test_patients'], 'patient')}, "
        f"{facts['test_aff_patients']} of them with AFF.",
    ]
    if "training" in facts:
        sentences.append(f"{facts['training']} RQ1 compares the methods as they were trained here.")
    if facts["cells"] == 1:
        sentences.append(
            "There is one hold-out split, so everything here is conditional on the trained generators and on that "
            "split: the same methods trained once more could come out otherwise."
        )
    else:
        sentences.append(
            f"There are {facts['cells']} cells (repeats × folds), each with generators trained on its own training "
            "patients, so the answers are about the methods, not about one training of them."
        )
    if facts["cells"] == facts["seeds"] == 1:
        sentences.append(
            "Each classifier was trained once: whether a difference comes from its images or from its seed cannot be "
            "told, so no comparison of classifiers below is more than a description of these trainings."
        )
    if facts["test_aff_patients"] < 20:
        sentences.append("So few patients with AFF leave wide intervals.")
    return " ".join(sentences)


def _pair(comparisons, metrics, facts, equal, question, a, b) -> tuple[str, str]:
    """Headline and text of one declared comparison of classifiers."""
    name = "usefulness to the classifier" if question == "RQ1" else NAMES[a]
    rows = comparisons[(comparisons.question == question) & (comparisons.a == a) & (comparisons.b == b)]
    rows = rows.set_index("metric")
    if PRIMARY not in rows.index:
        missing = [f"`{condition}`" for condition in (a, b) if condition not in set(metrics.condition)]
        if not missing:
            return f"{name}: not compared", f"The comparisons have no {METRICS[PRIMARY]} of `{a}` against `{b}`."
        were = "condition was" if len(missing) == 1 else "conditions were"
        return f"{name}: not answered", f"The {were} not run: {' and '.join(missing)}."
    primary = rows.loc[PRIMARY]
    better, worse = (
        ("CycleDiff's images are worth more", "CycleGAN's images are worth more")
        if question == "RQ1"
        else ("yes, it is better", "no, it is worse")
    )
    headlines = {"better": better, "worse": worse, "equivalent": "no difference that matters", "undecided": "undecided"}
    headline, once = headlines[primary.verdict], facts["seeds"] == facts["cells"] == 1
    if once and primary.verdict in ("better", "worse"):
        headline += ", in this one training"
    text = [
        f"With {WITH[a]}, the AUROC of patients {_than(primary.difference)} with {WITH[b]} ({_interval(primary)}, "
        f"{_p(primary.p_holm)}; {TESTS[primary.test].format(n=primary.n)}, {_count(primary.patients, 'test patient')}, "
        f"{facts['test_aff_patients']} with AFF).",
        _meaning(primary, facts.get("margin", MARGIN)),
    ]
    if equal is not None:
        row = equal[(equal.question == question) & (equal.a == a) & (equal.b == b)].iloc[0]
        text.append(_equivalence(row))
        if primary.verdict in ("better", "worse") and row.p_equivalence < 0.05:
            headline += ", but by less than matters"
        if primary.verdict == "undecided":
            text.append(_needed(row, primary.patients, facts))
    secondary = [
        f"{METRICS[metric]} {_signed(row.difference)} ({_interval(row)}; {'of one training' if once else row.verdict})"
        for metric, row in rows.iterrows()
        if metric in KEY_SECONDARY
    ]
    if secondary:
        text.append(f"Secondary (p adjusted within each metric): {', '.join(secondary)}.")
    return f"{name}: {headline}", " ".join(text)


def _meaning(row, margin: float) -> str:
    """What the interval of an AUROC difference leaves possible."""
    low, high = row.ci_low, row.ci_high
    if row.verdict in ("better", "worse"):
        least, most = sorted((abs(low), abs(high)))
        kind = "gain" if row.verdict == "better" else "loss"
        return f"The {kind} is between {least:.3f} and {most:.3f}, as far as the interval tells."
    if row.verdict == "equivalent":
        return f"The 90 % interval lies within ±{margin:g}, the margin below which a difference is of no consequence."
    if low == high:
        return "The data cannot decide: nothing varies between the two, so there is no spread to judge by."
    if low < 0 < high:
        return (
            f"The data cannot decide: the interval runs from {_signed(low)} to {_signed(high)}, "
            f"so a gain of up to {high:.3f} is still possible, and so is a loss of up to {-low:.3f}."
        )
    kind = "gain" if high > 0 else "loss"
    return (
        f"The data cannot decide: this comparison's own interval points to a {kind} of up to {max(-low, high):.3f}, "
        f"but it is not significant once the family's other comparisons are allowed for (Holm)."
    )


def _equivalence(row) -> str:
    """How sure it is that the difference is of no consequence."""
    if np.isnan(row.p_equivalence):
        return ""
    shown = "shown" if row.p_equivalence < 0.05 else "not shown"
    text = f"That it lies within ±{row.margin:g} is {shown} (two one-sided tests, {_p_value(row.p_equivalence)})"
    if not np.isnan(row.same):
        worse, same, better = (f"{share * 100:.0f} %" for share in (row.worse, row.same, row.better))
        text += (
            f"; given these cells, the probability is {same} that it does, {better} that it is a larger gain and "
            f"{worse} that it is a larger loss"
        )
    return text + "."


def _needed(row, patients: int, facts: dict) -> str:
    """What would decide a comparison that these data leave open."""
    if not row.standard_error > 0:
        return ""
    effect, alpha = facts.get("worthwhile", WORTHWHILE), 0.05 / COMPARISONS
    first_step = f"at the first step of Holm's adjustment over {COMPARISONS} comparisons"
    if np.isnan(row.same):
        needed = patients_needed(patients, row.standard_error, effect, row.margin, alpha)
        return (
            f"To decide it: if the true difference is {effect:.3f}, about {_round(needed['difference'])} test patients "
            f"would show it with a probability of 80 %, {first_step}; if there is none, about "
            f"{_round(needed['equivalence'])} "
            f"would show that it lies within ±{row.margin:g} (now {patients}; with as many times more training seeds)."
        )
    spread = row.standard_error / np.sqrt(1 / row.cells + row.test_train_ratio)
    now, most = (detectable(spread, n, row.test_train_ratio, alpha=alpha) for n in (row.cells, np.inf))
    if now <= effect:
        more = "which is no more than what is worth finding: a smaller difference is of little interest"
    elif most <= effect:
        more = f"and no number of repeats one below {most:.3f}; for {effect:.3f}, more repeats would do"
    else:
        more = f"and no number of repeats one below {most:.3f}; for {effect:.3f}, it takes more patients"
    return (
        f"To decide it: {row.cells:.0f} cells of this spread show a true difference of {now:.3f} with a probability of "
        f"80 %, {first_step}, {more}."
    )


def _controls(comparisons: pd.DataFrame) -> list[str]:
    """A line for each control that ran: what it is, what was to be expected, what was found."""
    rows = comparisons[(comparisons.question == "control") & (comparisons.metric == PRIMARY)]
    if not len(rows):
        return []
    lines = []
    for row in rows.itertuples():
        expected, fitting = EXPECTED[row.a]
        alone = fitting == "equivalent"  # a family of its own
        found = {
            "better": "it helps",
            "worse": "it hurts",
            "equivalent": f"it is no different from {AGAINST[row.b]}",
            "undecided": f"no difference from {AGAINST[row.b]} was found",
        }[row.verdict]
        if row.verdict == "undecided":
            outcome = "Nothing against it, but it is not shown either." if alone else "Cannot tell."
        else:
            outcome = "As expected." if row.verdict == fitting else "NOT as expected."
        lines.append(
            f"- `{row.a}` against `{row.b}`: {CONTROLS[row.a]}; expected {expected}. Found: {found} (AUROC difference "
            f"{_signed(row.difference)}, {_interval(row)}, {_p_value(row.p) if alone else _p(row.p_holm)}). {outcome}"
        )
    note = (
        "Conditions whose worth is known beforehand, through the same code and tests as the study's own. Where one "
        "is not as expected, do not trust the answers above; where one cannot be told, neither could a generator of "
        "that worth."
    )
    return [note, "\n".join(lines)]


def _fidelity(comparisons: pd.DataFrame, fidelity: pd.DataFrame) -> tuple[str, str]:
    """Headline and text of how real the generated images look."""
    ran = [name for method, name in NAMES.items() if method in set(fidelity.method)]
    tests = _kid_tests(comparisons)
    text = []
    if len(ran) < 2:
        headline = "likeness to real images: not answered"
        missing = [name for name in NAMES.values() if name not in ran]
        text.append(f"{' and '.join(missing)} made no images, so there is nothing to compare.")
    elif not len(tests):
        headline = "likeness to real images: described, not tested"
        text.append("No test compared the two generators' KID; the values below describe these images alone.")
    else:
        found = {
            "better": "CycleDiff's are closer", "worse": "CycleGAN's are closer",
            "equivalent": "no difference that matters", "undecided": "undecided",
        }  # fmt: skip
        each = {row.metric.removeprefix("kid").strip(): found[row.verdict] for row in tests.itertuples()}
        same = len(set(each.values())) == 1
        headline = "likeness to real images: " + (
            next(iter(each.values())) if same else ", ".join(f"{what} {verdict}" for what, verdict in each.items())
        )
        text += [_kid_sentence(row) for row in tests.itertuples()]
    if len(fidelity):
        text += _not_shown_closer(fidelity)
        text.append(_transfer(fidelity))
        text.append(_spaces(fidelity, ran))
    blocks = [" ".join(filter(None, text))]
    kinds = fidelity.features.where(~fidelity.metric.isin(OF_JUDGE), "eye")
    for (direction, kind), group in fidelity.groupby(["direction", kinds], sort=False):
        others = group[group.metric == "fid"].n.max()
        of_sets = f", KID of all images, the others of {others:.0f} of each set" if others == others else ""
        what = {"pixels": "images compared pixel by pixel", "eye": "what the judge takes the images for"}.get(
            kind, f"distances in the features of {kind}{of_sets}"
        )
        blocks.append(f"{direction}, {what}:\n\n{_fidelity_table(group)}")
    return headline, "\n\n".join(blocks)


def _kid_tests(comparisons: pd.DataFrame) -> pd.DataFrame:
    return comparisons[(comparisons.question == "RQ1") & comparisons.metric.str.startswith("kid")]


def _kid_sentence(row) -> str:
    features = row.metric.removeprefix("kid").strip()
    order = "lower" if row.difference < 0 else "higher"
    meaning = {
        "better": "CycleDiff's images lie closer to real ones",
        "worse": "CycleGAN's images lie closer to real ones",
        "equivalent": "the difference is of no consequence",
        "undecided": "the data cannot decide which lie closer to real ones",
    }[row.verdict]
    size = "the same for both" if row.difference == 0 else f"{_significant(abs(row.difference))} {order} for CycleDiff"
    low, high = (_significant(value, "+") for value in (row.ci_low, row.ci_high))
    interval = "" if np.isnan(row.ci_low) else f"95 % interval of the difference {low} to {high}, "
    over = f"{row.n} cells" if row.test == "corrected t" else f"all {row.n} test images"
    return (
        f"Over {over}, the KID{' ' + features if features else ''} is {size} "
        f"({interval}{_p(row.p_holm)}, {_count(row.patients, 'patient')}): {meaning}."
    )


def _not_shown_closer(fidelity: pd.DataFrame) -> list[str]:
    """A sentence for each direction in which a generator is not shown to do better than doing nothing.

    That is where the KID of the untranslated images lies within the interval of the translated ones', or below it.
    """
    kid = fidelity[(fidelity.metric == "kid") & (fidelity.features == "judge")]
    means = kid.groupby(["direction", "method"], sort=False)[["value", "ci_high"]].mean()
    sentences = []
    for direction, rows in means.groupby("direction", sort=False):
        rows = rows.droplevel("direction")
        if "source" not in rows.index:
            continue
        idle = [n for m, n in NAMES.items() if m in rows.index and rows.ci_high[m] >= rows.value["source"]]
        if idle:
            sentences.append(
                f"{direction}, images of {_list(idle)} are not shown to lie closer to real ones than untranslated ones."
            )
    return sentences


def _transfer(fidelity: pd.DataFrame) -> str:
    """How often the judge takes a translation for the target class, beside its references."""
    transfer = fidelity[fidelity.metric == "transfer"]
    sentences = []
    for direction, group in transfer.groupby("direction", sort=False):
        share = group.groupby("method").value.mean()
        target = direction[-3:]
        made = [f"{share[m] * 100:.0f} % of {name}'s images" for m, name in NAMES.items() if m in share]
        if "noise" in share:
            made.append(f"{share['noise'] * 100:.0f} % of the images sampled from noise")
        beside = []
        if "source" in share:
            beside.append(f"{share['source'] * 100:.0f} % of the untranslated {direction[:3]} images")
        if "real" in share:
            beside.append(f"{share['real'] * 100:.0f} % of real {target} images")
        if made:
            beside = f" (for comparison: {' and '.join(beside)})" if beside else ""
            sentences.append(f"The judge takes {_list(made)} for {target}{beside}.")
    return " ".join(sentences)


def _spaces(fidelity: pd.DataFrame, ran: list[str]) -> str:
    """Whether the feature spaces agree on the closer method."""
    if len(ran) < 2 or fidelity[fidelity.metric == "kid"].features.nunique() < 2:
        return ""
    closer = closer_by_space(fidelity, *NAMES)
    sentences = [
        f"{direction}, "
        + ("all feature spaces agree" if row.agree else "the feature spaces DISAGREE")
        + " on whose KID is lower ("
        + ", ".join(f"{space}: {NAMES[row[space]]}" for space in closer.columns.drop("agree"))
        + ")."
        for direction, row in closer.iterrows()
    ]
    return " ".join(sentences)


def _fidelity_table(group: pd.DataFrame) -> str:
    """Methods × metrics: value and 95 % interval of one cell, or mean and range over several."""
    several = len(group[["repeat", "fold"]].drop_duplicates()) > 1

    def cell(values: pd.DataFrame) -> str:
        if values.value.isna().all():
            return "–"
        low, high = (values.value.min(), values.value.max()) if several else values[["ci_low", "ci_high"]].iloc[0]
        interval = "" if np.isnan(low) or np.isnan(high) else f" ({_significant(low)} to {_significant(high)})"
        return _significant(values.value.mean()) + interval

    shown = [metric for metric in FIDELITY if metric in set(group.metric)]
    rows = [
        [name, *(cell(group[(group.method == method) & (group.metric == metric)]) for metric in shown)]
        for method, name in METHODS.items()
        if method in set(group.method)
    ]
    brackets = "range over cells" if several else "95 % interval"
    return _table([f"images ({brackets} in brackets)", *(FIDELITY[metric] for metric in shown)], rows)


def _disagreement(comparisons: pd.DataFrame) -> str:
    """A remark where the better looking images are not the more useful ones."""
    looks = _kid_tests(comparisons).verdict
    use = comparisons[(comparisons.question == "RQ1") & (comparisons.metric == PRIMARY)].verdict
    if len(looks) and len(use) and {looks.iloc[0], use.iloc[0]} == {"better", "worse"}:
        return "So the generator whose images look more real is not the one whose images are worth more."
    return ""


def _scores(metrics: pd.DataFrame, facts: dict) -> str:
    """Conditions × metrics, averaged over trials."""
    metrics = metrics[metrics.metric.isin(METRICS)]
    means = metrics.pivot_table(index="condition", columns="metric", values="value", sort=False)
    shown = [metric for metric in METRICS if metric in means]
    rows = [[f"`{c}`", *(f"{means.loc[c, m]:.3f}".replace("-", "−") for m in shown)] for c in means.index]
    note = "Means over cells and seeds, patients as units unless it says images."
    return f"{note}\n\n{_table(['condition', *(METRICS[m] for m in shown)], rows)}"


def _reading(facts: dict) -> str:
    margin = facts.get("margin", MARGIN)
    return (
        "AUROC: how often, of an AFF and an NFF patient, the AFF patient is given the higher probability; 0.5 is "
        "guessing. KID: a distance between the features of two sets of images, 0 on average where both are of one "
        f"kind. FID: another, here of the {FID_COMPONENTS} leading directions of the features, so not to be compared "
        "with published ones. Recalibrated: probabilities moved so that they are right on average for validation "
        "patients. "
        "Judge: a network that was trained to tell AFF, NFF and failed drawings, and sorts translations; it has learnt "
        "from the patients that the generators learnt from, and judges images of others. "
        "Counterfactual: "
        "the same simulated patient with the other fracture. Holm: p-values raised for the number of comparisons.\n\n"
        "The comparisons of RQ1 to RQ3 were declared beforehand, with the AUROC of patients as the primary metric. "
        "Their p-values are adjusted for all of them, run or not (Holm), those against oversampling in a family of "
        "their own, those of KID in another. Better or worse means an adjusted p below 0.05. No difference that "
        f"matters means that the 90 % interval of the AUROC difference lies within ±{margin:g}. Otherwise the data "
        "cannot decide, which is not the same as no difference. Intervals are 95 % unless it says otherwise, and not "
        "adjusted. All other metrics and conditions are supporting or descriptive; p-values of the AUPRC are somewhat "
        "too small where there are few AFF patients (`lib.statistics.simulation`)."
        f" {facts.get('unlike_published', '')}"
    ).rstrip()


def _interval(row) -> str:
    return f"95 % interval {_signed(row.ci_low)} to {_signed(row.ci_high)}"


def _p(p: float) -> str:
    return f"Holm-adjusted {_p_value(p)}"


def _p_value(p: float) -> str:
    return f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _round(n: float) -> str:
    """A number of patients to two digits."""
    return f"{float(f'{n:.2g}'):,.0f}"


def _than(difference: float) -> str:
    """'is 0.021 higher than', or 'is the same as' where three decimals show no difference."""
    if round(difference, 3) == 0:
        return "is, to three decimals, the same as"
    return f"is {abs(difference):.3f} {'higher' if difference > 0 else 'lower'} than"


def _signed(value: float) -> str:
    value = round(value, 3) + 0.0
    return "0.000" if value == 0 else f"{value:+.3f}".replace("-", "−")


def _significant(value: float, sign: str = "") -> str:
    return f"{value:{sign}.{'0f' if abs(value) >= 1000 else '3g'}}".replace("-", "−")


def _count(n: int, noun: str) -> str:
    return f"{int(n):,} {noun}{'' if n == 1 else 's'}"


def _list(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])
