"""The decoupled diffusion process: its limits and identities, and the solvers where the answer is known."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.run.randomness import torch_generator
from lib.translators.cyclediff.process import (
    T_MIN,
    c_in,
    diffuse,
    draw_times,
    generate,
    invert,
    precondition,
    recover_x0,
    time_grid,
)


def latents(seed: int, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch_generator(seed), dtype=torch.float64)


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Equations 1 and 2 ----------------------------------------------------------------------------------------------------


def test_diffusion_goes_from_the_image_to_the_noise():
    x0, eps = latents(0, 3), latents(1, 3)
    x_t = diffuse(x0, times(0, 0.25, 1), eps)
    assert torch.equal(x_t[0], x0[0]) and torch.equal(x_t[2], eps[2])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * eps[1])


@given(t=st.floats(1e-3, 1), seed=st.integers(0, 1000), scale=st.floats(0, 100))
def test_every_output_of_the_unet_satisfies_equation_1(t, seed, scale):
    x_t, t = latents(seed, 1), times(t)
    C, eps = precondition(x_t, t, scale * latents(seed + 1, 1))
    torch.testing.assert_close(diffuse(-C, t, eps), x_t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recover_x0(x_t, t, C, eps), -C, rtol=1e-6, atol=1e-6)


def test_limits_of_the_preconditioning():
    """At t = 1 the network's output is the component and x_t the noise; at t → 0 x_t is the image, whatever it says."""
    x_t, F_theta = latents(0, 1), latents(1, 1)
    C, eps = precondition(x_t, times(1), F_theta)
    torch.testing.assert_close(C, F_theta)
    torch.testing.assert_close(eps, x_t)
    C, _ = precondition(x_t, times(1e-9), F_theta)
    torch.testing.assert_close(C, -x_t, rtol=1e-6, atol=1e-6)


@given(t=st.floats(1e-3, 1), seed=st.integers(0, 1000))
def test_the_true_pair_recovers_the_image(t, seed):
    x0, eps, t = latents(seed), latents(seed + 1), times(*[t] * 4)
    torch.testing.assert_close(recover_x0(diffuse(x0, t, eps), t, -x0, eps), x0)


def test_input_of_the_unet_has_unit_variance():
    x0, eps = (torch.randn(5, 1, 200, 200, generator=torch_generator(seed)) for seed in (0, 1))
    t = torch.tensor([0.01, 0.3, 0.5, 0.8, 1.0])
    variance = (c_in(t) * diffuse(x0, t, eps)).var(dim=(1, 2, 3))
    assert (abs(variance - 1) < 0.03).all()


@pytest.mark.parametrize("t_max", [1.0, 0.25])
def test_times(t_max):
    t = draw_times(20_000, t_max, torch_generator(0))
    assert t.min() > T_MIN - 1e-9 and t.max() <= t_max + 1e-9
    assert abs(t.mean() - t_max / 2) < 0.01 * t_max


def test_time_grid():
    assert time_grid(3, 0.25, 0.75) == [0.25, 0.5, 0.75] and time_grid(1, 0.25, 0.75) == [0.75]


# The solvers ----------------------------------------------------------------------------------------------------------


def of_known(x0: torch.Tensor):
    """A denoiser that knows the image: C = −x_0, and ε from eq. 1."""

    def denoise(x_t, t):
        return -x0.expand_as(x_t), (x_t - (1 - t) * x0) / t

    return denoise


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
def test_a_perfect_denoiser_gives_the_image_in_any_number_of_steps(steps, solver):
    x0, grid = latents(0, 1), time_grid(steps, 0.02, 1.0)
    torch.testing.assert_close(generate(of_known(x0), latents(1, 3), grid, solver=solver)[-1], x0.expand(3, -1, -1, -1))
    # With the component translated to another image, generation ends there, whatever its own component.
    y0 = latents(2, 1)
    path, components, _ = invert(of_known(x0), diffuse(x0, times(grid[0]), latents(3, 1)), grid, solver)
    assert len(path) == steps and sorted(components) == grid
    translated = dict.fromkeys(components, -y0)
    torch.testing.assert_close(generate(of_known(y0), latents(4, 1), grid, translated, solver)[-1], y0)


MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)


def of_gaussian(x_t, t):
    """The optimal denoiser for x_0 ~ N(MEAN, COVARIANCE), (B, 2): E[x_0 | x_t] in closed form, and ε from eq. 1."""
    precision = torch.linalg.inv((1 - t) ** 2 * COVARIANCE + t**2 * torch.eye(2, dtype=torch.float64))
    x0 = MEAN + (1 - t) * (x_t - (1 - t) * MEAN) @ (COVARIANCE @ precision).mT
    return -x0, (x_t - (1 - t) * x0) / t


@pytest.mark.parametrize(("solver", "steps"), [("euler", 400), ("heun", 40)])
def test_sampling_a_gaussian_gives_its_mean_and_covariance(solver, steps):
    n = 200_000
    noise = torch.randn(n, 2, generator=torch_generator(0), dtype=torch.float64)
    samples = generate(of_gaussian, noise, time_grid(steps, 1e-3, 1.0), solver=solver)[-1]
    # Monte Carlo error of n samples: 4 standard errors of a mean, of a covariance; 0.01 for the finite steps.
    assert (abs(samples.mean(0) - MEAN) < 4 * (COVARIANCE.diagonal() / n).sqrt() + 0.01).all()
    variance = COVARIANCE.diagonal()
    standard_error = ((variance[:, None] * variance + COVARIANCE**2) / n).sqrt()
    assert (abs(samples.mT.cov() - COVARIANCE) < 4 * standard_error + 0.01).all()


def flow(x, t, to):
    """The exact solution of dx/dt = C + ε for this Gaussian: x_t − (1 − t)·MEAN moves like a square root of Σ_t."""

    def root(t):
        values, vectors = torch.linalg.eigh((1 - t) ** 2 * COVARIANCE + t**2 * torch.eye(2, dtype=torch.float64))
        return vectors @ values.sqrt().diag() @ vectors.mT

    return (1 - to) * MEAN + (x - (1 - t) * MEAN) @ (root(to) @ torch.linalg.inv(root(t))).mT


# The way back undoes the errors of even order of the way up, so Heun's round trip is one order better than its way up.
@pytest.mark.parametrize(("solver", "order", "round_trip_order"), [("euler", 1, 1), ("heun", 2, 3)])
def test_inversion_and_generation_return_the_input_at_the_order_of_the_solver(solver, order, round_trip_order):
    x = MEAN + torch.randn(100, 2, generator=torch_generator(1), dtype=torch.float64)

    def errors(steps: int) -> tuple[float, float]:
        grid = time_grid(steps, 0.02, 1.0)
        path, _, eps = invert(of_gaussian, x, grid, solver)
        torch.testing.assert_close(eps, path[-1])  # at t = 1 all is noise
        back = generate(of_gaussian, path[-1], grid, solver=solver)[-2]  # at first_t, where the way up started
        return (path[-1] - flow(x, 0.02, 1.0)).abs().max().item(), (back - x).abs().max().item()

    up, both = np.array([errors(steps) for steps in (101, 201, 401)]).T
    assert abs(np.log2(up[-2] / up[-1]) - order) < 0.2
    assert abs(np.log2(both[-2] / both[-1]) - round_trip_order) < 0.2


def test_heun_asks_the_network_twice_a_step_and_euler_once():
    calls = []

    def counted(x_t, t):
        calls.append(t)
        return of_gaussian(x_t, t)

    for solver, up, down in (("euler", 5, 5), ("heun", 9, 9)):
        run = partial(invert, counted, latents(0, 1)[..., 0, :2].reshape(-1, 2), time_grid(5, 0.1, 1.0), solver)
        run()
        assert len(calls) == up
        calls.clear()
        generate(counted, torch.zeros(1, 2, dtype=torch.float64), time_grid(5, 0.1, 1.0), solver=solver)
        assert len(calls) == down  # the last step, to t = 0, is Euler's
        calls.clear()
