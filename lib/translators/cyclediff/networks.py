"""The networks of the joint training: denoisers, translators, discriminators, and how large they are."""

from dataclasses import dataclass
from typing import Self

import pandas as pd
import torch
import torch.nn.functional as nnf
from torch import nn

from lib.run.weights import count_multiply_adds, count_parameters
from lib.translators.cyclediff.autoencoders import Autoencoders
from lib.translators.cyclediff.process import c_in, precondition
from lib.translators.cyclediff.settings import PUBLISHED, Settings
from lib.translators.cyclediff.unet import LinearAttention, UNet
from lib.translators.networks import (
    PatchGAN,
    ReflectConv2d,
    ResidualBlock,
    ResNet,
    TimeEmbedding,
    init_weights,
    patch_layers,
)


class Denoisers(nn.Module):
    """Net_θ of both domains: a U-Net each, or one that is told the domain."""

    def __init__(self, channels: int, size: int, s: Settings):
        super().__init__()
        sizes = (channels, size, s.unet_width, s.unet_multipliers, s.unet_blocks, s.unet_attention)
        self.unets = nn.ModuleList(UNet(*sizes, s.dropout, s.shared_unet) for _ in range(1 if s.shared_unet else 2))

    def forward(
        self, x_t: torch.Tensor, t: torch.Tensor, domain: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict (C_θ, ε_θ) of x_t (eq. 2), float32; a shared U-Net also takes the domain of each image, (B,)."""
        unet = self.unets[0 if len(self.unets) == 1 else domain]
        F_theta = unet(c_in(t) * x_t, t.log(), domain)
        return precondition(x_t, t, F_theta.float())

    def both(self, x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the same for a batch whose first half is of X and second half of Y."""
        half = len(x_t) // 2
        if len(self.unets) == 1:
            return self(x_t, t, torch.arange(2, device=x_t.device).repeat_interleave(half))
        pairs = [self(x_t[rows], t[rows], domain) for domain, rows in enumerate((slice(half), slice(half, None)))]
        C, eps = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return C, eps

    def features(self, C: torch.Tensor, domain: int) -> list[torch.Tensor]:
        """Return what the encoder makes of a component, taken as the image −C at a time close to 0."""
        unet, t = self.unets[domain % len(self.unets)], C.new_full((len(C),), 0.05)
        return unet.encode(c_in(t) * -C, unet.embed(t.log(), domain))


class Translator(nn.Module):
    """G or F (eq. 5): FiLM residual blocks, linear attention, then a ResNet encoder–decoder, all told the time.

    (B, c, h, w) component, (B,) t → component of the other domain, float32. With `residual` the output is added to the
    input; the last layer then starts at zero.
    """

    def __init__(self, channels: int, s: Settings):
        super().__init__()
        width, self.residual = s.translator_width, s.residual
        time = 4 * width if s.translator_time else None
        self.time = TimeEmbedding(time) if time else None
        self.stem = ReflectConv2d(channels, width, 3)
        self.blocks = nn.ModuleList(ResidualBlock(width, time) for _ in range(2))
        self.attention = LinearAttention(width) if s.translator_attention else nn.Identity()
        self.resnet = ResNet(width, channels, width, s.translator_blocks, time=time, skips=s.translator_skips)

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the weights; a residual translator then starts as the identity."""
        init_weights(self, generator)
        if self.residual:
            nn.init.zeros_(self.resnet.head.weight)

    def forward(self, C: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = self.time(t) if self.time else None
        h = self.stem(C)
        for block in self.blocks:
            h = block(h, time)
        h = self.resnet(self.attention(h), time).float()
        return C + h if self.residual else h


class Discriminator(nn.Module):
    """D_X or D_Y: a PatchGAN of components, told the time with `discriminator_time`.

    Packed pixels are unpacked first: lines of a pixel's width are sooner seen at full size.
    """

    def __init__(self, channels: int, size: int, s: Settings):
        super().__init__()
        self.unpack = 2 if s.autoencoder == "pixels" else 1
        channels, size = channels // self.unpack**2, size * self.unpack
        time = 4 * s.discriminator_width if s.discriminator_time else None
        layers = patch_layers(size, s.discriminator_layers)
        self.time = TimeEmbedding(time) if time else None
        self.patches = PatchGAN(channels, s.discriminator_width, layers, time=time)

    def forward(self, C: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.patches(nnf.pixel_shuffle(C, self.unpack), self.time(t) if self.time else None)


@dataclass
class Networks:
    """What translates: autoencoders, Net_θ, G and F, in channels_last memory."""

    autoencoders: Autoencoders
    denoisers: Denoisers
    G: Translator
    F: Translator

    @classmethod
    def build(cls, s: Settings, size: int, device: torch.device | str = "cpu") -> Self:
        """Make them for images of this side; initial weights come from torch's global generator."""
        autoencoders = Autoencoders(s)
        channels, latent = autoencoders.channels, size // s.factor
        networks = autoencoders, Denoisers(channels, latent, s), Translator(channels, s), Translator(channels, s)
        return cls(*(network.to(device, memory_format=torch.channels_last) for network in networks))


def sizes(s: Settings, image_size: int) -> pd.DataFrame:
    """Count parameters of each network, and multiply-adds of one image of this side; nothing is computed.

    Raises ValueError where the side is no multiple of `s.divisor`.
    """
    if image_size % s.divisor:
        raise ValueError(f"images of {image_size} x {image_size} pixels: CycleDiff needs a multiple of {s.divisor}")
    with torch.device("meta"):
        networks, side = Networks.build(s, image_size, "meta"), image_size // s.factor
        channels, t = networks.autoencoders.channels, torch.ones(1)
        image, latent = torch.empty(1, 1, image_size, image_size), torch.empty(1, channels, side, side)
        calls = [("autoencoder", net, image, latent) for net in networks.autoencoders.nets[:1]]
        calls += [
            ("denoising U-Net", networks.denoisers.unets[0], latent, t, 0),
            ("translator G or F", networks.G, latent, t),
            ("discriminator", Discriminator(channels, side, s), latent, t),
        ]
        rows = [(name, count_parameters(net), count_multiply_adds(net, *inputs)) for name, net, *inputs in calls]
    return pd.DataFrame(rows, columns=["network", "parameters", "multiply_adds"]).set_index("network")


def beside_published(s: Settings, image_size: int) -> pd.DataFrame:
    """Set the `sizes` of these settings beside those of the paper at 256 px."""
    found = {f"here, {image_size} px": sizes(s, image_size), "published, 256 px": sizes(PUBLISHED, 256)}
    return pd.concat(found, names=["setting"])
