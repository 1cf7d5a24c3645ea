"""The judge: says of a radiograph whether it shows an AFF, an NFF, or neither.

A classifier of two classes accepts what is left when a fracture line is merely erased. So the judge learns a third
class from failed translations: fracture erased, blurred, doubled or half drawn. It measures how often a translation
succeeds, gives features for distances, and finds the fracture where the table does not say. It is another network than
the classifier under study. It learns from the same training part as the translators, so its errors may depend on
theirs; only the patients whose images it judges are new to both.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional as F

from lib.data.cohort import LABELS, Cohort
from lib.data.hashes import cohort_hash, patients_hash
from lib.data.images import Images
from lib.data.phantom import FAILURES, Phantom
from lib.data.pixels import OnDisk, joined
from lib.run.checkpoints import Checkpoint
from lib.run.hardware import accelerator
from lib.run.progress import progress
from lib.run.randomness import batch_rows, flipped, generator, torch_generator
from lib.run.tasks import Machines, Task, run_tasks
from lib.run.weights import load_weights, save_weights, weights_metadata
from lib.study import Fold, Study
from lib.translators.training import WEIGHTS, History, check_finite

CLASSES = (*LABELS, "neither")
DEFAULT_ZONE = (0.3, 0.7)  # rows (fractions of the height) taken for the fracture zone where the table names none


def zones(table: pd.DataFrame) -> np.ndarray:
    """Return (N, 2) top and bottom of each image's fracture zone as fractions of the height."""
    if "zone_top" not in table:
        return np.tile(DEFAULT_ZONE, (len(table), 1))
    return np.stack([table.zone_top.fillna(DEFAULT_ZONE[0]), table.zone_bottom.fillna(DEFAULT_ZONE[1])], 1)


# Examples ------------------------------------------------------------------------------------------------------------


def made_failure(image: np.ndarray, other: np.ndarray, zone: tuple[float, float], kind: str, rng) -> np.ndarray:
    """Make a failed translation of a real radiograph (H, W), of a kind in `lib.data.phantom.FAILURES`.

    "doubled" adds the fracture of `other`, a radiograph of the other class. `zone` is as in `zones`.
    """
    height, width = image.shape
    top, bottom = int(zone[0] * height), max(int(zone[1] * height), int(zone[0] * height) + 2)
    image, other = image.astype(np.float32), other.astype(np.float32)

    def unbroken(image):  # the shaft above the zone is blended into the shaft below it
        above, below = image[max(top - 2, 0)], image[min(bottom + 1, height - 1)]
        share = np.clip((np.arange(height) - top) / (bottom - top), 0, 1)[:, None]
        return (1 - share) * above + share * below

    weight = np.zeros_like(image)
    weight[top:bottom] = 1
    weight = gaussian_filter(weight, height / 40)
    if kind == "blurred":
        changed = gaussian_filter(image, height * rng.uniform(0.03, 0.05))
    elif kind == "doubled":
        changed = unbroken(image) + sum(rng.uniform(0.4, 1.0) * (z - unbroken(z)) for z in (image, other))
    else:
        changed = unbroken(image) + rng.normal(0, image.std() * 0.03, image.shape)
        if kind == "half drawn":
            side = np.arange(width) < width * 0.5
            weight = weight * (side if rng.random() < 0.5 else ~side)
    return image + weight * (changed - image)


def examples(cohort: Cohort, seed: int, phantom: Phantom | None = None) -> tuple[np.ndarray | OnDisk, np.ndarray]:
    """Return what the judge learns from, or is tested on: (M, H, W) pixels, and (M,) what is drawn in each.

    These are the cohort's images, then a failure of each (`lib.data.phantom.FAILURES`): rendered on the phantom, made
    from the images on real radiographs. The phantom also renders each image with the other fracture, so that AFF and
    NFF are equally many.
    """
    rng = generator(seed)
    kinds = rng.permutation(np.resize(FAILURES, len(cohort)))
    labels = cohort.table.label.to_numpy(object)
    if phantom is not None:
        other = phantom.counterfactual(cohort)
        pixels = [cohort.pixels, other.pixels, phantom.render(cohort.table.image_id, kinds)]
        return joined(pixels), np.concatenate([labels, other.table.label.to_numpy(object), kinds])
    kinds[(kinds == "half drawn") & (labels == "AFF")] = "doubled"  # half a transverse line is an incomplete AFF
    top = np.iinfo(cohort.pixels.dtype).max
    others = [rng.choice(np.flatnonzero(cohort.targets != target)) for target in cohort.targets]
    failures = np.empty(cohort.pixels.shape, cohort.pixels.dtype)
    for i, (other, zone, kind) in enumerate(zip(others, zones(cohort.table), kinds, strict=True)):
        failure = made_failure(cohort.pixels[i], cohort.pixels[other], zone, kind, rng)
        failures[i] = np.clip(np.rint(failure), 0, top)
    return joined([cohort.pixels, failures]), np.concatenate([labels, kinds])


def class_of(drawn: np.ndarray) -> np.ndarray:
    """Return (M,) positions in `CLASSES` of what is drawn: every failure is "neither"."""
    return np.array([CLASSES.index(name if name in LABELS else "neither") for name in drawn])


# The network ---------------------------------------------------------------------------------------------------------


class JudgeNetwork(nn.Module):
    """Turns (B, 1, H, W) images in [-1, 1] into three logits: four convolutional stages, average, linear layer."""

    def __init__(self, channels: int, features: int):
        super().__init__()

        def stage(c_in, c_out, stride):
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
                nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
            )  # fmt: skip

        c = channels
        self.stages = nn.Sequential(
            stage(1, c, 1), stage(c, 2 * c, 2), stage(2 * c, 4 * c, 2), stage(4 * c, features, 2)
        )
        self.head = nn.Linear(features, len(CLASSES))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, features), the average of the last stage: what KID and FID are computed on."""
        return self.stages(images).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def jittered(images: torch.Tensor, *key: int) -> torch.Tensor:
    """Mirror images, shift them by up to 1/16, change brightness, contrast and noise: what must not matter."""
    rng = torch_generator(*key)
    images = flipped(images, *key, 1)
    reach = images.shape[-1] // 16
    row, column = torch.randint(-reach, reach + 1, (2,), generator=rng).tolist()
    images = F.pad(images, (reach,) * 4, mode="replicate")
    images = images.roll((row, column), (2, 3))[..., reach:-reach, reach:-reach]
    contrast, brightness, grain = torch.rand(3, len(images), 1, 1, 1, generator=rng)
    noise = torch.randn(images.shape, generator=rng) * 0.04 * grain
    return (images * (0.85 + 0.3 * contrast) + 0.2 * (brightness - 0.5) + noise).clamp(-1, 1)


class Judge:
    """Judges the images of one fold."""

    def __init__(self, channels: int = 16, features: int = 64):
        self.settings = {"channels": channels, "features": features}
        self.network = JudgeNetwork(**self.settings)

    def fit(self, cohort: Cohort, folder: Path, steps: int, seed: int, phantom: Phantom | None = None, batch: int = 48):
        """Train, write `weights.safetensors` into the folder, and return the history."""
        torch.manual_seed(seed)
        self.network = JudgeNetwork(**self.settings)
        machine = accelerator()
        device = machine.device
        network = self.network.to(device, memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps, pct_start=0.2)
        history = History()
        inputs = {"settings": self.settings, "steps": steps, "batch": batch, "seed": seed, "phantom": repr(phantom)}
        inputs["data"] = cohort_hash(cohort)
        objects = {"network": network, "optimiser": optimiser, "schedule": schedule, "history": history}
        checkpoint = Checkpoint(folder / "checkpoint.pt", inputs, objects, code=[self.fit], results=[WEIGHTS])
        start = checkpoint.load()
        if not start:
            checkpoint.make_room()

        if start < steps:
            pixels, drawn = examples(cohort, seed, phantom)
            images, classes = Images(pixels), torch.from_numpy(class_of(drawn))
            weight = len(classes) / (len(CLASSES) * torch.bincount(classes, minlength=len(CLASSES)).float())
        bar = progress(steps, start, "judge")
        network.train()
        for step in range(start, steps):
            rows = batch_rows(len(images), batch, step, seed)
            x = jittered(images[rows], seed, step).to(device, memory_format=torch.channels_last)
            with machine.autocast():
                logits = network(x)
            loss = F.cross_entropy(logits.float(), classes[rows].to(device), weight.to(device), label_smoothing=0.05)
            check_finite(step + 1, {"loss": loss})
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            bar.update()
            if step % 20 == 0 or step == steps - 1:
                history.record(step, loss=loss)
            if checkpoint.due() or step == steps - 1:
                checkpoint.save(step + 1)
        bar.close()
        metadata = {"settings": self.settings, "seed": seed, "steps": steps}
        metadata |= {"patients_hash": patients_hash(cohort), "cohort_hash": inputs["data"]}
        save_weights(folder / WEIGHTS, {"network": network}, metadata)
        return history.frame()

    @classmethod
    def of(cls, fold: Fold) -> Judge:
        """Load the judge that `train_folds` has trained for a fold."""
        return cls.load(fold.run.require(f"judge/{fold.name}/{WEIGHTS}", "04_synthesis").parent)

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Load the judge that `fit` has trained."""
        path = folder / WEIGHTS
        judge = cls(**weights_metadata(path)["settings"])
        load_weights(path, {"network": judge.network})
        judge.network.to(accelerator().device)
        return judge

    @torch.no_grad()
    def _run(self, function, pixels: np.ndarray | OnDisk) -> np.ndarray:
        batch = max(min(256, 2**20 // (pixels.shape[1] * pixels.shape[2])), 1)  # 256 up to 64 px: a few hundred MB
        self.network.eval()
        device = next(self.network.parameters()).device
        images = Images(pixels)
        return np.concatenate([function(part.to(device)).float().cpu().numpy() for part in images.split(batch)])

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return (N, features) float32 of (N, H, W) integer pixels."""
        return self._run(self.network.features, pixels)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Return (N, 3) probabilities of NFF, AFF and neither, of (N, H, W) integer pixels."""
        return self._run(lambda images: self.network(images).softmax(1), pixels)

    def verdicts(self, pixels: np.ndarray) -> np.ndarray:
        """Return (N,) "NFF", "AFF" or "neither", whichever is most probable."""
        return np.array(CLASSES)[self.probabilities(pixels).argmax(1)]

    def activation_maps(self, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return (N, h, w) class activation maps: what each place adds to the logit of the image's class.

        Zhou et al. 2016, arXiv:1512.04150, eq. 2; exact here, for the mean of a map plus the head's bias is the logit.
        `pixels` are (N, H, W) integers, `classes` (N,) of `CLASSES`.
        """
        weights = self.network.head.weight.detach()
        maps = self._run(lambda images: torch.einsum("kc,nchw->nkhw", weights, self.network.stages(images)), pixels)
        return maps[np.arange(len(pixels)), [CLASSES.index(name) for name in classes]]

    def with_zones(self, cohort: Cohort) -> Cohort:
        """Give each image a fracture zone, unless the table does: the rows that speak for its label.

        The zone grows from the strongest row of the class activation map while rows have at least half its mean.
        """
        if "zone_top" in cohort.table:
            return cohort
        maps = self.activation_maps(cohort.pixels, cohort.table.label.to_numpy())
        rows, zone = maps.mean(2), []
        for row in rows:
            strong = row >= row.max() / 2 if row.max() > 0 else np.arange(len(row)) == row.argmax()
            ends = np.flatnonzero(~strong)
            above, below = ends[ends < row.argmax()], ends[ends > row.argmax()]
            zone.append((above.max() + 1 if len(above) else 0, below.min() if len(below) else len(row)))
        top, bottom = np.array(zone).T / rows.shape[1]
        return Cohort(cohort.table.assign(zone_top=top, zone_bottom=bottom), cohort.pixels)

    def confusion(self, cohort: Cohort, seed: int, phantom: Phantom | None = None) -> pd.DataFrame:
        """Return the shares of what is drawn (rows) that are judged to be each class (columns)."""
        pixels, drawn = examples(cohort, seed, phantom)
        shares = pd.crosstab(drawn, self.verdicts(pixels), rownames=["drawn"], colnames=["judged"], normalize="index")
        return shares.reindex(columns=CLASSES, fill_value=0.0).reindex(index=[*LABELS, *FAILURES])


# Of a study ----------------------------------------------------------------------------------------------------------


def train_folds(study: Study, steps: int, seed: int, machines: Machines) -> pd.DataFrame:
    """Train the judge of every fold, into `judge/FOLD`, and return what became of each task."""
    tasks = {
        fold.name: Task(partial(_train, fold, steps, seed), fold.folder("judge") / WEIGHTS) for fold in study.folds
    }
    return run_tasks(tasks, study.run / "judge" / "tasks", machines)


def _train(fold: Fold, steps: int, seed: int) -> None:
    Judge().fit(fold.train, fold.folder("judge"), steps, seed, fold.phantom)
