"""The search for duplicates: what it finds, and what it lets pass."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lib.data import duplicates as search
from lib.data.cohort import Cohort
from lib.data.duplicates import duplicate_pairs, duplicate_sensitivity, duplicates, perceptual_hash, texture
from lib.data.phantom import Phantom


@pytest.fixture(scope="module")
def cohort():
    return Phantom(patients=60, size=64, aff_share=0.4, seed=5).cohort()


def test_images_of_one_patient_are_no_duplicates(cohort):
    rows, columns = duplicates(cohort.pixels, cohort.pixels, cohort.table.patient_id, cohort.table.patient_id)
    assert not len(rows) and not len(columns)
    rows, columns = duplicates(cohort.pixels, cohort.pixels, range(len(cohort)), np.arange(len(cohort)) + len(cohort))
    assert set(zip(range(len(cohort)), range(len(cohort)), strict=True)) <= set(zip(rows, columns, strict=True))


def test_hashes_do_not_see_brightness_contrast_or_bit_depth(cohort):
    hashes = [
        perceptual_hash(search._thumbnails(p, 32)) for p in (cohort.pixels, cohort.pixels.astype(np.uint16) * 257)
    ]
    np.testing.assert_array_equal(*hashes)
    thumbnails = search._thumbnails(cohort.pixels, 32)
    np.testing.assert_array_equal(perceptual_hash(thumbnails), perceptual_hash(0.5 * thumbnails + 30))
    assert len(set(hashes[0].tolist())) == len(cohort)


def test_textures_do_not_see_brightness_contrast_or_bit_depth_and_are_turned_with_their_image(cohort):
    textures = texture(cohort.pixels)
    assert textures.shape == cohort.pixels.shape and not textures.sum((1, 2)).round(4).any()
    np.testing.assert_allclose(np.linalg.norm(textures, axis=(1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(texture(cohort.pixels.astype(np.uint16) * 100), textures, atol=1e-3)
    np.testing.assert_allclose(texture(255 - cohort.pixels), -textures, atol=1e-3)
    np.testing.assert_allclose(texture(cohort.pixels[:, ::-1, ::-1]), textures[:, ::-1, ::-1], atol=1e-3)
    assert not texture(np.full((2, 64, 64), 7, np.uint8)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_changed_copies_are_found(cohort, dtype):
    one = Cohort(cohort.table, cohort.pixels.astype(dtype) * (np.iinfo(dtype).max // 255)).first(60)
    table = duplicate_sensitivity(one, seed=0, most=15).set_index("change")
    assert list(table.index) == list(search.CHANGES) and set(table.n) == {15}
    sure = ["8 bits", "darker, brightness × 0.6", "gamma 0.5", "noise of 2 %", "shifted by 3 %", "turned by 3°"]
    sure += ["turned by 180°", "mirrored", "inverted", "label over a corner", "cropped by 3 % a side"]
    assert (table.found[sure] >= 90).all(), table.found
    assert (table.found[["brighter by 0.15", "JPEG of quality 20", "gamma 2"]] >= 70).all()
    assert (table.found[["brightness × 1.3", "contrast × 1.5 about the middle"]] >= 10).all()  # clipped


@pytest.mark.parametrize("size", [32, 64, 128])
def test_different_patients_are_no_duplicates(size):
    one = Phantom(patients=80, size=size, seed=9).cohort()
    smooth = gaussian_filter(one.pixels, 2 * size / 64, axes=(1, 2))  # as generators may draw
    for pixels in (one.pixels, smooth):
        assert not len(duplicates(pixels, one.pixels, one.table.patient_id, one.table.patient_id)[0])


def test_a_copy_is_paired_with_its_original_alone_whichever_comes_first(cohort):
    copy = search._cropped(cohort.pixels[7] / 255, 0.03)[None] * 255
    for a, b in ((copy, cohort.pixels), (cohort.pixels, copy)):
        rows, columns = duplicates(a.astype(np.uint8), b.astype(np.uint8), ["a"] * len(a), ["b"] * len(b))
        assert sorted([*rows, *columns]) == [0, 7]


def test_pairs_say_whether_they_are_of_one_patient(cohort):
    few = cohort.take(np.sort(cohort.table.drop_duplicates("patient_id").index[:20]))
    twins = few.take([3, 5])
    ids = twins.table.assign(image_id=["x", "y"], patient_id=[twins.table.patient_id[0], "other"])
    pairs = duplicate_pairs(few.join(Cohort(ids, twins.pixels)))
    assert sorted(pairs.itertuples(index=False, name=None)) == [(3, 20, "one"), (5, 21, "two")]
    assert not len(duplicate_pairs(few))
