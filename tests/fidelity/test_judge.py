import numpy as np
import pytest
import torch

from lib.data.cohort import Cohort
from lib.data.phantom import FAILURES, Phantom
from lib.fidelity.judge import CLASSES, DEFAULT_ZONE, Judge, class_of, examples, jittered, made_failure, zones

PHANTOM = Phantom(patients=12, size=32, aff_share=0.4, seed=5)


@pytest.fixture(scope="module")
def cohort():
    return PHANTOM.cohort()


@pytest.fixture(scope="module")
def judge(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    judge = Judge(channels=8, features=16)
    judge.history = judge.fit(cohort, folder, steps=150, seed=0, phantom=PHANTOM)
    return judge, folder


def test_examples_on_the_phantom_are_balanced_three_ways(cohort):
    pixels, drawn = examples(cohort, seed=0, phantom=PHANTOM)
    assert len(pixels) == 3 * len(cohort)
    np.testing.assert_array_equal(np.bincount(class_of(drawn)), [len(cohort)] * 3)
    assert {*drawn} == {"AFF", "NFF", *FAILURES}


def test_examples_of_real_radiographs_are_made_of_nothing_but_them(cohort):
    pixels, drawn = examples(cohort, seed=0)
    failures = drawn[len(cohort) :]
    assert len(pixels) == 2 * len(cohort) and set(failures) <= set(FAILURES)
    assert "half drawn" not in failures[cohort.table.label == "AFF"]
    np.testing.assert_array_equal(pixels[: len(cohort)], cohort.pixels)
    assert pixels.dtype == cohort.pixels.dtype
    sixteen = Cohort(cohort.table, cohort.pixels.astype(np.uint16) * 257)
    assert examples(sixteen, seed=0)[0].dtype == np.uint16


@pytest.mark.parametrize("kind", FAILURES)
def test_made_failures_stay_within_the_fracture_zone(kind):
    rng = np.random.default_rng(0)
    image, other = rng.uniform(0, 255, (2, 64, 64))
    failed = made_failure(image, other, (0.4, 0.6), kind, rng)
    change = np.abs(failed - image).mean(1)
    assert change[26:38].min() > 5
    assert change[:16].max() < 0.5 and change[48:].max() < 0.5


def test_zones_fall_back_where_the_table_names_none(cohort):
    table = cohort.table.copy()
    table.loc[0, "zone_top"] = np.nan
    assert zones(table)[0, 0] == DEFAULT_ZONE[0]
    assert zones(table)[1, 0] == table.zone_top[1]
    np.testing.assert_array_equal(zones(table[["image_id"]]), [DEFAULT_ZONE] * len(table))


def test_jitter_is_a_function_of_its_key_and_keeps_the_range(cohort):
    images = torch.from_numpy(cohort.images()[:4])
    assert torch.equal(jittered(images, 0, 1), jittered(images, 0, 1))
    assert not torch.equal(jittered(images, 0, 1), jittered(images, 0, 2))
    assert jittered(images, 0, 1).shape == images.shape and jittered(images, 0, 1).abs().max() <= 1


def test_it_learns(judge):
    history = judge[0].history
    assert history.loss.tail(3).mean() < 0.75 * history.loss.iloc[0]


def test_verdicts_do_not_depend_on_the_batch(judge, cohort):
    judge, _ = judge
    whole = judge.probabilities(cohort.pixels)
    assert whole.shape == (len(cohort), 3)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)
    parts = np.concatenate([judge.probabilities(cohort.pixels[i : i + 1]) for i in range(len(cohort))])
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_a_loaded_judge_is_the_saved_one(judge, cohort):
    judge, folder = judge
    loaded = Judge.load(folder)
    np.testing.assert_allclose(loaded.features(cohort.pixels), judge.features(cohort.pixels), atol=1e-4)
    assert loaded.features(cohort.pixels).shape == (len(cohort), 16)


def test_a_finished_training_is_not_repeated(judge, cohort):
    judge, folder = judge
    again = Judge(channels=8, features=16)
    history = again.fit(cohort, folder, steps=150, seed=0, phantom=PHANTOM)
    np.testing.assert_array_equal(history.loss, judge.history.loss)
    np.testing.assert_allclose(again.features(cohort.pixels), judge.features(cohort.pixels), atol=1e-4)


def test_made_doubles_hold_both_lines():
    image, other = np.full((2, 64, 64), 200.0)
    image[28], other[36] = 50, 50
    failed = made_failure(image, other, (0.4, 0.6), "doubled", np.random.default_rng(0))
    assert failed[28].mean() < 160 and failed[36].mean() < 160
    np.testing.assert_allclose(failed[32], 200, atol=1)


def test_confusion_has_a_row_of_shares_for_each_class_and_failure(judge, cohort):
    confusion = judge[0].confusion(cohort, seed=1, phantom=PHANTOM)
    assert list(confusion.columns) == list(CLASSES)
    assert list(confusion.index) == ["NFF", "AFF", *FAILURES]
    np.testing.assert_allclose(confusion.sum(axis=1), 1)


def test_activation_maps_and_bias_are_the_logits(judge, cohort):
    judge, _ = judge
    network = judge.network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(cohort.images())).numpy()
    for position, name in enumerate(CLASSES):
        maps = judge.activation_maps(cohort.pixels, [name] * len(cohort))
        found = maps.mean((1, 2)) + network.head.bias[position].item()
        np.testing.assert_allclose(found, logits[:, position], rtol=1e-4, atol=1e-4)


def test_zones_of_the_table_are_kept_and_others_are_where_the_judge_looks(judge, cohort):
    judge, _ = judge
    assert judge.with_zones(cohort) is cohort
    without = Cohort(cohort.table.drop(columns=["zone_top", "zone_bottom"]), cohort.pixels)
    zones_found = zones(judge.with_zones(without).table)
    assert ((zones_found[:, 0] >= 0) & (zones_found[:, 0] < zones_found[:, 1]) & (zones_found[:, 1] <= 1)).all()
    strongest = judge.activation_maps(cohort.pixels, cohort.table.label.to_numpy()).mean(2)
    middle = (strongest.argmax(1) + 0.5) / strongest.shape[1]
    assert ((zones_found[:, 0] < middle) & (middle < zones_found[:, 1])).all()
