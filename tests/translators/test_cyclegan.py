"""CycleGAN, toy-sized: 16 px, 4 channels, a few steps."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from toys import TOY, line_cohort

from lib.run.checkpoints import Checkpoint
from lib.run.randomness import torch_generator
from lib.run.weights import weights_metadata
from lib.translators import cyclegan
from lib.translators.cyclegan import CycleGAN, Generator, Settings
from lib.translators.training import History


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained toy, its folder, its history, and the cohort."""
    folder, cohort, gan = tmp_path_factory.mktemp("cyclegan"), line_cohort(), CycleGAN(TOY)
    return gan, folder, gan.fit(cohort, folder, seed=0, preview=cohort.take(range(4))), cohort


def weights(gan: CycleGAN) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for network in vars(gan.networks).values() for p in network.parameters()])


def test_history_and_files(trained):
    _, folder, history, cohort = trained
    assert list(history.step) == [2, 4, 6]
    assert {"adversarial_G", "cycle_X", "identity_Y", "D_X", "D_Y"} <= set(history)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    metadata = weights_metadata(folder / "weights.safetensors")
    assert metadata["method"] == "cyclegan" and metadata["seed"] == 0 and metadata["steps"] == 6
    assert Settings(**metadata["settings"]) == TOY and {"patients_hash", "cohort_hash"} <= set(metadata)
    previews = sorted((folder / "previews").iterdir())
    assert [path.stem for path in previews] == ["0000003", "0000006"]
    assert np.load(previews[-1]).shape == (4, 16, 16) and np.load(previews[-1]).dtype == cohort.pixels.dtype


def test_last_preview_is_what_translate_gives(trained):
    gan, folder, _, cohort = trained
    preview = np.load(folder / "previews" / "0000006.npy")
    shown = cohort.take(range(4))
    for source, to in (("NFF", "AFF"), ("AFF", "NFF")):
        pixels = gan.translate(shown.select(label=source), to).pixels.astype(int)
        assert abs(preview[shown.table.label == source] - pixels).max() <= 1


def test_same_seed_same_weights_other_seed_others(trained, tmp_path):
    gan, _, history, cohort = trained
    again, other = CycleGAN(TOY), CycleGAN(TOY)
    pd.testing.assert_frame_equal(again.fit(cohort, tmp_path / "again", seed=0), history)
    other.fit(cohort, tmp_path / "other", seed=1)
    assert torch.equal(weights(gan), weights(again)) and not torch.equal(weights(gan), weights(other))


def test_interrupted_training_ends_where_an_uninterrupted_one_does(trained, tmp_path, monkeypatch):
    gan, _, history, cohort = trained
    record = History.record

    def stop(self, step, **losses):
        if step == 4:
            raise KeyboardInterrupt
        record(self, step, **losses)

    with monkeypatch.context() as patch:
        patch.setattr(History, "record", stop)
        patch.setattr(Checkpoint, "due", lambda self: True)
        with pytest.raises(KeyboardInterrupt):
            CycleGAN(TOY).fit(cohort, tmp_path, seed=0)
    resumed, steps = CycleGAN(TOY), []
    monkeypatch.setattr(
        History, "record", lambda self, step, **losses: (steps.append(step), record(self, step, **losses))
    )
    pd.testing.assert_frame_equal(resumed.fit(cohort, tmp_path, seed=0), history)
    assert torch.equal(weights(gan), weights(resumed))
    assert steps == [4, 6]  # the first three steps were not repeated


def test_finished_training_is_not_repeated(trained, monkeypatch):
    gan, folder, history, cohort = trained
    monkeypatch.setattr(cyclegan, "lsgan_generator", lambda fake: pytest.fail("trained again"))
    again = CycleGAN(TOY)
    pd.testing.assert_frame_equal(again.fit(cohort, folder, seed=0), history)
    assert torch.equal(weights(gan), weights(again))


def test_load_gives_the_same_translations(trained):
    gan, folder, _, cohort = trained
    nff = cohort.select(label="NFF")
    assert np.array_equal(CycleGAN.load(folder).translate(nff).pixels, gan.translate(nff).pixels)


@pytest.mark.parametrize("to", ["AFF", "NFF"])
def test_translation_does_not_depend_on_the_batch(trained, to):
    gan, _, _, cohort = trained
    sources = cohort.select(label="NFF" if to == "AFF" else "AFF")
    one, all_at_once = (gan.translate(sources, to, batch=batch) for batch in (1, 100))
    assert abs(one.pixels.astype(int) - all_at_once.pixels).max() <= 1  # rounding of one grey level
    assert set(one.table.label) == {to} and list(one.table.source_image_id) == list(sources.table.image_id)
    assert list(one.table.patient_id) == list(sources.table.patient_id) and set(one.table.method) == {"cyclegan"}


def test_sixteen_bits_stay_sixteen_bits(trained):
    gan = trained[0]
    assert gan.translate(line_cohort(dtype=np.uint16).select(label="NFF")).pixels.dtype == np.uint16


def test_residual_generator_starts_as_the_identity():
    generator = Generator(TOY)
    generator.init_weights(torch_generator(0))
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    assert torch.equal(generator(x), x)


def test_residual_generator_stays_in_range_and_learns_at_saturated_pixels():
    generator = Generator(TOY)
    generator.init_weights(torch_generator(0))
    torch.nn.init.constant_(generator.head.bias, 1.0)
    y = generator(torch.ones(1, 1, 16, 16))
    assert y.max() <= 1
    y.sum().backward()
    assert generator.head.bias.grad > 0


def test_settings_reach_the_networks_and_the_loop(tmp_path):
    """Discriminators start undecided; skips and augmentation change what comes out of the same weights and batches."""
    first = CycleGAN(replace(TOY, steps=1)).fit(line_cohort(), tmp_path / "first", seed=0).iloc[0]
    assert first.D_X == first.D_Y == first.adversarial_G == first.adversarial_F == 0.25
    x, outputs = torch.rand(1, 1, 16, 16), []
    for skips in (True, False):
        generator = Generator(replace(TOY, residual=False, skips=skips))
        generator.init_weights(torch_generator(0))
        outputs.append(generator(x))
    assert not torch.equal(*outputs)
    plain, augmented = (
        CycleGAN(replace(TOY, diffaugment=diffaugment)).fit(line_cohort(), tmp_path / str(diffaugment), seed=0)
        for diffaugment in (False, True)
    )
    assert (plain.D_X.iloc[-1], plain.D_Y.iloc[-1]) != (augmented.D_X.iloc[-1], augmented.D_Y.iloc[-1])


def test_round_trip_of_generators_that_do_nothing_errs_by_the_noise(tmp_path):
    gan, cohort = CycleGAN(TOY), line_cohort(30, size=32).select(label="NFF")  # greys far from the ends of the scale
    gan.networks = gan.build(32)
    for network in vars(gan.networks).values():
        network.init_weights(torch_generator(0))
    assert gan.round_trip(cohort) == 0
    assert gan.round_trip(cohort, 0.05) == pytest.approx(0.05 * (2 / np.pi) ** 0.5, rel=0.02)


def test_published_generator_ends_in_tanh():
    generator = Generator(replace(TOY, residual=False))
    torch.nn.init.constant_(generator.head.bias, 50.0)
    assert generator(torch.zeros(1, 1, 16, 16)).max() == 1


def test_it_learns_to_brighten(tmp_path):
    """AFF of the toy are brighter by 0.3 of the range; a few dozen steps must go that way, and back."""
    cohort = line_cohort(24)
    settings = replace(TOY, steps=40, batch=4, learning_rate=4e-3, diffaugment=False, identity=0, cycle=1, noise=0)
    gan = CycleGAN(settings)
    gan.fit(cohort, tmp_path, seed=0)
    nff, aff = cohort.select(label="NFF"), cohort.select(label="AFF")
    assert gan.translate(nff, "AFF").pixels.mean() > nff.pixels.mean() + 30
    assert gan.translate(aff, "NFF").pixels.mean() < aff.pixels.mean() - 30


def test_clear_errors(trained, tmp_path):
    gan, _, _, cohort = trained
    with pytest.raises(ValueError, match="'i0' is AFF already"):
        gan.translate(cohort, "AFF")
    with pytest.raises(ValueError, match="to='healthy'"):
        gan.translate(cohort, "healthy")
    with pytest.raises(ValueError, match="no AFF among the 8 training images"):
        CycleGAN(TOY).fit(cohort.select(label="NFF"), tmp_path, seed=0)
    with pytest.raises(ValueError, match=r"18 x 18 pixels.*multiple of 4; set image_size to 16"):
        CycleGAN(TOY).fit(line_cohort(size=18), tmp_path, seed=0)
