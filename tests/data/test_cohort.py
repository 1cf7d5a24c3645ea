"""The cohort: saved and loaded, selected, joined, split and translated without mixing anything up."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.cohort import Cohort, to_pixels
from lib.data.hashes import cohort_hash
from lib.data.phantom import Phantom
from lib.data.pixels import OnDisk
from lib.data.splits import fit_windows, make_splits
from lib.run.folder import Run
from lib.study import Study


def make_cohort(n=12, size=8, dtype=np.uint16, seed=0) -> Cohort:
    """n images of n/2 patients, half of them AFF; the first pixel of each image is its number."""
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (n, size, size), dtype, endpoint=True)
    pixels[:, 0, 0] = np.arange(n)
    table = pd.DataFrame({"image_id": [f"{k:03}" for k in range(n)], "patient_id": [f"{k // 2:03}" for k in range(n)]})
    return Cohort(
        table.assign(
            label=["AFF" if k % 4 < 2 else "NFF" for k in range(n)], view=["AP", "lateral"] * (n // 2), side="left"
        ),
        pixels,
    )


def numbers(cohort: Cohort) -> list[int]:
    """Which images these are, as their pixels say it; the table must say the same."""
    assert [int(image_id) for image_id in cohort.table.image_id] == cohort.pixels[:, 0, 0].tolist()
    return cohort.pixels[:, 0, 0].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_save_and_load(tmp_path, dtype):
    cohort = make_cohort(dtype=dtype)
    cohort.save(tmp_path / "new" / "cohort")
    loaded = Cohort.load(tmp_path / "new" / "cohort")
    assert loaded.table.equals(cohort.table)  # ids keep their leading zeros
    assert loaded.pixels.dtype == dtype and np.array_equal(loaded.pixels, cohort.pixels)
    assert isinstance(loaded.pixels, OnDisk)
    assert numbers(loaded.select(label="AFF")) == numbers(cohort.select(label="AFF"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 11), unique=True))
def test_take_keeps_table_and_pixels_together(rows):
    cohort = make_cohort()
    assert numbers(cohort.take(rows)) == rows
    mask = np.isin(np.arange(12), rows)
    assert numbers(cohort.take(mask)) == sorted(rows)


def test_select():
    cohort = make_cohort()
    assert numbers(cohort.select(label="AFF", view="AP")) == [0, 4, 8]
    assert numbers(cohort.select(patient_id=["000", "005"])) == [0, 1, 10, 11]
    assert len(cohort.select(side="right")) == 0
    with pytest.raises(ValueError, match="no column 'hospital'; it has image_id, patient_id"):
        cohort.select(hospital="A")


def test_find_takes_images_in_the_order_of_their_ids_and_knows_who_is_missing():
    cohort = make_cohort()
    assert numbers(cohort.find(["007", "001"])) == [7, 1] and not len(cohort.find([]))
    with pytest.raises(KeyError, match="099"):
        cohort.find(["001", "099"])


def test_join_is_the_inverse_of_selecting():
    cohort = make_cohort()
    joined = cohort.select(label="AFF").join(
        cohort.select(label="NFF", view="AP"), cohort.select(label="NFF", view="lateral")
    )
    back = joined.take(np.argsort(joined.table.image_id.to_numpy()))
    assert back.table.equals(cohort.table) and np.array_equal(back.pixels, cohort.pixels)


def test_join_fills_missing_columns():
    cohort = make_cohort(4)
    synthetic = cohort.translated(cohort.images(), "AFF", "cyclegan")
    joined = cohort.join(synthetic)
    assert joined.table.method.isna().tolist() == [True] * 4 + [False] * 4


def test_join_refuses_other_sizes_depths_and_repeated_images():
    cohort = make_cohort()
    with pytest.raises(ValueError, match="different image size or bit depth"):
        cohort.join(make_cohort(size=16))
    with pytest.raises(ValueError, match="different image size or bit depth"):
        cohort.join(make_cohort(dtype=np.uint8))
    with pytest.raises(ValueError, match="image_id '000' stands in the table more than once"):
        cohort.join(cohort)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_and_pixels_are_inverse(dtype):
    top = np.iinfo(dtype).max
    cohort = make_cohort(dtype=dtype)
    cohort.pixels[0, 1, :2] = 0, top
    images = cohort.images()
    assert images.shape == (12, 1, 8, 8) and images.dtype == np.float32
    assert images[0, 0, 1, :2].tolist() == [-1, 1]
    assert np.array_equal(to_pixels(images, dtype), cohort.pixels)


def test_pixels_are_rounded_and_clipped():
    values = np.array([-2, -1, -0.0001, 0.0001, 0.999, 5], np.float32).reshape(6, 1, 1, 1)
    assert to_pixels(values, np.uint8).ravel().tolist() == [0, 0, 127, 128, 255, 255]


def test_translated_says_where_each_image_came_from():
    cohort = make_cohort().select(label="NFF")
    synthetic = cohort.translated(-cohort.images(), "AFF", "cyclediff")
    assert set(synthetic.table.label) == {"AFF"} and set(synthetic.table.method) == {"cyclediff"}
    assert synthetic.table.source_image_id.tolist() == cohort.table.image_id.tolist()
    assert set(synthetic.table.source_label) == {"NFF"}
    for column in ("patient_id", "view", "side"):
        assert synthetic.table[column].equals(cohort.table[column])
    assert not set(synthetic.table.image_id) & set(cohort.table.image_id)
    assert np.array_equal(synthetic.pixels, 65535 - cohort.pixels)
    assert len(cohort.join(synthetic)) == 2 * len(cohort)


def test_translated_survives_the_file(tmp_path):
    synthetic = make_cohort().translated(make_cohort().images(), "NFF", "cyclegan")
    synthetic.save(tmp_path)
    assert Cohort.load(tmp_path).table.equals(synthetic.table)


def test_targets_and_patients():
    cohort = make_cohort(8)
    assert cohort.targets.tolist() == [1, 1, 0, 0, 1, 1, 0, 0] and cohort.targets.dtype == np.int64
    table = cohort.table.assign(label=["NFF", "AFF", *["NFF"] * 6])
    assert Cohort(table, cohort.pixels).patients.to_dict() == {"000": "AFF", "001": "NFF", "002": "NFF", "003": "NFF"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, p: (t.drop(columns=["view", "side"]), p), "lacks the column view, side"),
        (lambda t, p: (t[:3], p), "3 table rows do not fit pixels of shape"),
        (lambda t, p: (t, p[:, 0]), "do not fit pixels of shape"),
        (lambda t, p: (t, p.astype(np.float32)), "uint8 or uint16, not float32"),
        (lambda t, p: (t.assign(label="aff"), p), "unknown label 'aff'"),
        (lambda t, p: (t.assign(image_id="x"), p), "image_id 'x' stands in the table more than once"),
    ],
)
def test_bad_cohorts(change, message):
    cohort = make_cohort()
    with pytest.raises(ValueError, match=message):
        Cohort(*change(cohort.table, cohort.pixels))


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("at", ["pixels.npy", "table.csv"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_saving_killed_around_a_file_leaves_one_whole_cohort_or_none(tmp_path, monkeypatch, at, when):
    old, new, replace = make_cohort(seed=1), make_cohort(n=8, seed=2), os.replace
    old.save(tmp_path)

    def killed(part, path):
        if when == "after":
            replace(part, path)
        if Path(path).name == at:
            raise Killed
        return replace(part, path) if when == "before" else None

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", killed)
        new.save(tmp_path)
    if (tmp_path / "table.csv").exists():
        loaded = Cohort.load(tmp_path)
        assert loaded.table.equals(new.table) and np.array_equal(loaded.pixels, new.pixels)
    new.save(tmp_path)
    assert np.array_equal(Cohort.load(tmp_path).pixels, new.pixels)


def test_an_empty_cohort_is_saved_and_loaded(tmp_path):
    make_cohort().first(0).save(tmp_path)
    assert Cohort.load(tmp_path).pixels.shape == (0, 8, 8)


def test_a_cohort_on_disk_is_saved_over_itself(tmp_path):
    make_cohort().save(tmp_path)
    loaded = Cohort.load(tmp_path)
    few = loaded.take([3, 1, 2])
    few.save(tmp_path)
    assert numbers(Cohort.load(tmp_path)) == [3, 1, 2] and numbers(few) == [3, 1, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_on_disk_give_what_pixels_in_memory_give(tmp_path, dtype):
    cohort = make_cohort(24, dtype=dtype)
    cohort.save(tmp_path)
    on_disk, splits = Cohort.load(tmp_path), make_splits(cohort.patients, 1, 1, seed=0, test_share=0.4)
    windows, run = fit_windows(splits, cohort, (2, 97)), Run(tmp_path)
    pd.testing.assert_frame_equal(fit_windows(splits, on_disk, (2, 97)), windows)
    assert cohort_hash(on_disk) == cohort_hash(cohort)
    for a, b in [
        [Study(run, images, splits, windows=windows).fold().train for images in (on_disk, cohort)],
        (on_disk.select(label="NFF").windowed(0.2, 0.7), cohort.select(label="NFF").windowed(0.2, 0.7)),
        (on_disk.copies(np.array([5, 5, 0]), "twice"), cohort.copies(np.array([5, 5, 0]), "twice")),
    ]:
        assert isinstance(a.pixels, OnDisk) and isinstance(b.pixels, np.ndarray)
        assert a.table.equals(b.table) and np.array_equal(a.pixels, b.pixels) and cohort_hash(a) == cohort_hash(b)
        assert np.array_equal(a.images(), b.images())


def test_first_stops_at_the_end():
    cohort = Phantom(patients=4, size=16, aff_share=0.3).cohort()
    assert cohort.first(2).table.image_id.tolist() == cohort.table.image_id[:2].tolist()
    assert len(cohort.first(10**6)) == len(cohort)


def test_a_full_disk_leaves_the_old_cohort(tmp_path, monkeypatch):
    cohort = Phantom(patients=4, size=16, aff_share=0.3).cohort()
    cohort.save(tmp_path)

    def full(path, n, images):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.data.cohort.save_pixels", full)
    with pytest.raises(OSError, match=r"cannot write .*pixels.npy: No space left on device; free space"):
        cohort.first(2).save(tmp_path)
    assert len(Cohort.load(tmp_path)) == len(cohort)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pixels.npy", "table.csv"]
