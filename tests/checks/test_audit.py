"""The leak audit: what it finds, what it does not, and that it stops."""

import io

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
from lib.data.splits import fold_name, make_splits, with_windows
from lib.fidelity import controls
from lib.fidelity.controls import with_canary
from lib.fidelity.judge import Judge
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
    table = pd.concat([part_checks(cohort, splits), duplicate_checks(cohort, splits, duplicate_pairs(cohort))])
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
    row = one(duplicate_checks(leaky, splits, duplicate_pairs(leaky)), "images in two parts")
    assert row.found == 1 and row.example in names


# Preprocessing


def test_a_window_that_was_fitted_to_all_images_is_found(cohort, splits):
    windowed = with_windows(splits, cohort, (10, 90))
    assert window_checks(cohort, windowed, (10, 90)).passed.all()
    held_out = cohort.table.patient_id.isin(splits.patient_id[splits.part != "train"]).to_numpy()
    darker = Cohort(cohort.table, np.where(held_out[:, None, None], cohort.pixels // 4, cohort.pixels))
    leaky = with_windows(splits.assign(part="train"), darker, (10, 90)).assign(part=splits.part)
    assert not window_checks(darker, leaky, (10, 90)).passed.any()


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
    blurred = to_images(gaussian_filter(sources.pixels, 3, axes=(1, 2)))
    good = sources.translated(blurred, "AFF", "cyclegan", patients_hash(training))
    assert synthetic_checks({((0, 0), "cyclegan"): good}, cohort, splits).passed.all()

    def found(made):
        table = synthetic_checks({((0, 0), "cyclegan"): made}, cohort, splits)
        return dict(zip(table.check.str.removeprefix("synthetic images "), table.found, strict=True))

    strangers = test.select(label="NFF").first(2)
    from_test = found(good.join(strangers.translated(-strangers.images(), "AFF", "cyclegan", patients_hash(training))))
    assert from_test["from outside the training part"] == from_test["of patients who validate or test"] == 2
    pixels = good.pixels.copy()
    pixels[3] = test.pixels[0]
    assert found(Cohort(good.table, pixels))["that repeat a validation or test image"] == 1
    hidden = test.copies(np.arange(2), "oracle")
    assert not synthetic_checks({((0, 0), "oracle"): hidden}, cohort, splits).passed.all()


def test_images_of_another_cells_generator_are_found(cohort, splits, tmp_path):
    parts = {cell: cohort.part(splits, *cell, "train") for cell in ((0, 0), (0, 1))}
    for name, model in (
        ("cyclegan", CycleGAN(Settings(steps=1, batch=2, width=4, blocks=1, discriminator_width=4))),
        ("cyclediff", CycleDiff(TINY, Sampler(sampling_steps=1, noise_steps=1, start_t=0.5))),
    ):
        for cell, training in parts.items():
            model.fit(training, tmp_path / name / fold_name(*cell), seed=0)
    sources = parts[0, 0].select(label="NFF").first(3)
    check = "synthetic images of another cell's generator"

    def row(made, method):
        made.save(tmp_path / "made")
        return one(synthetic_checks({((0, 0), method): Cohort.load(tmp_path / "made")}, cohort, splits), check)

    for cell, own in (((0, 0), True), ((0, 1), False)):
        gan, diffusion = (
            kind.load(tmp_path / name / fold_name(*cell))
            for name, kind in (("cyclegan", CycleGAN), ("cyclediff", CycleDiff))
        )
        for method, made in (
            ("cyclegan", gan.translate(sources)),
            ("cyclediff", diffusion.translate(sources)),
            ("noise", diffusion.sample(3, "AFF", seed=0, like=sources)),
        ):
            assert row(made, method).found == (0 if own else 3) and row(made, method).passed == own
            nameless = Cohort(made.table.drop(columns="generator"), made.pixels)
            assert row(nameless, method).found == 3
    useless = synthetic_checks({((0, 0), "useless"): controls.useless(sources)}, cohort, splits)
    assert check not in set(useless.check) and useless.passed.all()


# Keeping and stopping


def test_the_audit_keeps_its_table_and_stops_at_a_leak(tmp_path, cohort, splits):
    path = tmp_path / "audit.csv"
    audit(path, part_checks(cohort, splits), duplicate_checks(cohort, splits, duplicate_pairs(cohort)))
    leaky = copied_into_test(cohort, splits, jpeg)[0]
    with pytest.raises(LeakError, match=r"r0f0: images in two parts: 1 of \d+, such as p0"):
        audit(path, duplicate_checks(leaky, splits, duplicate_pairs(leaky)))
    table = pd.read_csv(path)
    assert list(table) == list(audits.COLUMNS) and len(table) == 6  # the new rows took the place of the old
    assert set(table.check[~table.passed]) == {"images in two parts"}
