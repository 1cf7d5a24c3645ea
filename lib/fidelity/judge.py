"""The judge: says of a radiograph whether it shows an AFF, an NFF, or neither.

A classifier of two classes accepts whatever is left when a fracture line is merely erased, so the judge learns a third
class from failed translations: fracture erased, blurred, doubled or half drawn. On the phantom these are rendered; on
real radiographs they are made from the images. It is trained on the training part of a cell only, is another network
than the classifier under study, and measures: transfer success, features for distances, and where a fracture lies in
radiographs whose table does not say. It learns from the same training patients as the translators, so its errors need
not be independent of theirs; only the patients whose images it judges are new to both.
"""

from __future__ import annotations

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
from lib.run.weights import load_weights, save_weights, weights_metadata
from lib.translators.training import History, check_finite

CLASSES = (*LABELS, "neither")
DEFAULT_ZONE = (0.3, 0.7)  # rows (fractions of the height) taken for the fracture zone where the table names none


def zones(table: pd.DataFrame) -> np.ndarray:
    """(N, 2) top and bottom of each image's fracture zone as fractions of the height."""
    if "zone_top" not in table:
        return np.tile(DEFAULT_ZONE, (len(table), 1))
    return np.stack([table.zone_top.fillna(DEFAULT_ZONE[0]), table.zone_bottom.fillna(DEFAULT_ZONE[1])], 1)


# Examples ------------------------------------------------------------------------------------------------------------


def made_failure(image: np.ndarray, other: np.ndarray, zone: tuple[float, float], kind: str, rng) -> np.ndarray:
    """A failed translation made from a real radiograph.

    Parameters
    ----------
    image : (H, W) the radiograph
    other : (H, W) a radiograph of the other class, whose fracture is added where `kind` is "doubled"
    zone : top and bottom of the fracture zone as fractions of the height
    kind : one of `lib.data.phantom.FAILURES`
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
    """What the judge learns from, or is tested on: one failure for every image beside the images themselves.

    On the phantom the failures are rendered, and every patient is also rendered with the other fracture, which gives
    the judge as many AFF as NFF. On real radiographs there are only the images and failures made from them.

    Returns
    -------
    pixels : (M, H, W) in the cohort's integer range
    drawn : (M,) "AFF", "NFF" or one of `lib.data.phantom.FAILURES`
    """
    rng = generator(seed)
    kinds = rng.permutation(np.resize(FAILURES, len(cohort)))
    labels = cohort.table.label.to_numpy(object)
    pixels, drawn = [cohort.pixels], [labels]
    if phantom is not None:
        counterfactual = phantom.counterfactual(cohort)
        pixels += [counterfactual.pixels, phantom.render(cohort.table.image_id, kinds)]
        drawn.append(counterfactual.table.label.to_numpy(object))
    else:
        kinds[(kinds == "half drawn") & (labels == "AFF")] = "doubled"  # half a transverse line is an incomplete AFF
        top = np.iinfo(cohort.pixels.dtype).max
        others = [rng.choice(np.flatnonzero(cohort.targets != target)) for target in cohort.targets]
        failures = np.empty(cohort.pixels.shape, cohort.pixels.dtype)
        for i, (other, zone, kind) in enumerate(zip(others, zones(cohort.table), kinds, strict=True)):
            failure = made_failure(cohort.pixels[i], cohort.pixels[other], zone, kind, rng)
            failures[i] = np.clip(np.rint(failure), 0, top)
        pixels.append(failures)
    return joined(pixels), np.concatenate([*drawn, kinds])


def class_of(drawn: np.ndarray) -> np.ndarray:
    """(M,) position in `CLASSES` of what is drawn: every failure is "neither"."""
    return np.array([CLASSES.index(name if name in LABELS else "neither") for name in drawn])


# The network ---------------------------------------------------------------------------------------------------------


class JudgeNetwork(nn.Module):
    """A plain convolutional network of four stages; (B, 1, H, W) in [-1, 1] to three logits."""

    def __init__(self, channels: int = 16, features: int = 64):
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
        """(B, features): the average of the last stage, what KID and FID are computed on."""
        return self.stages(images).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def jittered(images: torch.Tensor, *key: int) -> torch.Tensor:
    """Mirrored, shifted by up to 1/16 of the frame, with other brightness, contrast and noise: what must not matter."""
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
    """Three-class judge of one cell."""

    def __init__(self, channels: int = 16, features: int = 64):
        self.settings = {"channels": channels, "features": features}
        self.network = JudgeNetwork(**self.settings)

    def fit(self, cohort: Cohort, folder: Path, steps: int, seed: int, phantom: Phantom | None = None, batch: int = 48):
        """Train on a cell's training part and write `judge.safetensors` into `folder`; returns the history."""
        torch.manual_seed(seed)
        self.network = JudgeNetwork(**self.settings)
        machine = accelerator()
        device = machine.device
        network = self.network.to(device, memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps, pct_start=0.2)
        history = History()
        inputs = {"settings": self.settings, "steps": steps, "batch": batch, "seed": seed, "phantom": repr(phantom),
                  "data": cohort_hash(cohort)}  # fmt: skip
        objects = {"network": network, "optimiser": optimiser, "schedule": schedule, "history": history}
        path = Path(folder) / "checkpoint.pt"
        checkpoint = Checkpoint(path, inputs, objects, code=[self.fit], results=["judge.safetensors"])
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
        network.eval()
        metadata = {"settings": self.settings, "seed": seed, "steps": steps, "patients": patients_hash(cohort)}
        save_weights(Path(folder) / "judge.safetensors", {"network": network}, metadata)
        return history.frame()

    @classmethod
    def train(cls, cohort: Cohort, folder: Path, steps: int, seed: int, phantom: Phantom | None = None) -> None:
        """`Judge().fit(...)`, which another process can be sent: nothing is made before it arrives there."""
        cls().fit(cohort, folder, steps, seed, phantom)

    @classmethod
    def load(cls, folder: Path) -> Judge:
        path = Path(folder) / "judge.safetensors"
        judge = cls(**weights_metadata(path)["settings"])
        load_weights(path, {"network": judge.network})
        judge.network.to(accelerator().device).eval()
        return judge

    @torch.no_grad()
    def _run(self, function, pixels: np.ndarray | OnDisk) -> np.ndarray:
        batch = max(min(256, 2**20 // (pixels.shape[1] * pixels.shape[2])), 1)  # 256 up to 64 px: a few hundred MB
        self.network.eval()
        device = next(self.network.parameters()).device
        images = Images(pixels)
        return np.concatenate([function(part.to(device)).float().cpu().numpy() for part in images.split(batch)])

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W) integer pixels to (N, features) float32."""
        return self._run(self.network.features, pixels)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W) integer pixels to (N, 3) probabilities of NFF, AFF and neither."""
        return self._run(lambda images: self.network(images).softmax(1), pixels)

    def verdicts(self, pixels: np.ndarray) -> np.ndarray:
        """(N,) "NFF", "AFF" or "neither", whichever is most probable."""
        return np.array(CLASSES)[self.probabilities(pixels).argmax(1)]

    def activation_maps(self, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """(N, h, w) class activation maps: what each place adds to the logit of the class named for the image.

        Zhou et al. 2016, arXiv:1512.04150, eq. 2; exact here, where a linear layer follows the average: the mean of a
        map and the layer's bias are the logit.

        Parameters
        ----------
        pixels : (N, H, W) integers
        classes : (N,) of `CLASSES`
        """
        weights = self.network.head.weight.detach()
        maps = self._run(lambda images: torch.einsum("kc,nchw->nkhw", weights, self.network.stages(images)), pixels)
        return maps[np.arange(len(pixels)), [CLASSES.index(name) for name in classes]]

    def with_zones(self, cohort: Cohort) -> Cohort:
        """The cohort with a fracture zone for each image: the table's own, else the rows that speak for its label.

        Those are the rows around the strongest one whose mean in the class activation map exceeds half of its.
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
        """How often what is drawn (rows) is judged to be each class (columns), on images the judge has not seen."""
        pixels, drawn = examples(cohort, seed, phantom)
        shares = pd.crosstab(
            pd.Series(drawn, name="drawn"), pd.Series(self.verdicts(pixels), name="judged"), normalize="index"
        )
        return shares.reindex(columns=CLASSES, fill_value=0.0).reindex(index=[*LABELS, *FAILURES])
