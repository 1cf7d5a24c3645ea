"""The leak audit: what it finds, what it does not, and that it stops."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib import audit as audits
from lib.audit import (
    LeakError,
    audit,
    duplicate_checks,
    duplicates,
    part_checks,
    perceptual_hash,
    preprocessing_check,
    synthetic_checks,
    weights_checks,
)
from lib.cohort import Cohort
from lib.controls import with_canary
from lib.cyclegan import CycleGAN, Settings
from lib.judge import Judge
from lib.phantom import Phantom
from lib.splits import make_splits
from lib.synthesis import copies

PHANTOM = Phantom(patients=60, size=64, aff_share=0.4, seed=5)


@pytest.fixture(scope="module")
def cohort():
    return PHANTOM.cohort()


@pytest.fixture(scope="module")
def splits(cohort):
    return make_splits(cohort.patients, repeats=1, folds=2, seed=0)


def one(table, check):
    """The only row of this check in the first cell."""
    return table[table.check == check].iloc[0]


def copied_into_test(cohort, splits, change):
    """The cohort with a training image of the first cell, changed, in the place of one of its test images."""
    train, test = (cohort.part(splits, 0, 0, part).table.image_id.iloc[0] for part in ("train", "test"))
    source, target = (cohort.table.index[cohort.table.image_id == image][0] for image in (train, test))
    pixels = cohort.pixels.copy()
    pixels[target] = change(pixels[source])
    return Cohort(cohort.table, pixels), f"{train} and {test}", f"{test} and {train}"


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


# Parts and duplicates


def test_clean_splits_pass(cohort, splits):
    table = pd.concat([part_checks(cohort, splits), duplicate_checks(cohort, splits)])
    assert table.passed.all() and (table.found == 0).all() and len(table) == 6
    assert one(table, "patients in two parts").compared == 60
    assert one(table, "images in two parts").compared == len(cohort)


def test_a_patient_in_two_parts_is_found(cohort, splits):
    patient = splits.patient_id[splits.part == "test"].iloc[0]
    extra = pd.DataFrame({"repeat": [0], "fold": [0], "patient_id": [patient], "part": ["train"]})
    row = one(part_checks(cohort, pd.concat([splits, extra])), "patients in two parts")
    assert (row.found, row.example, row.passed) == (1, patient, False)


CHANGES = {
    "the same": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "saved as JPEG": jpeg,
    "darker and flatter": lambda image: (image * 0.8 + 20).astype(np.uint8),
    "noisy": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_in_two_parts_is_found_however_it_was_saved(cohort, splits, change):
    leaky, *names = copied_into_test(cohort, splits, CHANGES[change])
    row = one(duplicate_checks(leaky, splits), "images in two parts")
    assert row.found == 1 and row.example in names


def test_images_of_one_patient_are_no_duplicates(cohort):
    rows, columns = duplicates(cohort.pixels, cohort.pixels, cohort.table.patient_id, cohort.table.patient_id)
    assert not len(rows) and not len(columns)
    rows, columns = duplicates(cohort.pixels, cohort.pixels, range(len(cohort)), np.arange(len(cohort)) + len(cohort))
    assert set(zip(range(len(cohort)), range(len(cohort)), strict=True)) <= set(zip(rows, columns, strict=True))


def test_hashes_do_not_see_brightness_contrast_or_bit_depth(cohort):
    hashes = [perceptual_hash(audits._thumbnails(p)) for p in (cohort.pixels, cohort.pixels.astype(np.uint16) * 257)]
    np.testing.assert_array_equal(*hashes)
    thumbnails = audits._thumbnails(cohort.pixels)
    np.testing.assert_array_equal(perceptual_hash(thumbnails), perceptual_hash(0.5 * thumbnails + 30))
    assert len(set(hashes[0].tolist())) == len(cohort)


# Preprocessing


def test_preprocessing_that_looks_at_other_images_is_found(cohort, splits):
    def alone(rows):
        table = cohort.table.iloc[rows]
        return Cohort(table, PHANTOM.render(table.image_id, table.label))

    def stretched(images):  # a window fitted to the whole set
        low, high = images.pixels.min(), images.pixels.mean()
        return Cohort(images.table, np.clip((images.pixels - low) * (200 / (high - low)), 0, 255).astype(np.uint8))

    assert preprocessing_check(cohort, splits, alone).passed.all()
    row = preprocessing_check(stretched(cohort), splits, lambda rows: stretched(alone(rows))).iloc[0]
    assert row.found == row.compared == 8 and not row.passed


# Fitted things


def test_the_canary_is_found_by_the_hash_in_the_weights(cohort, splits, tmp_path):
    training = cohort.part(splits, 0, 0, "train")
    Judge(channels=4, features=8).fit(training, tmp_path / "judge" / "r0f0", steps=1, seed=0, phantom=PHANTOM)
    assert weights_checks(tmp_path, cohort, splits).passed.all()
    leaky = with_canary(training, cohort, splits, (0, 0))
    assert len(leaky.patients) == len(training.patients) + 1
    Judge(channels=4, features=8).fit(leaky, tmp_path / "judge" / "r0f0", steps=1, seed=0, phantom=PHANTOM)
    row = weights_checks(tmp_path, cohort, splits).iloc[0]
    assert row.check == "judge fitted to other images" and "patients are not those" in row.example and not row.passed


def test_weights_of_other_images_of_the_same_patients_are_found(cohort, splits, tmp_path):
    training = cohort.part(splits, 0, 0, "train")
    model = CycleGAN(Settings(steps=1, batch=2, width=4, blocks=1, discriminator_width=4))
    model.fit(training, tmp_path / "cyclegan" / "r0f0", seed=0)
    assert weights_checks(tmp_path, cohort, splits).passed.all()
    inverted = Cohort(cohort.table, 255 - cohort.pixels)
    row = weights_checks(tmp_path, inverted, splits).iloc[0]
    assert row.found == 1 and "saw other images or labels" in row.example


# Synthetic images


def test_synthetic_images_of_test_patients_or_copies_of_test_images_are_found(cohort, splits):
    training, test = (cohort.part(splits, 0, 0, part) for part in ("train", "test"))
    sources = training.select(label="NFF").first(6)
    good = sources.translated(-sources.images(), "AFF", "cyclegan")
    assert synthetic_checks({((0, 0), "cyclegan"): good}, cohort, splits).passed.all()

    def found(made):
        table = synthetic_checks({((0, 0), "cyclegan"): made}, cohort, splits)
        return dict(zip(table.check.str.removeprefix("synthetic images "), table.found, strict=True))

    strangers = test.select(label="NFF").first(2)
    from_test = found(good.join(strangers.translated(-strangers.images(), "AFF", "cyclegan")))
    assert from_test["from outside the training part"] == from_test["of patients who validate or test"] == 2
    pixels = good.pixels.copy()
    pixels[3] = test.pixels[0]
    assert found(Cohort(good.table, pixels))["that repeat a validation or test image"] == 1
    hidden = copies(test, np.arange(2), "oracle")
    assert not synthetic_checks({((0, 0), "oracle"): hidden}, cohort, splits).passed.all()


# Keeping and stopping


def test_the_audit_keeps_its_table_and_stops_at_a_leak(tmp_path, cohort, splits):
    path = tmp_path / "audit.csv"
    audit(path, part_checks(cohort, splits), duplicate_checks(cohort, splits))
    leaky = copied_into_test(cohort, splits, jpeg)[0]
    with pytest.raises(LeakError, match=r"r0f0: images in two parts: 1 of \d+, such as p0"):
        audit(path, duplicate_checks(leaky, splits))
    table = pd.read_csv(path)
    assert list(table) == list(audits.COLUMNS) and len(table) == 6  # the new rows took the place of the old
    assert set(table.check[~table.passed]) == {"images in two parts"}
