import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lib.data.cohort import Cohort
from lib.data.leaks import LeakError, check_parts, is_synthetic
from lib.fidelity import controls
from lib.run.folder import Run
from lib.study import Study
from lib.translators.methods import METHODS, NOISE
from lib.trials import classifier, trials
from lib.trials.classifier import Settings
from lib.trials.conditions import balances, condition, factorial, training_set
from lib.trials.trials import learning_curve_of, run_trials

TINY = Settings(architecture="resnet18", weights="none", steps=2, batch=4, lr=1e-3, validate_every=2)
GENERATORS = (*METHODS, NOISE)

torch.set_num_threads(1)  # at toy size a second thread costs more than it gives


def toy_cohort(n_nff=30, n_aff=10, size=8, first=0):
    """Two images a patient, of noise."""
    labels = ["NFF"] * n_nff + ["AFF"] * n_aff
    rows = [
        {"image_id": f"i{i}", "patient_id": f"p{i // 2}", "label": label, "view": "AP", "side": "left"}
        for i, label in enumerate(labels, first)
    ]
    return Cohort(pd.DataFrame(rows), np.random.default_rng(first).integers(0, 256, (len(rows), size, size), np.uint8))


def generators(real, n=20, methods=GENERATORS):
    """What translators would make of the first n NFF images."""
    sources = real.select(label="NFF").take(range(n))
    made = {method: sources.translated(-sources.images(), "AFF", method) for method in methods}
    if "noise" in made:
        noise = made["noise"]
        made["noise"] = Cohort(noise.table.assign(source_image_id=None, source_label=None), noise.pixels)
    return made


def ratio(cohort, aff_weight):
    return cohort.targets.sum() * aff_weight / (cohort.targets == 0).sum()


# Conditions


def test_the_factorial_has_the_names_of_the_contract():
    assert list(factorial()) == [
        "real", "undersampling", "weighted", "oversampling", "cyclegan", "cyclediff", "noise",
        "standard", "undersampling+standard", "weighted+standard", "oversampling+standard", "cyclegan+standard",
        "cyclediff+standard", "noise+standard",
    ]  # fmt: skip
    assert all(condition(name).name == name for name in factorial())
    assert not condition("real").standard and condition("standard").standard and condition("standard").balance == "real"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("cyclgan", "cyclegan"), ("real+standard", "standard"), ("Oversampling", "oversampling"),
     ("noise+standart", "noise+standard")],
)  # fmt: skip
def test_an_unknown_condition_is_an_error_that_names_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=re.escape(f"unknown condition '{wrong}', did you mean '{nearest}'?")):
        condition(wrong)


# Training sets


@hypothesis_settings(max_examples=30, deadline=None)
@given(n_nff=st.integers(4, 40), n_aff=st.integers(1, 20), data=st.data())
def test_balanced_conditions_reach_the_same_ratio(n_nff, n_aff, data):
    real = toy_cohort(n_nff, n_aff, size=2)
    added = data.draw(st.integers(1, n_nff))
    made = generators(real, added)
    sets = {balance: training_set(condition(balance), real, made, 0) for balance in balances()}
    wanted = (n_aff + added) / n_nff
    for balance in ("weighted", "oversampling", *GENERATORS):
        assert ratio(*sets[balance]) == pytest.approx(wanted), balance
    images, weight = sets["undersampling"]
    assert weight == 1 and images.targets.sum() == n_aff
    kept = int((images.targets == 0).sum())
    assert 2 * abs(kept * (n_aff + added) - n_aff * n_nff) <= n_aff + added  # within a half, in whole numbers
    counts = {balance: len(sets[balance][0]) for balance in ("oversampling", *GENERATORS)}
    assert set(counts.values()) == {len(real) + added}  # the count-matched control
    assert sets["real"] == (real, 1.0)


def test_copies_are_spread_evenly_over_real_aff_images():
    real = toy_cohort(30, 8)
    images, _ = training_set(condition("oversampling"), real, generators(real, 20), 0)
    copied = images.take(is_synthetic(images))
    assert set(copied.table.source_image_id.value_counts()) == {2, 3}  # 20 copies of 8 images
    rows = real.table.set_index("image_id").index.get_indexer(copied.table.source_image_id)
    np.testing.assert_array_equal(copied.pixels, real.pixels[rows])
    assert list(copied.table.patient_id) == list(real.table.patient_id.iloc[rows])
    assert set(copied.table.label) == {"AFF"}


def test_without_generators_classes_are_made_equal():
    real = toy_cohort(30, 10)
    for balance in ("undersampling", "weighted", "oversampling"):
        assert ratio(*training_set(condition(balance), real, {}, 0)) == 1


def test_only_aff_images_of_a_generator_join():
    real = toy_cohort()
    other_way = real.select(label="AFF").translated(-real.select(label="AFF").images(), "NFF", "cyclegan")
    made = generators(real, methods=["cyclegan"])
    images, _ = training_set(condition("cyclegan"), real, {"cyclegan": made["cyclegan"].join(other_way)}, 0)
    assert (images.targets == 0).sum() == 30 and images.targets.sum() == 30


def test_what_is_dropped_is_a_function_of_the_seed():
    real, made = toy_cohort(), generators(toy_cohort())
    ids = [list(training_set(condition("undersampling"), real, made, seed)[0].table.image_id) for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_generators_of_different_numbers_are_an_error():
    real = toy_cohort()
    made = generators(real, 20, ["cyclegan"]) | generators(real, 12, ["cyclediff"])
    with pytest.raises(ValueError, match=r"equally many.*cyclegan 20, cyclediff 12"):
        training_set(condition("oversampling"), real, made, 0)


def test_a_generator_that_did_not_run_is_named():
    with pytest.raises(ValueError, match=r"'noise\+standard' needs images of noise"):
        training_set(condition("noise+standard"), toy_cohort(), {}, 0)


@pytest.mark.parametrize("balance", ["undersampling", "weighted", "oversampling", *GENERATORS])
def test_doses_are_nested_and_reach_their_share(balance):
    real, made, sets = toy_cohort(40, 8, size=2), generators(toy_cohort(40, 8, size=2), 20), []
    for dose in (0.25, 0.5, 1.0):
        c = condition(balance if dose == 1 else f"{balance}@{dose}")
        assert c.dose == dose and condition(c.name) == c
        sets.append(training_set(c, real, made, 0))
        wanted = (8 + 20 * dose) / 40
        if balance == "undersampling":  # whole NFF images
            assert (sets[-1][0].targets == 0).sum() == round(8 / wanted)
        else:
            assert ratio(*sets[-1]) == pytest.approx(wanted)
    small, middle, large = (set(images.table.image_id) for images, _ in sets)
    assert small <= middle <= large if balance != "undersampling" else small >= middle >= large


@pytest.mark.parametrize("name", ["cyclegan@0", "cyclegan@2", "cyclegan@half", "real@0.5", "permuted@0.5"])
def test_a_dose_must_be_a_share_of_something(name):
    with pytest.raises(ValueError, match="a dose is a share above 0 and up to 1"):
        condition(name)


# Leaks


def test_synthetic_images_of_strangers_are_a_leak():
    real, strangers = toy_cohort(), toy_cohort(first=100)
    with pytest.raises(LeakError, match="cyclegan-AFF-i100 was made from i100"):
        training_set(condition("cyclegan"), real, generators(strangers), 0)
    made = generators(real)["cyclegan"]
    moved = Cohort(made.table.assign(patient_id="p19"), made.pixels)
    with pytest.raises(LeakError, match="belongs to patient p19, its source to p0"):
        training_set(condition("cyclegan"), real, {"cyclegan": moved}, 0)
    unsourced = Cohort(made.table.assign(source_image_id=None), made.pixels)
    with pytest.raises(LeakError):
        training_set(condition("cyclegan"), real, {"cyclegan": unsourced}, 0)


def test_shared_patients_and_synthetic_test_images_are_leaks():
    training, validation, test = (toy_cohort(first=first) for first in (0, 100, 200))
    check_parts(training, validation, test)
    for parts in ((training, training.take([0]), test), (training, validation, training), (training, test, test)):
        with pytest.raises(LeakError, match="patient p"):
            check_parts(*parts)
    with pytest.raises(LeakError, match="is synthetic and in the test part"):
        check_parts(training, validation, test.join(generators(test)["noise"]))


# Running


def save_made(study, change=lambda images: images):
    """Put what generators made of each fold's training part into the run."""
    for fold in study.folds:
        for method, images in generators(fold.train, 10).items():
            change(images).save(fold.folder("synthetic", method))


@pytest.fixture
def study(tmp_path):
    """Two folds of a cohort of 32 patients with what their generators made."""
    cohort = toy_cohort(40, 24, size=32)
    patients = cohort.patients
    rows = []
    for fold in (0, 1):
        for label in ("NFF", "AFF"):
            of_label = list(np.roll(patients.index[patients == label], 7 * fold))
            for i, patient in enumerate(of_label):
                part = "train" if i < len(of_label) // 2 else ("validation", "test")[i % 2]
                rows.append({"repeat": 0, "fold": fold, "patient_id": patient, "part": part})
    study = Study(Run(tmp_path), cohort, pd.DataFrame(rows))
    save_made(study)
    return study


@pytest.fixture
def one_fold(study):
    return replace(study, splits=study.splits[study.splits.fold == 0])


def run(study, conditions, seeds=(0,), settings=TINY):
    return run_trials(study, conditions, seeds, settings)


@pytest.fixture
def trained_with(monkeypatch):
    """The calls of `classifier.train`, and the initial weights of each."""
    calls = []
    train, build = classifier.train, classifier.build

    def counted(training, validation, settings, seed, **how):
        calls.append({"seed": seed, "steps": settings.steps, **how})
        return train(training, validation, settings, seed, **how)

    def watched(*arguments):
        network, description = build(*arguments)
        calls[-1]["weights"] = torch.cat([p.detach().flatten() for p in network.parameters()])
        return network, description

    monkeypatch.setattr(classifier, "train", counted)
    monkeypatch.setattr(classifier, "build", watched)
    return calls


def test_tables_are_those_of_the_contract(study):
    folder = study.run / "trials"
    predictions, metrics = run(study, ["real", "noise+standard"])
    key = ["condition", "repeat", "fold", "seed"]
    assert list(predictions) == [*key, "image_id", "patient_id", "label", "probability"]
    assert list(metrics) == [*key, "metric", "value"]
    assert list(predictions.condition.unique()) == ["real", "noise+standard"]
    for (_, repeat, fold, _), trial in predictions.groupby(key):
        test = study.fold(repeat, fold).test
        assert list(trial.image_id) == list(test.table.image_id) and list(trial.label) == list(test.table.label)
    assert {"auroc", "auprc", "brier", "brier_recalibrated", "threshold", "image_auroc"} <= set(metrics.metric)
    assert np.isfinite(metrics.value).all() and not metrics.duplicated([*key, "metric"]).any()
    text = {"image_id": str, "patient_id": str}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "predictions.csv", dtype=text), predictions)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "metrics.csv"), metrics)
    history = pd.read_csv(folder / "history.csv")
    assert list(history) == [*key, "step", "loss", "validation_loss", "validation_auroc"]
    assert len(history) == 2 * 2  # conditions, folds; one validation each


def test_metrics_follow_from_predictions(study):
    predictions, metrics = run(study, ["real"])
    value = metrics[metrics.fold == 1].set_index("metric").value
    patients = predictions[predictions.fold == 1].groupby("patient_id").agg({"label": "first", "probability": "mean"})
    aff, nff = (patients.probability[patients.label == label].to_numpy() for label in ("AFF", "NFF"))
    wins = (aff[:, None] > nff).mean() + (aff[:, None] == nff).mean() / 2  # Mann–Whitney
    assert value.auroc == pytest.approx(wins)
    assert value.sensitivity == pytest.approx((aff >= value.threshold).mean())
    assert value.specificity == pytest.approx((nff < value.threshold).mean())


def test_conditions_share_initial_weights_and_steps(one_fold, trained_with):
    run(one_fold, ["real", "weighted", "cyclegan+standard"], seeds=(0, 1))
    assert len(trained_with) == 2 * 3
    for seed in (0, 1):
        of_seed = [call for call in trained_with if call["seed"] == seed]
        assert all(torch.equal(call["weights"], of_seed[0]["weights"]) for call in of_seed)
    assert not torch.equal(trained_with[0]["weights"], trained_with[3]["weights"])
    assert {call["steps"] for call in trained_with} == {2}
    assert [call["standard"] for call in trained_with[:3]] == [False, False, True]
    assert [call["aff_weight"] for call in trained_with[:3]] == [1.0, 22 / 12, 1.0]  # 12 real, 10 added AFF
    assert not [*one_fold.run.folder.rglob("*.pt"), *one_fold.run.folder.rglob("*.tmp")]


def test_controls_run_like_other_conditions(one_fold, trained_with):
    predictions, metrics = run(one_fold, ["real", "again", "permuted"])
    assert [call["seed"] for call in trained_with] == [0, trials.AGAIN, 0]
    fold = one_fold.fold()
    labels = {name: rows.set_index("image_id").label for name, rows in predictions.groupby("condition")}
    assert (labels["again"] == fold.test.table.set_index("image_id").label).all()
    shuffled = controls.permuted_labels(fold.parts, 0, 0)[2].table.set_index("image_id").label
    pd.testing.assert_series_equal(labels["permuted"], shuffled)
    assert (shuffled != labels["real"]).any()
    spent = metrics[metrics.metric.isin(["steps", "images_seen", "validations"])].groupby("metric").value
    assert spent.nunique().max() == 1 and dict(spent.first()) == {"images_seen": 8, "steps": 2, "validations": 1}


def test_the_most_confident_errors_are_kept_with_what_spoke_for_them(one_fold):
    predictions, metrics = run(one_fold, ["real"])
    threshold = metrics[metrics.metric == "threshold"].value.iloc[0]
    target = (predictions.label == "AFF").astype(int)
    wrong = predictions[(predictions.probability >= threshold) != (target == 1)]
    distance = abs(wrong.probability - (wrong.label == "AFF")).sort_values(ascending=False)
    images, maps, titles = trials.errors_of(one_fold.fold(), "real", 0)
    assert len(images) == len(maps) == len(titles) == min(len(wrong), trials.ERRORS) > 0
    found = wrong.set_index("image_id").loc[images.table.image_id]
    np.testing.assert_allclose(abs(found.probability - (found.label == "AFF")), distance.iloc[: len(images)])
    assert titles[0] == f"{found.label.iloc[0]}, p = {found.probability.iloc[0]:.2f}"
    assert maps.min() >= 0 and maps.max() <= 1


def test_finished_trials_are_skipped_until_their_inputs_change(one_fold, trained_with):
    first = run(one_fold, ["real", "cyclegan"])
    assert len(trained_with) == 2
    left = one_fold.run / "trials" / "r0f0" / "real-s0.pt"  # killed between result and checkpoint
    left.touch()
    second = run(one_fold, ["cyclegan", "real", "oversampling"])
    assert len(trained_with) == 3 and left.with_suffix(".json").exists() and not left.exists()
    for a, b in zip(first, second, strict=True):
        for name in ("real", "cyclegan"):
            of_a, of_b = (table[table.condition == name].reset_index(drop=True) for table in (a, b))
            pd.testing.assert_frame_equal(of_a, of_b)

    save_made(one_fold, lambda images: Cohort(images.table, images.pixels // 2))
    run(one_fold, ["real", "cyclegan"])
    assert len(trained_with) == 4  # real did not change
    run(one_fold, ["real"], settings=replace(TINY, lr=1e-4))
    assert len(trained_with) == 5


def test_an_interrupted_call_keeps_what_is_finished(study, monkeypatch):
    folder = study.run / "trials"
    train = classifier.train

    def stop_at_seed_1(training, validation, settings, seed, **how):
        if seed == 1:
            raise KeyboardInterrupt
        return train(training, validation, settings, seed, **how)

    monkeypatch.setattr(classifier, "train", stop_at_seed_1)
    with pytest.raises(KeyboardInterrupt):
        run(study, ["real"], seeds=(0, 1))
    finished = list(folder.glob("r0f*/*.json"))
    assert [str(path.relative_to(folder)) for path in finished] == ["r0f0/real-s0.json"]
    states = pd.read_csv(folder / "tasks.csv").set_index("task").state
    assert states["r0f0-real-s0"] == "done" and list(states[2:]) == ["waiting"] * 2
    assert json.loads(finished[0].read_text())["classifier"] == "ResNet-18, random initialisation (seed 0)"


def test_a_part_without_a_class_is_named_before_anything_is_trained(study, trained_with):
    splits, patients = study.splits, study.cohort.patients
    aff = patients.index[patients == "AFF"]
    splits.loc[(splits.fold == 1) & (splits.part == "test") & splits.patient_id.isin(aff), "part"] = "train"
    with pytest.raises(ValueError, match="test part of repeat 0, fold 1 has no AFF image"):
        run(study, ["real"])
    assert not trained_with


# Learning curve


def finished_run(folder, share, auroc, images="i0 i1", **parameters):
    """What notebook 05 leaves of one real trial."""
    run = Run(folder)
    run.record(parameters={"seed": 0, "training_aff_share": share, **parameters})
    (run / "trials").mkdir()
    trial = {"condition": "real", "repeat": 0, "fold": 0, "seed": 0}
    rows = [
        trial | {"image_id": image, "patient_id": image, "label": "AFF", "probability": 0.5} for image in images.split()
    ]
    pd.DataFrame(rows).to_csv(run / "trials" / "predictions.csv", index=False)
    metrics = [trial | {"metric": "auroc", "value": auroc}, trial | {"metric": "f1", "value": 0.5}]
    pd.DataFrame(metrics).to_csv(run / "trials" / "metrics.csv", index=False)
    return run


def test_a_learning_curve_takes_the_auroc_and_the_share_of_each_run(tmp_path):
    run, other = (
        finished_run(tmp_path / "all", 1.0, 0.9),
        finished_run(tmp_path / "quarter", 0.25, 0.8, margin=0.1, reader="b"),
    )
    points = learning_curve_of(run, [str(other.folder)], ["real", "cyclegan"])
    assert points[["condition", "share", "value"]].values.tolist() == [["real", 1.0, 0.9], ["real", 0.25, 0.8]]


@pytest.mark.parametrize(
    ("unlike", "words"),
    [({"images": "i0 i2"}, "other test images"), ({"cyclegan_steps": 5}, "cyclegan_steps = 5, here None")],
)
def test_a_run_of_another_study_is_no_point_of_a_learning_curve(tmp_path, unlike, words):
    run, other = finished_run(tmp_path / "all", 1.0, 0.9), finished_run(tmp_path / "other", 0.5, 0.8, **unlike)
    with pytest.raises(ValueError, match=f"other is no point of this run's curve: {words}"):
        learning_curve_of(run, [str(other.folder)], ["real"])
