import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.data.splits import PARTS, make_splits
from lib.fidelity import measures as fidelity
from lib.fidelity.distances import Space
from lib.fidelity.judge import Judge
from lib.fidelity.measures import (
    at_a_glance,
    blurred,
    change_in_zone,
    closer_by_space,
    distance_rows,
    fidelity_table,
    image_rows,
    kid_comparisons,
    kid_tests,
    mean_by_patient,
    measure_fold,
    noised,
    reconstruction,
    ssim_by_zone,
    subsample,
)
from lib.run.folder import Run
from lib.study import Study

PHANTOM = Phantom(patients=24, size=32, aff_share=0.4, seed=7)


def whole(cohort, folder, phantom=PHANTOM):
    """A fold in which everybody trains, validates and tests."""
    names = sorted(cohort.patients.index)
    splits = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": names * 3, "part": np.repeat(PARTS, len(names))})
    return Study(Run(folder), cohort, splits, phantom).fold()


@pytest.fixture(scope="module")
def cohort():
    return PHANTOM.cohort()


@pytest.fixture(scope="module")
def judge_folder(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    Judge(channels=8, features=16).fit(cohort, folder, steps=150, seed=0, phantom=PHANTOM)
    return folder


def as_translated(cohort, images, method):
    """Both labels exchanged, with these pixels."""
    aff = cohort.table.label == "AFF"
    parts = [
        cohort.take(~aff).translated(images[~aff], "AFF", method),
        cohort.take(aff).translated(images[aff], "NFF", method),
    ]
    return parts[0].join(parts[1])


def test_ssim_by_zone_sees_where_the_change_is():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 255, (2, 40, 40)).astype(np.uint8)
    b = a.copy()
    b[:, 16:24] = 255 - b[:, 16:24]
    table = pd.DataFrame({"zone_top": [0.3, 0.3], "zone_bottom": [0.7, 0.7]})
    inside, outside = ssim_by_zone(a, b, table)
    assert (inside < 0.7).all() and (outside > 0.99).all()
    inside, outside = ssim_by_zone(a, a, table)
    np.testing.assert_allclose([*inside, *outside], 1)
    assert np.isnan(ssim_by_zone(a, a, pd.DataFrame({"zone_top": [0, 0], "zone_bottom": [1, 1]}))[1]).all()


def test_change_in_zone_is_a_share_of_all_change():
    a = np.full((3, 20, 20), 100, np.uint8)
    b = a.copy()
    b[:, 10] += 30  # one row inside of the zone
    b[1, 2] += 10  # and another outside
    b[2] = a[2]
    table = pd.DataFrame({"zone_top": [0.4] * 3, "zone_bottom": [0.6] * 3})
    np.testing.assert_allclose(change_in_zone(a, b, table), [1, 0.75, np.nan])
    np.testing.assert_allclose(change_in_zone(b, a, table), [1, 0.75, np.nan])


def test_blur_and_noise_are_mild_and_always_the_same(cohort):
    for change, least, most in ((blurred, 0.001, 0.03), (noised, 0.01, 0.02)):
        for pixels in (cohort.pixels, cohort.pixels.astype(np.uint16) * 257):
            changed = change(pixels)
            assert changed.dtype == pixels.dtype
            np.testing.assert_array_equal(changed, change(pixels))
            difference = abs(changed.astype(float) - pixels).mean() / np.iinfo(pixels.dtype).max
            assert least < difference < most


def test_mean_by_patient():
    result = mean_by_patient([1, 1, 0, np.nan], ["a", "a", "b", "b"])
    assert result["value"] == pytest.approx(2 / 3) and result["n"] == 3
    assert result["ci_low"] == 0 and result["ci_high"] == 1
    assert mean_by_patient(np.ones(40), np.arange(40) // 2)["ci_low"] == 1, "a measure, not a proportion"
    none = mean_by_patient(np.zeros(40, bool), np.arange(40) // 2)
    assert none["ci_low"] == 0 and none["ci_high"] == pytest.approx(0.1684, abs=1e-4)  # Clopper–Pearson, 0 of 20
    many = mean_by_patient(np.tile([0.0, 1.0], 200), np.arange(400))
    assert many["ci_high"] - many["ci_low"] == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    clustered = mean_by_patient(np.repeat([0.0, 1.0] * 50, 4), np.repeat(np.arange(100), 4))
    assert clustered["ci_high"] - clustered["ci_low"] == pytest.approx(
        2 * many["ci_high"] - 2 * many["ci_low"], rel=0.15
    )


def test_subsample_is_without_repetition_and_the_same_of_equally_many():
    rows = np.arange(30)
    drawn = subsample(rows, 10, seed=1)
    assert len(set(drawn)) == 10 and set(drawn) < set(rows)
    np.testing.assert_array_equal(subsample(rows * 2, 10, seed=1), drawn * 2)
    np.testing.assert_array_equal(subsample(rows, 10**6, seed=1), rows)


def grey(levels, side=20):
    """Images of one grey level each, NFF of as many patients."""
    ids = [str(i) for i in range(len(levels))]
    table = pd.DataFrame({"image_id": ids, "patient_id": ids, "label": "NFF", "view": "AP", "side": "left"})
    return Cohort(table, np.tile(np.array(levels, np.uint8)[:, None, None], (1, side, side)))


class ByBrightness:
    """A judge that takes dark images for NFF, grey ones for AFF and bright ones for neither."""

    def verdicts(self, pixels):
        return np.array(["NFF", "AFF", "neither"])[pixels.mean((1, 2)).astype(int) // 86]


def test_what_became_of_each_image_by_hand():
    """Three of five images are judged AFF, one neither, one NFF; the change is even, the zone 2/5 of the rows."""
    source = grey([10, 20, 30, 40, 50])
    translated = source.translated(grey([110, 120, 130, 210, 60]).images(), "AFF", "made")
    rows = {row["metric"]: row for row in image_rows("made", translated, source, ByBrightness(), None)}
    for metric, value in {"transfer": 0.6, "transfer_blurred": 0.6, "transfer_noised": 0.6, "neither": 0.2,
                          "zone_share": 0.4, "change_in_zone": 0.4}.items():  # fmt: skip
        assert rows[metric]["value"] == pytest.approx(value) and rows[metric]["n"] == 5, metric
    assert rows["transfer"]["features"] == "judge" and rows["zone_share"]["features"] == "pixels"


def test_each_distance_says_of_how_many_images_and_dimensions_it_is():
    """KID of levels {0, 2} and {0, 1, 1} with k = (xy + 1)³: 1 + (1 + 1 + 8) / 3 − 2 (1·3 + 1 + 27 + 27) / 6."""
    levels = Space(lambda pixels: pixels[:, :4, 0].astype(float), lambda features: features[:, :2])
    sets = {"real": grey([0, 1, 2, 1, 0]), "made": grey([0, 2])}
    table = pd.DataFrame(distance_rows(sets, grey([0, 1, 1]), {"level": levels})).set_index(["method", "metric"])
    assert table.value["made", "kid"] == pytest.approx(1 + 10 / 3 - 58 / 3)
    assert table.n["made", "kid"] == 2 and table.n["real", "kid"] == 5
    rest = table.drop("kid", level="metric")
    assert (rest.n == 2).all(), "as many of each as the smallest set has"
    assert (rest.dimensions.dropna() == 2).all() and set(rest.dropna(subset="dimensions").index.unique("metric")) == {
        "fid", "fid_infinity"
    }  # fmt: skip


def test_a_perfect_and_a_lazy_translator(cohort, judge_folder, tmp_path):
    """The phantom's counterfactual is the perfect translation, the source the lazy one: the table must say so."""
    counterfactual = PHANTOM.counterfactual(cohort)
    perfect = as_translated(cohort, counterfactual.images(), "cyclegan")
    lazy = as_translated(cohort, cohort.images(), "cyclediff")
    judge, found = Judge.load(judge_folder), {"cyclegan": perfect, "cyclediff": lazy}
    fold = whole(cohort, tmp_path)
    table = fidelity_table(fold, found, judge)
    value = table[table.features != "pca"].set_index(["direction", "method", "metric"]).value
    for direction in ("NFF→AFF", "AFF→NFF"):
        assert value[direction, "cyclegan", "counterfactual_inside"] == pytest.approx(1)
        assert value[direction, "cyclediff", "counterfactual_inside"] < 0.96
        assert value[direction, "cyclediff", "ssim_outside"] == pytest.approx(1)
        assert value[direction, "counterfactual", "ssim_outside"] < 1, "a perfect translation moves bone too"
        assert np.isnan(value[direction, "cyclediff", "change_in_zone"]), "nothing changed"
        assert value[direction, "cyclegan", "change_in_zone"] > 1.2 * value[direction, "cyclegan", "zone_share"]
        for metric in ("transfer", "transfer_blurred", "transfer_noised", "ssim_outside", "counterfactual_inside"):
            assert value[direction, "cyclediff", metric] == pytest.approx(value[direction, "source", metric])
    assert set(table.features) == {"judge", "pca", "pixels"}
    assert table[table.metric == "kid"].ci_low.notna().all()
    closer = closer_by_space(table, "cyclegan", "cyclediff")
    assert (closer.judge == "cyclegan").all() and list(closer) == ["judge", "pca", "agree"]
    assert (closer.agree == (closer.judge == closer.pca)).all()
    rows = table[table.metric.isin(["fid", "fid_infinity", "precision", "recall", "density", "coverage"])]
    assert rows.groupby("direction").n.nunique().eq(1).all(), "what depends on n at the same n"
    counts, kids = cohort.table.label.value_counts(), table[table.metric == "kid"].set_index(["direction", "method"]).n
    assert (kids["NFF→AFF", "cyclegan"] == counts["NFF"]).all() and (kids["NFF→AFF", "real"] == counts["AFF"]).all()
    negative = as_translated(cohort, -cohort.images(), "cyclediff")
    comparison = kid_comparisons(fold, {"cyclediff": negative, "cyclegan": perfect}, judge)
    assert set(comparison.a) == {"cyclediff"} and set(comparison.b) == {"cyclegan"}, "in the order of the table"
    assert (comparison.difference > 0).all() and (comparison.p < 0.05).all()


def test_at_a_glance_ranks_the_counterfactual_above_doing_nothing(cohort, judge_folder):
    nff, aff = cohort.select(label="NFF"), cohort.select(label="AFF")
    counterfactual = PHANTOM.counterfactual(nff)
    perfect = nff.translated(counterfactual.images(), "AFF", "perfect")
    nothing = nff.translated(nff.images(), "AFF", "nothing")
    judge = Judge.load(judge_folder)
    best, worst = (at_a_glance(images, nff, aff, judge, counterfactual) for images in (perfect, nothing))
    assert best["kid"] < worst["kid"] and best["transfer"] > worst["transfer"]
    assert worst["ssim_outside"] == pytest.approx(1) and best["counterfactual_inside"] == pytest.approx(1)
    assert "counterfactual_inside" not in at_a_glance(perfect, nff, aff, judge)


def test_reconstruction_sees_what_is_lost_and_where(cohort, judge_folder):
    judge = Judge.load(judge_folder)
    same = reconstruction(cohort, cohort, judge)
    assert same["error_inside"] == same["error_outside"] == 0 and same["auroc"] == same["auroc_reconstructed"]
    table, pixels = cohort.table.assign(zone_top=0.25, zone_bottom=0.5), cohort.pixels.copy()
    pixels[:, 8:16] = np.where(
        pixels[:, 8:16] > 127, pixels[:, 8:16] - 51, pixels[:, 8:16] + 51
    )  # a fifth of the scale
    lost = reconstruction(Cohort(table, pixels), Cohort(table, cohort.pixels), judge)
    assert lost["error_inside"] == pytest.approx(0.2) and lost["error_outside"] == 0
    assert lost["auroc_reconstructed"] != lost["auroc"]


def test_a_fold_is_measured_once_from_the_same_images_and_anew_from_others(cohort, judge_folder, tmp_path, monkeypatch):
    study = Study(Run(tmp_path), cohort, make_splits(cohort.patients, 1, 1, seed=0), PHANTOM)
    fold = study.fold()
    test = fold.test
    shutil.copytree(judge_folder, tmp_path / "judge" / "r0f0")
    made = {"cyclegan": PHANTOM.counterfactual(test).images(), "cyclediff": test.images()}
    for method, images in made.items():
        home = fold.folder("synthetic", method)
        test.first(0).save(home)
        as_translated(test, images, method).save(home / "test")
        (home / "test" / "inputs.json").write_text(f'{{"method": "{method}"}}')

    measure_fold(fold, "none")
    found = pd.read_csv(tmp_path / "fidelity" / "r0f0.csv", dtype={"dimensions": "Int64"})
    images = {name: Cohort.load(fold.folder("synthetic", name) / "test") for name in made}
    table = fidelity_table(fold, images, Judge.load(judge_folder))
    pd.testing.assert_frame_equal(found, table, check_exact=True, check_dtype=False)
    assert list(kid_tests(study).b) == ["cyclegan"] * 2

    monkeypatch.setattr(fidelity, "fidelity_table", lambda *_: pytest.fail("measured again"))
    measure_fold(fold, "none")
    shutil.copytree(tmp_path / "synthetic", tmp_path / "before")

    def fewer():
        shutil.rmtree(tmp_path / "synthetic" / "cyclediff")

    def others():
        (tmp_path / "synthetic" / "cyclegan" / "r0f0" / "test" / "inputs.json").write_text("{}")

    for phantom, change in ((None, lambda: None), (PHANTOM, fewer), (PHANTOM, others)):
        shutil.rmtree(tmp_path / "synthetic")
        shutil.copytree(tmp_path / "before", tmp_path / "synthetic")
        change()
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            measure_fold(replace(fold, phantom=phantom), "none")


def test_one_translator_alone_is_compared_with_nobody(cohort, judge_folder, tmp_path):
    fold = whole(cohort, tmp_path)
    alone = kid_comparisons(fold, {"cyclegan": as_translated(cohort, cohort.images(), "cyclegan")}, Judge())
    (tmp_path / "fidelity").mkdir()
    alone.to_csv(tmp_path / "fidelity" / "r0f0_kid.csv", index=False)
    tests = kid_tests(Study(fold.run, cohort, fold.splits))
    assert not len(tests) and list(tests) == list(fidelity.KID_COLUMNS)


def test_the_closest_of_any_number_of_methods_is_named():
    kids = {"judge": [0.3, 0.2, 0.1], "pca": [0.2, 0.1, 0.4]}
    rows = pd.DataFrame(kids, index=list("abc")).rename_axis("method").melt(var_name="features", ignore_index=False)
    rows = rows.reset_index().assign(direction="NFF→AFF", metric="kid")
    assert closer_by_space(rows, "a", "b", "c").iloc[0].to_dict() == {"judge": "c", "pca": "b", "agree": False}
    assert closer_by_space(rows, "a", "b").iloc[0].to_dict() == {"judge": "b", "pca": "b", "agree": True}
