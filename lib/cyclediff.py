"""CycleDiff: a diffusion model for each of two domains, and cycle translators between their image components.

S. Zou, Y. Huang, R. Yi, C. Zhu, K. Xu, "CycleDiff: Cycle diffusion models for unpaired image-to-image translation",
arXiv 2508.06625 (equation numbers of its version of January 2026), on decoupled diffusion models, arXiv 2306.13720.

    symbol        here            meaning
    S, T          X, Y            the domains: X = NFF, Y = AFF; domain 0 and domain 1
    x_0           x0              latent of an image, (B, c, h, w), standardised; x_t: the same after diffusion to t
    t             t               time in (0, 1], (B,): 0 is the image, 1 pure noise
    C             C               image component, −x_0; the network's prediction: C_hat
    ε             eps             noise of N(0, I); the prediction: eps_hat
    Net_θ         Denoisers       predicts C and ε from x_t and t, a U-Net per domain (or one that is told the domain)
    G: S → T      G               translator: takes an NFF component at time t to an AFF component at t
    F: T → S      F               the way back
    D_S, D_T      D_X, D_Y        patch discriminators of components

    eq. 1       diffuse              x_t = x_0 + t·C + t·ε = (1 − t)·x_0 + t·ε
    eq. 2       precondition         (C_θ, ε_θ) = Net_θ(x_t, t), and recover_x0: x̂_0 = x_t − t·C_θ − t·ε_θ
    eqs. 3, 4   CycleDiff.fit        G(C_S, t) is a T-component, F(G(C_S, t), t) ≈ C_S, and the other way round
    eq. 5       Translator           time-dependent: FiLM residual blocks, linear attention, time-conditioned ResNet
    eq. 6       diffusion_loss       ‖C_θ − C‖² + ‖ε_θ − ε‖²
    eq. 9       contrastive_loss     real patches alike, and unlike translated ones; added to the discriminator's loss
    eq. 13      CycleDiff.fit        λ1·diffusion + λ2·adversarial + λ3·cycle + λ4·identity + λ5·perceptual
    algorithm 2 CycleDiff.translate  invert with the source model, translate every component, generate with the target

Where paper and released code disagree:

    what                                       paper           released        here
    translation loss reaches the U-Nets        yes             no              Settings.joint: "both", "diffusion_only"
    heads of the U-Net                         two decoders    one             one: ε follows from C by eq. 1
    start noise of the generation              fresh           inverted        Sampler.start: "inverted", "fresh"
    gradient clipping                          not mentioned   without effect  none
    learning-rate floor 10⁻⁵                   a rate          a factor        a rate
    passes of the U-Nets in a joint step       one             two             one, its components serve both updates
    weights of the two terms of eq. 6          1               functions of t  Settings.diffusion_weights
    precision of sampling                      not mentioned   float64         networks as in training, else float32
"""

from __future__ import annotations

import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as nnf
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import l1_loss

from lib.cohort import LABELS, Cohort, to_pixels
from lib.networks import (
    ImagePool,
    PatchGAN,
    ResidualBlock,
    ResNet,
    TimeEmbedding,
    init_weights,
    linear_decay,
    lsgan_discriminator,
    lsgan_generator,
    patch_layers,
    random_crops,
)
from lib.runs import from_root, progress
from lib.training import (
    EMA,
    Checkpoint,
    History,
    accelerator,
    batch_rows,
    cohort_hash,
    flipped,
    load_weights,
    patients_hash,
    save_weights,
    source_hash,
    torch_generator,
    weights_metadata,
)
from lib.translator import WEIGHTS, domains, save_preview, translated
from lib.unet import KLAutoencoder, LinearAttention, UNet

T_MIN = 1e-3  # times are drawn from (T_MIN, 1]


@dataclass(frozen=True)
class Settings:
    """The defaults are the paper's, or where it is silent the released code's, except where it is said.

    The discriminators' last layers start as in `PatchGAN.init_weights`.
    """

    # Autoencoder
    autoencoder: str = "kl"  # factor 4; "pixels": lossless, factor 2, nothing to train, for images up to 128 px or so
    shared_autoencoder: bool = False  # one for both domains; needed where `residual` adds latents of both
    latent_channels: int = 3  # of the KL autoencoder
    autoencoder_width: int = 64  # its channels at full size (ours; the published one starts from public kl-f4 weights)
    autoencoder_steps: int = 50_000  # ours
    autoencoder_learning_rate: float = 1e-4  # Adam; ours
    kl: float = 1e-6  # weight of the Kullback–Leibler term
    autoencoder_adversarial: float = 0.1  # weight of the adversarial term; ours
    autoencoder_adversarial_from: int = 20_001  # step from which on it counts

    # Diffusion models
    warmup_steps: int = 50_000  # diffusion models alone
    unet_width: int = 128  # channels of the first level
    unet_multipliers: tuple[int, ...] = (1, 2, 2, 2)  # channels of each level, in units of the width
    unet_blocks: int = 3  # residual blocks a level
    unet_attention: tuple[int, ...] = (16, 8)  # sides of the feature maps, in latent pixels, that get self-attention
    dropout: float = 0.1
    shared_unet: bool = False  # one U-Net told the domain: the rare class borrows anatomy (ours)
    unet_learning_rate: float = 1e-4  # AdamW, falls linearly over warm-up and joint training to …
    unet_learning_rate_floor: float = 1e-5
    diffusion_weights: str = "released"  # functions of t, and an L1 term on x̂_0; "plain": eq. 6 as printed

    # Translators and discriminators
    joint_steps: int = 50_000  # all networks together
    joint: str = "both"  # "diffusion_only": translation losses stop before the U-Nets; "frozen": U-Nets rest (ours)
    times: str = "uniform"  # of the translators; "half_square": t = ½u², near the image (ours)
    translator_width: int = 64
    translator_blocks: int = 12
    translator_skips: bool = False  # encoder's features added to the decoder's, for lines of a pixel's width (ours)
    residual: bool = False  # translators add their output to the component, so that they start as the identity (ours)
    discriminator_width: int = 64
    discriminator_layers: int = 3  # of stride 2; fewer for latents below 64 px
    discriminator_norm: bool = True  # instance norm; without it translations hardly left the source in trials
    discriminator_time: bool = False  # discriminators know t: scale and shift after the first norm (ours)
    learning_rate: float = 2e-4  # Adam, β = (0.5, 0.999); constant for half of the joint steps, then linearly to 0
    diffusion: float = 0.05  # λ1
    adversarial: float = 1.0  # λ2, least squares
    cycle: float = 10.0  # λ3, L1; 8 in the released configuration
    identity: float = 5.0  # λ4, L1; 4 in the released configuration
    perceptual: float = 0.5  # λ5, L1 of features of a component and of its round trip; 0 leaves the term out
    contrastive: float = 0.02  # λ6; 0.01 in the released configuration
    vgg16_weights: str = "imagenet"  # downloaded by torchvision; a .pth or .safetensors file; "none": U-Net features
    pool: int = 15  # past fakes kept for each discriminator, in batches

    # All stages
    batch: int = 24  # images of each domain in a step
    enlarge: float = 286 / 256  # enlarged by this factor, then cropped at random; 1 keeps the field of view
    ema: float = 0.999  # decay of the averaged U-Nets and translators, which sample
    log_every: int = 50  # steps between two rows of the history
    previews: int = 8  # times that the preview images are translated in the joint stage

    def __post_init__(self):
        for name in ("unet_multipliers", "unet_attention"):  # lists, where settings come from JSON or YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = {"autoencoder": ("kl", "pixels"), "joint": ("both", "diffusion_only", "frozen")}
        known |= {"times": ("uniform", "half_square"), "diffusion_weights": ("released", "plain")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, choices))}")


@dataclass(frozen=True)
class Sampler:
    """How images are translated. Nothing is trained anew where these change."""

    steps: int = 100  # of inversion, and as many of generation
    start: str = "inverted"  # the generation's noise, as released; "fresh": as in the paper, several results an image
    start_t: float = 1.0  # where inversion ends and generation starts; smaller keeps more, translates more (ours)
    noise_steps: int = 100  # of drawing an image from noise, all the way from t = 1
    first_t: float = 0.02  # where inversion starts, with a drawn noise: at t → 0 the predicted one divides by t (ours)

    def __post_init__(self):
        if self.start not in ("inverted", "fresh"):
            raise ValueError(f"start={self.start!r}: choose 'inverted' or 'fresh'")
        if not 0 < self.first_t <= self.start_t <= 1 or self.steps < 1:
            raise ValueError(f"needs 0 < first_t ≤ start_t ≤ 1 and steps ≥ 1, not {self}")


# The diffusion process -----------------------------------------------------------------------------------------------


def per_image(t: torch.Tensor) -> torch.Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return t[:, None, None, None]


def diffuse(x0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """x_t = x_0 + t·C + t·ε with C = −x_0 (eq. 1)."""
    C, t = -x0, per_image(t)
    return x0 + t * C + t * eps


def recover_x0(x_t: torch.Tensor, t: torch.Tensor, C: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """x̂_0 = x_t − t·C − t·ε (eq. 1 solved for x_0)."""
    t = per_image(t)
    return x_t - t * C - t * eps


def c_in(t: torch.Tensor) -> torch.Tensor:
    """Scale of the U-Net's input, 1/√n with n = t² + (t − 1)²: unit variance at every t."""
    return per_image((t**2 + (t - 1) ** 2).rsqrt())


def precondition(x_t: torch.Tensor, t: torch.Tensor, F_theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """C and ε from the U-Net's one output (eq. 2): C = (s/n)·x_t + (t/√n)·F_θ, ε = (x_t − s·C)/t, s = t − 1.

    Whatever the output is, the pair satisfies eq. 1: x_t = −C + t·C + t·ε.
    """
    t = per_image(t)
    s, n = t - 1, t**2 + (t - 1) ** 2
    C = s / n * x_t + t * n.rsqrt() * F_theta
    return C, (x_t - s * C) / t


def time_grid(steps: int, first_t: float, start_t: float) -> list[float]:
    """Times of the sampler, rising: from `first_t` to `start_t`, or only `start_t` where there is one step."""
    return np.linspace(first_t, start_t, steps).tolist() if steps > 1 else [start_t]


def draw_times(n: int, times: str, generator: torch.Generator) -> torch.Tensor:
    """(n,) times in (T_MIN, 1]: "uniform", or "half_square": t = ½u², which dwells near the image."""
    u = 1 - torch.rand(n, generator=generator)  # (0, 1]
    return T_MIN + (1 - T_MIN) * u if times == "uniform" else T_MIN + 0.5 * u**2


# The terms of the objective ------------------------------------------------------------------------------------------


def diffusion_loss(
    x0: torch.Tensor, eps: torch.Tensor, C_hat: torch.Tensor, eps_hat: torch.Tensor, t: torch.Tensor, weights: str
) -> torch.Tensor:
    """‖C_θ − C‖² + ‖ε_θ − ε‖² (eq. 6), means over pixels and images.

    With the released weights the first term counts ((t − 1)/t)² + 1, the second (t/(1 − t + 10⁻³))² + 1, and
    −½·ln(t)·‖x̂_0 − x_0‖₁ is added.
    """
    component = (C_hat + x0).square().mean(dim=(1, 2, 3))
    noise = (eps_hat - eps).square().mean(dim=(1, 2, 3))
    if weights == "plain":
        return (component + noise).mean()
    x0_hat = recover_x0(diffuse(x0, t, eps), t, C_hat, eps_hat)
    image = (x0_hat - x0).abs().mean(dim=(1, 2, 3))
    w_component, w_noise = ((t - 1) / t) ** 2 + 1, (t / (1 - t + 1e-3)) ** 2 + 1
    return (w_component * component + w_noise * noise - 0.5 * t.log() * image).mean()


def contrastive_loss(real: torch.Tensor, fake: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Real patches attract each other and repel translated ones (eq. 9).

    Parameters
    ----------
    real, fake : (B, 1, N, M) patch maps of a discriminator. Their N rows are the vectors, L2-normalised. For each real
        vector the positives are the other real ones of its image, the negatives the translated ones.
    """
    real, fake = (nnf.normalize(patches.float().squeeze(1), dim=-1) for patches in (real, fake))  # (B, N, M)
    N = real.shape[1]
    itself = torch.eye(N, dtype=torch.bool, device=real.device)
    positive = (real @ real.mT / temperature).masked_fill(itself, -torch.inf)  # (B, N, N)
    negative = real @ fake.mT / temperature
    log_softmax = torch.cat([positive, negative], dim=-1).log_softmax(dim=-1)[..., :N]
    return -log_softmax.masked_fill(itself, 0).sum(dim=-1).mean() / (N - 1)


def perceptual_loss(features: list[torch.Tensor], others: list[torch.Tensor]) -> torch.Tensor:
    """Mean over layers of the L1 distance of features."""
    return torch.stack([l1_loss(a.float(), b.float()) for a, b in zip(features, others, strict=True)]).mean()


class VGG16Features(nn.Module):
    """Features of VGG16 at the end of its five blocks, of components taken as pictures.

    Three latent channels are taken for red, green and blue, as released; otherwise each channel is a grey picture.
    """

    def __init__(self, vgg16: nn.Module):
        super().__init__()
        self.layers = vgg16.features[:30].requires_grad_(False).eval()

    def forward(self, C: torch.Tensor) -> list[torch.Tensor]:
        h = C if C.shape[1] == 3 else C.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
        features = []
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                features.append(h)
            h = layer(h)
        return [*features, h]


def vgg16_features(weights: str) -> tuple[VGG16Features | None, str]:
    """VGG16 with these weights, and a sentence on what the perceptual term uses; None where there are no weights."""
    fallback = "encoder features of the averaged denoising U-Net of the component's own domain"
    if weights == "none":
        return None, fallback
    network = torchvision.models.vgg16(weights=None, init_weights=False)
    if weights == "imagenet":
        source = torchvision.models.VGG16_Weights.IMAGENET1K_V1
        try:
            network.load_state_dict(source.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            print(f"WARNING: {source.url} could not be had ({error}): the perceptual term uses {fallback}.")
            return None, f"{fallback}; VGG16 weights could not be downloaded"
        return VGG16Features(network), f"VGG16, {source.name}"
    path = from_root(weights)
    if not path.is_file():
        raise ValueError(
            f"vgg16_weights {weights!r}: no such file; give 'imagenet', 'none', a .pth or .safetensors file"
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        features = {name: value for name, value in state.items() if name.startswith("features.")}
        network.features.load_state_dict({name.removeprefix("features."): value for name, value in features.items()})
    except Exception as error:
        raise ValueError(f"vgg16_weights {weights!r} are no state dict of torchvision's vgg16: {error}") from error
    return VGG16Features(network), f"VGG16, {path.name}"


# Networks (blocks: lib.networks, lib.unet) ----------------------------------------------------------------------------


class Denoisers(nn.Module):
    """Net_θ of both domains: a U-Net each, or one that is told the domain."""

    def __init__(self, channels: int, size: int, s: Settings):
        super().__init__()
        sizes = (channels, size, s.unet_width, s.unet_multipliers, s.unet_blocks, s.unet_attention)
        self.unets = nn.ModuleList(UNet(*sizes, s.dropout, s.shared_unet) for _ in range(1 if s.shared_unet else 2))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, domain: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(C_θ, ε_θ) of x_t (eq. 2), float32."""
        F_theta = self.unets[domain % len(self.unets)](c_in(t) * x_t, t.log(), domain)
        return precondition(x_t, t, F_theta.float())

    def features(self, C: torch.Tensor, domain: int) -> list[torch.Tensor]:
        """What the encoder makes of a component, taken as the image −C at a time close to 0."""
        unet, t = self.unets[domain % len(self.unets)], C.new_full((len(C),), 0.05)
        return unet.encode(c_in(t) * -C, unet.embed(t.log(), domain))


class Translator(nn.Module):
    """G or F (eq. 5): FiLM residual blocks, linear attention, then a ResNet encoder–decoder, all told the time.

    (B, c, h, w) component, (B,) t → component of the other domain, float32. With `residual` the output is added to the
    input; the last layer then starts at zero.
    """

    def __init__(self, channels: int, s: Settings):
        super().__init__()
        time, self.residual = 4 * s.translator_width, s.residual
        self.time = TimeEmbedding(time)
        self.stem = nn.Conv2d(channels, s.translator_width, 3, padding=1, padding_mode="reflect")
        self.blocks = nn.ModuleList(ResidualBlock(s.translator_width, time) for _ in range(2))
        self.attention = LinearAttention(s.translator_width)
        width = s.translator_width
        self.resnet = ResNet(width, channels, width, s.translator_blocks, time=time, skips=s.translator_skips)

    def init_weights(self, generator: torch.Generator) -> None:
        init_weights(self, generator)
        if self.residual:
            nn.init.zeros_(self.resnet.head.weight)

    def forward(self, C: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = self.time(t)
        h = self.stem(C)
        for block in self.blocks:
            h = block(h, time)
        h = self.resnet(self.attention(h), time).float()
        return C + h if self.residual else h


class Discriminator(nn.Module):
    """D_X or D_Y: a PatchGAN of components, told the time with `discriminator_time`."""

    def __init__(self, channels: int, size: int, s: Settings):
        super().__init__()
        time = 4 * s.discriminator_width if s.discriminator_time else None
        layers = patch_layers(size, s.discriminator_layers)
        self.time = TimeEmbedding(time) if time else None
        self.patches = PatchGAN(channels, s.discriminator_width, layers, s.discriminator_norm, time)

    def forward(self, C: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.patches(C, self.time(t) if self.time else None)


class Autoencoders(nn.Module):
    """Images to latents and back, for both domains; latents are standardised with statistics of the training images."""

    def __init__(self, s: Settings):
        super().__init__()
        self.pixels = s.autoencoder == "pixels"
        self.channels, self.factor = (4, 2) if self.pixels else (s.latent_channels, 4)
        self.shared = self.pixels or s.shared_autoencoder
        n = 0 if self.pixels else 1 if self.shared else 2
        self.nets = nn.ModuleList(KLAutoencoder(self.channels, s.autoencoder_width) for _ in range(n))
        self.register_buffer("mean", torch.zeros(2, self.channels, 1, 1))
        self.register_buffer("std", torch.ones(2, self.channels, 1, 1))

    def encode(self, images: torch.Tensor, domain: int) -> torch.Tensor:
        """(B, 1, H, W) in [-1, 1] → (B, c, H/factor, W/factor), about mean 0 and variance 1."""
        if self.pixels:
            z = nnf.pixel_unshuffle(images, 2)
        else:
            z = self.nets[domain % len(self.nets)].encoder(images).float().chunk(2, dim=1)[0]
        return (z - self.mean[domain]) / self.std[domain]

    def decode(self, z: torch.Tensor, domain: int) -> torch.Tensor:
        """(B, c, h, w) → (B, 1, H, W), in [-1, 1] up to the model's error."""
        z = z * self.std[domain] + self.mean[domain]
        return nnf.pixel_shuffle(z, 2) if self.pixels else self.nets[domain % len(self.nets)].decoder(z).float()

    @torch.no_grad()
    def standardise(self, X: torch.Tensor, Y: torch.Tensor, device: torch.device) -> None:
        """Take mean and standard deviation of each channel from all images, of both domains if they share latents."""
        self.mean.zero_()
        self.std.fill_(1)
        latents = [
            torch.cat([self.encode(batch.to(device), domain).cpu() for batch in images.split(64)])
            for domain, images in enumerate((X, Y))
        ]
        for domain, z in enumerate([torch.cat(latents)] * 2 if self.shared else latents):
            std, mean = torch.std_mean(z, dim=(0, 2, 3), keepdim=True)
            self.mean[domain], self.std[domain] = mean[0], std[0]


# The method ----------------------------------------------------------------------------------------------------------


class CycleDiff:
    """A `lib.translator.Translator`, which also samples images from noise.

    >>> settings = Settings(autoencoder="pixels", shared_unet=True, residual=True, joint="frozen")  # doctest: +SKIP
    >>> model = CycleDiff(settings, Sampler(steps=24, start_t=0.25))  # doctest: +SKIP
    >>> history = model.fit(training, Path("runs/quick/cyclediff/r0f0"), seed=0)  # doctest: +SKIP
    >>> synthetic = model.translate(training.select(label="NFF"), to="AFF")  # doctest: +SKIP
    >>> from_noise = model.sample(100, "AFF", seed=0, like=training)  # doctest: +SKIP
    """

    name = "cyclediff"

    def __init__(self, settings: Settings | None = None, sampler: Sampler | None = None):
        self.settings, self.sampler = settings or Settings(), sampler or Sampler()
        self.accelerator = accelerator()
        self.device = self.accelerator.device
        self.metadata = {"method": self.name, "settings": asdict(self.settings)}

    def _build(self, size: int) -> None:
        """The networks that translate, for images of this side; their weights come from torch's global generator."""
        s = self.settings
        self.autoencoders = self._network(Autoencoders(s))
        channels, latent = self.autoencoders.channels, size // self.autoencoders.factor
        self.denoisers = self._network(Denoisers(channels, latent, s))
        self.G, self.F = (self._network(Translator(channels, s)) for _ in range(2))

    def _network(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)

    def fit(self, cohort: Cohort, folder: Path, seed: int, preview: Cohort | None = None) -> pd.DataFrame:
        """Train on all images of the cohort and return the history of the losses (see `lib.translator.Translator`).

        Columns of the history: `step` over all stages, `stage` ("autoencoder", "warm-up", "joint"), `learning_rate`,
        and the terms, unweighted, where a stage has them: `reconstruction`, `divergence`, `adversarial_autoencoder`,
        `D_autoencoder`; `diffusion_X`, `diffusion_Y`; `adversarial_G`, `adversarial_F`, `cycle_X`, `cycle_Y`,
        `identity_X`, `identity_Y`, `perceptual_X`, `perceptual_Y`, `D_X`, `D_Y` (0.25 where a discriminator cannot
        tell), `contrastive_X`, `contrastive_Y`. `metadata["perceptual"]` says which features the perceptual term used.
        """
        s, folder = self.settings, Path(folder)
        factor = 2 if s.autoencoder == "pixels" else 4
        X, Y = domains(cohort, divisor=factor * max(4, 2 ** (len(s.unet_multipliers) - 1)), smallest=8 * factor)
        steps_autoencoder = s.autoencoder_steps if s.autoencoder == "kl" else 0
        joint_from = steps_autoencoder + s.warmup_steps
        steps = joint_from + s.joint_steps

        torch.manual_seed(seed)
        self._build(cohort.size)
        channels, size = self.autoencoders.channels, cohort.size // factor
        self.G.init_weights(torch_generator(seed, 1))
        self.F.init_weights(torch_generator(seed, 2))
        D_X, D_Y = (self._network(Discriminator(channels, size, s)) for _ in range(2))
        D_X.patches.init_weights(torch_generator(seed, 3))
        D_Y.patches.init_weights(torch_generator(seed, 4))
        averages = {name: EMA(getattr(self, name), s.ema) for name in ("denoisers", "G", "F")}
        average = averages["denoisers"].average
        vgg16, self.metadata["perceptual"] = vgg16_features(s.vgg16_weights) if s.perceptual else (None, "no such term")
        features = self._network(vgg16) if vgg16 else None

        adam = {"lr": s.learning_rate, "betas": (0.5, 0.999), "fused": True}
        optimiser_U = torch.optim.AdamW(self.denoisers.parameters(), lr=s.unet_learning_rate, fused=True)
        optimiser_T = torch.optim.Adam([*self.G.parameters(), *self.F.parameters()], **adam)
        optimiser_D = torch.optim.Adam([*D_X.parameters(), *D_Y.parameters()], **adam)
        pool_X, pool_Y, history = ImagePool(s.pool * s.batch), ImagePool(s.pool * s.batch), History()
        objects = {
            "autoencoders": self.autoencoders, "denoisers": self.denoisers, "G": self.G, "F": self.F, "D_X": D_X,
            "D_Y": D_Y, "optimiser_U": optimiser_U, "optimiser_T": optimiser_T, "optimiser_D": optimiser_D,
            "pool_X": pool_X, "pool_Y": pool_Y, "history": history,
        }  # fmt: skip
        objects |= {f"average_{name}": ema for name, ema in averages.items()}
        if steps_autoencoder:
            D_A = self._network(PatchGAN(1, s.discriminator_width, patch_layers(cohort.size, s.discriminator_layers)))
            D_A.init_weights(torch_generator(seed, 5))
            adam_A = {"lr": s.autoencoder_learning_rate, "betas": (0.5, 0.9), "fused": True}
            optimiser_A = torch.optim.Adam(self.autoencoders.parameters(), **adam_A)
            optimiser_DA = torch.optim.Adam(D_A.parameters(), **adam_A)
            objects |= {"D_A": D_A, "optimiser_A": optimiser_A, "optimiser_DA": optimiser_DA}

        self.metadata |= {"seed": seed, "steps": steps, "image_size": cohort.size}
        self.metadata |= {"cohort_hash": cohort_hash(cohort), "patients_hash": patients_hash(cohort)}
        inputs = self.metadata | {"source_hash": source_hash("cyclediff")}
        checkpoint = Checkpoint(folder / "checkpoint.pt", inputs, objects)
        done = checkpoint.load()
        if not done:
            shutil.rmtree(folder / "previews", ignore_errors=True)  # of an earlier training

        def draw(images: torch.Tensor, step: int, domain: int) -> torch.Tensor:
            rows = batch_rows(len(images), s.batch, step, seed, 10 + domain)
            batch = flipped(images[rows], seed, 20 + domain, step)
            batch = random_crops(batch, s.enlarge, torch_generator(seed, 30 + domain, step))
            return batch.to(self.device, memory_format=torch.channels_last)

        def denoise(network: Denoisers, latents: list[torch.Tensor], t: torch.Tensor, random: torch.Generator):
            """Both domains diffused to t: their predicted components, and their diffusion losses (eqs. 1, 2, 6)."""
            components, losses = [], []
            for domain, x0 in enumerate(latents):
                eps = torch.randn(x0.shape, generator=random).to(x0)
                with self.accelerator.autocast():
                    C_hat, eps_hat = network(diffuse(x0, t, eps), t, domain)
                components.append(C_hat)
                losses.append(diffusion_loss(x0, eps, C_hat, eps_hat, t, s.diffusion_weights))
            return components, losses

        bar = progress(steps, done, desc=self.name)
        for step in range(done, steps):
            stage = "autoencoder" if step < steps_autoencoder else "warm-up" if step < joint_from else "joint"
            random = torch_generator(seed, 40, step)  # of this step's noise, times and pools
            torch.manual_seed(torch_generator(seed, 41, step).initial_seed())  # of this step's dropout
            terms = {}

            # Draw a batch of each domain.
            x, y = draw(X, step, 0), draw(Y, step, 1)

            if stage == "autoencoder":
                # Update the autoencoders, then their discriminator.
                adversarial_on = step + 1 >= s.autoencoder_adversarial_from
                reconstructed, divergences = [], []
                D_A.requires_grad_(False)
                with self.accelerator.autocast():
                    for domain, images in enumerate((x, y)):
                        noise = torch.randn(s.batch, channels, size, size, generator=random).to(images)
                        nets = self.autoencoders.nets
                        back, divergence = nets[domain % len(nets)](images, noise)
                        reconstructed.append(back)
                        divergences.append(divergence)
                    back, images = torch.cat(reconstructed), torch.cat([x, y])
                    scores = D_A(back) if adversarial_on else None
                terms["reconstruction"], terms["divergence"] = l1_loss(back, images), sum(divergences) / 2
                loss = terms["reconstruction"] + s.kl * terms["divergence"]
                if adversarial_on:
                    terms["adversarial_autoencoder"] = lsgan_generator(scores)
                    loss = loss + s.autoencoder_adversarial * terms["adversarial_autoencoder"]
                optimiser_A.zero_grad()
                loss.backward()
                optimiser_A.step()
                if adversarial_on:
                    D_A.requires_grad_(True)
                    with self.accelerator.autocast():
                        real, fake = D_A(torch.cat([images, back.detach()])).chunk(2)
                    terms["D_autoencoder"] = lsgan_discriminator(real, fake)
                    optimiser_DA.zero_grad()
                    terms["D_autoencoder"].backward()
                    optimiser_DA.step()
                learning_rate = s.autoencoder_learning_rate

            else:
                # Encode; the autoencoders stay as they are from here on.
                if step == steps_autoencoder:
                    self.autoencoders.standardise(X, Y, self.device)
                with torch.no_grad(), self.accelerator.autocast():
                    latents = [self.autoencoders.encode(images, domain) for domain, images in enumerate((x, y))]
                remaining = (steps - step) / (steps - steps_autoencoder)
                for group in optimiser_U.param_groups:
                    span = s.unet_learning_rate - s.unet_learning_rate_floor
                    group["lr"] = s.unet_learning_rate_floor + span * remaining

            if stage == "warm-up":
                # Update the diffusion models alone.
                t = draw_times(s.batch, "uniform", random).to(self.device)
                _, (terms["diffusion_X"], terms["diffusion_Y"]) = denoise(self.denoisers, latents, t, random)
                optimiser_U.zero_grad()
                (terms["diffusion_X"] + terms["diffusion_Y"]).backward()
                optimiser_U.step()
                averages["denoisers"].update()
                learning_rate = optimiser_U.param_groups[0]["lr"]

            if stage == "joint":
                learning_rate = s.learning_rate * linear_decay(step - joint_from, s.joint_steps)
                for group in optimiser_T.param_groups + optimiser_D.param_groups:
                    group["lr"] = learning_rate

                # Predict the components of both domains at one time.
                t = draw_times(s.batch, s.times, random).to(self.device)
                loss = torch.zeros((), device=self.device)
                if s.joint == "frozen":
                    with torch.no_grad():
                        (C_X, C_Y), _ = denoise(average, latents, t, random)
                else:
                    (C_X, C_Y), losses = denoise(self.denoisers, latents, t, random)
                    if s.times != "uniform":  # the diffusion models go on learning all times
                        uniform = draw_times(s.batch, "uniform", random).to(self.device)
                        _, losses = denoise(self.denoisers, latents, uniform, random)
                    terms["diffusion_X"], terms["diffusion_Y"] = losses
                    loss = s.diffusion * sum(losses)
                if s.joint == "diffusion_only":
                    C_X, C_Y = C_X.detach(), C_Y.detach()

                # Translate them, there and back.
                D_X.requires_grad_(False)
                D_Y.requires_grad_(False)
                with self.accelerator.autocast():
                    tt = torch.cat([t, t])
                    C_XY, C_YY = self.G(torch.cat([C_X, C_Y]), tt).chunk(2)  # eq. 3
                    C_YX, C_XX = self.F(torch.cat([C_Y, C_X]), tt).chunk(2)  # eq. 4
                    C_XYX, C_YXY = self.F(C_XY, t), self.G(C_YX, t)
                    score_Y, score_X = D_Y(C_XY, t), D_X(C_YX, t)
                    if s.perceptual:
                        pairs = ((C_X, C_XYX), (C_Y, C_YXY))
                        seen = [
                            [features(C) if features else average.features(C, domain) for C in pair]
                            for domain, pair in enumerate(pairs)
                        ]
                        terms["perceptual_X"], terms["perceptual_Y"] = (perceptual_loss(*pair) for pair in seen)

                # Update the translators, and the diffusion models with them (eq. 13).
                terms["adversarial_G"], terms["adversarial_F"] = lsgan_generator(score_Y), lsgan_generator(score_X)
                terms["cycle_X"], terms["cycle_Y"] = l1_loss(C_XYX, C_X), l1_loss(C_YXY, C_Y)
                terms["identity_X"], terms["identity_Y"] = l1_loss(C_XX, C_X), l1_loss(C_YY, C_Y)
                loss = loss + s.adversarial * (terms["adversarial_G"] + terms["adversarial_F"])
                loss = loss + s.cycle * (terms["cycle_X"] + terms["cycle_Y"])
                loss = loss + s.identity * (terms["identity_X"] + terms["identity_Y"])
                if s.perceptual:
                    loss = loss + s.perceptual * (terms["perceptual_X"] + terms["perceptual_Y"])
                optimiser_T.zero_grad()
                optimiser_U.zero_grad()
                loss.backward()
                optimiser_T.step()
                if s.joint != "frozen":
                    optimiser_U.step()
                    averages["denoisers"].update()
                averages["G"].update()
                averages["F"].update()

                # Update the discriminators, on translated components of now and of the past with their times.
                loss_D = torch.zeros((), device=self.device)
                for name, D, real, fake, pool in (("X", D_X, C_X, C_YX, pool_X), ("Y", D_Y, C_Y, C_XY, pool_Y)):
                    D.requires_grad_(True)
                    past = pool(torch.cat([fake, per_image(t).expand_as(fake[:, :1])], dim=1), random)
                    with self.accelerator.autocast():
                        scores = D(torch.cat([real.detach(), past[:, :-1]]), torch.cat([t, past[:, -1, 0, 0]])).chunk(2)
                    terms[f"D_{name}"] = lsgan_discriminator(*scores)
                    terms[f"contrastive_{name}"] = contrastive_loss(*scores)
                    loss_D = loss_D + terms[f"D_{name}"] + s.contrastive * terms[f"contrastive_{name}"]
                optimiser_D.zero_grad()
                loss_D.backward()
                optimiser_D.step()

            # Record, show, save.
            if (step + 1) % s.log_every == 0 or step + 1 in (steps_autoencoder, joint_from, steps):
                terms = {name: term.item() for name, term in terms.items()}
                history.record(step + 1, learning_rate=learning_rate, **terms)
            show = stage == "joint" and (step + 1 - joint_from) % max(1, s.joint_steps // s.previews) == 0
            if preview is not None and show:
                networks = {name: ema.average for name, ema in averages.items()}
                save_preview(preview, {to: self._translator(to, 0, **networks) for to in LABELS}, folder, step + 1)
            if checkpoint.due() or step + 1 == steps:
                checkpoint.save(step + 1)
            bar.set_postfix_str(stage, refresh=False)
            bar.update()
        bar.close()

        # Keep the averaged networks.
        for name, ema in averages.items():
            getattr(self, name).load_state_dict(ema.average.state_dict())
        frame = history.frame()
        ends = [0, steps_autoencoder, joint_from, steps]
        frame.insert(1, "stage", np.array(["autoencoder", "warm-up", "joint"])[np.searchsorted(ends, frame.step) - 1])
        frame.to_csv(folder / "history.csv", index=False)
        self.save(folder)
        return frame

    def _translator(self, to: str, seed: int, denoisers: Denoisers, G: Translator, F: Translator):
        """A function from images to translated images (algorithm 2); an image's noise follows from it and the seed."""
        source, target = (0, 1) if to == "AFF" else (1, 0)
        translator, sampler = G if to == "AFF" else F, self.sampler
        times = time_grid(sampler.steps, sampler.first_t, sampler.start_t)
        for network in (denoisers, translator, self.autoencoders):
            network.eval()

        @torch.inference_mode()
        def translate(images: torch.Tensor) -> torch.Tensor:
            with self.accelerator.autocast():
                # Encode, and go a little way along a noise of the image's own.
                x0 = self.autoencoders.encode(images.to(self.device, memory_format=torch.channels_last), source)
                randoms = [torch_generator(seed, zlib.crc32(image.numpy().tobytes())) for image in images]
                eps = torch.stack([torch.randn(x0.shape[1:], generator=random) for random in randoms]).to(x0)
                x_t = diffuse(x0, x0.new_full((len(x0),), times[0]), eps)

                # Invert with the source model, and translate the component of every time.
                components = []
                for i, time in enumerate(times):
                    t = x0.new_full((len(x0),), time)
                    C, eps = denoisers(x_t, t, source)
                    components.append(translator(C, t))
                    if i + 1 < len(times):
                        x_t = diffuse(recover_x0(x_t, t, C, eps), x0.new_full((len(x0),), times[i + 1]), eps)

                # Generate with the target model and the translated components.
                if sampler.start == "fresh":
                    eps = torch.stack([torch.randn(x0.shape[1:], generator=random) for random in randoms]).to(x0)
                x_t = diffuse(-components[-1], t, eps)
                for time, after in zip(times[::-1], [*times[-2::-1], 0.0], strict=True):
                    C, t = components.pop(), x0.new_full((len(x0),), time)
                    _, eps = denoisers(x_t, t, target)
                    x_t = recover_x0(x_t, t, C, eps) + after * C + after * eps
            return self.autoencoders.decode(x_t.float(), target)  # float32: bf16 has 8 of a radiograph's up to 16 bits

        return translate

    def _check(self, cohort: Cohort) -> None:
        if "image_size" not in self.metadata:
            raise RuntimeError("this CycleDiff is not trained: call fit, or CycleDiff.load")
        if cohort.pixels.shape[1:] != (self.metadata["image_size"],) * 2:
            raise ValueError(
                f"images of {cohort.pixels.shape[1]} x {cohort.pixels.shape[2]} pixels: this CycleDiff was trained at "
                f"image_size {self.metadata['image_size']}"
            )

    def translate(self, cohort: Cohort, to: str = "AFF", batch: int = 32, seed: int = 0) -> Cohort:
        """Each image of the cohort with the other label, by algorithm 2 with `self.sampler`.

        With `Sampler(start="fresh")` every seed gives another translation.

        Raises
        ------
        ValueError
            Where an image carries the label `to` already, or the images' size is not that of the training.
        """
        self._check(cohort)
        function = self._translator(to, seed, self.denoisers, self.G, self.F)
        return translated(cohort, to, self.name, function, batch)

    @torch.inference_mode()
    def sample(self, n: int, label: str, seed: int, like: Cohort, batch: int = 32) -> Cohort:
        """n images from noise, by the domain's own diffusion model alone, in the pixel type of `like`.

        They come from no patient and no image: `method` is "noise", `source_image_id` empty, and each has a
        patient_id of its own that starts with "noise-".
        """
        self._check(like)
        domain, times = LABELS.index(label), time_grid(self.sampler.noise_steps, self.sampler.first_t, 1.0)
        channels, size = self.autoencoders.channels, like.size // self.autoencoders.factor
        self.denoisers.eval()
        images = np.empty((n, 1, like.size, like.size), np.float32)
        with progress(n, desc=f"noise to {label}") as bar:
            for start in range(0, n, batch):
                randoms = [torch_generator(seed, domain, i) for i in range(start, min(start + batch, n))]
                x_t = torch.stack([torch.randn(channels, size, size, generator=random) for random in randoms])
                x_t = x_t.to(self.device, memory_format=torch.channels_last)
                for time, after in zip(times[::-1], [*times[-2::-1], 0.0], strict=True):
                    t = x_t.new_full((len(x_t),), time)
                    with self.accelerator.autocast():
                        C, eps = self.denoisers(x_t, t, domain)
                    x_t = diffuse(recover_x0(x_t, t, C, eps), x_t.new_full((len(x_t),), after), eps)
                images[start : start + batch] = self.autoencoders.decode(x_t.float(), domain).cpu().numpy()
                bar.update(len(x_t))
        names = [f"noise-{label}-{seed}-{i:06d}" for i in range(n)]
        columns = {"image_id": names, "patient_id": names, "label": label, "view": "", "side": ""}
        table = pd.DataFrame(columns | {"source_image_id": "", "source_label": "", "method": "noise"})
        return Cohort(table, to_pixels(images, like.pixels.dtype))

    def save(self, folder: Path) -> None:
        """Write the networks that translate, with settings and hashes of what they saw, to `weights.safetensors`."""
        networks = {"autoencoders": self.autoencoders, "denoisers": self.denoisers, "G": self.G, "F": self.F}
        metadata = self.metadata | {"sampler": asdict(self.sampler)}
        save_weights(Path(folder) / WEIGHTS, networks, metadata)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The translator that `save` wrote."""
        metadata = weights_metadata(Path(folder) / WEIGHTS)
        model = cls(Settings(**metadata["settings"]), Sampler(**metadata.pop("sampler")))
        model.metadata = metadata
        model._build(metadata["image_size"])
        networks = {"autoencoders": model.autoencoders, "denoisers": model.denoisers, "G": model.G, "F": model.F}
        load_weights(Path(folder) / WEIGHTS, networks)
        return model
