"""Every term of CycleDiff's objective on a worked example."""

import math
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from lib.run.randomness import torch_generator
from lib.translators.cyclediff.losses import (
    contrastive_loss,
    cycle_loss,
    diffusion_loss,
    identity_loss,
    objective,
    perceptual_loss,
    vgg16_features,
)
from lib.translators.cyclediff.process import diffuse, precondition
from lib.translators.cyclediff.settings import PUBLISHED
from lib.translators.networks import lsgan_discriminator, lsgan_generator


def latents(seed: int, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch_generator(seed), dtype=torch.float64)


def test_diffusion_loss_on_a_worked_example():
    x0, eps, C_hat, eps_hat = (torch.full((1, 1, 1, 1), value) for value in (1.0, 0.0, -0.5, 0.5))
    t = torch.tensor([0.5])
    # (C_hat − C)² = 0.25, (ε_hat − ε)² = 0.25; x_t = 0.5, x̂_0 = 0.5 + 0.25 − 0.25 = 0.5, |x̂_0 − x_0| = 0.5
    assert diffusion_loss(x0, eps, C_hat, eps_hat, t, "plain").item() == pytest.approx(0.5)
    released = 2 * 0.25 + ((0.5 / 0.501) ** 2 + 1) * 0.25 - 0.5 * math.log(0.5) * 0.5
    assert diffusion_loss(x0, eps, C_hat, eps_hat, t, "released").item() == pytest.approx(released, rel=1e-6)


@pytest.mark.parametrize("weights", ["plain", "released"])
def test_diffusion_loss_of_the_truth_is_zero_and_finite_at_the_ends(weights):
    x0, eps, t = latents(0), latents(1), torch.tensor([1e-3, 0.5, 1], dtype=torch.float64)
    assert diffusion_loss(x0, eps, -x0, eps, t, weights).item() == pytest.approx(0, abs=1e-12)
    C, eps_hat = precondition(diffuse(x0, t, eps), t, latents(2))
    assert 0 < diffusion_loss(x0, eps, C, eps_hat, t, weights) < 1e3


def test_plain_weights_are_the_squared_error_of_the_one_output_and_released_ones_about_twice_that():
    """With one head ‖C_θ − C‖² + ‖ε_θ − ε‖² = ‖F_θ − F‖² at every t, where F is the output that would be right."""
    x0, eps, F_theta = latents(0, 1), latents(1, 1), latents(2, 1)
    for time in (0.01, 0.3, 0.7):
        t = torch.tensor([time], dtype=torch.float64)
        x_t, n = diffuse(x0, t, eps), time**2 + (time - 1) ** 2
        F = (-x0 - (time - 1) / n * x_t) * n**0.5 / time
        pair = precondition(x_t, t, F_theta)
        plain = diffusion_loss(x0, eps, *pair, t, "plain")
        torch.testing.assert_close(plain, (F_theta - F).square().mean())
        image = -0.5 * t.log() * (pair[0] + x0).abs().mean()
        released = diffusion_loss(x0, eps, *pair, t, "released") - image.squeeze()
        assert released / plain == pytest.approx(2, abs=0.02)


def test_adversarial_losses():
    fake, real = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.5])
    assert lsgan_generator(fake).item() == pytest.approx((0.25 + 1) / 2)
    assert lsgan_discriminator(real, fake).item() == pytest.approx(0.5 * (0.25 / 2 + 0.25 / 2))


def test_cycle_and_identity_losses_are_mean_absolute_differences():
    C, other = torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([[0.5, -1.0], [0.0, 4.0]])
    for loss in (cycle_loss, identity_loss):
        assert loss(C, other).item() == pytest.approx(2.5 / 4) and loss(C, C) == 0
        assert loss(C.bfloat16(), other.bfloat16()).dtype == torch.float32


def test_objective_is_equation_13_with_the_published_weights():
    s = PUBLISHED
    assert (s.diffusion, s.adversarial, s.cycle, s.identity, s.perceptual) == (0.05, 1, 10, 5, 0.5)
    assert s.contrastive == 0.02
    names = ("diffusion_X", "diffusion_Y", "adversarial_G", "adversarial_F", "cycle_X", "cycle_Y", "identity_X",
             "identity_Y", "perceptual_X", "perceptual_Y")  # fmt: skip
    terms = {name: torch.tensor(float(i)) for i, name in enumerate(names)}
    assert objective(terms, s).item() == pytest.approx(0.05 * 1 + 1 * 5 + 10 * 9 + 5 * 13 + 0.5 * 17)
    assert objective({"cycle_X": torch.tensor(2.0)}, s).item() == 20


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
    save_file(state, tmp_path / "vgg16.safetensors")
    features, said = vgg16_features(str(tmp_path / "vgg16.safetensors"))
    assert said == "VGG16, vgg16.safetensors"
    C = torch.randn(1, 3, 16, 16)
    maps = features(C)
    assert [m.shape[1:] for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
    torch.testing.assert_close(maps[-1], network.features[:30](C))
    assert features(torch.randn(2, 4, 16, 16))[0].shape == (8, 64, 16, 16)  # each of four channels is a grey picture
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no state dict of torchvision's vgg16"):
        vgg16_features(str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="no such file"):
        vgg16_features(str(tmp_path / "missing.safetensors"))


def test_without_vgg16_the_fallback_is_said(monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise URLError("offline")

    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", refuse)
    features, said = vgg16_features("imagenet")
    assert features is None and "U-Net" in said and "could not be downloaded" in said
    assert "WARNING" in capsys.readouterr().out
