"""The denoising U-Net, and the blocks that it and the autoencoder are made of: residual, attention, down, up."""

import math

import torch
import torch.nn.functional as nnf
from torch import nn

from lib.translators.networks import FiLM, GroupNorm, TimeEmbedding


def group_norm(channels: int) -> GroupNorm:
    """Return a norm of groups of at least four channels, at most 32 groups."""
    return GroupNorm(math.gcd(max(channels // 4, 1), 32, channels), channels)


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution, twice; optionally told the time, optionally followed by attention."""

    def __init__(self, channels: int, out: int, time: int | None = None, dropout: float = 0.0, attention: bool = False):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.film = FiLM(time, out) if time else None
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.attention = SelfAttention(out) if attention else None
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        h = self.norm2(self.conv1(nnf.silu(self.norm1(x))))
        h = self.film(h, time) if self.film else h
        h = self.skip(x) + self.conv2(self.dropout(nnf.silu(h)))
        return self.attention(h) if self.attention else h


class Attention(nn.Module):
    """What both attentions share: a norm, then queries, keys and values of heads of about 32 channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = math.gcd(max(channels // 32, 1), channels)
        self.norm, self.qkv = group_norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return q, k and v, each (B, heads, C / heads, H·W)."""
        B, C, H, W = x.shape
        return self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W).unbind(1)


class SelfAttention(Attention):
    """Softmax attention over all positions, added to the input; starts as the identity."""

    def __init__(self, channels: int):
        super().__init__(channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.mT for part in self.split(x))
        return x + self.out(nnf.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class LinearAttention(Attention):
    """Attention whose cost grows linearly with the positions: softmax over features of q, over positions of k."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        context = k.softmax(dim=-1) @ v.mT  # (B, heads, c, c)
        return x + self.out((context.mT @ q.softmax(dim=-2)).reshape(x.shape))


def down(channels: int) -> nn.Conv2d:
    """Return a convolution that halves the size."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class Up(nn.Conv2d):
    """Twice the size: nearest neighbour, then the convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nnf.interpolate(x, scale_factor=2))


class UNet(nn.Module):
    """Denoising U-Net after "ADM": residual blocks told the time (and the domain), self-attention, skip connections.

    Each level has half the size of the one before and `multipliers` × `width` channels. Feature maps whose side stands
    in `attention` get self-attention, and so does the middle, unless `attention` is empty. With `shared` the network
    is told the domain, 0 or 1, of all or (B,) of each image.
    """

    def __init__(
        self, channels: int, size: int, width: int, multipliers: tuple[int, ...], blocks: int,
        attention: tuple[int, ...], dropout: float, shared: bool,
    ):  # fmt: skip
        super().__init__()
        time, now, skips = 4 * width, width, [width]
        levels = [(width * multiplier, size >> level in attention) for level, multiplier in enumerate(multipliers)]
        self.time = TimeEmbedding(time)
        self.domain = nn.Embedding(2, time) if shared else None
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level, (out, attends) in enumerate(levels):
            if level:
                self.encoder.append(down(now))
                skips.append(now)
            for _ in range(blocks):
                self.encoder.append(Block(now, out, time, dropout, attends))
                now = out
                skips.append(now)
        self.middle = nn.ModuleList(Block(now, now, time, dropout, attends) for attends in (bool(attention), False))
        for level, (out, attends) in reversed(list(enumerate(levels))):
            for _ in range(blocks + 1):
                self.decoder.append(Block(now + skips.pop(), out, time, dropout, attends))
                now = out
            if level:
                self.decoder.append(Up(now, now, 3, padding=1))
        self.head = nn.Sequential(group_norm(now), nn.SiLU(), nn.Conv2d(now, channels, 3, padding=1))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def embed(self, log_t: torch.Tensor, domain: int | torch.Tensor) -> torch.Tensor:
        """Embed the time, (B,), and the domain as (B, 4·width)."""
        time = self.time(log_t)
        return time + self.domain.weight[domain] if self.domain else time

    def encode(self, x: torch.Tensor, time: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of the stem and of every layer of the encoder."""
        hs = [self.stem(x)]
        for layer in self.encoder:
            hs.append(layer(hs[-1], time) if isinstance(layer, Block) else layer(hs[-1]))
        return hs

    def forward(self, x: torch.Tensor, log_t: torch.Tensor, domain: int | torch.Tensor) -> torch.Tensor:
        time = self.embed(log_t, domain)
        hs = self.encode(x, time)
        h = hs[-1]
        for layer in self.middle:
            h = layer(h, time)
        for layer in self.decoder:
            h = layer(h) if isinstance(layer, Up) else layer(torch.cat([h, hs.pop()], dim=1), time)
        return self.head(h)
