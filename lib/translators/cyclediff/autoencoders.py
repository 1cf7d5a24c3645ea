"""Images to latents and back: the KL autoencoder of latent diffusion, or pixels packed into channels without loss."""

import torch
import torch.nn.functional as nnf
from torch import nn

from lib.data.images import Images
from lib.translators.cyclediff.settings import Settings
from lib.translators.cyclediff.unet import Block, Up, down, group_norm


class KLAutoencoder(nn.Module):
    """Variational autoencoder of latent diffusion models (arXiv 2112.10752), without its perceptual loss.

    (B, 1, H, W) → mean and log-variance of (B, c, H/factor, W/factor) → (B, 1, H, W). With factor 4: channels 1, 2, 4
    times the width at full, half and quarter size, attention in the middle.
    """

    def __init__(self, channels: int, width: int, blocks: int = 2, factor: int = 4):
        super().__init__()
        widths = [width * 2**level for level in range(factor.bit_length())]
        deepest = widths[-1]

        def middle():
            return [Block(deepest, deepest, attention=True), Block(deepest, deepest)]

        encoder, decoder, now = [nn.Conv2d(1, width, 3, padding=1)], [nn.Conv2d(channels, deepest, 3, padding=1)], width
        for level, out in enumerate(widths):
            encoder += [down(now)] if level else []
            encoder += [Block(now if i == 0 else out, out) for i in range(blocks)]
            now = out
        encoder += [*middle(), group_norm(now), nn.SiLU(), nn.Conv2d(now, 2 * channels, 3, padding=1)]
        decoder += middle()
        for level, out in reversed(list(enumerate(widths))):
            decoder += [Block(now if i == 0 else out, out) for i in range(blocks + 1)]
            decoder += [Up(out, out, 3, padding=1)] if level else []
            now = out
        decoder += [group_norm(now), nn.SiLU(), nn.Conv2d(now, 1, 3, padding=1)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reconstruction through a drawn latent, and the Kullback–Leibler divergence per pixel."""
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / x.numel()
        return self.decoder(mean + (0.5 * log_variance).exp() * noise).float(), divergence


class Autoencoders(nn.Module):
    """Images to latents and back, for both domains; latents are standardised with statistics of the training images."""

    def __init__(self, s: Settings):
        super().__init__()
        self.pixels = s.autoencoder == "pixels"
        self.channels = 4 if self.pixels else s.latent_channels
        self.shared = self.pixels or s.shared_autoencoder
        n = 0 if self.pixels else 1 if self.shared else 2
        sizes = self.channels, s.autoencoder_width, s.autoencoder_blocks, s.factor
        self.nets = nn.ModuleList(KLAutoencoder(*sizes) for _ in range(n))
        self.register_buffer("mean", torch.zeros(2, self.channels, 1, 1))
        self.register_buffer("std", torch.ones(2, self.channels, 1, 1))

    def net(self, domain: int) -> KLAutoencoder:
        """Return the autoencoder of a domain."""
        return self.nets[domain % len(self.nets)]

    def encode(self, images: torch.Tensor, domain: int) -> torch.Tensor:
        """Encode (B, 1, H, W) in [-1, 1] as (B, c, H/factor, W/factor), about mean 0 and variance 1."""
        if self.pixels:
            z = nnf.pixel_unshuffle(images, 2)
        else:
            z = self.net(domain).encoder(images).float().chunk(2, dim=1)[0]
        return (z - self.mean[domain]) / self.std[domain]

    def decode(self, z: torch.Tensor, domain: int) -> torch.Tensor:
        """Decode (B, c, h, w) to (B, 1, H, W), in [-1, 1] up to the model's error."""
        z = z * self.std[domain] + self.mean[domain]
        return nnf.pixel_shuffle(z, 2) if self.pixels else self.net(domain).decoder(z).float()

    @torch.no_grad()
    def standardise(self, X: Images, Y: Images, device: torch.device) -> None:
        """Take mean and standard deviation of each channel from all images, of both domains if they share latents.

        The latents of all images are held once, for their statistics are those of PyTorch to the last bit.
        """
        self.mean.zero_()
        self.std.fill_(1)
        both, done = None, 0
        for domain, images in enumerate((X, Y)):
            for batch in images.split(64):
                z = self.encode(batch.to(device), domain).cpu()
                if both is None:
                    like = torch.channels_last if z.is_contiguous(memory_format=torch.channels_last) else None
                    both = torch.empty(len(X) + len(Y), *z.shape[1:], dtype=z.dtype)
                    both = both.to(memory_format=like) if like else both
                both[done : done + len(z)] = z
                done += len(z)
        for domain, z in enumerate([both] * 2 if self.shared else (both[: len(X)], both[len(X) :])):
            std, mean = torch.std_mean(z, dim=(0, 2, 3), keepdim=True)
            self.mean[domain], self.std[domain] = mean[0], std[0]
