"""The leak audit: what it finds, what it does not, and that it stops."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from lib.checks import audit as audits
from lib.checks.audit import (
    audit,
    duplicate_checks,
    part_checks,
    preprocessing_check,
    synthetic_checks,
    weights_checks,
    window_checks,
)
from lib.data.cohort import Cohort, to_images
from lib.data.duplicates import duplicate_pairs
from lib.data.hashes import patients_hash
from lib.data.leaks import LeakError
from lib.data.phantom import Phantom
from lib.data.splits import fit_windows, make_splits
from lib.fidelity import controls
from lib.fidelity.controls import with_canary
from lib.fidelity.judge import Judge
from lib.run.folder import Run
from lib.study import Study
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.settings import Sampler
from lib.translators.cyclediff.settings import Settings as DiffusionSettings
from lib.translators.cyclegan import CycleGAN, Settings

PHANTOM = Phantom(patients=60, size=64, aff_share=0.4, seed=5)
TINY = DiffusionSettings(
    autoencoder="pixels", warmup_steps=1, joint_steps=1, batch=2, unet_width=8, unet_multipliers=(1,), unet_blocks=1,
    unet_attention=(), translator_width=4, translator_blocks=1, discriminator_width=4, vgg16_weights="none", t_max=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    cohort = PHANTOM.cohort()
    return cohort, make_splits(cohort.patients, repeats=1, folds=2, seed=0)


@pytest.fixture
def study(whole, tmp_path):
    return Study(Run(tmp_path), *whole, PHANTOM)


def one(table, check):
    """The only row of this check in the first fold."""
    return table[table.check == check].iloc[0]


def copied_into_test(study, change):
    """The study with a training image of the first fold, changed, in the place of one of its test images."""
    fold, cohort = study.fold(), study.cohort
    train, test = (part.table.image_id.iloc[0] for part in (fold.train, fold.test))
    source, target = (cohort.table.index[cohort.table.image_id == image][0] for image in (train, test))
    pixels = cohort.pixels.copy()
    pixels[target] = change(pixels[source])
    return replace(study, cohort=Cohort(cohort.table, pixels)), f"{train} and {test}", f"{test} and {train}"


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


# Parts and duplicates


def test_clean_splits_pass(study):
    table = pd.concat([part_checks(study), duplicate_checks(study, duplicate_pairs(study.cohort))])
    assert table.passed.all() and (table.found == 0).all() and len(table) == 6
    assert one(table, "patients in two parts").compared == 60
    assert one(table, "images in two parts").compared == len(study.cohort)


def test_a_patient_in_two_parts_is_found(study):
    splits = study.splits
    patient = splits.patient_id[splits.part == "test"].iloc[0]
    extra = pd.DataFrame({"repeat": [0], "fold": [0], "patient_id": [patient], "part": ["train"]})
    row = one(part_checks(replace(study, splits=pd.concat([splits, extra]))), "patients in two parts")
    assert (row.found, row.example, row.passed) == (1, patient, False)


CHANGES = {
    "the same": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "saved as JPEG": jpeg,
    "darker and flatter": lambda image: (image * 0.8 + 20).astype(np.uint8),
    "noisy": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_in_two_parts_is_found_however_it_was_saved(study, change):
    leaky, *names = copied_into_test(study, CHANGES[change])
    row = one(duplicate_checks(leaky, duplicate_pairs(leaky.cohort)), "images in two parts")
    assert row.found == 1 and row.example in names


# Preprocessing


def test_a_window_that_was_fitted_to_all_images_is_found(study):
    cohort, splits = study.cohort, study.splits
    windowed = replace(study, windows=fit_windows(splits, cohort, (10, 90)))
    assert window_checks(windowed, (10, 90)).passed.all()
    held_out = cohort.table.patient_id.isin(splits.patient_id[splits.part != "train"]).to_numpy()
    darker = Cohort(cohort.table, np.where(held_out[:, None, None], cohort.pixels // 4, cohort.pixels))
    leaky = replace(study, cohort=darker, windows=fit_windows(splits.assign(part="train"), darker, (10, 90)))
    assert not window_checks(leaky, (10, 90)).passed.any()


def test_preprocessing_that_looks_at_other_images_is_found(study):
    def alone(rows):
        table = study.cohort.table.iloc[rows]
        return Cohort(table, PHANTOM.render(table.image_id, table.label))

    def stretched(images):  # a window fitted to the whole set
        low, high = images.pixels.min(), images.pixels.mean()
        return Cohort(images.table, np.clip((images.pixels - low) * (200 / (high - low)), 0, 255).astype(np.uint8))

    assert preprocessing_check(study, alone).passed.all()
    leaky = replace(study, cohort=stretched(study.cohort))
    row = preprocessing_check(leaky, lambda rows: stretched(alone(rows))).iloc[0]
    assert row.found == row.compared == 8 and not row.passed


# Fitted things


def test_the_canary_is_found_by_the_hash_in_the_weights(study):
    fold = study.fold()
    Judge(channels=4, features=8).fit(fold.train, fold.folder("judge"), steps=1, seed=0, phantom=PHANTOM)
    assert weights_checks(study).passed.all()
    leaky = with_canary(fold)
    assert len(leaky.patients) == len(fold.train.patients) + 1
    Judge(channels=4, features=8).fit(leaky, fold.folder("judge"), steps=1, seed=0, phantom=PHANTOM)
    row = weights_checks(study).iloc[0]
    assert row.check == "judge fitted to other images" and "patients are not those" in row.example and not row.passed


def test_weights_of_other_images_of_the_same_patients_are_found(study):
    fold = study.fold()
    model = CycleGAN(Settings(steps=1, batch=2, width=4, blocks=1, discriminator_width=4))
    model.fit(fold.train, fold.folder("cyclegan"), seed=0)
    Judge(channels=4, features=8).fit(fold.train, fold.folder("judge"), steps=1, seed=0, phantom=PHANTOM)
    table = weights_checks(study)
    assert table.passed.all() and list(table.compared) == [1, 1] and len(weights_checks(study, "cyclegan")) == 1
    inverted = Cohort(study.cohort.table, 255 - study.cohort.pixels)
    table = weights_checks(replace(study, cohort=inverted))
    assert (table.found == 1).all() and table.example.str.contains("saw other images or labels").all()


# Synthetic images


def test_synthetic_images_of_test_patients_or_copies_of_test_images_are_found(study):
    fold = study.fold()
    training, test = fold.train, fold.test
    sources = training.select(label="NFF").first(6)
    blurred = to_images(gaussian_filter(sources.pixels, 3, axes=(1, 2)))
    good = sources.translated(blurred, "AFF", "cyclegan", patients_hash(training))
    assert synthetic_checks(fold, {"cyclegan": good}).passed.all()

    def found(made):
        table = synthetic_checks(fold, {"cyclegan": made})
        return dict(zip(table.check.str.removeprefix("synthetic images "), table.found, strict=True))

    strangers = test.select(label="NFF").first(2)
    from_test = found(good.join(strangers.translated(-strangers.images(), "AFF", "cyclegan", patients_hash(training))))
    assert from_test["from outside the training part"] == from_test["of patients who validate or test"] == 2
    pixels = good.pixels.copy()
    pixels[3] = test.pixels[0]
    assert found(Cohort(good.table, pixels))["that repeat a validation or test image"] == 1
    hidden = test.copies(np.arange(2), "oracle")
    assert not synthetic_checks(fold, {"oracle": hidden}).passed.all()


def test_images_of_another_folds_generator_are_found(study, tmp_path):
    for name, model in (
        ("cyclegan", CycleGAN(Settings(steps=1, batch=2, width=4, blocks=1, discriminator_width=4))),
        ("cyclediff", CycleDiff(TINY, Sampler(sampling_steps=1, noise_steps=1, start_t=0.5))),
    ):
        for fold in study.folds:
            model.fit(fold.train, fold.folder(name), seed=0)
    first = study.fold()
    sources = first.train.select(label="NFF").first(3)
    check = "synthetic images of another fold's generator"

    def row(made, method):
        made.save(tmp_path / "made")
        return one(synthetic_checks(first, {method: Cohort.load(tmp_path / "made")}), check)

    for fold, own in zip(study.folds, (True, False), strict=True):
        gan, diffusion = CycleGAN.load(fold.folder("cyclegan")), CycleDiff.load(fold.folder("cyclediff"))
        for method, made in (
            ("cyclegan", gan.translate(sources)),
            ("cyclediff", diffusion.translate(sources)),
            ("noise", diffusion.sample(3, "AFF", seed=0, like=sources)),
        ):
            assert row(made, method).found == (0 if own else 3) and row(made, method).passed == own
            nameless = Cohort(made.table.drop(columns="generator"), made.pixels)
            assert row(nameless, method).found == 3
    useless = synthetic_checks(first, {"useless": controls.useless(sources)})
    assert check not in set(useless.check) and useless.passed.all()


# Keeping and stopping


def test_the_audit_keeps_its_table_and_stops_at_a_leak(tmp_path, study):
    path = tmp_path / "audit.csv"
    audit(path, part_checks(study), duplicate_checks(study, duplicate_pairs(study.cohort)))
    leaky = copied_into_test(study, jpeg)[0]
    with pytest.raises(LeakError, match=r"r0f0: images in two parts: 1 of \d+, such as p0"):
        audit(path, duplicate_checks(leaky, duplicate_pairs(leaky.cohort)))
    table = pd.read_csv(path)
    assert list(table) == list(audits.COLUMNS) and len(table) == 6  # the new rows took the place of the old
    assert set(table.check[~table.passed]) == {"images in two parts"}
