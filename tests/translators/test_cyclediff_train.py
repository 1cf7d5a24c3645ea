"""A training step of CycleDiff: which network sees what, what each update goes down, at which rate."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.run.hardware import accelerator
from lib.run.randomness import torch_generator
from lib.translators.cyclediff import train
from lib.translators.cyclediff.losses import contrastive_loss
from lib.translators.cyclediff.networks import Networks
from lib.translators.cyclediff.settings import PUBLISHED
from lib.translators.cyclediff.train import CycleDiffTraining

TOY = replace(
    PUBLISHED, diffusion_weights="released",
    autoencoder="pixels", warmup_steps=2, joint_steps=2, batch=2, unet_width=8, unet_multipliers=(1, 2), unet_blocks=1,
    unet_attention=(4,), translator_width=4, translator_blocks=1, discriminator_width=4, vgg16_weights="none",
    perceptual=0.0,
)  # fmt: skip


class Affine(nn.Module):
    """C, t → scale·C + shift·t: a translator that can be computed by hand."""

    def __init__(self, scale: float, shift: float):
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, C, t):
        return self.scale * C + self.shift * t[:, None, None, None]


class Score(Affine):
    """The same of the first channel, for a discriminator that keeps what it was shown."""

    def __init__(self, scale: float, shift: float):
        super().__init__(scale, shift)
        self.shown = []

    def forward(self, C, t):
        self.shown.append((C.detach(), t))
        return super().forward(C[:, :1], t)


def toy_training(monkeypatch, **changes) -> tuple[CycleDiffTraining, dict]:
    """With translators and discriminators to compute by hand, and the losses of its updates instead of the updates."""
    X, Y = (torch.rand(6, 1, 16, 16, generator=torch_generator(i)) * 2 - 1 for i in range(2))
    machine, settings = accelerator(), replace(TOY, **changes)
    training = CycleDiffTraining(Networks.build(settings, 16, machine.device), settings, X, Y, 0, machine)
    training.networks.G, training.networks.F = Affine(2.0, 1.0), Affine(-0.5, 0.3)
    training.D_X, training.D_Y = Score(0.7, 1.0), Score(-0.4, -1.0)
    updates = {}
    monkeypatch.setattr(training, "update", lambda step, loss, terms, *names: updates.update({names: loss.item()}))
    return training, updates


@pytest.mark.parametrize("contrastive", [0.02, 0.0])
@pytest.mark.parametrize("joint", ["both", "diffusion_only", "frozen"])
def test_a_joint_step_by_hand(monkeypatch, joint, contrastive):
    training, updates = toy_training(monkeypatch, joint=joint, contrastive=contrastive)
    random = torch_generator(1)
    C_X, C_Y, *drawn = (torch.randn(2, 4, 8, 8, generator=random).to(training.device) for _ in range(10))
    compared, times = [(*drawn[:4], torch.rand(2)), (*drawn[4:], torch.rand(2))], []
    monkeypatch.setattr(training, "_denoise", lambda _, latents, t, r: times.append(t) or ((C_X, C_Y), compared))
    row = training.step(training.ends[1])
    terms = {name: value for name, value in row.items() if name not in ("stage", "learning_rate")}

    t = times[0][:, None, None, None]
    C_XY, C_YX = 2 * C_X + t, -0.5 * C_Y + 0.3 * t
    C_XYX, C_YXY = -0.5 * C_XY + 0.3 * t, 2 * C_YX + t
    D_X, D_Y = (lambda C: 0.7 * C[:, :1] + t), (lambda C: -0.4 * C[:, :1] - t)
    expected = {
        "adversarial_G": ((D_Y(C_XY) - 1) ** 2).mean(),
        "adversarial_F": ((D_X(C_YX) - 1) ** 2).mean(),
        "cycle_X": abs(C_XYX - C_X).mean(),
        "cycle_Y": abs(C_YXY - C_Y).mean(),
        "identity_X": abs(-0.5 * C_X + 0.3 * t - C_X).mean(),
        "identity_Y": abs(2 * C_Y + t - C_Y).mean(),
        "D_X": (((D_X(C_X) - 1) ** 2).mean() + (D_X(C_YX) ** 2).mean()) / 2,
        "D_Y": (((D_Y(C_Y) - 1) ** 2).mean() + (D_Y(C_XY) ** 2).mean()) / 2,
    }
    if joint != "frozen":
        for name, (x0, eps, C_hat, eps_hat, _) in zip("XY", compared, strict=True):
            expected[f"diffusion_{name}"] = ((C_hat + x0) ** 2 + (eps_hat - eps) ** 2).mean()
    if contrastive:
        expected["contrastive_X"] = contrastive_loss(D_X(C_X), D_X(C_YX))
        expected["contrastive_Y"] = contrastive_loss(D_Y(C_Y), D_Y(C_XY))
    expected = {name: value.item() for name, value in expected.items()}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)

    def both(term: str) -> float:
        return sum(value for name, value in expected.items() if name.startswith(term))

    assert updates == {
        ("T",) if joint == "frozen" else ("T", "U"): pytest.approx(
            0.05 * both("diffusion") + both("adversarial") + 10 * both("cycle") + 5 * both("identity"), rel=1e-5
        ),
        ("D",): pytest.approx(both("D_") + contrastive * both("contrastive"), rel=1e-5),
    }


def test_past_fakes_are_shown_with_their_own_times(monkeypatch):
    training, _ = toy_training(monkeypatch, pool=1, joint_steps=8, identity=0.0)
    training.networks.G, training.networks.F = Affine(0.0, 1.0), Affine(0.0, 1.0)  # a component that holds its time
    past = 0
    for step in range(training.ends[1], training.steps):
        training.step(step)
        for D in (training.D_X, training.D_Y):
            (_, now), (C, t) = D.shown[-2:]  # for the translators, then for the discriminator: two real, two fakes
            assert torch.equal(t[:2], now) and torch.equal(C[2:, 0, 0, 0], t[2:])
            past += (t[2:] != now).sum()
    assert past > 0


@pytest.mark.parametrize(("weights", "loss"), [("released", 20.0), ("plain", 2.0)])
def test_the_warm_up_goes_down_its_own_weights_and_reports_the_plain_loss(monkeypatch, weights, loss):
    training, updates = toy_training(monkeypatch, diffusion_weights=weights)
    values = {"plain": torch.tensor(1.0), "released": torch.tensor(10.0)}
    monkeypatch.setattr(train, "diffusion_loss", lambda *parts: values[parts[5] if len(parts) > 5 else "plain"])
    row = training.step(0)
    terms = {name: value for name, value in row.items() if name.startswith("diffusion")}
    assert updates == {("U",): loss} and row["stage"] == "warm-up" and terms == {"diffusion_X": 1.0, "diffusion_Y": 1.0}


@pytest.mark.parametrize(
    ("joint", "floor", "rates"),
    [
        ("both", 1e-5, [1e-4, 7.75e-5, 5.5e-5, 3.25e-5]),  # a rate, not a factor; over all steps that train the U-Nets
        ("diffusion_only", 0.0, [1e-4, 7.5e-5, 5e-5, 2.5e-5]),
        ("frozen", 1e-5, [1e-4, 5.5e-5, 1e-5, 1e-5]),
        ("both", 1.0, [1e-4] * 4),  # a floor above the rate leaves it as it is
    ],
)
def test_the_unets_learning_rate_falls_to_its_floor(monkeypatch, joint, floor, rates):
    training, _ = toy_training(monkeypatch, joint=joint, unet_learning_rate_floor=floor)
    seen = []
    for step in range(4):
        training.step(step)
        seen.append(training.optimisers["U"].param_groups[0]["lr"])
    assert seen == pytest.approx(rates)


def test_vgg16_on_latents_that_are_too_small_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(train, "vgg16_features", lambda weights: (nn.Identity(), "VGG16"))
    with pytest.raises(ValueError, match=r"VGG16 needs latents of at least 16 x 16, these have 8 x 8"):
        toy_training(monkeypatch, perceptual=0.5)
