"""CycleDiff: identities of the process, every loss on a worked example, toy-sized training and sampling."""

import math
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lib import cyclediff
from lib.cohort import Cohort
from lib.cyclediff import (
    CycleDiff,
    Denoisers,
    Sampler,
    Settings,
    c_in,
    contrastive_loss,
    diffuse,
    diffusion_loss,
    draw_times,
    perceptual_loss,
    precondition,
    recover_x0,
    time_grid,
    vgg16_features,
)
from lib.networks import lsgan_discriminator
from lib.training import Checkpoint, History, torch_generator, weights_metadata

TOY = Settings(
    autoencoder="pixels", warmup_steps=3, joint_steps=3, batch=2, unet_width=8, unet_multipliers=(1, 2), unet_blocks=1,
    unet_attention=(4,), translator_width=4, translator_blocks=1, discriminator_width=4, discriminator_time=True,
    pool=2, vgg16_weights="none", ema=0.5, log_every=1, previews=1,
)  # fmt: skip
KL = replace(
    TOY, autoencoder="kl", shared_autoencoder=True, autoencoder_width=4, autoencoder_steps=3,
    autoencoder_adversarial_from=2, shared_unet=True, residual=True, joint="diffusion_only", times="half_square",
)  # fmt: skip
SAMPLER = Sampler(steps=3, start_t=0.5)


def toy_cohort(n: int = 9, size: int = 16) -> Cohort:
    """A third of the images are AFF: brighter, with a dark transverse line."""
    random = np.random.default_rng(0)
    labels = ["AFF" if i % 3 == 0 else "NFF" for i in range(n)]
    pixels = random.uniform(50, 100, (n, size, size))
    for image, label in zip(pixels, labels, strict=True):
        if label == "AFF":
            image += 80
            image[size // 2] = 0
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)]})
    return Cohort(table.assign(label=labels, view="AP", side="left"), pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained toy, its folder, its history, and the cohort."""
    folder, cohort, model = tmp_path_factory.mktemp("cyclediff"), toy_cohort(), CycleDiff(TOY, SAMPLER)
    return model, folder, model.fit(cohort, folder, seed=0, preview=cohort.take(range(3))), cohort


def weights(model: CycleDiff) -> torch.Tensor:
    networks = (model.autoencoders, model.denoisers, model.G, model.F)
    return torch.cat([value.detach().flatten() for network in networks for value in network.state_dict().values()])


# The process ---------------------------------------------------------------------------------------------------------


def latents(seed: int, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch_generator(seed), dtype=torch.float64)


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_diffusion_goes_from_the_image_to_the_noise():
    x0, eps = latents(0, 3), latents(1, 3)
    x_t = diffuse(x0, times(0, 0.25, 1), eps)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * eps[1])
    torch.testing.assert_close(x_t[2], eps[2])


@given(t=st.floats(1e-3, 1), seed=st.integers(0, 1000), scale=st.floats(0, 100))
def test_every_output_of_the_unet_satisfies_equation_1(t, seed, scale):
    x_t, t = latents(seed, 1), times(t)
    C, eps = precondition(x_t, t, scale * latents(seed + 1, 1))
    torch.testing.assert_close(diffuse(-C, t, eps), x_t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recover_x0(x_t, t, C, eps), -C, rtol=1e-6, atol=1e-6)


@given(t=st.floats(1e-3, 1), seed=st.integers(0, 1000))
def test_the_true_pair_recovers_the_image(t, seed):
    x0, eps, t = latents(seed), latents(seed + 1), times(*[t] * 4)
    torch.testing.assert_close(recover_x0(diffuse(x0, t, eps), t, -x0, eps), x0)


def test_input_of_the_unet_has_unit_variance():
    x0, eps = (torch.randn(5, 1, 200, 200, generator=torch_generator(seed)) for seed in (0, 1))
    t = torch.tensor([0.01, 0.3, 0.5, 0.8, 1.0])
    variance = (c_in(t) * diffuse(x0, t, eps)).var(dim=(1, 2, 3))
    assert (abs(variance - 1) < 0.03).all()


def test_times():
    uniform, half_square = (draw_times(20_000, name, torch_generator(0)) for name in ("uniform", "half_square"))
    for t in (uniform, half_square):
        assert t.min() > cyclediff.T_MIN - 1e-9 and t.max() <= 1
    assert abs(uniform.mean() - 0.5) < 0.01 and abs(half_square.mean() - 1 / 6) < 0.01
    assert time_grid(3, 0.25, 0.75) == [0.25, 0.5, 0.75] and time_grid(1, 0.25, 0.75) == [0.75]


# The sampler with perfect networks -----------------------------------------------------------------------------------


class Perfect(nn.Module):
    """Denoisers that know the one image of each domain."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        super().__init__()
        self.images = (x, y)

    def forward(self, x_t, t, domain):
        C = -self.images[domain].expand_as(x_t)
        return C, (x_t - (t[:, None, None, None] - 1) * C) / t[:, None, None, None]


class To(nn.Module):
    """A translator that knows the component of the other domain."""

    def __init__(self, image: torch.Tensor):
        super().__init__()
        self.image = image

    def forward(self, C, t):
        return -self.image.expand_as(C)


@pytest.mark.parametrize("start", ["inverted", "fresh"])
@pytest.mark.parametrize(("steps", "start_t"), [(1, 1.0), (2, 1.0), (10, 1.0), (1, 0.1), (5, 0.25)])
def test_perfect_networks_translate_perfectly_in_any_number_of_steps(trained, monkeypatch, start, steps, start_t):
    model, _, _, cohort = trained
    X, Y = cohort.select(label="NFF").take([0]), cohort.select(label="AFF").take([0])
    x, y = (model.autoencoders.encode(torch.from_numpy(image.images()), domain) for domain, image in enumerate((X, Y)))
    monkeypatch.setattr(model, "sampler", Sampler(steps=steps, start=start, start_t=start_t))
    monkeypatch.setattr(model, "denoisers", Perfect(x, y))
    monkeypatch.setattr(model, "G", To(y))
    monkeypatch.setattr(model, "F", To(x))
    assert abs(model.translate(X, "AFF").pixels.astype(int) - Y.pixels).max() <= 1
    assert abs(model.translate(Y, "NFF").pixels.astype(int) - X.pixels).max() <= 1
    samples = model.sample(2, "AFF", seed=0, like=cohort)
    assert abs(samples.pixels.astype(int) - Y.pixels).max() <= 1


# The terms of the objective ------------------------------------------------------------------------------------------


def test_diffusion_loss_on_a_worked_example():
    x0, eps, C_hat, eps_hat = (torch.full((1, 1, 1, 1), value) for value in (1.0, 0.0, -0.5, 0.5))
    t = torch.tensor([0.5])
    # (C_hat − C)² = 0.25, (ε_hat − ε)² = 0.25; x_t = 0.5, x̂_0 = 0.5 + 0.25 − 0.25 = 0.5, |x̂_0 − x_0| = 0.5
    assert diffusion_loss(x0, eps, C_hat, eps_hat, t, "plain").item() == pytest.approx(0.5)
    released = 2 * 0.25 + ((0.5 / 0.501) ** 2 + 1) * 0.25 - 0.5 * math.log(0.5) * 0.5
    assert diffusion_loss(x0, eps, C_hat, eps_hat, t, "released").item() == pytest.approx(released, rel=1e-6)


@pytest.mark.parametrize("weights", ["plain", "released"])
def test_diffusion_loss_of_the_truth_is_zero_and_finite_at_the_ends(weights):
    x0, eps, t = latents(0, 3), latents(1, 3), times(1e-3, 0.5, 1)
    assert diffusion_loss(x0, eps, -x0, eps, t, weights).item() == pytest.approx(0, abs=1e-12)
    C, eps_hat = precondition(diffuse(x0, t, eps), t, latents(2, 3))
    assert 0 < diffusion_loss(x0, eps, C, eps_hat, t, weights) < 1e3


def test_contrastive_loss_is_the_double_loop_of_equation_9():
    real, fake = (torch.randn(2, 1, 4, 5, generator=torch_generator(seed)) for seed in (0, 1))
    total = []
    for b in range(2):
        r = [row / row.norm() for row in real[b, 0]]
        f = [row / row.norm() for row in fake[b, 0]]
        for i in range(4):
            others = [j for j in range(4) if j != i]
            logits = {("r", j): (r[i] @ r[j] / 0.1).item() for j in others}
            logits |= {("f", j): (r[i] @ f[j] / 0.1).item() for j in range(4)}
            denominator = sum(math.exp(value) for value in logits.values())
            total.append(-sum(math.log(math.exp(logits["r", j]) / denominator) for j in others) / 3)
    assert contrastive_loss(real, fake).item() == pytest.approx(np.mean(total), rel=1e-5)


def test_contrastive_loss_prefers_patches_apart_and_has_gradients():
    along, across = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    along[..., 0], across[..., 1] = 1.0, 1.0
    assert contrastive_loss(along, across) < contrastive_loss(along, along)
    real = torch.randn(2, 1, 3, 3, requires_grad=True)
    contrastive_loss(real, torch.randn(2, 1, 3, 3)).backward()
    assert real.grad.isfinite().all() and real.grad.abs().sum() > 0


def test_perceptual_loss_is_the_mean_over_layers():
    a, b = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 1, 1)], [torch.ones(1, 2, 4, 4), torch.full((1, 8, 1, 1), 3.0)]
    assert perceptual_loss(a, b) == 2
    assert perceptual_loss(a, a) == 0


def test_vgg16_from_a_file(tmp_path):
    network = torchvision.models.vgg16(weights=None, init_weights=False)
    state = {f"features.{name}": value for name, value in network.features.state_dict().items()}
    torch.save(state, tmp_path / "vgg16.pth")
    features, said = vgg16_features(str(tmp_path / "vgg16.pth"))
    assert said == "VGG16, vgg16.pth"
    C = torch.randn(1, 3, 16, 16)
    maps = features(C)
    assert [m.shape[1:] for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
    torch.testing.assert_close(maps[-1], network.features[:30](C))
    assert features(torch.randn(2, 4, 16, 16))[0].shape == (8, 64, 16, 16)  # each of four channels is a grey picture
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no state dict of torchvision's vgg16"):
        vgg16_features(str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match="no such file"):
        vgg16_features(str(tmp_path / "missing.pth"))


def test_without_vgg16_the_fallback_is_said(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise URLError("offline")

    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", refuse)
    features, said = vgg16_features("imagenet")
    assert features is None and "U-Net" in said and "could not be downloaded" in said
    assert "WARNING" in capsys.readouterr().out


# Training ------------------------------------------------------------------------------------------------------------


def test_history_and_files(trained):
    _, folder, history, _ = trained
    assert list(history.step) == [1, 2, 3, 4, 5, 6]
    assert list(history.stage) == ["warm-up"] * 3 + ["joint"] * 3
    joint = history[history.stage == "joint"].drop(columns="stage")
    assert {"diffusion_X", "cycle_Y", "identity_X", "perceptual_X", "contrastive_Y", "D_X"} <= set(joint)
    assert np.isfinite(joint.to_numpy(float)).all()
    metadata = weights_metadata(folder / "weights.safetensors")
    assert metadata["method"] == "cyclediff" and metadata["seed"] == 0 and metadata["image_size"] == 16
    assert Settings(**metadata["settings"]) == TOY and "U-Net" in metadata["perceptual"]
    assert [path.name for path in (folder / "previews").iterdir()] == ["0000006.npy"]


def test_latents_are_standardised(trained):
    model, _, _, cohort = trained
    z = model.autoencoders.encode(torch.from_numpy(cohort.images()), 0)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    back = model.autoencoders.decode(z, 1)  # pixels: one lossless space for both domains
    torch.testing.assert_close(back, torch.from_numpy(cohort.images()))


def test_same_seed_same_weights_other_seed_others(trained, tmp_path):
    model, _, history, cohort = trained
    again, other = CycleDiff(TOY, SAMPLER), CycleDiff(TOY, SAMPLER)
    pd.testing.assert_frame_equal(again.fit(cohort, tmp_path / "again", seed=0), history)
    other.fit(cohort, tmp_path / "other", seed=1)
    assert torch.equal(weights(model), weights(again)) and not torch.equal(weights(model), weights(other))


def test_interrupted_in_any_stage_it_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    cohort, record = toy_cohort(size=32), History.record
    model = CycleDiff(KL, SAMPLER)
    history = model.fit(cohort, tmp_path / "whole", seed=0)
    assert list(history.stage) == ["autoencoder"] * 3 + ["warm-up"] * 3 + ["joint"] * 3
    assert {"reconstruction", "divergence", "adversarial_autoencoder", "D_autoencoder"} <= set(history)

    ends, steps = [2, 4, 5, 7, 9], []  # within and between the stages; each time it goes on from the last

    def stop(self, step, **losses):
        if step in ends:
            ends.remove(step)
            raise KeyboardInterrupt
        steps.append(step)
        record(self, step, **losses)

    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    monkeypatch.setattr(History, "record", stop)
    while ends:
        with pytest.raises(KeyboardInterrupt):
            CycleDiff(KL, SAMPLER).fit(cohort, tmp_path / "parts", seed=0)
    resumed = CycleDiff(KL, SAMPLER)
    pd.testing.assert_frame_equal(resumed.fit(cohort, tmp_path / "parts", seed=0), history)
    assert torch.equal(weights(model), weights(resumed))
    assert steps == list(range(1, 10))  # nothing was done twice


def test_finished_training_is_not_repeated_even_with_another_sampler(trained, monkeypatch):
    model, folder, history, cohort = trained
    monkeypatch.setattr(cyclediff, "diffusion_loss", lambda *args: pytest.fail("trained again"))
    again = CycleDiff(TOY, replace(SAMPLER, steps=2))
    pd.testing.assert_frame_equal(again.fit(cohort, folder, seed=0), history)
    assert torch.equal(weights(model), weights(again))
    assert CycleDiff.load(folder).sampler.steps == 2
    model.save(folder)


@pytest.mark.parametrize(("joint", "reaches"), [("both", True), ("diffusion_only", False), ("frozen", False)])
def test_where_the_translation_loss_reaches(tmp_path, joint, reaches):
    def denoisers(cycle: float) -> torch.Tensor:
        model = CycleDiff(replace(TOY, joint=joint, cycle=cycle), SAMPLER)
        model.fit(toy_cohort(), tmp_path / f"{joint}{cycle}", seed=0)
        return torch.cat([p.detach().flatten() for p in model.denoisers.parameters()])

    assert torch.equal(denoisers(0.0), denoisers(10.0)) != reaches


def test_diffusion_models_learn(tmp_path):
    settings = replace(TOY, warmup_steps=60, joint_steps=0, shared_unet=True, unet_learning_rate=3e-3, batch=4)
    history = CycleDiff(replace(settings, dropout=0.0, log_every=1)).fit(toy_cohort(), tmp_path, seed=0)
    loss = history.diffusion_X + history.diffusion_Y
    assert loss[-20:].mean() < 0.75 * loss[:5].mean()


def test_residual_translators_start_as_the_identity():
    translator = cyclediff.Translator(4, KL)
    translator.init_weights(torch_generator(0))
    C = torch.randn(2, 4, 8, 8)
    assert torch.equal(translator(C, torch.tensor([0.1, 0.9])), C)


def test_translator_skips_change_what_comes_out_of_the_same_weights():
    C, t, outputs = torch.randn(2, 4, 8, 8), torch.tensor([0.1, 0.9]), []
    for skips in (True, False):
        translator = cyclediff.Translator(4, replace(KL, residual=False, translator_skips=skips))
        translator.init_weights(torch_generator(0))
        outputs.append(translator(C, t))
    assert not torch.equal(*outputs)


def test_discriminators_start_undecided_with_gradients_of_ordinary_size():
    """Rows of zeros would be normalised by nothing, and one huge gradient stops Adam for thousands of steps."""
    D = cyclediff.Discriminator(4, 32, replace(KL, discriminator_width=4))
    D.patches.init_weights(torch_generator(0))
    t = torch.tensor([0.1, 0.9])
    real, fake = D(torch.randn(2, 4, 32, 32), t), D(torch.randn(2, 4, 32, 32), t)
    assert (real == 0.5).all()
    (lsgan_discriminator(real, fake) + cyclediff.contrastive_loss(real, fake)).backward()
    assert all(p.grad.abs().max() < 100 for p in D.patches.last.parameters())


def test_separate_unets_know_their_domain_only():
    denoisers = Denoisers(4, 8, TOY)
    for parameter in denoisers.unets[1].parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(denoisers.unets[1].head[-1].bias, 1.0)
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    assert not torch.allclose(denoisers(x_t, t, 0)[0], denoisers(x_t, t, 1)[0])
    torch.testing.assert_close(denoisers(x_t, t, 1)[0], precondition(x_t, t, torch.ones_like(x_t))[0])


# Translating and sampling --------------------------------------------------------------------------------------------


def test_load_gives_the_same_translations(trained):
    model, folder, _, cohort = trained
    nff, loaded = cohort.select(label="NFF"), CycleDiff.load(folder)
    assert loaded.sampler == SAMPLER and loaded.settings == TOY
    assert np.array_equal(loaded.translate(nff).pixels, model.translate(nff).pixels)


@pytest.mark.parametrize("start", ["inverted", "fresh"])
def test_translation_depends_neither_on_the_batch_nor_on_the_order(trained, monkeypatch, start):
    model, _, _, cohort = trained
    monkeypatch.setattr(model, "sampler", replace(SAMPLER, start=start))
    nff = cohort.select(label="NFF")
    one, all_at_once = (model.translate(nff, batch=batch).pixels.astype(int) for batch in (1, 100))
    backwards = model.translate(nff.take(np.arange(len(nff))[::-1]), batch=4).pixels[::-1].astype(int)
    assert abs(one - all_at_once).max() <= 1 and abs(one - backwards).max() <= 1
    other = model.translate(nff, seed=1).pixels
    assert not np.array_equal(all_at_once, other)


def test_translations_know_where_they_come_from(trained):
    model, _, _, cohort = trained
    aff = cohort.select(label="AFF")
    table = model.translate(aff, "NFF").table
    assert set(table.label) == {"NFF"} and set(table.source_label) == {"AFF"} and set(table.method) == {"cyclediff"}
    assert list(table.source_image_id) == list(aff.table.image_id)
    assert list(table.patient_id) == list(aff.table.patient_id)


def test_samples_from_noise(trained):
    model, _, _, cohort = trained
    five, two = (model.sample(n, "AFF", seed=0, like=cohort, batch=2) for n in (5, 2))
    assert np.array_equal(five.pixels[:2], two.pixels)
    assert not np.array_equal(five.pixels, model.sample(5, "AFF", seed=1, like=cohort).pixels)
    assert set(five.table.label) == {"AFF"} and set(five.table.method) == {"noise"}
    assert (five.table.source_image_id == "").all() and not set(five.table.patient_id) & set(cohort.table.patient_id)
    assert five.pixels.shape == (5, 16, 16) and five.pixels.dtype == np.uint8


def test_clear_errors(trained, tmp_path):
    model, _, _, cohort = trained
    with pytest.raises(ValueError, match="'i0' is AFF already"):
        model.translate(cohort, "AFF")
    with pytest.raises(ValueError, match=r"32 x 32 pixels.*trained at image_size 16"):
        model.translate(toy_cohort(size=32), "AFF")
    with pytest.raises(RuntimeError, match="not trained"):
        CycleDiff(TOY).translate(cohort, "AFF")
    with pytest.raises(ValueError, match="no NFF among the 3 training images"):
        CycleDiff(TOY).fit(cohort.select(label="AFF"), tmp_path, seed=0)
    with pytest.raises(ValueError, match=r"36 x 36 pixels.*multiple of 8; set image_size to 32"):
        CycleDiff(TOY).fit(toy_cohort(size=36), tmp_path, seed=0)
    with pytest.raises(ValueError, match="joint='separate': choose 'both' or 'diffusion_only' or 'frozen'"):
        Settings(joint="separate")
    with pytest.raises(ValueError, match="start='middle'"):
        Sampler(start="middle")
    with pytest.raises(ValueError, match="first_t ≤ start_t"):
        Sampler(start_t=0.01)
