import re
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.report import answers
from lib.report.answers import trained_how, unlike_published
from lib.run.folder import NotYet, Run
from lib.run.weights import save_weights
from lib.statistics.comparisons import COLUMNS, declared
from lib.statistics.planning import detectable
from lib.study import Study
from lib.translators import cyclegan
from lib.translators.cyclediff import settings as cyclediff
from lib.translators.methods import METHODS as TRANSLATORS
from lib.translators.methods import Method
from lib.translators.training import WEIGHTS

FACTS = {
    "data": "phantom", "profile": "quick", "folds": 1, "test_patients": 120, "test_aff_patients": 18, "seeds": 3,
    "architecture": "resnet18", "weights": "random", "training": "", "unlike_published": "", "kept": {},
    "margin": 0.01, "worthwhile": 0.02,
}  # fmt: skip
OUTCOMES = {  # difference, interval, Holm-adjusted p
    "better": (0.031, 0.012, 0.05, 0.004),
    "worse": (-0.031, -0.05, -0.012, 0.0004),
    "undecided": (-0.006, -0.037, 0.0244, 0.79),
    "equivalent": (0.001, -0.005, 0.007, 0.8),
}
METRICS = ("auroc", "sensitivity_at_90_specificity", "auprc")


def row(question, metric, a, b, verdict, test="DeLong, patients", n=120):
    difference, low, high, p = OUTCOMES[verdict]
    values = (question, metric, a, b, n, 120, difference, low, high, test, 2.0, p / 5, p, 0.1, np.nan, verdict)
    return dict(zip(COLUMNS, values, strict=True))


def comparisons(verdict="undecided", kid=None, without=(), **changes):
    rows = [
        row(question, metric, a, b, verdict, **changes)
        for _, question, a, b in declared(TRANSLATORS).itertuples(index=False)
        if not {a, b} & set(without)
        for metric in METRICS
    ]
    if kid:
        pairs = declared(TRANSLATORS).query("question == 'RQ1'")
        rows += [row("RQ1", "kid", pair.a, pair.b, kid, test="KID permutation") for pair in pairs.itertuples()]
    return pd.DataFrame(rows, columns=COLUMNS)


def fidelity(methods=("cyclegan", "cyclediff", "real", "source"), folds=1):
    kid = {"cyclegan": 0.021, "cyclediff": 0.054, "identity": 0.32, "noise": 0.2, "real": -0.0011, "source": 0.31}
    transfer = {"cyclegan": 0.64, "cyclediff": 0.31, "identity": 0.1, "noise": 0.5, "real": 0.92, "source": 0.1}
    return pd.DataFrame(
        [
            (method, 0, fold, direction, "judge", metric, values[method] + fold / 100, 0.01, 0.35, 100)
            for direction in ("NFF→AFF", "AFF→NFF")
            for method in methods
            for metric, values in (("kid", kid), ("transfer", transfer))
            for fold in range(folds)
        ],
        columns=["method", "repeat", "fold", "direction", "features", "metric", "value", "ci_low", "ci_high", "n"],
    )


def scores(without=()):
    conditions = [c for c in ("real", "standard", "oversampling", "cyclegan", "cyclediff") if c not in without]
    return pd.DataFrame(
        [(c, 0, 0, seed, m, 0.8 + seed / 10) for c in conditions for seed in (0, 1) for m in (*METRICS, "threshold")],
        columns=["condition", "repeat", "fold", "seed", "metric", "value"],
    )


def answer(comparisons, fidelity, metrics, facts, equivalence=None):
    return answers.answer(comparisons, fidelity, metrics, facts, equal() if equivalence is None else equivalence)


def section(text, title):
    return re.search(rf"^## {title}.*?(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)[0]


def test_every_question_is_answered_with_its_numbers():
    text = answer(comparisons("better"), fidelity(), scores(), FACTS)
    assert [line for line in text.splitlines() if line.startswith("## RQ")] == [
        "## RQ1. Which of CycleGAN and CycleDiff makes the better synthetic images?",
        "## RQ2. Is a classifier better for adding generated images to the real ones?",
        "## RQ3. Is generative augmentation better than rotation, flipping and cropping?",
    ]
    assert "**CycleGAN: yes, it is better.**" in section(text, "RQ2")
    assert (
        "With images added by CycleDiff, the AUROC of patients is 0.031 higher than with real images alone (95 % "
        "interval +0.012 to +0.050, Holm-adjusted p = 0.004; DeLong's test, 120 test patients, 18 with AFF). The gain "
        "is between 0.012 and 0.050, as far as the interval tells." in section(text, "RQ2")
    )
    assert "higher than with rotation, flipping and cropping" in section(text, "RQ3")
    assert "higher than with as many duplicates of real AFF images" in section(text, "Beyond")
    assert "higher than with images added by CycleGAN" in section(text, "RQ1")
    assert "sensitivity at 90 % specificity +0.031 (95 % interval +0.012 to +0.050; better)" in section(text, "RQ2")


def test_harm_is_called_harm():
    text = answer(comparisons("worse"), fidelity(), scores(), FACTS)
    assert "**CycleGAN: no, it is worse.**" in section(text, "RQ3")
    assert "is 0.031 lower than" in text
    assert "Holm-adjusted p < 0.001" in text
    assert "The loss is between 0.012 and 0.050" in text
    assert "CycleGAN's images are worth more" in section(text, "RQ1")
    assert "better." not in section(text, "RQ2").split("\n", 1)[1]


def test_undecided_says_what_is_still_possible():
    text = answer(comparisons("undecided"), fidelity(), scores(), FACTS)
    assert "- RQ2: CycleGAN: undecided; CycleDiff: undecided." in text
    assert (
        "The data cannot decide: the interval runs from −0.037 to +0.024, so a gain of up to 0.024 is still possible, "
        "and so is a loss of up to 0.037." in section(text, "RQ2")
    )
    assert "yes" not in text


@pytest.mark.parametrize("low, high, kind", [(0.001, 0.06, "gain"), (-0.06, -0.0001, "loss")])
def test_undecided_through_holm_alone(low, high, kind):
    table = comparisons("undecided").assign(ci_low=low, ci_high=high, difference=(low + high) / 2, p_holm=0.06)
    text = section(answer(table, fidelity(), scores(), FACTS), "RQ2")
    assert f"this comparison's own interval points to a {kind} of up to 0.060" in text
    assert "Holm-adjusted p = 0.060" in text


def test_no_spread_is_said():
    table = comparisons("undecided").assign(ci_low=0.0, ci_high=0.0, difference=0.0, p_holm=1.0)
    text = section(answer(table, fidelity(), scores(), FACTS), "RQ2")
    assert "is, to three decimals, the same as with real images alone (95 % interval 0.000 to 0.000" in text
    assert "there is no spread to judge by" in text


def test_equivalent_names_the_margin():
    text = answer(comparisons("equivalent"), fidelity(), scores(), {**FACTS, "margin": 0.02}, equal(margin=0.02))
    assert "**CycleGAN: no difference that matters.**" in section(text, "RQ2")
    assert "The 90 % interval lies within ±0.02" in section(text, "RQ2")
    assert "±0.01" not in text


def test_conditions_that_were_not_run_are_named():
    no_cyclediff = comparisons(without=["cyclediff"]), fidelity(("cyclegan", "real", "source")), scores(["cyclediff"])
    text = answer(*no_cyclediff, FACTS)
    assert "**CycleDiff: not answered.** The condition was not run: `cyclediff`." in section(text, "RQ2")
    assert "CycleDiff made no images, so there is nothing to compare." in section(text, "RQ1")
    assert "The judge takes 64 % of CycleGAN's images for AFF" in section(text, "RQ1")
    text = answer(comparisons(without=["standard", "cyclegan"]), fidelity(), scores(["standard", "cyclegan"]), FACTS)
    assert "The conditions were not run: `cyclegan` and `standard`." in section(text, "RQ3")
    assert "**CycleDiff: not answered.** The condition was not run: `standard`." in section(text, "RQ3")
    assert "**CycleDiff: undecided.**" in section(text, "RQ2")


def test_nothing_was_run():
    text = answer(comparisons().iloc[:0], fidelity().iloc[:0], scores().iloc[:0], FACTS)
    assert "CycleGAN and CycleDiff made no images" in text
    assert text.count("not answered") == 2 * 8
    assert "nan" not in text


def test_fidelity_with_its_references():
    table = comparisons(kid="better")
    table.loc[table.metric == "kid", ["difference", "ci_low", "ci_high"]] = (-0.0331, -0.05, -0.012)
    text = section(answer(table, fidelity(), scores(), FACTS), "RQ1")
    assert "**Likeness to real images: CycleDiff's are closer.**" in text
    assert (
        "Over all 120 test images, the KID is 0.0331 lower for CycleDiff "
        "(95 % interval of the difference −0.05 to −0.012, "
        "Holm-adjusted p = "
        "0.004, 120 patients): CycleDiff's images lie closer to real ones." in text
    )
    assert (
        "The judge takes 64 % of CycleGAN's images and 31 % of CycleDiff's images for AFF (for comparison: 10 % of the "
        "untranslated NFF images and 92 % of real AFF images)." in text
    )
    assert (
        "| real against real | −0.0011 (0.01 to 0.35) |" in text
        and "| real against real | 0.92 (0.01 to 0.35) |" in text
    )
    assert "| untranslated | 0.31" in text


def test_untested_fidelity_is_description():
    text = section(answer(comparisons(), fidelity(), scores(), FACTS), "RQ1")
    assert "**Likeness to real images: described, not tested.**" in text


def test_the_better_looking_generator_need_not_be_the_more_useful():
    contradiction = "the generator whose images look more real is not the one whose images are worth more"
    assert contradiction in answer(comparisons("better", kid="worse"), fidelity(), scores(), FACTS)
    assert contradiction not in answer(comparisons("better", kid="better"), fidelity(), scores(), FACTS)
    assert contradiction not in answer(comparisons("undecided", kid="worse"), fidelity(), scores(), FACTS)


def test_one_fold_is_conditional_on_its_generators():
    text = answer(comparisons(), fidelity(), scores(), FACTS)
    assert "conditional on the trained generators" in text
    assert "simulated radiographs (the phantom)" in text
    assert "120 patients, 18 of them with AFF. " in text
    assert "So few patients with AFF" in text


def test_several_folds_and_own_radiographs():
    facts = {**FACTS, "data": "own radiographs", "profile": "full", "folds": 15, "test_patients": 1200,
             "test_aff_patients": 180, "seeds": 1}  # fmt: skip
    table = comparisons("better", test="corrected t", n=15)
    text = answer(table, fidelity(folds=3), scores(), facts)
    assert "Data: own radiographs; profile full." in text
    assert "phantom" not in text
    assert "conditional" not in text
    assert "1 seed a condition" in text
    assert "1,200 patients, 180 of them with AFF" in text
    assert "corrected t-test over 15 folds" in text
    assert "| CycleGAN | 0.031 (0.021 to 0.041) |" in text  # mean and range of three folds
    assert "So few" not in text


def test_scores_are_means_over_trials_of_every_condition():
    text = section(answer(comparisons(), fidelity(), scores(), FACTS), "Scores")
    assert "| condition | AUROC | sensitivity at 90 % specificity | AUPRC |" in text
    assert "| `oversampling` | 0.850 | 0.850 | 0.850 |" in text
    assert "threshold" not in text


@pytest.mark.parametrize("verdict", OUTCOMES)
@pytest.mark.parametrize("kid", [None, *OUTCOMES])
@pytest.mark.parametrize("without", [(), ("cyclegan",), ("cyclediff", "real")])
def test_text_is_well_formed(verdict, kid, without):
    methods = [m for m in ("cyclegan", "cyclediff", "noise", "real", "source") if m not in without]
    text = answer(comparisons(verdict, kid, without), fidelity(methods), scores(without), FACTS)
    prose = "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))
    assert not re.search(r"nan|None|\{|  |\.\.|-\d|\( | \)|,\.|:\.", prose)
    for paragraph in filter(None, prose.split("\n\n")):
        for line in paragraph.strip().splitlines():
            assert line.endswith((".", ":")), line


def test_a_generator_that_does_nothing_is_named():
    """Its KID is that of the untranslated images to within its interval, or worse."""
    kid = pd.DataFrame(
        [
            ("NFF→AFF", "source", 0.31, 0.2, 0.4),
            ("NFF→AFF", "cyclegan", 0.02, 0.01, 0.04),
            ("NFF→AFF", "cyclediff", 0.30, 0.21, 0.39),
            ("AFF→NFF", "source", 0.31, 0.2, 0.4),
            ("AFF→NFF", "cyclegan", 0.02, 0.01, 0.04),
            ("AFF→NFF", "cyclediff", 0.05, 0.01, 0.09),
        ],
        columns=["direction", "method", "value", "ci_low", "ci_high"],
    ).assign(features="judge", metric="kid", repeat=0, fold=0, n=100)
    text = answer(comparisons("undecided"), kid, scores(), FACTS)
    assert "\n- NFF→AFF, images of CycleDiff are not shown to lie closer to real ones than untranslated ones.\n" in text
    assert "AFF→NFF, images of" not in text


def test_the_steps_of_an_autoencoder_do_not_count(tmp_path):
    """The published 100,000 steps are without them too."""
    settings = asdict(replace(cyclediff.PUBLISHED, autoencoder_steps=10, warmup_steps=5, joint_steps=6, batch=2))
    save_weights(tmp_path / WEIGHTS, {"n": torch.nn.Linear(1, 1)}, {"steps": 21, "settings": settings})
    assert trained_how(TRANSLATORS["cyclediff"], tmp_path / WEIGHTS).startswith(
        "CycleDiff was trained for 11 steps of 2 images"
    )


def test_one_training_proves_nothing_better_or_worse():
    text = answer(comparisons("better"), fidelity(), scores(), FACTS | {"seeds": 1, "folds": 1})
    assert "yes, it is better, in this one training" in text
    assert "; better)" not in text and "; of one training)" in text
    assert "in this one training" not in answer(comparisons("better"), fidelity(), scores(), FACTS | {"seeds": 3})


def test_a_training_that_was_ended_by_hand_is_told_so(tmp_path):
    settings = asdict(replace(cyclediff.PUBLISHED, autoencoder_steps=10, warmup_steps=5, joint_steps=6, batch=2))
    metadata = {"steps": 21, "stopped_at": 18, "settings": settings}
    save_weights(tmp_path / WEIGHTS, {"n": torch.nn.Linear(1, 1)}, metadata)
    assert trained_how(TRANSLATORS["cyclediff"], tmp_path / WEIGHTS).startswith(
        "CycleDiff was trained for 8 steps of 2 images"
    )
    assert "ended by hand; 11 were meant" in trained_how(TRANSLATORS["cyclediff"], tmp_path / WEIGHTS)


def test_what_differs_from_the_paper_is_read_from_the_weights(tmp_path):
    settings = asdict(replace(cyclegan.PUBLISHED, residual=True, width=8))
    save_weights(tmp_path / WEIGHTS, {"n": torch.nn.Linear(1, 1)}, {"steps": 5, "settings": settings})
    assert unlike_published(TRANSLATORS["cyclegan"], tmp_path / WEIGHTS) == (
        "Chosen otherwise than in the paper of CycleGAN, sizes, steps and rates aside: residual = True."
    )
    assert unlike_published(TRANSLATORS["cyclegan"], tmp_path / "nowhere" / WEIGHTS) == ""
    chosen = {"unet_width": 8, "t_max": 0.25, "joint": "frozen", "cycle": 2.0, "identity": 0.0}
    settings = asdict(replace(cyclediff.PUBLISHED, diffusion_weights="released", **chosen))
    sampler = asdict(replace(cyclediff.PUBLISHED_SAMPLER, sampling_steps=4, start="inverted", start_t=0.25))
    save_weights(tmp_path / WEIGHTS, {"n": torch.nn.Linear(1, 1)}, {"settings": settings, "sampler": sampler})
    said = (
        "Chosen otherwise than in the paper of CycleDiff, sizes, steps and rates aside: diffusion_weights = released, "
        "joint = frozen, t_max = 0.25, cycle = 2, identity = 0, start = inverted, start_t = 0.25."
    )
    assert unlike_published(TRANSLATORS["cyclediff"], tmp_path / WEIGHTS) == said
    facts = FACTS | {"unlike_published": "Chosen otherwise."}
    assert "Chosen otherwise." in section(answer(comparisons("undecided"), fidelity(), scores(), facts), "How to read")


# Practical equivalence, what is needed, controls


def equal(p=0.3, **more):
    rows = [
        {"question": question, "a": a, "b": b, "difference": -0.006, "standard_error": 0.0153, "df": np.inf,
         "ci90_low": -0.03, "ci90_high": 0.02, "margin": 0.01, "p_equivalence": p,
         "worse": np.nan, "same": np.nan, "better": np.nan, **more}
        for _, question, a, b in declared(TRANSLATORS).itertuples(index=False)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_undecided_comparisons_say_what_would_decide_them():
    text = section(answer(comparisons("undecided"), fidelity(), scores(), FACTS, equal()), "RQ2")
    assert "within ±0.01 is not shown (two one-sided tests, p = 0.300)" in text
    # (0.0153 (2.576 + 0.842) / 0.02)² = 6.8 times 120 patients; (0.0153 (1.645 + 1.282) / 0.01)² = 20.0 times
    assert "if the true difference is 0.020, about 820 test patients would show it" in text
    assert "at the first step of Holm's adjustment over 5 comparisons" in text
    assert "about 2,400 would show" in text
    decided = section(answer(comparisons("better"), fidelity(), scores(), FACTS, equal()), "RQ2")
    assert "To decide it" not in decided


def test_several_folds_say_what_more_repeats_would_find():
    table = equal(worse=0.2, same=0.5, better=0.3, standard_error=0.01, df=14, folds=15, test_train_ratio=0.25)
    facts = {**FACTS, "folds": 15}
    text = section(answer(comparisons("undecided"), fidelity(), scores(), facts, table), "RQ3")
    assert (
        "the probability is 50 % that it does, 30 % that it is a larger gain and 20 % that it is a larger loss" in text
    )
    found = [float(re.search(f"{words} ([0-9.]+)", text)[1].rstrip(".")) for words in
             ("show a true difference of", "no number of repeats one below")]  # fmt: skip
    spread = 0.01 / np.sqrt(1 / 15 + 0.25)
    assert found == pytest.approx([detectable(spread, n, 0.25, alpha=0.01) for n in (15, np.inf)], abs=5e-4)
    assert "for 0.020, it takes more patients" in text

    def worth(effect):
        return section(
            answer(comparisons("undecided"), fidelity(), scores(), facts | {"worthwhile": effect}, table), "RQ3"
        )

    assert found[1] < 0.032 < found[0] < 0.05
    assert "for 0.032, more repeats would do" in worth(0.032)
    assert "no more than what is worth finding" in worth(0.05)


@pytest.mark.parametrize(
    ("verdict", "again", "fake", "oracle", "useless"),
    [
        ("better", "NOT as expected.", "NOT as expected.", "As expected.", "NOT as expected."),
        ("worse", "NOT as expected.", "NOT as expected.", "NOT as expected.", "As expected."),
        ("equivalent", "As expected.", "As expected.", "NOT as expected.", "NOT as expected."),
        ("undecided", "not shown either.", "not shown either.", "Cannot tell.", "Cannot tell."),
    ],
)
def test_controls_are_held_against_what_is_known(verdict, again, fake, oracle, useless):
    lines = section(answer(comparisons(verdict), fidelity(), scores(), FACTS), "Controls").splitlines()
    of = {name: next(line for line in lines if line.startswith(f"- `{name}`")) for name in ("again", "fake", "useless")}
    of["oracle"] = next(line for line in lines if line.startswith("- `oracle` against `real`"))
    expected = {"again": again, "fake": fake, "oracle": oracle, "useless": useless}
    assert all(of[name].endswith(outcome) for name, outcome in expected.items()), of
    word = {"better": "it helps", "worse": "it hurts", "equivalent": "no different from real images alone",
            "undecided": "no difference from real images alone was found"}[verdict]  # fmt: skip
    assert word in of["oracle"]
    assert "Holm" in of["oracle"] and "Holm" not in of["again"]


def test_a_gain_that_is_shown_to_be_tiny_is_not_sold_as_a_gain():
    text = answer(comparisons("better"), fidelity(), scores(), FACTS, equal(p=0.001))
    assert "**CycleGAN: yes, it is better, but by less than matters.**" in section(text, "RQ2")
    assert "- RQ2: CycleGAN: yes, it is better, but by less than matters;" in text
    large = answer(comparisons("better"), fidelity(), scores(), FACTS, equal(p=0.4))
    assert "by less than matters" not in large


def test_one_training_a_condition_is_said_to_prove_nothing():
    assert "Each classifier was trained once" in answer(comparisons(), fidelity(), scores(), FACTS | {"seeds": 1})
    assert "trained once" not in answer(comparisons(), fidelity(), scores(), FACTS | {"seeds": 1, "folds": 15})


def test_kid_over_several_folds_counts_folds_and_not_images():
    table = comparisons(kid="worse")
    kid = table.metric == "kid"
    table.loc[kid, ["test", "n", "patients"]] = "corrected t", 15, 1200
    assert "Over 15 folds, the KID" in section(answer(table, fidelity(folds=15), scores(), FACTS), "RQ1")


def test_without_controls_there_is_no_such_section():
    table = comparisons("undecided")
    assert "## Controls" not in answer(table[table.question != "control"], fidelity(), scores(), FACTS)


def test_feature_spaces_that_disagree_are_named():
    table = fidelity()
    other = table[table.metric == "kid"].assign(features="pca", value=lambda rows: -rows.value)
    text = section(answer(comparisons(), pd.concat([table, other]), scores(), FACTS), "RQ1")
    assert "NFF→AFF, the feature spaces DISAGREE on whose KID is lower (judge: CycleGAN, pca: CycleDiff)." in text
    same = table[table.metric == "kid"].assign(features="pca")
    assert "all feature spaces agree" in section(
        answer(comparisons(), pd.concat([table, same]), scores(), FACTS), "RQ1"
    )


# However many methods


@pytest.fixture
def three(monkeypatch):
    identity = Method("identity", "Identity", cyclegan.CycleGAN, {}, "none: it has no paper", "02_cyclegan")
    monkeypatch.setitem(TRANSLATORS, "identity", identity)


@pytest.mark.parametrize("kid", [None, *OUTCOMES])
@pytest.mark.parametrize("verdict", OUTCOMES)
def test_three_methods_are_answered_pair_by_pair(three, verdict, kid):
    methods = ("cyclegan", "cyclediff", "identity", "real", "source")
    text = answer(comparisons(verdict, kid), fidelity(methods), scores(), FACTS, equal())
    assert "## RQ1. Which of CycleGAN, CycleDiff and Identity makes the better synthetic images?" in text
    rq1 = section(text, "RQ1")
    for pair in ("CycleDiff against CycleGAN", "Identity against CycleGAN", "Identity against CycleDiff"):
        assert rq1.count(f"**Likeness to real images ({pair}): ") == 1
        assert rq1.count(f"**Usefulness to the classifier ({pair}): ") == 1
    assert "With images added by Identity, the AUROC of patients" in rq1
    assert "64 % of CycleGAN's images, 31 % of CycleDiff's images and 10 % of Identity's images for AFF" in rq1
    assert "| Identity | 0.32 (0.01 to 0.35) |" in rq1
    for question in ("RQ2", "RQ3", "Beyond"):
        assert section(text, question).count("\n**") == 3
    if kid == "worse":
        assert "The KID" not in rq1 and "CycleDiff's images lie closer to real ones." in rq1
    if {verdict, kid} == {"better", "worse"}:
        assert "So (Identity against CycleDiff) the generator whose images look more real" in rq1
    if verdict == "undecided":
        assert "first step of Holm's adjustment over 9 comparisons" in text
    prose = "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))
    assert not re.search(r"nan|None|\{|  |\.\.|-\d|\( | \)|,\.|:\.| ;|;;", prose)
    for line in filter(None, prose.splitlines()):
        assert line.endswith((".", ":")), line


def test_three_methods_and_their_feature_spaces(three):
    table = fidelity(("cyclegan", "cyclediff", "identity", "real", "source"))
    other = table[table.metric == "kid"].assign(features="pca", value=lambda rows: -rows.value)
    text = section(answer(comparisons(), pd.concat([table, other]), scores(), FACTS), "RQ1")
    assert "NFF→AFF, the feature spaces DISAGREE on whose KID is lowest (judge: CycleGAN, pca: Identity)." in text


def test_a_third_method_that_did_not_run_is_named(three):
    text = answer(comparisons(without=["identity"]), fidelity(), scores(), FACTS)
    assert "Identity made no images, so there is nothing to compare." in text
    assert "The condition was not run: `identity`." in section(text, "RQ2")


# Facts


@pytest.fixture
def study(tmp_path):
    cohort = Phantom(patients=40, size=32, aff_share=0.4, seed=1).cohort()
    splits = make_splits(cohort.patients, 1, 2, 0)
    return Study(Run(tmp_path / "run"), cohort, splits)


def facts_of(study, margin=0.01):
    test = study.cohort.table[["image_id", "patient_id", "label"]]
    shuffled = test.assign(condition="permuted", seed=0, label="AFF")
    predictions = pd.concat([*(test.assign(condition="real", seed=seed) for seed in (0, 1, 2)), shuffled])
    return answers.facts(study, predictions, margin, worthwhile=0.02)


def test_facts_are_those_of_the_run(study):
    with pytest.raises(NotYet, match="05_classifier_trials"):
        facts_of(study)
    study.run.record("classifier", architecture="ResNet-18", weights="a.safetensors (sha256 00), of a, b")
    study.run.record(profile="smoke")
    settings = {"steps": 5, "settings": asdict(replace(cyclegan.PUBLISHED, residual=True, batch=2))}
    folder = study.run.path("cyclegan", "r0f0", WEIGHTS)
    save_weights(folder, {"n": torch.nn.Linear(1, 1)}, settings)
    found = facts_of(study, margin=0.02)
    aff = int((study.cohort.patients == "AFF").sum())
    assert (found["folds"], found["seeds"], found["test_patients"], found["test_aff_patients"]) == (2, 3, 40, aff)
    assert (found["data"], found["profile"], found["margin"]) == ("own radiographs", "smoke", 0.02)
    assert found["training"] == (
        "CycleGAN was trained for 5 steps of 2 images of each class (published: 200 epochs of single images). "
        "CycleDiff was not trained."
    )
    text = answer(comparisons(), fidelity(), scores(), found)
    assert "ResNet-18 (initial weights: a.safetensors (sha256 00), of a, b), 3 seeds a condition." in text
    assert "residual = True." in section(text, "How to read")


def test_trainings_that_were_kept_are_told(study):
    study.run.record("classifier", architecture="ResNet-18", weights="none")
    told = "Other code than today's made these trainings, and they were kept all the same: "
    assert told not in answer(comparisons(), fidelity(), scores(), facts_of(study))
    study.run.record("kept", **{"cyclegan/r0f0": "lib.translators.cyclegan", "cyclediff/r0f0": "a loss"})
    text = answer(comparisons(), fidelity(), scores(), facts_of(study))
    assert f"{told}cyclegan/r0f0 and cyclediff/r0f0. " in text
