"""The decoupled diffusion process of CycleDiff, and the solvers that run it up and down in time.

symbol        here            meaning
S, T          X, Y            the domains: X = NFF, Y = AFF; domain 0 and domain 1
x_0           x0              latent of an image, (B, c, h, w), standardised; x_t: the same after diffusion to t
t             t               time in (0, 1], (B,): 0 is the image, 1 pure noise
C             C               image component, −x_0; the network's prediction: C_hat
ε             eps             noise of N(0, I); the prediction: eps_hat
Net_θ         denoisers       predicts C and ε from x_t and t, a U-Net per domain (or one that is told the domain)
G: S → T      G               translator: takes an NFF component at time t to an AFF component at t
F: T → S      F               the way back
D_S, D_T      D_X, D_Y        patch discriminators of components

equation      where                                    what
eq. 1         diffuse, recover_x0 (solved for x_0)     x_t = x_0 + t·C + t·ε = (1 − t)·x_0 + t·ε
eq. 2         precondition                             (C_θ, ε_θ) = Net_θ(x_t, t), from the U-Net's one output
eqs. 3, 4     train.CycleDiffTraining._joint_step      G(C_S, t) is a T-component, F(G(C_S, t), t) ≈ C_S, and back
eq. 5         networks.Translator                      FiLM residual blocks, attention, time-conditioned ResNet
eq. 6         losses.diffusion_loss                    ‖C_θ − C‖² + ‖ε_θ − ε‖²
eq. 9         losses.contrastive_loss                  real patches alike, and unlike translated ones; for D
eq. 13        losses.objective                         λ1·diffusion + λ2·adversarial + λ3·cycle + λ4·identity
                                                       + λ5·perceptual (least squares, L1, L1, VGG16)
algorithm 1   train.CycleDiffTraining.step             autoencoders, diffusion warm-up, joint training
algorithm 2   invert, generate,                        dx_t/dt = C + ε, by steps of Euler or Heun: invert with the
              model.CycleDiff._translation             source's model, translate every component, generate
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

T_MIN = 1e-3  # times are drawn from (T_MIN, 1]

Denoise = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]  # (x_t, t) → (C_θ, ε_θ)


def per_image(t: torch.Tensor) -> torch.Tensor:
    """(B,) → (B, 1, 1, 1)."""
    return t[:, None, None, None]


def diffuse(x0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Return x_t = x_0 + t·C + t·ε with C = −x_0 (eq. 1)."""
    C, t = -x0, per_image(t)
    return x0 + t * C + t * eps


def recover_x0(x_t: torch.Tensor, t: torch.Tensor, C: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """Return x̂_0 = x_t − t·C − t·ε (eq. 1 solved for x_0)."""
    t = per_image(t)
    return x_t - t * C - t * eps


def c_in(t: torch.Tensor) -> torch.Tensor:
    """Return the scale of the U-Net's input, 1/√n with n = t² + (t − 1)²: unit variance at every t."""
    return per_image((t**2 + (t - 1) ** 2).rsqrt())


def precondition(x_t: torch.Tensor, t: torch.Tensor, F_theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return C and ε from the U-Net's one output (eq. 2): C = (s/n)·x_t + (t/√n)·F_θ, ε = (x_t − s·C)/t, s = t − 1.

    Whatever the output is, the pair satisfies eq. 1: x_t = −C + t·C + t·ε.
    """
    t = per_image(t)
    s, n = t - 1, t**2 + (t - 1) ** 2
    C = s / n * x_t + t * n.rsqrt() * F_theta
    return C, (x_t - s * C) / t


def draw_times(n: int, t_max: float, generator: torch.Generator) -> torch.Tensor:
    """Draw (n,) times, uniform on (T_MIN, t_max]."""
    return T_MIN + (t_max - T_MIN) * (1 - torch.rand(n, generator=generator))


def time_grid(steps: int, first_t: float, start_t: float) -> list[float]:
    """Return the times of inversion, in reverse those of generation: `steps` from `first_t` up to `start_t`.

    One step is at the time `start_t` alone, and nothing is inverted. So it is where `first_t` is not below `start_t`.
    """
    return np.linspace(first_t, start_t, steps).tolist() if steps > 1 and first_t < start_t else [start_t]


def move(velocity: Callable, x_t: torch.Tensor, t: float, after: float, solver: str) -> torch.Tensor:
    """Move x to the time `after`, one step along dx_t/dt = velocity(x_t, t).

    "heun" takes the mean with the velocity where Euler's step ends, but not at t = 0, where the noise is not defined.
    """
    v = velocity(x_t, t)
    x = x_t + (after - t) * v
    if solver == "heun" and after > 0:
        x = x_t + (after - t) * (v + velocity(x, after)) / 2
    return x


def invert(
    denoise: Denoise, x_t: torch.Tensor, times: list[float], solver: str = "euler"
) -> tuple[list[torch.Tensor], dict[float, torch.Tensor], torch.Tensor]:
    """Go up in time with the source's model (algorithm 2, first loop), from x_t at the first of `times`, which rise.

    Returns x_t at each time, C_θ by time, and ε_θ at the last time.
    """
    components, noises = {}, {}

    def velocity(x_t: torch.Tensor, t: float) -> torch.Tensor:
        components[t], noises[t] = denoise(x_t, t)
        return components[t] + noises[t]

    path = [x_t]
    for t, after in pairwise(times):
        path.append(move(velocity, path[-1], t, after, solver))
    velocity(path[-1], times[-1])
    return path, components, noises[times[-1]]


def generate(
    denoise: Denoise,
    x_t: torch.Tensor,
    times: list[float],
    components: dict[float, torch.Tensor] | None = None,
    solver: str = "euler",
) -> list[torch.Tensor]:
    """Go down in time to 0 with the target's model and the translated components (algorithm 2, last loop).

    It starts from x_t at the last of `times`, which rise, and returns x_t at each time gone through, x_0 last. Without
    `components`, those translated by time, it takes the model's own: unconditional sampling.
    """

    def velocity(x_t: torch.Tensor, t: float) -> torch.Tensor:
        C, eps = denoise(x_t, t)
        return (components[t] if components else C) + eps

    path = [x_t]
    for t, after in pairwise([*times[::-1], 0.0]):
        path.append(move(velocity, path[-1], t, after, solver))
    return path
