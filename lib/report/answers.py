"""The answers: each research question in plain sentences, every number taken from the tables.

The sentences stand in `templates/answers.md`, their values are gathered here.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from lib.fidelity.controls import CONTROLS
from lib.fidelity.distances import FID_COMPONENTS
from lib.fidelity.measures import OF_JUDGE, closer_by_space
from lib.report.figures import title as title_of
from lib.run.folder import NotYet
from lib.run.weights import weights_metadata
from lib.statistics.comparisons import declared, in_thesis
from lib.statistics.metrics import KEY_SECONDARY, METRICS, PRIMARY
from lib.statistics.planning import detectable, patients_needed
from lib.study import Study
from lib.translators.methods import METHODS as TRANSLATORS
from lib.translators.methods import Method

CHOICES = ("t_max", "start_t", "cycle", "identity", "perceptual", "contrastive")  # numbers that are no matter of size
WITH = {  # completes "with …", where it is no translator
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
NO_TRANSLATORS = {  # rows of the tables of fidelity
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
    "corrected t": "corrected t-test over {n} folds",
}
UNLESS = {"equivalent": "no difference that matters", "undecided": "undecided"}
BETTER = {"better": "yes, it is better", "worse": "no, it is worse", **UNLESS}
WORTH = {"better": "{a}'s images are worth more", "worse": "{b}'s images are worth more", **UNLESS}
CLOSER = {"better": "{a}'s are closer", "worse": "{b}'s are closer", **UNLESS}
TITLES = {
    "RQ1": "RQ1. Which of {} makes the better synthetic images?",
    "RQ2": "RQ2. Is a classifier better for adding generated images to the real ones?",
    "RQ3": "RQ3. Is generative augmentation better than rotation, flipping and cropping?",
    "oversampling": "Beyond the three: is it better than oversampling?",
}


# What was studied ----------------------------------------------------------------------------------------------------


def facts(study: Study, predictions: pd.DataFrame, margin: float, worthwhile: float) -> dict[str, object]:
    """Gather what `answer` says of the study, from its run's manifest and weights.

    `predictions` and `margin` are those that `lib.statistics.comparisons.compare` was given; `worthwhile` is an AUROC
    difference worth finding, to plan with. NotYet where the manifest does not say which classifier was trained.
    """
    manifest, fold = study.run.manifest, study.folds[0].name
    if "classifier" not in manifest:
        raise NotYet(f"{study.run}: the manifest names no classifier: run notebook 05_classifier_trials first")
    patients = predictions[predictions.condition != "permuted"].groupby("patient_id").label.agg(set)  # not shuffled
    trained = [(method, method.weights(study.run.folder, fold)) for method in TRANSLATORS.values()]
    return {
        "data": "phantom" if study.phantom else "own radiographs",
        "profile": manifest.get("profile", "none (run by hand)"),
        "folds": len(study.folds),
        "test_patients": len(patients),
        "test_aff_patients": sum("AFF" in labels for labels in patients),
        "seeds": predictions.seed.nunique(),
        **manifest["classifier"],  # architecture, weights
        "training": " ".join(trained_how(*one) for one in trained),
        "unlike_published": " ".join(unlike_published(*one) for one in trained),
        "kept": manifest.get("kept", {}),  # trainings that other code made: name → what differs
        "margin": margin,
        "worthwhile": worthwhile,
    }


def trained_how(method: Method, weights: Path) -> str:
    """Say how long a translator was trained, and how long its paper trained it."""
    if not weights.exists():
        return f"{method.title} was not trained."
    metadata = weights_metadata(weights)
    settings, steps = metadata["settings"], metadata["steps"]
    own = settings["autoencoder_steps"] if settings.get("autoencoder") == "kl" else 0  # the published figure is without
    batch, stopped = _count(settings["batch"], "image"), metadata.get("stopped_at")
    ended = f"; ended by hand; {steps - own:,} were meant" if stopped else ""
    done = f"{(stopped or steps) - own:,} steps of {batch} of each class"
    return f"{method.title} was trained for {done} (published: {method.budget}{ended})."


def unlike_published(method: Method, weights: Path) -> str:
    """Say what a translator's paper has otherwise, sizes and amounts aside; empty where nothing differs."""
    if not weights.exists():
        return ""
    metadata = weights_metadata(weights)
    chosen = metadata["settings"] | metadata.get("sampler", {})
    unlike = [
        f"{key} = {value:g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in chosen.items()
        if value != method.published[key] and (isinstance(value, (bool, str)) or value == 0 or key in CHOICES)
    ]
    said = f"Chosen otherwise than in the paper of {method.title}, sizes, steps and rates aside"
    return f"{said}: {', '.join(unlike)}." if unlike else ""


# The text ------------------------------------------------------------------------------------------------------------


def answer(
    comparisons: pd.DataFrame, fidelity: pd.DataFrame, metrics: pd.DataFrame, facts: dict, equal: pd.DataFrame
) -> str:
    """Write the text of `answers.md`, in Markdown.

    Parameters
    ----------
    comparisons : of `lib.statistics.comparisons.compare`; the rows of RQ1 on KID come from its `extra`
    fidelity : `method, repeat, fold, direction, features, metric, value, ci_low, ci_high, n`
    metrics : `condition, repeat, fold, seed, metric, value`
    facts : of the function of that name
    equal : of `lib.statistics.comparisons.equivalence`
    """
    asked, questions = declared(TRANSLATORS), []
    for question, title in TITLES.items():
        pairs = asked[asked.question == question][["question", "a", "b"]].itertuples(index=False)
        pairs = [_comparison(comparisons, metrics, facts, equal, *pair) for pair in pairs]
        name = question.capitalize() if question.islower() else question
        title = title.format(_list([method.title for method in TRANSLATORS.values()]))
        questions.append({"name": name, "title": title, "pairs": pairs, "likeness": []})
    likeness = [_likeness(comparisons, fidelity, pair["a"], pair["b"]) for pair in questions[0]["pairs"]]
    questions[0]["likeness"] = likeness
    controls = comparisons[(comparisons.question == "control") & (comparisons.metric == PRIMARY)]
    text = TEMPLATES.get_template("answers.md").render(
        questions=questions, described=_described(fidelity), idle=_not_shown_closer(fidelity),
        disagreements=_disagreements(*likeness, *questions[0]["pairs"]), facts=facts,
        once=facts["seeds"] == facts["folds"] == 1, controls=CONTROLS, found=_rows(controls), scores=_scores(metrics),
        fid_components=FID_COMPONENTS, tests=TESTS, metrics=METRICS,
    )  # fmt: skip
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _comparison(comparisons, metrics, facts, equal, question: str, a: str, b: str) -> dict:
    """Gather headline and values of one declared comparison of classifiers."""
    name = f"usefulness to the classifier{_which(a, b)}" if question == "RQ1" else TRANSLATORS[a].title
    rows = _of_pair(comparisons, question, a, b)
    found = {"a": a, "b": b, "auroc": next(iter(_rows(rows[rows.metric == PRIMARY])), None), "missing": []}
    if not (auroc := found["auroc"]):
        found["missing"] = [condition for condition in (a, b) if condition not in set(metrics.condition)]
        return found | {"headline": f"{name}: {'not answered' if found['missing'] else 'not compared'}"}
    headline = (WORTH if question == "RQ1" else BETTER)[auroc.verdict].format(a=title_of(a), b=title_of(b))
    decided, row = auroc.verdict in ("better", "worse"), _rows(_of_pair(equal, question, a, b))[0]
    if decided and facts["seeds"] == facts["folds"] == 1:
        headline += ", in this one training"
    if decided and row.p_equivalence < 0.05:
        headline += ", but by less than matters"
    return found | {
        "headline": f"{name}: {headline}",
        "equal": row if not np.isnan(row.p_equivalence) else None,
        "needed": _needed(row, auroc.patients, facts["worthwhile"]) if auroc.verdict == "undecided" else None,
        "secondary": _rows(rows[rows.metric.isin(KEY_SECONDARY)]),
    }


def _needed(row, patients: int, effect: float) -> dict | None:
    """Compute what would decide a comparison that these data leave open."""
    if not row.standard_error > 0:
        return None
    comparisons = in_thesis(declared(TRANSLATORS))
    alpha, found = 0.05 / comparisons, {"comparisons": comparisons}
    if np.isnan(row.same):
        return found | patients_needed(patients, row.standard_error, effect, row.margin, alpha)
    spread = row.standard_error / np.sqrt(1 / row.folds + row.test_train_ratio)
    now, most = (detectable(spread, n, row.test_train_ratio, alpha=alpha) for n in (row.folds, np.inf))
    return found | {"now": now, "most": most}


def _likeness(comparisons: pd.DataFrame, fidelity: pd.DataFrame, a: str, b: str) -> dict:
    """Gather headline and tests of whose images look more real."""
    rows = _of_pair(comparisons, "RQ1", a, b)
    tests = _rows(rows[rows.metric.str.startswith("kid")])
    closer = {verdict: said.format(a=title_of(a), b=title_of(b)) for verdict, said in CLOSER.items()}
    each = {row.metric.removeprefix("kid").strip(): closer[row.verdict] for row in tests}
    missing = [title_of(method) for method in (b, a) if method not in set(fidelity.method)]
    if missing:
        found, tests = "not answered", []
    elif not tests:
        found = "described, not tested"
    elif len(set(each.values())) == 1:
        found = next(iter(each.values()))
    else:
        found = ", ".join(f"{what} {verdict}" for what, verdict in each.items())
    headline = f"likeness to real images{_which(a, b)}: {found}"
    return {"a": a, "b": b, "headline": headline, "missing": missing, "tests": tests}


def _disagreements(*found: dict) -> list[str]:
    """Remark on pairs of which the better looking images are not the more useful ones."""
    verdicts = {}
    for one in found:
        rows = one["tests"][:1] if "tests" in one else filter(None, [one["auroc"]])
        verdicts.setdefault((one["a"], one["b"]), set()).update(row.verdict for row in rows)
    remark = "the generator whose images look more real is not the one whose images are worth more."
    return [f"So{_which(*pair)} {remark}" for pair, both in verdicts.items() if both == {"better", "worse"}]


def _scores(metrics: pd.DataFrame) -> str:
    """Write conditions × metrics, averaged over trials."""
    means = metrics[metrics.metric.isin(METRICS)]
    means = means.pivot_table(index="condition", columns="metric", values="value", sort=False)
    shown = [metric for metric in METRICS if metric in means]
    rows = [[f"`{c}`", *(f"{means.loc[c, m]:.3f}".replace("-", "−") for m in shown)] for c in means.index]
    return markdown_table(["condition", *(METRICS[m] for m in shown)], rows)


# Generators ----------------------------------------------------------------------------------------------------------


def _described(fidelity: pd.DataFrame) -> list[str]:
    """Write how real the images are by every measure: a paragraph, and a table for each direction and kind."""
    text = [" ".join([*_not_shown_closer(fidelity), *_transfer(fidelity), *_spaces(fidelity)])]
    kinds = fidelity.features.where(~fidelity.metric.isin(OF_JUDGE), "eye")
    for (direction, kind), group in fidelity.groupby(["direction", kinds], sort=False):
        others = group[group.metric == "fid"].n.max()
        of_sets = f", KID of all images, the others of {others:.0f} of each set" if others == others else ""
        what = {"pixels": "images compared pixel by pixel", "eye": "what the judge takes the images for"}.get(
            kind, f"distances in the features of {kind}{of_sets}"
        )
        text.append(f"{direction}, {what}:\n\n{_fidelity_table(group)}")
    return text


def _not_shown_closer(fidelity: pd.DataFrame) -> list[str]:
    """Name the generators that are not shown to do better than doing nothing, a sentence a direction.

    The KID of the untranslated images lies within the interval of the translated ones', or below it.
    """
    kid = fidelity[(fidelity.metric == "kid") & (fidelity.features == "judge")]
    means = kid.groupby(["direction", "method"], sort=False)[["value", "ci_high"]].mean()
    sentences = []
    for direction, rows in means.groupby("direction", sort=False):
        rows = rows.droplevel("direction")
        least = rows.value.get("source", np.inf)
        if idle := [title for name, title in _named(rows.index) if rows.ci_high[name] >= least]:
            sentences.append(
                f"{direction}, images of {_list(idle)} are not shown to lie closer to real ones than untranslated ones."
            )
    return sentences


def _transfer(fidelity: pd.DataFrame) -> list[str]:
    """Say how often the judge takes a translation for the target class, beside its references."""
    sentences = []
    for direction, group in fidelity[fidelity.metric == "transfer"].groupby("direction", sort=False):
        share = group.groupby("method").value.mean()
        made = [(name, f"{title}'s images") for name, title in _named(share.index)]
        made.append(("noise", "the images sampled from noise"))
        beside = [("source", f"the untranslated {direction[:3]} images"), ("real", f"real {direction[-3:]} images")]
        made, beside = (
            [f"{share[name] * 100:.0f} % of {what}" for name, what in of if name in share] for of in (made, beside)
        )
        compared = f" (for comparison: {_list(beside)})" if beside else ""
        if made:
            sentences.append(f"The judge takes {_list(made)} for {direction[-3:]}{compared}.")
    return sentences


def _spaces(fidelity: pd.DataFrame) -> list[str]:
    """Say whether the feature spaces agree on the closest method."""
    ran = [name for name, _ in _named(fidelity.method)]
    if len(ran) < 2 or fidelity[fidelity.metric == "kid"].features.nunique() < 2:
        return []
    sentences, least = [], "lower" if len(ran) == 2 else "lowest"
    for direction, row in closer_by_space(fidelity, *ran).iterrows():
        agree = "all feature spaces agree" if row.agree else "the feature spaces DISAGREE"
        each = ", ".join(f"{space}: {title_of(name)}" for space, name in row.drop("agree").items())
        sentences.append(f"{direction}, {agree} on whose KID is {least} ({each}).")
    return sentences


def _fidelity_table(group: pd.DataFrame) -> str:
    """Write methods × metrics: value and 95 % interval of one fold, or mean and range over several."""
    several = len(group[["repeat", "fold"]].drop_duplicates()) > 1

    def entry(values: pd.DataFrame) -> str:
        if values.value.isna().all():
            return "–"
        low, high = (values.value.min(), values.value.max()) if several else values[["ci_low", "ci_high"]].iloc[0]
        interval = "" if np.isnan(low) or np.isnan(high) else f" ({_significant(low)} to {_significant(high)})"
        return _significant(values.value.mean()) + interval

    shown = [metric for metric in FIDELITY if metric in set(group.metric)]
    rows = [
        [title, *(entry(group[(group.method == method) & (group.metric == metric)]) for metric in shown)]
        for method, title in [*_named(group.method), *NO_TRANSLATORS.items()]
        if method in set(group.method)
    ]
    brackets = "range over folds" if several else "95 % interval"
    return markdown_table([f"images ({brackets} in brackets)", *(FIDELITY[metric] for metric in shown)], rows)


# Words ---------------------------------------------------------------------------------------------------------------


def _rows(table: pd.DataFrame) -> list:
    return list(table.itertuples(index=False))


def _of_pair(table: pd.DataFrame, question: str, a: str, b: str) -> pd.DataFrame:
    return table[(table.question == question) & (table.a == a) & (table.b == b)]


def _named(names) -> list[tuple[str, str]]:
    """Return name and title of the translators among these names."""
    return [(name, method.title) for name, method in TRANSLATORS.items() if name in set(names)]


def _which(a: str, b: str) -> str:
    """Say which pair is meant, where there are several."""
    return f" ({title_of(a)} against {title_of(b)})" if len(TRANSLATORS) > 2 else ""


def _than(difference: float) -> str:
    """Write 'is 0.021 higher than', or 'is the same as' where three decimals show no difference."""
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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("lib.report"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)
TEMPLATES.filters |= {
    "chain": chain, "count": _count, "listed": _list, "signed": _signed, "significant": _significant, "than": _than,
    "title": title_of,
    "digits": "{:.3f}".format,
    "line": lambda text: re.sub(r"\s+", " ", text).strip(),
    "p": lambda p: "p < 0.001" if p < 0.001 else f"p = {p:.3f}",
    "percent": lambda share: f"{share * 100:.0f} %",
    "rounded": lambda n: f"{float(f'{n:.2g}'):,.0f}",  # to two digits
    "sentence": lambda text: text[0].upper() + text[1:],
    "short": "{:g}".format,
    "with": lambda condition: WITH.get(condition) or f"images added by {title_of(condition)}",
}  # fmt: skip
