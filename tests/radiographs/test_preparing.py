"""From file to square and back: borders, turns, sides, writing, windows, quality control."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import write_dicom
from PIL import Image, ImageDraw, ImageFont

from lib.data.cohort import CROP, TO_SOURCE, Cohort
from lib.data.duplicates import duplicate_pairs
from lib.data.phantom import Phantom
from lib.data.splits import fit_windows, make_splits
from lib.radiographs.decoding import Radiograph, read_image
from lib.radiographs.geometry import Picture, field_of_view, moved, tilt
from lib.radiographs.preparing import Preparation, prepare
from lib.radiographs.quality import measures, quality
from lib.radiographs.writing import text_lines, without_text
from lib.run.folder import Run
from lib.study import Study

FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


@pytest.fixture(scope="module")
def femurs():
    """(10, 512, 512) in [0, 1]."""
    return Phantom(patients=6, size=512, seed=5).cohort().first(10).images()[:, 0] / 2 + 0.5


def thigh(height=300, width=200):
    """A bright shaft in a grey thigh that fills the image, with grain."""
    x = np.linspace(-1, 1, width)
    image = np.tile(0.3 + 0.4 * (abs(x) < 0.3), (height, 1))
    return (image + np.random.default_rng(0).normal(0, 0.02, image.shape)).astype(np.float32)


# Geometry -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.floats(0.5, 2),
)
def test_every_point_of_the_square_leads_back_to_its_place_in_the_file(
    place, quarters, upright, one_side, region, ratio
):
    image = np.zeros((240, 160), np.float32)
    y, x = int(place[0] * 240), int(place[1] * 160)
    image[y - 4 : y + 4, x - 4 : x + 4] = 1  # its middle is the point (x, y)
    image[:, 70:90] += 0.1  # so that there is something upright
    how = Preparation(False, (0.1, 0.05, 0.95, 0.9) if region else None, False, quarters, upright, one_side, "right")
    steps, *_ = prepare(Radiograph(image, 8, (ratio, 1.0)), 96, how)
    square = steps["square"]
    bright = np.clip(square.image - 0.3, 0, None)
    found = np.array([(bright.sum(a) * (np.arange(96) + 0.5)).sum() / bright.sum() for a in (0, 1)])
    back = moved([found], square.to_source)[0]
    assert np.allclose(back, (x, y), atol=1.5)
    assert np.allclose(moved([back], np.linalg.inv(square.to_source)), [found])


def test_steps_that_undo_each_other_change_nothing():
    picture = Picture(thigh())
    for again in (picture.turned(1).turned(3), picture.turned(2).turned(2), picture.mirrored().mirrored()):
        assert np.array_equal(again.image, picture.image) and np.allclose(again.to_source, np.eye(3))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_the_tags_say_where_the_head_is(tmp_path, quarters):
    stored = (np.rot90(thigh(40, 30), -quarters) * 255).astype(np.uint8)
    right_down = {0: ["L", "F"], 1: ["H", "L"], 2: ["R", "H"], 3: ["F", "R"]}[quarters]
    write_dicom(tmp_path / "a.dcm", stored, 8, PatientOrientation=right_down)
    radiograph = read_image(tmp_path / "a.dcm")
    assert radiograph.quarters == quarters
    steps, *_ = prepare(radiograph, 40)
    upright, *_ = prepare(Radiograph((thigh(40, 30) * 255).astype(np.uint8).astype(np.float32) / 255, 8), 40)
    assert np.allclose(steps["square"].image, upright["square"].image, atol=1e-6)


@pytest.mark.parametrize("degrees", [-44, -20, -3, 0, 7, 40])
def test_a_turned_shaft_is_turned_back(degrees):
    turned = Picture(thigh(400, 400)).rotated(degrees).image
    middle = turned[len(turned) // 2 - 130 :, turned.shape[1] // 2 - 130 :][:260, :260]  # without the black corners
    assert tilt(middle) == pytest.approx(-degrees, abs=0.7)


def test_without_a_direction_nothing_is_turned():
    grain = np.random.default_rng(1).normal(0.5, 0.1, (200, 200)).astype(np.float32)
    assert tilt(grain) == 0 and tilt(np.full((50, 50), 0.5, np.float32)) == 0


def test_a_femurs_shaft_is_upright_afterwards(femurs):
    tilts = []
    for femur in femurs:
        steps, *_ = prepare(Radiograph(femur.astype(np.float32), 8), 128, Preparation(crop=True, upright=True))
        tilts.append(tilt(steps["square"].image[16:-16, 16:-16]))
    assert np.median(np.abs(tilts)) < 2


# Borders --------------------------------------------------------------------------------------------------------------


def with_border(grey, marker=None):
    image = np.full((400, 300), grey, np.float32)
    image[50:350, 40:240] = thigh()
    if marker is not None:
        image[10:40, 100:115] = marker
    return image


@pytest.mark.parametrize("marker", [None, 0.0, 1.0])
@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_collimation_is_taken_off_with_what_stands_in_it(grey, marker):
    assert field_of_view(with_border(grey, marker)) == (50, 40, 350, 240)


def test_a_white_frame_within_a_black_margin_is_taken_off():
    image = with_border(1.0)
    image = np.pad(image[44:356, 34:246], 30)
    assert field_of_view(image) == (36, 36, 336, 236)


def test_what_fills_its_image_is_not_cropped():
    assert field_of_view(thigh()) == (0, 0, 300, 200)
    tiny = np.zeros((100, 100), np.float32)
    tiny[40:50, 40:50] = 1  # nearly blank: that is for quality control
    assert field_of_view(tiny) == (0, 0, 100, 100)


# Writing --------------------------------------------------------------------------------------------------------------


def written_on(femur, text, size, place, grey):
    picture = Image.fromarray(np.rint(femur * 255).astype(np.uint8))
    ImageDraw.Draw(picture).text(place, text, font=ImageFont.truetype(str(FONT), size), fill=grey)
    return np.asarray(picture, np.float32) / 255


def test_writing_is_found_and_femurs_and_markers_are_not(femurs):
    places = [(8, 8), (330, 8), (8, 480), (300, 470)]
    for number, femur in enumerate(femurs):
        assert not text_lines(femur)
        size, place = (12, 16, 20)[number % 3], places[number % 4]
        page = written_on(femur, "MEIER HANS 17.05.1943", size, place, (255, 210)[number % 2])
        top, left, bottom, right = np.array(text_lines(page)).T
        assert top.min() <= place[1] + size / 2 <= bottom.max() and bottom.max() - top.min() < 3 * size
        assert left.min() >= place[0] - 4 * size and right.max() - left.min() >= 6 * size  # but for letters on bone
        assert not text_lines(written_on(femur, "L", 40, place, 255))


def test_hidden_writing_is_gone_and_the_rest_is_as_it_was(femurs):
    page = written_on(femurs[2], "MEIER^HANS, 12-3", 20, (8, 480), 255)
    hidden = without_text(page, text_lines(page))
    assert text_lines(page) and not text_lines(hidden)
    assert np.array_equal(hidden[:460], page[:460])
    assert abs(hidden[470:, 8:200] - femurs[2][470:, 8:200]).max() < 0.35  # the phantom's own grain


def test_a_line_across_a_bone_is_one_line_and_hidden_as_a_whole(femurs):
    bone = np.full((512, 512), 0.3)
    bone[:, 190:330] = 0.95  # as bright as the letters on it
    page = written_on(bone, "MEIER HANS FRIEDRICH *17.05.1943", 24, (8, 8), 250)
    assert len(text_lines(page)) == 1
    hidden = without_text(page, text_lines(page))
    assert abs(hidden - np.rint(bone * 255) / 255).max() < 0.05


# Quality control ------------------------------------------------------------------------------------------------------


def cohort_of(images, patients=None):
    ids = [f"i{k}" for k in range(len(images))]
    table = pd.DataFrame({"image_id": ids, "patient_id": patients or ids, "label": "NFF", "view": "AP", "side": "left"})
    return Cohort(table, np.rint(np.array(images) * 255).astype(np.uint8))


def test_what_is_wrong_is_suspected_and_what_is_right_is_not(femurs):
    nail = femurs[1].copy()
    nail[60:450, 245:265] = 1
    blank = femurs[2] * 0.05 + 0.4
    page = written_on(femurs[3], "HOSPITAL 4711", 20, (8, 8), 255)
    images = [*femurs, 1 - femurs[0], nail, blank, page, femurs[0]]
    ids = [f"p{k}" for k in range(len(images) - 1)]
    cohort = cohort_of(images, [*ids, "p0"])
    table = quality(cohort, duplicate_pairs(cohort))
    assert table["of two patients"].iloc[[0, 10]].all()  # an image and its inverted copy
    table = table.drop(columns=["small", "of two patients"]).iloc[:, 9:]
    suspected = [set(row.index[row.astype(bool)]) - {"suspicions"} for _, row in table.iterrows()]
    assert suspected[1:10] == [set()] * 9
    assert suspected[10:] == [{"inverted"}, {"implant"}, {"nearly blank"}, {"text"}, {"twice"}]
    assert suspected[0] == {"twice"} and table.suspicions.iloc[0] == 2


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_measures_are_finite_for_any_image(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.float32) / 2
    assert np.isfinite(list(measures(image).values())).all()


# Windows and padding --------------------------------------------------------------------------------------------------


def test_a_window_is_fitted_to_its_folds_training_images_alone(tmp_path):
    phantom = Phantom(patients=40, size=16, aff_share=0.4, seed=2)
    cohort = phantom.cohort()
    splits = make_splits(cohort.patients, 1, 2, 0)
    study = Study(Run(tmp_path), cohort, splits)
    windowed = replace(study, windows=fit_windows(splits, cohort, (1, 99)))
    for plain, fold in zip(study.folds, windowed.folds, strict=True):
        black, white = np.percentile(plain.train.pixels, [1, 99])
        test = plain.test.pixels.astype(float)
        expected = np.rint(np.clip((test - black) / (white - black), 0, 1) * 255)
        assert np.array_equal(fold.test.pixels, expected)
    held_out = cohort.table.patient_id.isin(splits.query("fold == 0 and part != 'train'").patient_id).to_numpy()
    others = Cohort(cohort.table, np.where(held_out[:, None, None], 255 - cohort.pixels, cohort.pixels))
    windows = [fit_windows(splits, images, (1, 99)).query("fold == 0") for images in (cohort, others)]
    assert windows[0].equals(windows[1])


@pytest.mark.parametrize("percentiles", [(99, 1), (-1, 50), (50, 50), (0, 101)])
def test_percentiles_that_are_none_are_refused(percentiles):
    cohort = Phantom(patients=20, size=16, aff_share=0.4).cohort()
    with pytest.raises(ValueError, match="are not 0 ≤ low < high ≤ 100"):
        fit_windows(make_splits(cohort.patients, 1, 1, 0), cohort, percentiles)


def test_nothing_is_translated_into_the_padding():
    cohort = cohort_of(np.full((2, 8, 8), 0.5))
    cohort.table.loc[:, list(CROP)] = [[0, 0, 16, 8], [0, 0, 8, 8]]
    cohort.table.loc[:, list(TO_SOURCE)] = [[2, 0, -4, 0, 2, 0], [1, 0, 0, 0, 1, 0]]
    translated = cohort.translated(np.ones((2, 1, 8, 8), np.float32), "AFF", "cyclegan")
    assert not translated.pixels[0][:, [0, 1, 6, 7]].any()
    assert (translated.pixels[0][:, 2:6] == 255).all() and (translated.pixels[1] == 255).all()
    assert np.array_equal(translated.padding, cohort.padding)


@pytest.mark.parametrize("how", [Preparation(upright=True), Preparation(quarters=1, one_side=True, side="right")])
def test_padding_is_what_the_image_does_not_reach(how):
    image = Picture(thigh(240, 150) * 0.4 + 0.5).rotated(-15).image
    steps, crop, _ = prepare(Radiograph(np.maximum(image, 0.3), 8), 64, how)
    square = steps["square"]
    cohort = cohort_of([np.clip(square.image, 0, 1)])
    cohort.table.loc[0, list(CROP)] = crop
    cohort.table.loc[0, list(TO_SOURCE)] = square.to_source[:2].ravel()
    assert cohort.padding[0].any() and (square.image[cohort.padding[0]] < 0.3).all()
    assert (square.image[~cohort.padding[0]] < 0.1).mean() < 0.01
