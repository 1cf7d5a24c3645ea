"""CycleDiff: toy-sized training, translating and sampling."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib.data.cohort import Cohort
from lib.run.checkpoints import Checkpoint
from lib.run.weights import save_weights, weights_metadata
from lib.translators.cyclediff import model, train
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.networks import Denoisers
from lib.translators.cyclediff.process import diffuse, generate, invert
from lib.translators.cyclediff.settings import PUBLISHED, PUBLISHED_SAMPLER, Sampler, Settings
from lib.translators.cyclediff.unet import UNet
from lib.translators.training import History

TOY = replace(
    PUBLISHED, diffusion_weights="released",
    autoencoder="pixels", warmup_steps=3, joint_steps=3, batch=2, unet_width=8, unet_multipliers=(1, 2), unet_blocks=1,
    unet_attention=(4,), translator_width=4, translator_blocks=1, discriminator_width=4, discriminator_time=True,
    pool=2, vgg16_weights="none", ema=0.5, log_every=1, previews=1,
)  # fmt: skip
KL = replace(
    TOY, autoencoder="kl", shared_autoencoder=True, autoencoder_width=4, autoencoder_steps=3,
    autoencoder_adversarial_from=2, shared_unet=True, residual=True, joint="diffusion_only", t_max=0.5,
    diffaugment=True,
)  # fmt: skip
SAMPLER = Sampler(sampling_steps=3, start="inverted", start_t=0.5)


def toy_cohort(n: int = 9, size: int = 16) -> Cohort:
    """A third of the images are AFF: brighter, with a dark transverse line."""
    random = np.random.default_rng(0)
    labels = ["AFF" if i % 3 == 0 else "NFF" for i in range(n)]
    pixels = random.uniform(50, 100, (n, size, size))
    for image, label in zip(pixels, labels, strict=True):
        if label == "AFF":
            image += 80
            image[size // 2] = 0
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)]})
    return Cohort(table.assign(label=labels, view="AP", side="left"), pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained toy, its folder, its history, and the cohort."""
    folder, cohort, model = tmp_path_factory.mktemp("cyclediff"), toy_cohort(), CycleDiff(TOY, SAMPLER)
    return model, folder, model.fit(cohort, folder, seed=0, preview=cohort.take(range(3))), cohort


def weights(model: CycleDiff) -> torch.Tensor:
    networks = vars(model.networks).values()
    return torch.cat([value.detach().flatten() for network in networks for value in network.state_dict().values()])


class Perfect(nn.Module):
    """Denoisers that know the one image of each domain."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        super().__init__()
        self.images = (x, y)

    def forward(self, x_t, t, domain):
        C = -self.images[domain].expand_as(x_t)
        return C, (x_t - (t[:, None, None, None] - 1) * C) / t[:, None, None, None]


class To(nn.Module):
    """A translator that knows the component of the other domain."""

    def __init__(self, image: torch.Tensor):
        super().__init__()
        self.image = image

    def forward(self, C, t):
        return -self.image.expand_as(C)


@pytest.mark.parametrize("start", ["inverted", "fresh"])
@pytest.mark.parametrize(("steps", "start_t"), [(1, 1.0), (2, 1.0), (10, 1.0), (1, 0.1), (5, 0.25)])
def test_perfect_networks_translate_perfectly_in_any_number_of_steps(trained, monkeypatch, start, steps, start_t):
    model, _, _, cohort = trained
    X, Y = cohort.select(label="NFF").take([0]), cohort.select(label="AFF").take([0])
    x, y = (
        model.networks.autoencoders.encode(torch.from_numpy(image.images()), domain)
        for domain, image in enumerate((X, Y))
    )
    monkeypatch.setattr(model, "sampler", Sampler(sampling_steps=steps, start=start, start_t=start_t))
    monkeypatch.setattr(model.networks, "denoisers", Perfect(x, y))
    monkeypatch.setattr(model.networks, "G", To(y))
    monkeypatch.setattr(model.networks, "F", To(x))
    assert abs(model.translate(X, "AFF").pixels.astype(int) - Y.pixels).max() <= 1
    assert abs(model.translate(Y, "NFF").pixels.astype(int) - X.pixels).max() <= 1
    samples = model.sample(2, "AFF", seed=0, like=cohort)
    assert abs(samples.pixels.astype(int) - Y.pixels).max() <= 1


# Training ------------------------------------------------------------------------------------------------------------


def test_history_and_files(trained):
    _, folder, history, _ = trained
    assert list(history.step) == [1, 2, 3, 4, 5, 6]
    assert list(history.stage) == ["warm-up"] * 3 + ["joint"] * 3
    joint = history[history.stage == "joint"].drop(columns="stage")
    assert {"diffusion_X", "cycle_Y", "identity_X", "perceptual_X", "contrastive_Y", "D_X"} <= set(joint)
    assert np.isfinite(joint.to_numpy(float)).all()
    metadata = weights_metadata(folder / "weights.safetensors")
    assert metadata["method"] == "cyclediff" and metadata["seed"] == 0 and metadata["image_size"] == 16
    assert Settings(**metadata["settings"]) == TOY and "U-Net" in metadata["perceptual"]
    assert [path.name for path in (folder / "previews").iterdir()] == ["0000006.npy"]


def test_latents_are_standardised(trained):
    model, _, _, cohort = trained
    z = model.networks.autoencoders.encode(torch.from_numpy(cohort.images()), 0)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    back = model.networks.autoencoders.decode(z, 1)  # pixels: one lossless space for both domains
    torch.testing.assert_close(back, torch.from_numpy(cohort.images()))


def test_same_seed_same_weights_other_seed_others(trained, tmp_path):
    model, _, history, cohort = trained
    again, other = CycleDiff(TOY, SAMPLER), CycleDiff(TOY, SAMPLER)
    pd.testing.assert_frame_equal(again.fit(cohort, tmp_path / "again", seed=0), history)
    other.fit(cohort, tmp_path / "other", seed=1)
    assert torch.equal(weights(model), weights(again)) and not torch.equal(weights(model), weights(other))


def test_interrupted_in_any_stage_it_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    cohort, record = toy_cohort(size=32), History.record
    model = CycleDiff(KL, SAMPLER)
    history = model.fit(cohort, tmp_path / "whole", seed=0)
    assert list(history.stage) == ["autoencoder"] * 3 + ["warm-up"] * 3 + ["joint"] * 3
    assert {"reconstruction", "divergence", "adversarial_autoencoder", "D_autoencoder"} <= set(history)

    ends, steps = [2, 4, 5, 7, 9], []  # within and between the stages; each time it goes on from the last

    def stop(self, step, **losses):
        if step in ends:
            ends.remove(step)
            raise KeyboardInterrupt
        steps.append(step)
        record(self, step, **losses)

    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    monkeypatch.setattr(History, "record", stop)
    while ends:
        with pytest.raises(KeyboardInterrupt):
            CycleDiff(KL, SAMPLER).fit(cohort, tmp_path / "parts", seed=0)
    resumed = CycleDiff(KL, SAMPLER)
    pd.testing.assert_frame_equal(resumed.fit(cohort, tmp_path / "parts", seed=0), history)
    assert torch.equal(weights(model), weights(resumed))
    assert steps == list(range(1, 10))  # nothing was done twice


def test_finished_training_is_not_repeated_even_with_another_sampler(trained, monkeypatch):
    model, folder, history, cohort = trained
    monkeypatch.setattr(train, "diffusion_loss", lambda *args: pytest.fail("trained again"))
    again = CycleDiff(TOY, replace(SAMPLER, sampling_steps=2))
    pd.testing.assert_frame_equal(again.fit(cohort, folder, seed=0), history)
    assert torch.equal(weights(model), weights(again))
    assert CycleDiff.load(folder).sampler.sampling_steps == 2
    model.save(folder)


@pytest.mark.parametrize(("joint", "reaches"), [("both", True), ("diffusion_only", False), ("frozen", False)])
def test_where_the_translation_loss_reaches(tmp_path, joint, reaches):
    def denoisers(cycle: float) -> torch.Tensor:
        model = CycleDiff(replace(TOY, joint=joint, cycle=cycle), SAMPLER)
        model.fit(toy_cohort(), tmp_path / f"{joint}{cycle}", seed=0)
        return torch.cat([p.detach().flatten() for p in model.networks.denoisers.parameters()])

    assert torch.equal(denoisers(0.0), denoisers(10.0)) != reaches


def test_diffusion_models_learn(tmp_path):
    settings = replace(TOY, warmup_steps=60, joint_steps=0, shared_unet=True, unet_learning_rate=3e-3, batch=3)
    history = CycleDiff(replace(settings, dropout=0.0, log_every=1)).fit(toy_cohort(), tmp_path, seed=0)
    loss = history.diffusion_X + history.diffusion_Y
    assert loss[-20:].mean() < 0.75 * loss[:5].mean()


def test_unets_run_once_a_joint_step_and_serve_translators_and_discriminators(tmp_path, monkeypatch):
    calls, encode = [], UNet.encode

    def counted(self, x, time):
        calls.append(len(x))
        return encode(self, x, time)

    monkeypatch.setattr(UNet, "encode", counted)
    CycleDiff(replace(TOY, warmup_steps=0, joint_steps=1), SAMPLER).fit(toy_cohort(), tmp_path / "two", seed=0)
    assert calls == [2, 2] + [2] * 4  # a batch of two through the U-Net of each domain; features of the perceptual term
    calls.clear()
    shared = replace(TOY, warmup_steps=0, joint_steps=1, shared_unet=True, t_max=0.5, perceptual=0.0)
    CycleDiff(shared, SAMPLER).fit(toy_cohort(), tmp_path / "shared", seed=0)
    assert calls == [8]  # both domains, at the translators' times and at times over the whole range


def test_gradients_are_clipped_before_the_optimisers_step(tmp_path, monkeypatch):
    norms = []

    def seen(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    for kind in (torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(kind, "step", seen)
    CycleDiff(replace(TOY, clip=1e-3), SAMPLER).fit(toy_cohort(), tmp_path, seed=0)
    assert len(norms) == 3 + 3 * 3 and max(norms) == pytest.approx(1e-3, rel=1e-3)


@pytest.fixture
def spied(monkeypatch):
    """The last training that ran, and its networks before and after its last step."""
    seen = SimpleNamespace()

    class Spied(train.CycleDiffTraining):
        def step(self, step):
            seen.training, seen.before = self, copy.deepcopy(self.networks)
            done = super().step(step)
            seen.after = copy.deepcopy(self.networks)
            return done

    monkeypatch.setattr(model, "CycleDiffTraining", Spied)
    return seen


def parameters(networks, name: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in getattr(networks, name).parameters()])


def test_what_is_saved_is_the_average(tmp_path, spied):
    CycleDiff(replace(TOY, learning_rate=1e-2, unet_learning_rate=1e-2), SAMPLER).fit(toy_cohort(), tmp_path, seed=0)
    saved = CycleDiff.load(tmp_path).networks
    for name in ("denoisers", "G", "F"):
        assert torch.equal(parameters(saved, name), parameters(spied.training.averaged(), name))
        assert not torch.allclose(parameters(saved, name), parameters(spied.after, name), atol=1e-4)


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(tmp_path, monkeypatch, spied):
    cohort, good, kept = toy_cohort(), train.cycle_loss, []
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)

    def breaks(C, C_back):
        kept.append((tmp_path / "checkpoint.pt").read_bytes())
        return good(C, C_back) * (float("nan") if len(kept) == 3 else 1)  # in the second joint step, of X

    monkeypatch.setattr(train, "cycle_loss", breaks)
    with pytest.raises(FloatingPointError, match=r"step 5: cycle_X is not finite.*checkpoint is kept"):
        CycleDiff(TOY, SAMPLER).fit(cohort, tmp_path, seed=0)
    for name in ("denoisers", "G", "F"):
        assert torch.equal(parameters(spied.before, name), parameters(spied.training.networks, name))
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept[-1]
    monkeypatch.setattr(train, "cycle_loss", good)
    whole, resumed = CycleDiff(TOY, SAMPLER), CycleDiff(TOY, SAMPLER)
    whole.fit(cohort, tmp_path / "whole", seed=0)
    resumed.fit(cohort, tmp_path, seed=0)
    assert torch.equal(weights(whole), weights(resumed))


def test_a_gradient_that_is_not_finite_stops_too(tmp_path, monkeypatch, spied):
    monkeypatch.setattr(train, "cycle_loss", lambda C, C_back: (C_back - C_back).sum().sqrt())
    with pytest.raises(FloatingPointError, match=r"step 4: gradient of T is not finite"):
        CycleDiff(TOY, SAMPLER).fit(toy_cohort(), tmp_path, seed=0)
    for name in ("denoisers", "G", "F"):
        assert torch.equal(parameters(spied.before, name), parameters(spied.training.networks, name))


def test_the_averaged_autoencoder_encodes_and_its_latents_are_standardised(tmp_path, monkeypatch):
    average, seen, cohort = [], [], toy_cohort(size=32)

    class Spied(train.CycleDiffTraining):
        def step(self, step):
            done = super().step(step)
            if step == self.ends[0] - 1:  # the last of the autoencoder
                average.extend(p.clone() for p in self.averages["autoencoders"].average.nets.parameters())
                seen.append([p.clone() for p in self.networks.autoencoders.nets.parameters()])
            if step == self.ends[0]:  # the first of the warm-up
                seen.append([p.clone() for p in self.networks.autoencoders.nets.parameters()])
            return done

    monkeypatch.setattr(model, "CycleDiffTraining", Spied)
    trained = CycleDiff(replace(KL, ema=0.999, autoencoder_learning_rate=1e-2), SAMPLER)
    trained.fit(cohort, tmp_path, seed=0)
    last, used = seen
    assert all(torch.equal(a, b) for a, b in zip(average, used, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(last, used, strict=True))
    autoencoders = trained.networks.autoencoders
    with torch.no_grad():
        z = autoencoders.encode(torch.from_numpy(cohort.images()), 0)  # shared, so the domain does not matter
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


# Translating and sampling --------------------------------------------------------------------------------------------


def test_load_gives_the_same_translations(trained):
    model, folder, _, cohort = trained
    nff, loaded = cohort.select(label="NFF"), CycleDiff.load(folder)
    assert loaded.sampler == SAMPLER and loaded.settings == TOY
    assert np.array_equal(loaded.translate(nff).pixels, model.translate(nff).pixels)


@pytest.mark.parametrize("start", ["inverted", "fresh"])
def test_translation_depends_neither_on_the_batch_nor_on_the_order(trained, monkeypatch, start):
    model, _, _, cohort = trained
    monkeypatch.setattr(model, "sampler", replace(SAMPLER, start=start))
    nff = cohort.select(label="NFF")
    one, all_at_once = (model.translate(nff, batch=batch).pixels.astype(int) for batch in (1, 100))
    backwards = model.translate(nff.take(np.arange(len(nff))[::-1]), batch=4).pixels[::-1].astype(int)
    assert abs(one - all_at_once).max() <= 1 and abs(one - backwards).max() <= 1
    other = model.translate(nff, seed=1).pixels
    assert not np.array_equal(all_at_once, other)


def test_translations_know_where_they_come_from(trained):
    model, _, _, cohort = trained
    aff = cohort.select(label="AFF")
    table = model.translate(aff, "NFF").table
    assert set(table.label) == {"NFF"} and set(table.source_label) == {"AFF"} and set(table.method) == {"cyclediff"}
    assert list(table.source_image_id) == list(aff.table.image_id)
    assert list(table.patient_id) == list(aff.table.patient_id)


def test_samples_from_noise(trained):
    model, _, _, cohort = trained
    five, two = (model.sample(n, "AFF", seed=0, like=cohort, batch=2) for n in (5, 2))
    assert np.array_equal(five.pixels[:2], two.pixels)
    assert not np.array_equal(five.pixels, model.sample(5, "AFF", seed=1, like=cohort).pixels)
    assert set(five.table.label) == {"AFF"} and set(five.table.method) == {"noise"}
    assert (five.table.source_image_id == "").all() and not set(five.table.patient_id) & set(cohort.table.patient_id)
    assert five.pixels.shape == (5, 16, 16) and five.pixels.dtype == np.uint8


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_path_shows_every_time_and_keeps_the_noise(trained, monkeypatch, solver):
    model, _, _, cohort = trained
    monkeypatch.setattr(model, "sampler", replace(SAMPLER, solver=solver))
    nff = cohort.select(label="NFF").first(2)
    times, pictures = model.path(nff, "AFF")
    assert times == [0.02, 0.26, 0.5]
    assert set(pictures) == {"source x_t", "source component", "translated component", "target x_t"}
    assert all(picture.shape == (3, 2, 16, 16) for picture in pictures.values())
    # Close to t = 0 the component is the image.
    assert abs(pictures["source x_t"][0] - nff.images()[:, 0]).mean() < 0.05
    # Generation starts between the translated component and the noise: x_T = (1 − T)·x̃_0 + T·ε.
    noise = (pictures["target x_t"][-1] - 0.5 * pictures["translated component"][-1]) / 0.5
    source_noise = (pictures["source x_t"][-1] - 0.5 * pictures["source component"][-1]) / 0.5
    np.testing.assert_allclose(noise, source_noise, atol=0.02)


@pytest.mark.parametrize("start", ["inverted", "fresh"])
@pytest.mark.parametrize(("to", "source"), [("AFF", 0), ("NFF", 1)])
def test_generation_starts_where_it_is_told_with_the_target_model(trained, monkeypatch, start, to, source):
    """From the translated component and the inverted or another noise; up by one domain's model, down by the other."""
    net, _, _, cohort = trained
    monkeypatch.setattr(net, "sampler", replace(SAMPLER, start=start))
    starts, domains = [], []

    def spied_generate(denoise, x_t, times, components, solver):
        starts.append((x_t, components[times[-1]], times[-1]))
        domains.append("generate")
        return generate(denoise, x_t, times, components, solver)

    def spied_invert(denoise, x_t, times, solver):
        result = invert(denoise, x_t, times, solver)
        starts.append(result[2])
        return result

    forward = Denoisers.forward
    monkeypatch.setattr(Denoisers, "forward", lambda *args: (domains.append(args[-1]), forward(*args))[1])
    monkeypatch.setattr(model, "generate", spied_generate)
    monkeypatch.setattr(model, "invert", spied_invert)
    net.translate(cohort.take(cohort.table.label != to).first(2), to)
    eps, (x_t, C, t) = starts
    inverted = diffuse(-C, torch.full((2,), t), eps)
    assert torch.allclose(x_t, inverted) == (start == "inverted")
    assert domains == [source] * 3 + ["generate"] + [1 - source] * 3


def test_fresh_noise_gives_diverse_translations_and_heun_others_than_euler(trained, monkeypatch):
    model, _, _, cohort = trained
    nff = cohort.select(label="NFF").first(2)
    monkeypatch.setattr(model, "sampler", replace(SAMPLER, start="fresh"))
    several = [model.translate(nff, seed=seed).pixels for seed in range(3)]
    assert len({pixels.tobytes() for pixels in several}) == 3
    euler = model.translate(nff).pixels
    monkeypatch.setattr(model, "sampler", replace(SAMPLER, start="fresh", solver="heun"))
    assert not np.array_equal(model.translate(nff).pixels, euler)


def test_another_sampler_shares_the_networks_and_leaves_the_model_as_it_was(trained):
    net, _, _, _ = trained
    other = net.with_sampler(sampling_steps=2, solver="heun")
    assert other.sampler == replace(SAMPLER, sampling_steps=2, solver="heun") and net.sampler == SAMPLER
    assert other.networks is net.networks
    with pytest.raises(ValueError, match=r"t_max=0.25 only"):
        CycleDiff(replace(TOY, t_max=0.25), replace(SAMPLER, start_t=0.25)).with_sampler(start_t=0.5)


def test_reconstruction(trained, tmp_path):
    model, _, _, cohort = trained
    assert np.array_equal(model.reconstruct(cohort).pixels, cohort.pixels)  # packed pixels: nothing is lost
    kl = CycleDiff(KL, SAMPLER)
    kl.fit(toy_cohort(size=32), tmp_path, seed=0)
    lossy = kl.reconstruct(toy_cohort(size=32))
    assert not np.array_equal(lossy.pixels, toy_cohort(size=32).pixels)
    assert lossy.table.equals(toy_cohort(size=32).table)


def test_weights_of_another_kind_or_shape_are_refused(trained, tmp_path):
    model, folder, _, cohort = trained
    metadata = weights_metadata(folder / "weights.safetensors")

    def saved(**changes):
        save_weights(tmp_path / "weights.safetensors", vars(model.networks), metadata | changes)
        return tmp_path

    assert np.array_equal(CycleDiff.load(saved()).translate(cohort.select(label="NFF")).pixels.shape, (6, 16, 16))
    with pytest.raises(ValueError, match="holds weights of cyclegan, not of cyclediff"):
        CycleDiff.load(saved(method="cyclegan"))
    with pytest.raises(ValueError, match="does not fit the network 'denoisers'"):
        CycleDiff.load(saved(settings=metadata["settings"] | {"unet_width": 16}))
    with pytest.raises(ValueError, match="another version of the code"):
        CycleDiff.load(saved(settings=metadata["settings"] | {"colour": "red"}))
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no weights file of this project"):
        CycleDiff.load(tmp_path)


def test_clear_errors(trained, tmp_path):
    model, _, _, cohort = trained
    with pytest.raises(ValueError, match="'i0' is AFF already"):
        model.translate(cohort, "AFF")
    with pytest.raises(ValueError, match=r"32 x 32 pixels.*trained at image_size 16"):
        model.translate(toy_cohort(size=32), "AFF")
    with pytest.raises(RuntimeError, match="not trained"):
        CycleDiff(TOY).translate(cohort, "AFF")
    with pytest.raises(ValueError, match="no NFF among the 3 training images"):
        CycleDiff(TOY).fit(cohort.select(label="AFF"), tmp_path, seed=0)
    with pytest.raises(ValueError, match="'i0' is AFF already"):
        model.path(cohort, "AFF")
    with pytest.raises(ValueError, match="label='aff': images are drawn of NFF or AFF"):
        model.sample(1, "aff", seed=0, like=cohort)
    with pytest.raises(ValueError, match=r"36 x 36 pixels.*multiple of 8; set image_size to 32"):
        CycleDiff(TOY).fit(toy_cohort(size=36), tmp_path, seed=0)
    with pytest.raises(ValueError, match="joint='separate': choose 'both' or 'diffusion_only' or 'frozen'"):
        Settings(joint="separate")
    with pytest.raises(ValueError, match="a batch of 4 is larger than the 3 AFF training images: take 3 or less"):
        CycleDiff(replace(TOY, batch=4)).fit(cohort, tmp_path, seed=0)
    with pytest.raises(ValueError, match=r"start_t=1.0: the translators learn times up to t_max=0.25 only"):
        CycleDiff(replace(TOY, t_max=0.25), PUBLISHED_SAMPLER)
    for wrong, said in (
        ({"t_max": 0}, "t_max=0: a time above 0.001"),
        ({"residual": True}, "set shared_autoencoder=True too"),
        ({"joint": "frozen", "warmup_steps": 0}, "warmup_steps must not be 0"),
        ({"autoencoder_factor": 3}, "autoencoder_factor=3: choose 2 or 4 or 8"),
        ({"batch": 0}, "batch=0: at least 1"),
        ({"translator_width": 0}, "translator_width=0: at least 1"),
        ({"enlarge": 0.9}, "enlarge=0.9: at least 1"),
        ({"joint_steps": -3}, "joint_steps=-3: at least 0"),
        ({"clip": 0.0}, "clip above 0"),
        ({"ema": 1.0}, "ema below 1"),
        ({"unet_multipliers": ()}, "a whole number from 1 on for each level"),
        ({"autoencoder_steps": 0}, "autoencoder='kl' has to be trained"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(PUBLISHED, **wrong)
    with pytest.raises(ValueError, match="solver='rk4': choose 'euler' or 'heun'"):
        Sampler(solver="rk4")
    with pytest.raises(ValueError, match="start='middle'"):
        Sampler(start="middle")
    with pytest.raises(ValueError, match="first_t ≤ start_t"):
        Sampler(start_t=0.01)
