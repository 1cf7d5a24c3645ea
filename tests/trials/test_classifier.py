import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from toys import TINY, blob_cohort

from lib.data.cohort import Cohort
from lib.fidelity.distances import inception_available
from lib.run.checkpoints import Checkpoint
from lib.statistics.metrics import recalibrated
from lib.translators.cyclediff.losses import vgg16_features
from lib.trials import classifier
from lib.trials.classifier import (
    Settings,
    build,
    evidence_maps,
    predict,
    pretrained,
    rotated_flipped_cropped,
    sum_rgb,
    train,
)

torch.set_num_threads(1)  # at toy size a second thread costs more than it gives


@pytest.fixture(scope="module")
def trained():
    return train(blob_cohort(), blob_cohort(12, seed=1), TINY, 0, standard=True)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# The network


def test_summed_convolution_gives_on_grey_what_rgb_gave_on_three_equal_channels():
    network = torchvision.models.resnet18().double().eval()
    grey = torch.rand(2, 1, 32, 32, dtype=torch.float64) * 2 - 1
    rgb = network(grey.expand(-1, 3, -1, -1))
    sum_rgb(network)
    assert network.conv1.in_channels == 1
    torch.testing.assert_close(network(grey), rgb, rtol=1e-12, atol=1e-12)


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    network, description = build("resnet18", "none", 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert description == "ResNet-18, random initialisation (seed 0)"
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 1)
    assert same(network.eval(), build("resnet18", "none", 0)[0]) is False  # the forward pass moved the batch norms
    assert same(build("resnet18", "none", 0)[0], build("resnet18", "none", 0)[0])
    assert not same(build("resnet18", "none", 0)[0], build("resnet18", "none", 1)[0])


def test_local_weights_fill_all_but_the_head(tmp_path):
    rgb = torchvision.models.resnet18()
    path = tmp_path / "weights.safetensors"
    save_file(rgb.state_dict(), path)
    network, description = build("resnet18", str(path), 3)
    assert description.startswith("ResNet-18, weights.safetensors (sha256 ")
    assert torch.equal(network.layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)
    assert torch.equal(network.conv1.weight, rgb.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(network.fc.weight, build("resnet18", "none", 3)[0].fc.weight)


def test_imagenet_weights_are_used_and_named(monkeypatch):
    pretrained.cache_clear()
    rgb = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: rgb.state_dict())
    network, description = build("resnet18", "imagenet", 0)
    pretrained.cache_clear()
    assert description == "ResNet-18, ImageNet1K_V1"
    assert torch.equal(network.layer1[0].conv1.weight, rgb.layer1[0].conv1.weight)


def test_failed_download_is_announced_and_recorded(monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("name resolution failed")

    pretrained.cache_clear()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    network, description = build("resnet18", "imagenet", 0)
    pretrained.cache_clear()
    assert "WARNING" in (printed := capsys.readouterr().out) and "name resolution failed" in printed
    assert description == "ResNet-18, random initialisation, ImageNet weights could not be downloaded (seed 0)"
    assert same(network, build("resnet18", "none", 0)[0])


def test_bad_weights_and_architectures_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown architecture 'resnet5'.*resnet50"):
        build("resnet5", "none", 0)
    with pytest.raises(ValueError, match=r"missing\.safetensors.*no such file"):
        build("resnet18", str(tmp_path / "missing.safetensors"), 0)
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="do not fit ResNet-18"):
        build("resnet18", str(tmp_path / "part.safetensors"), 0)


class RunsCode:
    """What a pickle does when it is opened: here it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


OPENED = {
    "classifier": lambda path: build("resnet18", path, 0),
    "vgg16": vgg16_features,
    "inception": inception_available,
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_weights_that_are_pickles_are_refused_unopened(tmp_path, name, plain, opened):
    torch.save({"conv1.weight": torch.zeros(1)} if plain else RunsCode(tmp_path / "ran"), tmp_path / name)
    with pytest.raises(ValueError, match=r"is no safetensors file; pickles .* are not opened"):
        opened(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


# Standard augmentation


@hypothesis_settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6), size=st.integers(8, 33), batch=st.integers(1, 5))
def test_augmentation_keeps_shape_and_range_and_is_a_function_of_its_key(seed, step, size, batch):
    images = torch.rand(batch, 1, size, size) * 2 - 1
    once = rotated_flipped_cropped(images, seed, step)
    assert once.shape == images.shape and once.abs().max() <= 1
    assert torch.equal(once, rotated_flipped_cropped(images, seed, step))
    assert not torch.equal(once, rotated_flipped_cropped(images, seed, step + 1))


def test_augmentation_is_rotation_mirror_and_crop_within_their_limits():
    """On images that hold their own coordinates, the result holds the map, to be measured by differences."""
    n, size = 400, 64
    y, x = torch.meshgrid(*[torch.arange(size) / size - 0.5] * 2, indexing="ij")
    maps = [rotated_flipped_cropped(c.expand(n, 1, size, size), 0, 1)[:, 0] * size for c in (x, y)]
    c = size // 2
    jacobian = torch.stack(
        [torch.stack([m[:, c, c + 4] - m[:, c, c - 4], m[:, c + 4, c] - m[:, c - 4, c]], 1) / 8 for m in maps], 1
    )
    area = torch.linalg.det(jacobian)
    assert 0.8 <= area.abs().min() < 0.82 and 0.98 < area.abs().max() <= 1 + 1e-4  # a crop of 80 to 100 %
    assert 0.4 < (area < 0).float().mean() < 0.6  # half of them mirrored
    similarity = jacobian.mT @ jacobian / area.abs()[:, None, None]
    torch.testing.assert_close(similarity, torch.eye(2).expand(n, 2, 2), atol=1e-3, rtol=0)  # nothing is sheared
    angle = torch.rad2deg(torch.atan2(-jacobian[:, 0, 1], jacobian[:, 1, 1]))
    assert angle.abs().max() <= 15.01 and angle.min() < -14 and angle.max() > 14
    assert torch.stack([m[:, c, c] for m in maps]).abs().max() < size * 0.11 + 1  # the crop's centre stays inside
    assert len(torch.unique(angle)) == n  # each image its own


# Training and prediction


def test_predictions_do_not_depend_on_what_else_is_predicted(trained):
    cohort = blob_cohort(70, seed=2)  # 140 images, more than one batch
    together = predict(trained.network, cohort)
    assert together.shape == (140,) and ((together >= 0) & (together <= 1)).all()
    alone = np.concatenate([predict(trained.network, cohort.take([row])) for row in (0, 64, 139)])
    np.testing.assert_allclose(together[[0, 64, 139]], alone, atol=1e-5)


def test_training_is_a_function_of_its_seed(trained):
    again = train(blob_cohort(), blob_cohort(12, seed=1), TINY, 0, standard=True)
    pd.testing.assert_frame_equal(trained.history, again.history)
    assert same(trained.network, again.network) and trained.threshold == again.threshold
    other = train(blob_cohort(), blob_cohort(12, seed=1), TINY, 1, standard=True)
    assert not same(trained.network, other.network)


def test_an_easy_problem_is_learned():
    settings = Settings(architecture="resnet18", weights="none", steps=24, batch=16, lr=1e-3, validate_every=8)
    result = train(blob_cohort(32), blob_cohort(12, seed=1), settings, 0)
    test = blob_cohort(40, seed=3)
    labels, probabilities = classifier.patient_probabilities(test, predict(result.network, test))
    assert classifier.roc_auc_score(labels, probabilities) > 0.95
    assert np.mean((probabilities >= result.threshold) == labels) > 0.8
    assert list(result.history) == ["step", "loss", "validation_loss", "validation_auroc"]
    assert list(result.history.step) == [8, 16, 24]
    selected = result.history.set_index("step").loc[result.best_step]
    assert selected.validation_auroc == result.history.validation_auroc.max()


def test_weight_of_aff_images_raises_their_probability():
    settings = Settings(architecture="resnet18", weights="none", steps=5, batch=16, lr=1e-3, validate_every=5)
    random = blob_cohort(32)
    random = Cohort(random.table, np.random.default_rng(0).permutation(random.pixels))  # only prevalence to learn
    validation = blob_cohort(8, seed=1)
    light, heavy = (train(random, validation, settings, 0, aff_weight=w).network.fc.bias for w in (1.0, 20.0))
    assert heavy.item() > light.item()


def test_images_too_small_for_the_network_are_an_error():
    small = Cohort(blob_cohort().table, blob_cohort().pixels[:, :16, :16])
    with pytest.raises(ValueError, match="image_size=16 is too small"):
        train(small, small, TINY, 0)


def test_selected_weights_are_returned(monkeypatch):
    falling = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(classifier, "roc_auc_score", lambda *_: next(falling))
    validation = blob_cohort(8, seed=1)
    result = train(blob_cohort(), validation, TINY, 0)
    probabilities, targets = predict(result.network, validation), validation.targets
    loss = -np.log(np.where(targets == 1, probabilities, 1 - probabilities)).mean()
    assert result.best_step == 2
    assert loss == pytest.approx(result.history.validation_loss[0], rel=1e-4)
    assert loss != pytest.approx(result.history.validation_loss[2], rel=1e-2)


def test_best_prefers_higher_auroc_then_lower_loss():
    best, network = classifier.Best(), torch.nn.Linear(1, 1)
    for step, (auroc, loss) in enumerate([(0.7, 0.5), (0.8, 0.9), (0.8, 0.6), (0.8, 0.7), (0.75, 0.1)], 1):
        best.update(step, auroc, loss, network)
    assert best.step == 3


def test_interrupted_training_goes_on_to_the_same_result(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    batch_rows, calls = classifier.batch_rows, []

    def interrupted(n, batch, step, *key):
        calls.append(step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch_rows(n, batch, step, *key)

    monkeypatch.setattr(classifier, "batch_rows", interrupted)
    arguments = (blob_cohort(), blob_cohort(12, seed=1), TINY, 0)
    with pytest.raises(KeyboardInterrupt):
        train(*arguments, standard=True, checkpoint=tmp_path / "c.pt")
    result = train(*arguments, standard=True, checkpoint=tmp_path / "c.pt")
    assert calls == [0, 1, 2, 3, 3, 4, 5]  # the last step is not repeated, though no validation came after it
    assert same(result.network, trained.network) and result.best_step == trained.best_step
    assert result.spent == trained.spent == classifier.Spent(TINY.steps, TINY.steps * TINY.batch)
    pd.testing.assert_frame_equal(result.history, trained.history)


def test_what_is_spent_is_counted_and_not_taken_from_the_settings(monkeypatch):
    monkeypatch.setattr(classifier, "batch_rows", lambda n, batch, step, *key: np.arange(2 + step))
    assert train(blob_cohort(), blob_cohort(8, seed=1), TINY, 0).spent.images_seen == sum(range(2, 2 + TINY.steps))


def test_recalibration_makes_validation_patients_right_on_average(trained):
    validation = blob_cohort(12, seed=1)
    labels, probabilities = classifier.patient_probabilities(validation, predict(trained.network, validation))
    assert recalibrated(probabilities, trained.recalibration).mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_validation_without_a_class_is_an_error():
    with pytest.raises(ValueError, match="validation part has no AFF image"):
        train(blob_cohort(), blob_cohort(seed=1).select(label="NFF"), TINY, 0)


@pytest.mark.parametrize("steps", [1, 2, 10, 11, 100])
def test_learning_rate_rises_to_its_peak_and_falls_to_nothing(steps):
    rates = np.array([classifier.learning_rate(step, steps) for step in range(steps + 1)])
    assert rates.max() == 1 and (rates >= 0).all() and (rates[-1] < 1e-12 or steps == 1)
    peak = rates.argmax()
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) <= 0).all()


# What speaks for a decision


def test_evidence_lies_where_a_linear_classifier_looks():
    """A classifier that sums one 8 × 8 place loses there, and only there, what the place had above its surroundings."""

    class OnePlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images):
            return self.weight * images[:, :, 16:24, 40:48].sum((2, 3)) + 10

    pixels = np.full((2, 64, 64), 100, np.uint8)
    pixels[0, 16:24, 40:48] = 220
    cohort = blob_cohort(2, images=1)
    maps = evidence_maps(OnePlace(), Cohort(cohort.table, pixels))
    expected = np.zeros((2, 8, 8))
    expected[0, 2, 5] = 1  # the second image has the same grey everywhere
    np.testing.assert_allclose(maps, expected, atol=1e-3)


def test_evidence_maps_find_what_was_learned():
    training, validation, test = (blob_cohort(seed=seed) for seed in (0, 1, 2))
    settings = Settings("resnet18", "none", steps=30, batch=16, lr=1e-3, validate_every=30)
    maps = evidence_maps(train(training, validation, settings, 0).network, test)
    assert maps.shape == (len(test), 8, 8) and maps.min() >= 0 and maps.max() <= 1
    strongest = np.array([np.unravel_index(m.argmax(), m.shape) for m in maps])
    assert ((strongest >= 2) & (strongest < 6)).all(1).mean() > 0.6  # blobs lie in these 16 of 64 places
