"""Blocks of both translators: published sizes, receptive fields, pool, losses, schedule, augmentation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.run.randomness import torch_generator
from lib.run.weights import count_parameters
from lib.translators.networks import (
    FiLM,
    ImagePool,
    PatchGAN,
    ResNet,
    diffaugment,
    init_weights,
    instance_norm,
    linear_decay,
    lsgan_discriminator,
    lsgan_generator,
    patch_layers,
    random_crops,
)


def test_published_parameter_counts():
    # The public implementation prints 11.378 M for the 9-block generator and 2.765 M for the discriminator, 3 channels.
    assert count_parameters(ResNet(3, 3, 64, 9, "transposed")) == 11_378_179
    assert count_parameters(ResNet(3, 3, 64, 9, "resize")) == 11_378_179
    assert count_parameters(PatchGAN(3, 64)) == 2_764_737


@pytest.mark.parametrize(("layers", "pixels"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field_of_a_patch(layers, pixels):
    image = torch.zeros(1, 1, 256, 256, requires_grad=True)
    discriminator = PatchGAN(1, 2, layers)
    discriminator.norms = torch.nn.ModuleList(torch.nn.Identity() for _ in discriminator.norms)  # they see the image
    for parameter in discriminator.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    scores = discriminator(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows, columns = image.grad[0, 0].nonzero().T
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == pixels


def test_patch_layers_leave_a_map_of_several_patches():
    assert [patch_layers(size, 3) for size in (8, 16, 32, 64, 256)] == [1, 1, 2, 3, 3]
    assert patch_layers(256, 4) == 4
    for size in (8, 16, 32, 64):
        assert min(PatchGAN(1, 2, patch_layers(size, 3))(torch.zeros(1, 1, size, size)).shape[2:]) >= 2


@pytest.mark.parametrize("upsampling", ["resize", "transposed"])
def test_resnet_keeps_the_size(upsampling):
    assert ResNet(1, 3, 4, 1, upsampling)(torch.zeros(2, 1, 16, 24)).shape == (2, 3, 16, 24)


def test_unknown_upsampling():
    with pytest.raises(ValueError, match="upsampling='bilinear'"):
        ResNet(1, 1, 4, 1, "bilinear")


def test_instance_norm_is_torchs():
    x = torch.randn(3, 5, 7, 6, generator=torch_generator(0))
    torch.testing.assert_close(instance_norm(5)(x), torch.nn.functional.instance_norm(x))


def test_film_starts_as_identity_and_then_scales_and_shifts():
    film, h, time = FiLM(4, 2), torch.randn(3, 2, 5, 5), torch.randn(3, 4)
    assert torch.equal(film(h, time), h)
    with torch.no_grad():
        film.linear.bias.copy_(torch.tensor([1.0, 0.0, 0.5, -0.5]))
    torch.testing.assert_close(film(h, time), torch.stack([2 * h[:, 0] + 0.5, h[:, 1] - 0.5], dim=1))


def test_weights_follow_the_appendix():
    network = ResNet(1, 1, 16, 2)
    init_weights(network, torch_generator(0))
    weights = torch.cat([p.flatten() for name, p in network.named_parameters() if name.endswith("weight")])
    assert abs(weights.std() - 0.02) < 0.001 and abs(weights.mean()) < 0.001
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_discriminator_starts_undecided_and_learns_from_its_first_step():
    discriminator = PatchGAN(1, 8, layers=2)
    discriminator.init_weights(torch_generator(0))
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    scores = discriminator(images)
    assert (scores == 0.5).all()
    loss = lsgan_discriminator(*scores.chunk(2))
    assert loss == 0.25
    loss.backward()
    assert discriminator.last.weight.grad.any()


@pytest.mark.parametrize("skips", [False, True])
def test_skips_carry_what_the_bottleneck_loses(skips):
    """With no signal from below, the two last layers still see the input, each through its own skip."""
    network, seen = ResNet(1, 1, 4, 1, skips=skips), {}
    init_weights(network, torch_generator(0))
    for p in (*network.encoder[2].parameters(), *network.decoder[1].parameters()):
        torch.nn.init.zeros_(p)
    for name, layer in (("half", network.decoder[1]), ("full", network.head)):
        layer.register_forward_pre_hook(lambda _, h, name=name: seen.setdefault(name, []).append(h[0]))
    for seed in (1, 2):
        network(torch.rand(1, 1, 16, 16, generator=torch_generator(seed)))
    for a, b in seen.values():
        assert torch.equal(a, b) != skips


def test_least_squares():
    ones, zeros, halves = torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.5)
    assert lsgan_discriminator(ones, zeros) == 0
    assert lsgan_discriminator(halves, halves) == 0.25
    assert lsgan_discriminator(zeros, ones) == 1
    assert lsgan_generator(zeros) == 1 and lsgan_generator(ones) == 0


def test_linear_decay():
    assert [linear_decay(step, 200) for step in (0, 50, 100, 150, 200)] == [1, 1, 1, 0.5, 0]


# Pool ----------------------------------------------------------------------------------------------------------------


def numbered(start: int, n: int) -> torch.Tensor:
    return torch.arange(start, start + n, dtype=torch.float32)[:, None, None, None]


def test_pool_of_none_returns_what_comes():
    assert torch.equal(ImagePool(0)(numbered(0, 3), torch_generator(0)), numbered(0, 3))


def test_pool_fills_first():
    pool = ImagePool(4)
    assert torch.equal(pool(numbered(0, 4), torch_generator(0)), numbered(0, 4))
    assert sorted(int(image) for image in pool.images) == [0, 1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_pool_neither_loses_nor_invents_images(size, batch, seed):
    pool, random, came, went = ImagePool(size), torch_generator(seed), [], []
    for step in range(12):
        images = numbered(step * batch, batch)
        came += images.flatten().tolist()
        went += pool(images, random).flatten().tolist()
    held = [float(image) for image in pool.images]
    filled = min(size, len(came))  # the first images are returned and held
    assert sorted(went + held) == sorted(came + came[:filled])


def test_pool_returns_an_old_image_half_of_the_time():
    pool, random = ImagePool(50), torch_generator(1)
    pool(numbered(0, 50), random)
    old = sum(int(pool(numbered(100 + i, 1), random)) != 100 + i for i in range(1000))
    assert 430 < old < 570  # 500 ± 4.4 standard deviations


def test_pool_goes_on_from_its_state():
    pool, again = ImagePool(3), ImagePool(3)
    pool(numbered(0, 5), torch_generator(0))
    again.load_state_dict(pool.state_dict())
    assert torch.equal(pool(numbered(5, 6), torch_generator(1)), again(numbered(5, 6), torch_generator(1)))


# Augmentation --------------------------------------------------------------------------------------------------------


def test_crops():
    images = torch.rand(4, 1, 32, 32, generator=torch_generator(0)) * 2 - 1
    assert torch.equal(random_crops(images, 1, torch_generator(0)), images)
    cropped = random_crops(images, 286 / 256, torch_generator(0))
    assert cropped.shape == images.shape and cropped.abs().max() <= 1 and not torch.equal(cropped, images)
    assert torch.equal(cropped, random_crops(images, 286 / 256, torch_generator(0)))


def test_diffaugment_passes_gradients():
    images = torch.rand(4, 1, 16, 16, generator=torch_generator(0)).requires_grad_()
    augmented = diffaugment(images, torch_generator(1))
    assert augmented.shape == images.shape and not torch.equal(augmented, images)
    augmented.sum().backward()
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
