"""The classifier: a torchvision ResNet for one-channel radiographs, with one logit for AFF, and its training."""

import functools
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from lib.data.cohort import LABELS, Cohort
from lib.data.hashes import cohort_hash, file_hash
from lib.data.images import Images
from lib.run.checkpoints import Checkpoint
from lib.run.files import from_root
from lib.run.hardware import accelerator
from lib.run.randomness import batch_rows, torch_generator
from lib.run.settings import FromParameters, check_least
from lib.run.weights import read_weights
from lib.statistics.metrics import by_patient, calibration_intercept, choose_threshold
from lib.translators.training import History, check_finite

ARCHITECTURES = {f"resnet{layers}": f"ResNet-{layers}" for layers in (18, 34, 50, 101, 152)}


@dataclass(frozen=True)
class Settings(FromParameters):
    """Says how a classifier is trained, under every condition alike. Defaults are the quick profile's."""

    architecture: str = "resnet18"  # what two cores train in half a minute; the thesis' is resnet50
    weights: str = "none"  # random, as an offline machine must; "imagenet" downloads them; or a safetensors file
    steps: int = 120  # optimiser steps; the validation curves flatten before
    batch: int = 32  # images a step
    lr: float = 1e-3  # peak of AdamW after a tenth of the steps, then a cosine down to 0; 3e-4 suits pretrained weights
    weight_decay: float = 0.05  # of AdamW
    validate_every: int = 30  # steps between two looks at the validation patients

    def __post_init__(self):
        check_least(self, steps=1, batch=1, lr=0, weight_decay=0, validate_every=1)


# The network ---------------------------------------------------------------------------------------------------------


@functools.cache
def pretrained(architecture: str, weights: str) -> tuple[dict | None, str]:
    """Return the RGB state dict to start from (None: random), and a description of it for the record.

    Where a download fails, a warning is printed, and the training starts from random weights.
    """
    if weights == "none":
        return None, "random initialisation"
    if weights == "imagenet":
        source = torchvision.models.get_model_weights(architecture).DEFAULT
        try:
            state = source.get_state_dict(progress=False, check_hash=True, weights_only=True)
            return state, source.name.replace("IMAGENET", "ImageNet")
        except (OSError, RuntimeError) as error:
            print(f"WARNING: {source.url} could not be had ({error}): {architecture} starts from random weights.")
            return None, "random initialisation, ImageNet weights could not be downloaded"
    state, path = read_weights(weights, "weights"), from_root(weights)
    return state, f"{path.name} (sha256 {file_hash(path)})"


def sum_rgb(network: nn.Module) -> None:
    """Let a network take one channel: its first convolution gives for x what it gave for (x, x, x)."""
    network.conv1.in_channels = 1
    network.conv1.weight = nn.Parameter(network.conv1.weight.detach().sum(1, keepdim=True))


def build(architecture: str, weights: str, seed: int) -> tuple[nn.Module, str]:
    """Build a classifier of (B, 1, H, W) images in [-1, 1] with one logit, (B, 1), and describe it.

    Everything that is not pretrained is a pure function of the seed. Images keep their range: the normalisation that
    ImageNet weights were trained with is a scale and a shift of grey images, which the first batch norm takes up.
    A description is "ResNet-50, ImageNet1K_V2" or "ResNet-18, random initialisation (seed 0)", for example.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
    state, origin = pretrained(architecture, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torchvision.models.get_model(architecture)
        network.fc = nn.Linear(network.fc.in_features, 1)
    if state is None:
        origin += f" (seed {seed})"
    else:
        head = {f"fc.{key}": value for key, value in network.fc.state_dict().items()}
        try:
            network.load_state_dict({**state, **head})
        except RuntimeError as error:
            raise ValueError(f"weights {weights!r} do not fit {ARCHITECTURES[architecture]}: {error}") from error
    sum_rgb(network)
    return network, f"{ARCHITECTURES[architecture]}, {origin}"


# Standard augmentation -----------------------------------------------------------------------------------------------


def rotated_flipped_cropped(images: torch.Tensor, *key: int) -> torch.Tensor:
    """Rotate, mirror and crop each of (B, 1, H, W) images by its own random amount, a pure function of the key.

    Rotation by up to ±15°, mirroring with probability ½, a square crop of 80 to 100 % of the area anywhere in the
    frame, scaled back; all three in one bilinear resampling, outside the frame the border continues. (torchvision's
    transforms draw one rotation for a whole batch, and take no generator.)
    """
    angle, mirror, area, x, y = torch.rand(5, len(images), generator=torch_generator(*key))
    angle = (2 * angle - 1) * math.radians(15)
    mirror = torch.where(mirror < 0.5, -1.0, 1.0)
    side = (0.8 + 0.2 * area).sqrt()
    x, y = (1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)  # centre of the crop, in half frames
    cos, sin = angle.cos(), angle.sin()
    # A point u of the output is read at R M (side u + centre), R the rotation, M the mirror
    rows = [
        torch.stack([cos * mirror * side, -sin * side, cos * mirror * x - sin * y], 1),
        torch.stack([sin * mirror * side, cos * side, sin * mirror * x + cos * y], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# Prediction ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def logits(network: nn.Module, images: torch.Tensor | Images) -> torch.Tensor:
    """Return (N,) float32 logits of (N, 1, H, W) images, in evaluation mode and full precision."""
    network.eval()
    device = next(network.parameters()).device
    return torch.cat([network(batch.to(device))[:, 0] for batch in images.split(128)])


def predict(network: nn.Module, cohort: Cohort) -> np.ndarray:
    """Return (N,) float64 probabilities of AFF, image by image."""
    return logits(network, Images(cohort.pixels)).cpu().double().sigmoid().numpy()


@torch.inference_mode()
def evidence_maps(network: nn.Module, cohort: Cohort) -> np.ndarray:
    """Return (N, 8, 8): how much blurring each place weakens the classifier's own decision, 0 to 1.

    Occlusion sensitivity (Zeiler & Fergus 2014, arXiv:1311.2901): the fall of the logit of what was decided, 1 at the
    place where it falls most, 0 where it does not. A class activation map has size / 32 places a side, 2 at 64 px.
    """
    images = torch.from_numpy(cohort.images()).to(next(network.parameters()).device)
    places, side = 8, images.shape[-1] // 8
    blurred = gaussian_blur(images, 2 * side + 1, side / 1.5)
    whole = logits(network, images)
    falls = torch.empty(len(images), places, places)
    for row, column in np.ndindex(places, places):
        changed, place = images.clone(), np.s_[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
        changed[place] = blurred[place]
        falls[:, row, column] = ((whole - logits(network, changed)) * whole.sign()).cpu()
    largest = falls.amax((1, 2), keepdim=True)
    return (falls.clamp(min=0) / largest.clamp(min=1e-3 * whole.abs().cpu()[:, None, None])).numpy()


def patient_probabilities(cohort: Cohort, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) label, 1 for AFF, and (n,) mean probability of each of a cohort's patients."""
    patients = by_patient(cohort.table[["patient_id", "label"]].assign(probability=probabilities))
    return (patients.label == "AFF").to_numpy(int), patients.probability.to_numpy()


def require_both_labels(cohort: Cohort, name: str) -> None:
    """Raise ValueError where a part lacks images of a class."""
    if missing := [label for label in LABELS if label not in set(cohort.table.label)]:
        raise ValueError(f"{name} has no {missing[0]} image: use fewer folds, or more {missing[0]} patients")


# Training ------------------------------------------------------------------------------------------------------------


class Stateful:
    """Lets a checkpoint hold an object's attributes."""

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


@dataclass
class Spent(Stateful):
    """Counts what a training was given, interruptions or not."""

    steps: int = 0  # of the optimiser
    images_seen: int = 0


@dataclass(frozen=True)
class Trained:
    """Holds a trained classifier."""

    network: nn.Module  # with the selected weights
    history: pd.DataFrame  # one row a validation: step, loss, validation_loss, validation_auroc (of patients)
    threshold: float  # AFF is decided where a patient's probability is at least this
    recalibration: float  # to be added to a patient's logit (`lib.statistics.metrics.calibration_intercept`)
    best_step: int  # whose weights were selected
    spent: Spent
    description: str  # architecture, and the weights it started from


class Best(Stateful):
    """Keeps the weights of the highest validation AUROC so far; of equally high ones, of the lowest validation loss."""

    def __init__(self):
        self.step, self.score, self.weights = 0, (-math.inf, -math.inf), {}

    def update(self, step: int, auroc: float, loss: float, network: nn.Module) -> None:
        if (auroc, -loss) > self.score:
            self.step, self.score = step, (auroc, -loss)
            self.weights = {name: value.clone() for name, value in network.state_dict().items()}


def train(
    training: Cohort,
    validation: Cohort,
    settings: Settings,
    seed: int,
    *,
    aff_weight: float = 1.0,
    standard: bool = False,
    checkpoint: Path | None = None,
) -> Trained:
    """Train for a fixed number of steps, keep the weights of the best validation AUROC, choose the threshold.

    Selection and threshold use real validation patients alone, by one rule whatever the training images are.

    Parameters
    ----------
    seed : decides initial weights, batches and augmentation
    aff_weight : weight of an AFF image in the loss, where an NFF image has 1
    standard : whether `rotated_flipped_cropped` runs
    checkpoint : file that lets an interrupted training go on
    """
    require_both_labels(validation, "the validation part")
    if training.size < 32:  # five halvings; PyTorch's bf16 gradient of a strided convolution of one pixel is garbage
        raise ValueError(f"image_size={training.size} is too small for a ResNet: it needs at least 32")
    machine = accelerator()
    network, description = build(settings.architecture, settings.weights, seed)
    network.to(machine.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(learning_rate, steps=settings.steps))
    history, best, spent, start = History(), Best(), Spent(), 0
    if checkpoint:
        inputs = asdict(settings) | {"seed": seed, "aff_weight": aff_weight, "standard": standard}
        inputs |= {"description": description, "training": cohort_hash(training), "validation": cohort_hash(validation)}
        objects = {"network": network, "optimizer": optimizer, "schedule": schedule}
        objects |= {"history": history, "best": best, "spent": spent}
        saved = Checkpoint(checkpoint, inputs, objects, code=[train], made_before=["training", "validation"])
        start = saved.load()
        if not start:
            saved.make_room()

    images, validation_images = Images(training.pixels), Images(validation.pixels)
    targets, validation_targets = (
        torch.tensor(cohort.targets, dtype=torch.float32, device=machine.device) for cohort in (training, validation)
    )
    weight = torch.tensor(aff_weight, device=machine.device)
    for step in range(start, settings.steps):
        rows = batch_rows(len(training), settings.batch, step, seed)
        batch = images[rows].to(machine.device)
        if standard:
            batch = rotated_flipped_cropped(batch, seed, step)
        network.train()
        with machine.autocast():
            output = network(batch)[:, 0]
        loss = F.binary_cross_entropy_with_logits(output.float(), targets[rows], pos_weight=weight)
        check_finite(step + 1, {"loss": loss})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        spent.steps, spent.images_seen = spent.steps + 1, spent.images_seen + len(output)
        history.collect(loss=loss)

        done = step + 1
        if done % settings.validate_every == 0 or done == settings.steps:
            output = logits(network, validation_images)
            validation_loss = F.binary_cross_entropy_with_logits(output, validation_targets).item()
            labels, probabilities = patient_probabilities(validation, output.cpu().double().sigmoid().numpy())
            auroc = roc_auc_score(labels, probabilities) if np.isfinite(probabilities).all() else math.nan
            terms = history.means() | {"validation_loss": validation_loss, "validation_auroc": auroc}
            check_finite(done, terms)
            history.record(done, **terms)
            best.update(done, auroc, validation_loss, network)
        if checkpoint and saved.due():
            saved.save(done)

    network.load_state_dict(best.weights)
    validated = patient_probabilities(validation, predict(network, validation))
    threshold, recalibration = choose_threshold(*validated), calibration_intercept(*validated)
    return Trained(network, history.frame(), threshold, recalibration, best.step, spent, description)


def learning_rate(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: a linear rise over a tenth, then a cosine down to 0."""
    rise = math.ceil(steps / 10)
    return (step + 1) / rise if step < rise else (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1))) / 2
