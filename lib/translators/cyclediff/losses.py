"""The terms of CycleDiff's objective, one function each, and their weighted sum (eq. 13); letters as in `process`.

The adversarial terms, `lsgan_generator` and `lsgan_discriminator`, are CycleGAN's (`lib.translators.networks`).
"""

import torch
import torch.nn.functional as nnf
from torch import nn

from lib.run.files import from_root
from lib.run.weights import read_weights
from lib.translators.cyclediff.process import diffuse, recover_x0
from lib.translators.cyclediff.settings import Settings


def diffusion_loss(
    x0: torch.Tensor,
    eps: torch.Tensor,
    C_hat: torch.Tensor,
    eps_hat: torch.Tensor,
    t: torch.Tensor,
    weights: str = "plain",
) -> torch.Tensor:
    """Return ‖C_θ − C‖² + ‖ε_θ − ε‖² (eq. 6), means over pixels and images.

    With `weights` "plain" this is, for the pair of eq. 2, the squared error of the U-Net's one output at every t. With
    "released", those of the code's warm-up, the terms are multiplied by ((t − 1)/t)² + 1 and (t/(1 − t + 10⁻³))² + 1,
    which gives about twice that error, and −½·ln(t)·‖x̂_0 − x_0‖₁ is added.
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
    """Let real patches attract each other and repel translated ones (eq. 9).

    The N rows of a discriminator's patch maps, (B, 1, N, M), are the vectors, L2-normalised. The positives of a real
    one are the other real ones of its image, the negatives the translated ones.
    """
    real, fake = (nnf.normalize(patches.float().squeeze(1), dim=-1) for patches in (real, fake))  # (B, N, M)
    N = real.shape[1]
    itself = torch.eye(N, dtype=torch.bool, device=real.device)
    positive = (real @ real.mT / temperature).masked_fill(itself, -torch.inf)  # (B, N, N)
    negative = real @ fake.mT / temperature
    log_softmax = torch.cat([positive, negative], dim=-1).log_softmax(dim=-1)[..., :N]
    return -log_softmax.masked_fill(itself, 0).sum(dim=-1).mean() / (N - 1)


def cycle_loss(C: torch.Tensor, C_back: torch.Tensor) -> torch.Tensor:
    """Return ‖F(G(C, t), t) − C‖₁, mean over pixels and images: what eqs. 3 and 4 ask for."""
    return (C_back.float() - C.float()).abs().mean()


def identity_loss(C: torch.Tensor, C_same: torch.Tensor) -> torch.Tensor:
    """Return ‖G(C, t) − C‖₁ of a component that is in G's target domain already."""
    return (C_same.float() - C.float()).abs().mean()


def perceptual_loss(features: list[torch.Tensor], others: list[torch.Tensor]) -> torch.Tensor:
    """Return the L1 distance of features, mean over layers."""
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(features, others, strict=True)]).mean()


def objective(terms: dict[str, torch.Tensor], s: Settings) -> torch.Tensor:
    """Return equation 13, over both domains and directions; a term that is missing counts nothing.

    `terms` are named as in the history: "diffusion_X", "adversarial_G", "cycle_Y", …
    """
    weights = {"diffusion": s.diffusion, "adversarial": s.adversarial, "cycle": s.cycle, "identity": s.identity,
               "perceptual": s.perceptual}  # fmt: skip
    return sum(weights[name.rpartition("_")[0]] * term for name, term in terms.items())


# Features of the perceptual term -------------------------------------------------------------------------------------


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
    """Return VGG16 with these weights (None without), and a sentence on what the perceptual term uses."""
    fallback = "encoder features of the averaged denoising U-Net of the component's own domain"
    if weights == "none":
        return None, fallback
    import torchvision  # takes seconds

    network = torchvision.models.vgg16(weights=None, init_weights=False)
    if weights == "imagenet":
        source = torchvision.models.VGG16_Weights.IMAGENET1K_V1
        try:
            network.load_state_dict(source.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except (OSError, RuntimeError) as error:
            print(f"WARNING: {source.url} could not be had ({error}): the perceptual term uses {fallback}.")
            return None, f"{fallback}; VGG16 weights could not be downloaded"
        return VGG16Features(network), f"VGG16, {source.name}"
    state = read_weights(weights, "vgg16_weights")
    try:
        features = {name: value for name, value in state.items() if name.startswith("features.")}
        network.features.load_state_dict({name.removeprefix("features."): value for name, value in features.items()})
    except Exception as error:
        raise ValueError(f"vgg16_weights {weights!r} are no state dict of torchvision's vgg16: {error}") from error
    return VGG16Features(network), f"VGG16, {from_root(weights).name}"
