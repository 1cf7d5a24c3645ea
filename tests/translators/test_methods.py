"""Every row of the table of methods keeps the promise of a translator; every profile reaches its settings."""

import pickle
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import yaml
from toys import line_cohort

from lib.run.files import ROOT
from lib.run.weights import weights_metadata
from lib.translators import cyclegan
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.settings import PUBLISHED, PUBLISHED_SAMPLER, Settings
from lib.translators.cyclegan import CycleGAN
from lib.translators.methods import DRAWS_NOISE, METHODS

PROFILES = sorted((ROOT / "notebooks" / "profiles").glob("*.yaml"))
NO_SETTINGS = {"cyclediff_ablations", "cyclediff_ablation_seeds"}  # of notebook 03 alone


def chosen(model) -> dict:
    """Return all settings of a translator by name."""
    return {name: value for attribute in model.kinds for name, value in asdict(getattr(model, attribute)).items()}


def profile_of(path) -> dict:
    """Read the settings of a profile; YAML takes 2e-4 for a text."""
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    values = {name: float(v) if isinstance(v, str) and v[0].isdigit() else v for name, v in values.items()}
    of_methods = tuple(f"{name}_" for name in METHODS)
    return {name: value for name, value in values.items() if name.startswith(of_methods) and name not in NO_SETTINGS}


@pytest.fixture(scope="module")
def cohort():
    return line_cohort(9, size=32)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_translates_and_is_kept(name, cohort, tmp_path):
    method, kind = METHODS[name], METHODS[name].translator
    few = {f"{name}_{stage}": 2 for stage in kind().settings.stages} | {f"{name}_batch": 2}
    model = kind.from_parameters(few | {f"{name}_settings": {"log_every": 1, "previews": 2}})
    nff, steps = cohort.select(label="NFF"), 2 * len(model.settings.stages)
    with pytest.raises(RuntimeError, match=f"this {kind.__name__} is not trained"):
        model.translate(nff, "AFF")

    folder = method.weights(tmp_path, "r0f0").parent
    history = model.fit(cohort, folder, seed=3, preview=cohort.first(2))
    assert list(history.step) == list(range(1, steps + 1)) and {"step", "learning_rate"} < set(history)
    assert np.isfinite(history.select_dtypes("number").iloc[-1].dropna()).all()
    files = {path.name for path in folder.iterdir()}
    assert files == {"history.csv", "checkpoint.pt", "previews", method.weights(tmp_path, "r0f0").name}
    assert len(list((folder / "previews").iterdir())) == 2

    made = model.translate(nff, "AFF", batch=4, seed=1)
    assert set(made.table.label) == {"AFF"} and set(made.table.method) == {name}
    assert list(made.table.source_image_id) == list(nff.table.image_id)
    assert set(made.table.generator) == {model.metadata["patients_hash"]} and made.pixels.dtype == nff.pixels.dtype
    back = model.translate(cohort.select(label="AFF"), "NFF")
    assert set(back.table.label) == {"NFF"} and back.size == cohort.size

    loaded = kind.load(folder)
    assert chosen(loaded) == chosen(model) and np.array_equal(loaded.translate(nff, "AFF", 4, 1).pixels, made.pixels)
    metadata = weights_metadata(folder / "weights.safetensors", name)
    assert (metadata["seed"], metadata["steps"], metadata["image_size"]) == (3, steps, 32)


@pytest.mark.parametrize("name", METHODS)
def test_settings_come_from_parameters_by_name_or_in_a_dictionary(name):
    method, kind = METHODS[name], METHODS[name].translator
    names = [field.name for settings in kind.kinds.values() for field in fields(settings)]
    assert kind.name == name and sorted(names) == sorted(set(names)) == sorted(method.published)
    assert chosen(kind.from_parameters({"seed": 0})) == chosen(kind())
    flat = {f"{name}_{field}": value for field, value in method.published.items()}
    for values in (flat, {f"{name}_settings": method.published}, {f"{name}_settings": {}} | flat):
        assert chosen(kind.from_parameters(values)) == method.published
    wrong = names[0][:-1] + "q"
    with pytest.raises(ValueError, match=f"{name}_settings has no '{wrong}', did you mean '{names[0]}'"):
        kind.from_parameters({f"{name}_settings": {wrong: 1}})


@pytest.mark.parametrize("name", METHODS)
def test_an_untrained_one_is_made_elsewhere_from_its_settings(name):
    model = METHODS[name].translator.from_parameters({f"{name}_batch": 3})
    again = pickle.loads(pickle.dumps(model.make))()
    assert chosen(again) == chosen(model) != chosen(type(model)()) and again.networks is None


def test_rows_name_their_notebooks_and_who_draws_from_noise():
    assert all((ROOT / "notebooks" / f"{method.notebook}.ipynb").exists() for method in METHODS.values())
    assert hasattr(METHODS[DRAWS_NOISE].translator, "sample")


def test_a_shared_autoencoder_follows_residual_translators():
    """Residual translators add latents of both domains."""
    assert Settings(autoencoder="kl").shared_autoencoder and not Settings(residual=False).shared_autoencoder
    assert Settings(residual=False, shared_autoencoder=True).shared_autoencoder
    with pytest.raises(ValueError, match="set shared_autoencoder=True too"):
        Settings(autoencoder="kl", shared_autoencoder=False)


def test_sampler_settings_reach_the_sampler():
    values = {"sampling_steps": 7, "solver": "heun", "start": "inverted", "start_t": 0.07, "noise_steps": 9}
    sampler = CycleDiff.from_parameters({f"cyclediff_{name}": value for name, value in values.items()}).sampler
    assert asdict(sampler) == values | {"first_t": 0.02}


# Profiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_name_of_a_profile_reaches_a_setting(path):
    profile = profile_of(path)
    for name, method in METHODS.items():
        own = {key.removeprefix(f"{name}_"): value for key, value in profile.items() if key.startswith(f"{name}_")}
        got = chosen(method.translator.from_parameters(profile))
        expected = chosen(method.translator()) | own
        if "residual" in own:
            expected["shared_autoencoder"] = own["residual"]
        assert {key: list(v) if isinstance(v, tuple) else v for key, v in got.items()} == {
            key: list(v) if isinstance(v, tuple) else v for key, v in expected.items() if key in got
        }
        assert set(own) <= set(got)


def test_the_full_profile_is_the_papers_but_for_what_it_says():
    profile = profile_of(ROOT / "notebooks/profiles/full.yaml")
    few = {"steps": 120_000, "batch": 4, "upsampling": "resize"}
    assert CycleGAN.from_parameters(profile).settings == replace(cyclegan.PUBLISHED, **few)
    model = CycleDiff.from_parameters(profile)
    assert model.settings == replace(PUBLISHED, diffusion_weights="released")
    assert model.sampler == replace(PUBLISHED_SAMPLER, start="inverted")


def test_the_published_profile_differs_from_the_paper_in_sizes_steps_and_what_it_says():
    model = CycleDiff.from_parameters(profile_of(ROOT / "notebooks/profiles/published.yaml"))
    other = {name for name, value in chosen(model).items() if value != METHODS["cyclediff"].published[name]}
    sizes = {"unet_width", "unet_multipliers", "unet_blocks", "translator_width", "translator_blocks",
             "discriminator_width", "batch", "autoencoder_width", "autoencoder_blocks"}  # fmt: skip
    steps = {"warmup_steps", "joint_steps", "autoencoder_steps", "autoencoder_adversarial_from", "sampling_steps",
             "noise_steps", "autoencoder_learning_rate", "ema"}  # fmt: skip
    assert other - sizes - steps == {"autoencoder", "diffusion_weights", "start"}
