"""Networks of CycleDiff: published sizes, what they are told, how they start."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib.run.randomness import torch_generator
from lib.run.weights import count_multiply_adds, count_parameters
from lib.translators.cyclediff.ablations import ABLATIONS, ablated
from lib.translators.cyclediff.autoencoders import KLAutoencoder
from lib.translators.cyclediff.losses import contrastive_loss
from lib.translators.cyclediff.networks import Denoisers, Discriminator, Networks, Translator, sizes
from lib.translators.cyclediff.process import precondition
from lib.translators.cyclediff.settings import PUBLISHED
from lib.translators.cyclediff.unet import LinearAttention, SelfAttention, UNet
from lib.translators.networks import FiLM, init_weights, lsgan_discriminator

TOY = replace(
    PUBLISHED,
    autoencoder="kl", shared_autoencoder=True, autoencoder_width=4, unet_width=8, unet_multipliers=(1, 2),
    unet_blocks=1, unet_attention=(4,), translator_width=4, translator_blocks=1, residual=True, discriminator_width=4,
    discriminator_time=True, dropout=0.0,
)  # fmt: skip


def test_unet_shapes_and_zero_start():
    unet = UNet(3, 16, 8, (1, 2, 2), 2, (8,), 0.0, shared=False)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(unet(x, torch.zeros(2), 0), torch.zeros_like(x))  # its last layer starts at zero
    attentions = [isinstance(module, SelfAttention) for module in unet.modules()]
    assert sum(attentions) == 2 + 1 + 3  # encoder and decoder at 8 x 8, and the middle


@pytest.mark.parametrize("width", [1, 6, 18, 100])
def test_any_width_of_the_unet(width):
    x = torch.randn(1, 2, 8, 8)
    assert UNet(2, 8, width, (1, 2), 1, (8, 4), 0.0, shared=False)(x, torch.zeros(1), 0).shape == x.shape


def test_shared_unet_is_told_the_domain():
    unet = UNet(1, 8, 8, (1,), 1, (), 0.0, shared=True)
    init_weights(unet, torch_generator(0))
    for module in unet.modules():
        if isinstance(module, FiLM):
            torch.nn.init.normal_(module.linear.weight, generator=torch_generator(1))
    x, t = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert not torch.allclose(unet(x, t, 0), unet(x, t, 1))


def test_linear_attention_mixes_positions_at_linear_cost():
    """Against the quadratic form: row n of the output is Σ_m ⟨q_n, k_m⟩·v_m with both softmaxes."""
    attention, x = LinearAttention(4), torch.randn(1, 4, 3, 3, generator=torch_generator(0))
    q, k, v = attention.qkv(attention.norm(x)).reshape(3, 4, 9).unbind(0)
    affinity = q.softmax(dim=0).T @ k.softmax(dim=1)  # (n, m)
    expected = x + attention.out((affinity @ v.T).T.reshape(1, 4, 3, 3))
    torch.testing.assert_close(attention(x), expected)


def test_kl_autoencoder():
    network, x = KLAutoencoder(3, 4), torch.randn(2, 1, 16, 16)
    assert network.encoder(x).shape == (2, 6, 4, 4)
    with torch.no_grad():  # mean 0 and log-variance 0: the prior itself, divergence 0
        network.encoder[-1].weight.zero_()
        network.encoder[-1].bias.zero_()
    back, divergence = network(x, torch.zeros(2, 3, 4, 4))
    assert back.shape == x.shape and divergence == 0
    with torch.no_grad():  # mean 2 everywhere: ½·2² for each of 3·4·4 values, over 16·16 pixels
        network.encoder[-1].bias[:3] = 2
    torch.testing.assert_close(network(x, torch.zeros(2, 3, 4, 4))[1], torch.tensor(2 * 48 / 256))


# Denoisers, translators, discriminators ------------------------------------------------------------------------------


def test_residual_translators_start_as_the_identity():
    translator = Translator(4, TOY)
    translator.init_weights(torch_generator(0))
    C = torch.randn(2, 4, 8, 8)
    assert torch.equal(translator(C, torch.tensor([0.1, 0.9])), C)


def test_translator_skips_change_what_comes_out_of_the_same_weights():
    C, t, outputs = torch.randn(2, 4, 8, 8), torch.tensor([0.1, 0.9]), []
    for skips in (True, False):
        translator = Translator(4, replace(TOY, residual=False, translator_skips=skips))
        translator.init_weights(torch_generator(0))
        outputs.append(translator(C, t))
    assert not torch.equal(*outputs)


def test_discriminators_start_undecided_with_gradients_of_ordinary_size():
    """Rows of zeros would be normalised by nothing, and one huge gradient stops Adam for thousands of steps."""
    D = Discriminator(4, 32, replace(TOY, discriminator_width=4))
    D.patches.init_weights(torch_generator(0))
    t = torch.tensor([0.1, 0.9])
    real, fake = D(torch.randn(2, 4, 32, 32), t), D(torch.randn(2, 4, 32, 32), t)
    assert (real == 0.5).all()
    (lsgan_discriminator(real, fake) + contrastive_loss(real, fake)).backward()
    assert all(p.grad.abs().max() < 100 for p in D.patches.last.parameters())


def test_separate_unets_know_their_domain_only():
    denoisers = Denoisers(4, 8, TOY)
    for parameter in denoisers.unets[1].parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(denoisers.unets[1].head[-1].bias, 1.0)
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    assert not torch.allclose(denoisers(x_t, t, 0)[0], denoisers(x_t, t, 1)[0])
    torch.testing.assert_close(denoisers(x_t, t, 1)[0], precondition(x_t, t, torch.ones_like(x_t))[0])


def test_published_sizes():
    """kl-f4 of latent diffusion has 55.3 million parameters, PatchGAN on three channels 2.765 million."""
    table = sizes(PUBLISHED, 256)
    assert table.parameters["autoencoder"] == pytest.approx(55.3e6, rel=0.002)
    assert table.parameters["discriminator"] == 2_764_737
    attention = [m for m in Denoisers(3, 64, PUBLISHED).unets[0].encoder.modules() if isinstance(m, SelfAttention)]
    assert len(attention) == 2 * 3  # three blocks at 16 and at 8


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_autoencoder_of_every_factor(factor):
    network, x = KLAutoencoder(3, 4, blocks=1, factor=factor), torch.randn(2, 1, 32, 32)
    side = 32 // factor
    assert network.encoder(x).shape == (2, 6, side, side)
    back, _ = network(x, torch.zeros(2, 3, side, side))
    assert back.shape == x.shape


def test_sizes_are_those_of_the_networks_that_are_built():
    s, table = replace(TOY, shared_unet=True), sizes(replace(TOY, shared_unet=True), 32)
    networks = Networks.build(s, 32)
    assert table.parameters["denoising U-Net"] == count_parameters(networks.denoisers)
    assert table.parameters["translator G or F"] == count_parameters(networks.G)
    assert "autoencoder" not in sizes(replace(TOY, autoencoder="pixels"), 32).index
    halves = sizes(s, 64).multiply_adds / sizes(s, 32).multiply_adds
    assert halves["autoencoder"] > 3.9  # four times the pixels


def test_multiply_adds():
    assert count_multiply_adds(nn.Linear(3, 5), torch.ones(2, 3)) == 2 * 3 * 5
    convolution = nn.Conv2d(4, 6, 3, padding=1, device="meta")
    assert count_multiply_adds(convolution, torch.empty(1, 4, 10, 10, device="meta")) == 100 * 9 * 4 * 6


def test_translators_without_time_and_attention():
    C, t = torch.randn(2, 4, 8, 8), (torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9]))
    for time in (True, False):
        translator = Translator(4, replace(TOY, residual=False, translator_time=time, translator_attention=time))
        translator.init_weights(torch_generator(0))
        for module in translator.modules():
            if isinstance(module, FiLM):
                nn.init.normal_(module.linear.weight, generator=torch_generator(1))
        early, late = (translator(C, when) for when in t)
        assert torch.equal(early, late) != time
        assert any(isinstance(module, LinearAttention) for module in translator.modules()) == time


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "as set"])
def test_every_ablation_takes_effect_once(name):
    s = replace(PUBLISHED, t_max=0.5, shared_unet=True, perceptual=0.25)
    if name == "joint":
        s = replace(s, joint="frozen")
    changed = ablated(s, name)
    different = {key for key, value in vars(changed).items() if value != getattr(s, key)}
    assert different == set(ABLATIONS[name])
    with pytest.raises(ValueError, match=f"ablation '{name}' changes nothing here"):
        ablated(changed, name)


def test_as_set_changes_nothing():
    assert ablated(TOY, "as set") == TOY


def test_unknown_ablation():
    with pytest.raises(ValueError, match=r"no ablation 'colour'; there are 'as set'"):
        ablated(TOY, "colour")
