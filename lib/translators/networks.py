"""Blocks that both translators share: residual encoder–decoder, patch discriminator, losses, pool of fakes, schedule.

Letters as in the CycleGAN paper (arXiv 1703.10593, appendix): c7s1-k stem, dk down, Rk residual, uk up, Ck patch layer.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import nn

from lib.run.rank import ALONE, Rank

# Generator -----------------------------------------------------------------------------------------------------------


class GroupNorm(nn.GroupNorm):
    """A group norm that works on contiguous memory: on a CPU three to five times as fast as in channels_last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class ReflectConv2d(nn.Conv2d):
    """A convolution of stride 1 with reflection padding that keeps the size.

    It pads in the precision of its input: autocast on a CPU would pad in float32 and convert there and back.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            x = nnf.pad(x, [self.kernel_size[0] // 2] * 4, mode="reflect")
        return super().forward(x)


def instance_norm(channels: int) -> GroupNorm:
    """Return instance normalisation without learned scale: a group norm of single channels."""
    return GroupNorm(channels, channels, affine=False)


class FiLM(nn.Module):
    """Feature-wise scale and shift from a time embedding (B, time); starts as identity."""

    def __init__(self, time: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(time, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.linear(nnf.silu(time))[:, :, None, None].chunk(2, dim=1)
        return h * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """(B,) a time, or its logarithm → sinusoids of geometrically spaced frequencies → MLP → (B, out)."""

    def __init__(self, out: int):
        super().__init__()
        self.register_buffer("frequency", torch.logspace(-1, 2, 32), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(64, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angle = t[:, None] * self.frequency
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class ResidualBlock(nn.Module):
    """Rk: two 3 × 3 convolutions with reflection padding and instance norm, added to the input.

    With `time`, the width of a time embedding, the features are scaled and shifted by it after the first norm.
    """

    def __init__(self, channels: int, time: int | None = None):
        super().__init__()
        self.conv1 = ReflectConv2d(channels, channels, 3)
        self.conv2 = ReflectConv2d(channels, channels, 3)
        self.norm1, self.norm2 = instance_norm(channels), instance_norm(channels)
        self.film = FiLM(time, channels) if time else None

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        h = self.norm1(self.conv1(x))
        h = self.film(h, time) if self.film else h
        return x + self.norm2(self.conv2(nnf.relu(h)))


def stem(channels: int, width: int) -> nn.Sequential:
    """Return c7s1-k."""
    return nn.Sequential(ReflectConv2d(channels, width, 7), instance_norm(width), nn.ReLU())


def down(channels: int) -> nn.Sequential:
    """Return dk: half the size, twice the channels."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), instance_norm(2 * channels), nn.ReLU()
    )


def up(channels: int, upsampling: str) -> nn.Sequential:
    """Return uk, before its ReLU: twice the size, half the channels; "resize" leaves no checkerboard."""
    half = channels // 2
    if upsampling == "transposed":
        convolve = [nn.ConvTranspose2d(channels, half, 3, stride=2, padding=1, output_padding=1)]
    elif upsampling == "resize":
        convolve = [nn.Upsample(scale_factor=2), ReflectConv2d(channels, half, 3)]
    else:
        raise ValueError(f"upsampling={upsampling!r}: choose 'resize' or 'transposed'")
    return nn.Sequential(*convolve, instance_norm(half))


class ResNet(nn.Module):
    """Residual encoder–decoder: c7s1-k, d2k, d4k, n × R4k, u2k, uk, c7s1-out; no activation at its end.

    `width` is k, `blocks` is n, `time` the width of a time embedding for the residual blocks. With `skips` the
    decoder adds what the encoder found at its size: otherwise a line of a pixel's width is erased and redrawn at a
    quarter of the resolution. The input's side must be a multiple of 4.
    """

    def __init__(
        self, channels: int, out: int, width: int, blocks: int, upsampling: str = "resize",
        time: int | None = None, skips: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.encoder = nn.Sequential(stem(channels, width), down(width), down(2 * width))
        self.blocks = nn.ModuleList(ResidualBlock(4 * width, time) for _ in range(blocks))
        self.decoder = nn.Sequential(up(4 * width, upsampling), up(2 * width, upsampling))
        self.head = ReflectConv2d(width, out, 7)
        self.skips = skips

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        full = self.encoder[0](x)
        half = self.encoder[1](full)
        h = self.encoder[2](half)
        for block in self.blocks:
            h = block(h, time)
        for stage, found in zip(self.decoder, (half, full), strict=True):
            h = nnf.relu(stage(h) + found if self.skips else stage(h))
        return self.head(h)


# Discriminator -------------------------------------------------------------------------------------------------------


class PatchGAN(nn.Module):
    """Ck – C2k – C4k – C8k – 1: judges overlapping patches, of 70 × 70 pixels with 3 layers of stride 2 as published.

    `width` is k; with 1, 2, 3 or 4 `layers` of stride 2 the patches have 16, 34, 70 or 142 pixels. Instance norm comes
    after every layer but the first and the last, FiLM after the first norm, where `time` is an embedding's width.
    """

    def __init__(self, channels: int, width: int, layers: int = 3, time: int | None = None):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]  # the last of them has stride 1
        self.first = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2 if i < layers else 1, padding=1)
            for i, (before, after) in enumerate(pairwise(widths), start=1)
        )
        self.norms = nn.ModuleList(map(instance_norm, widths[1:]))
        self.film = FiLM(time, widths[1]) if time else None
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw weights as published, but in the last layer: patches start at ½, between translated (0) and real (1).

        Small discriminators learn the classes sooner than from N(0, 0.02) (`benchmarks/discriminator.py`).
        """
        init_weights(self, generator)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, 0.5)

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        """(B, channels, H, W) → (B, 1, h, w), a score for each patch: 1 real, 0 translated."""
        h = nnf.leaky_relu(self.first(x), 0.2)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = norm(conv(h))
            h = self.film(h, time) if self.film and i == 0 else h
            h = nnf.leaky_relu(h, 0.2)
        return self.last(h)


def patch_layers(size: int, layers: int) -> int:
    """Return at most `layers`, and so few that images of this side give several patches: 3 from 64 px on."""
    return max(1, min(layers, int(math.log2(size)) - 3))


@torch.no_grad()
def init_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights of convolutions from N(0, 0.02), with biases 0 (CycleGAN, appendix)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02, generator=generator)
            nn.init.zeros_(module.bias)


# Losses, pool, schedule ----------------------------------------------------------------------------------------------


def lsgan_generator(fake: torch.Tensor) -> torch.Tensor:
    """Return E[(D(G(x)) − 1)²]: least squares instead of the logarithms of CycleGAN eq. 1."""
    return (fake.float() - 1).square().mean()


def lsgan_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return ½·(E[(D(y) − 1)²] + E[D(G(x))²]); the half slows D down against G (CycleGAN, section 4)."""
    return 0.5 * ((real.float() - 1).square().mean() + fake.float().square().mean())


class ImagePool:
    """Past fakes: each new one is returned, or with probability ½ stored and a random old one returned in its place."""

    def __init__(self, size: int):
        self.size, self.images = size, []

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        returned = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size and torch.rand((), generator=generator) < 0.5:
                i = int(torch.randint(self.size, (), generator=generator))
                image, self.images[i] = self.images[i], image.clone()
            returned.append(image.to(images.device))
        return torch.stack(returned)

    def state_dict(self) -> dict:
        return {"images": [image.cpu().clone() for image in self.images]}

    def load_state_dict(self, state: dict) -> None:
        self.images = list(state["images"])


def linear_decay(step: int, steps: int) -> float:
    """Return the rate's factor: 1 for half of the steps, then linearly to 0 (published: 100 + 100 epochs)."""
    return min(1.0, 2 * (steps - step) / steps)


# Augmentation --------------------------------------------------------------------------------------------------------


def shifted_crops(images: torch.Tensor, size: int, generator: torch.Generator, rank: Rank = ALONE) -> torch.Tensor:
    """Cut each image at its own random place: (B, C, H, W) → (B, C, size, size)."""
    places = images.shape[-1] - size + 1
    corners = rank.of(torch.randint(places, (len(images) * rank.processes, 2), generator=generator)).tolist()
    return torch.stack([image[:, i : i + size, j : j + size] for image, (i, j) in zip(images, corners, strict=True)])


def random_crops(images: torch.Tensor, enlarge: float, generator: torch.Generator) -> torch.Tensor:
    """Enlarge by a factor (published: 286/256), then cut the former size at a random place; 1 changes nothing."""
    size = images.shape[-1]
    larger = round(size * enlarge)
    if larger == size:
        return images
    images = nnf.interpolate(images, (larger, larger), mode="bicubic", align_corners=False).clamp(-1, 1)
    return shifted_crops(images, size, generator)


def diffaugment(images: torch.Tensor, generator: torch.Generator, rank: Rank = ALONE) -> torch.Tensor:
    """Draw brightness, contrast and a shift by up to an eighth; gradients flow through (arXiv 2006.10738).

    Applied to all that a discriminator sees, it keeps a small class from being learnt by heart. The ranges are ours.
    """
    draw = torch.rand(2, len(images) * rank.processes, 1, 1, 1, generator=generator) - 0.5
    contrast, brightness = (rank.of(numbers).to(images.device) for numbers in draw)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + contrast) + mean + 0.5 * brightness  # contrast × 0.5 … 1.5, brightness ± 0.25
    size = images.shape[-1]
    return shifted_crops(nnf.pad(images, [size // 8] * 4, mode="reflect"), size, generator, rank)
