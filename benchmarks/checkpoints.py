"""What share of a training's time its checkpoints take: `python benchmarks/checkpoints.py`.

The state of each training after a step is saved five times, synced to the disk; the median counts. The next checkpoint
comes after `every` seconds (`lib.run.checkpoints.Checkpoint.due`), so the share is that of saving in `every` +
saving, and at
most as much work as that is lost. Numbers of the networks' size do not depend on the size of the images.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from lib.data.phantom import Phantom
from lib.run.checkpoints import EVERY, Checkpoint
from lib.translators import cyclegan
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.settings import PUBLISHED, Settings
from lib.translators.cyclegan import CycleGAN
from lib.trials import classifier


class Saved(Exception):
    """Ends a training at the checkpoint that it carries."""


def checkpoint_of(train, last: int) -> Checkpoint:
    """The checkpoint of a training after its last step, when every optimiser has its state."""

    def caught(self, step):
        if step == last:
            raise Saved(self)

    save, Checkpoint.save = Checkpoint.save, caught
    due, Checkpoint.due = Checkpoint.due, lambda self: True
    try:
        train()
    except Saved as caught:
        return caught.args[0]
    finally:
        Checkpoint.save, Checkpoint.due = save, due


def main() -> None:
    cohort = Phantom(40, 64, aff_share=0.4, seed=0).cohort()
    stages = {"warmup_steps": 1, "joint_steps": 1, "perceptual": 0.0}
    published = replace(PUBLISHED, **stages, batch=1, autoencoder_steps=1)
    trainings = {
        "CycleGAN, quick": lambda f: CycleGAN(cyclegan.Settings(steps=2)).fit(cohort, f, 0),
        "CycleGAN, published": lambda f: CycleGAN(replace(cyclegan.PUBLISHED, steps=2)).fit(cohort, f, 0),
        "CycleDiff, quick": lambda f: CycleDiff(Settings(**stages)).fit(cohort, f, 0),
        "CycleDiff, published": lambda f: CycleDiff(published).fit(cohort, f, 0),
        "ResNet-50": lambda f: classifier.train(
            cohort, cohort, classifier.Settings(weights="none", steps=2, batch=4), 0, checkpoint=f / "checkpoint.pt"
        ),
    }
    print(f"{'training':22}{'MB':>8}{'seconds to save':>18}{'every':>8}{'share':>8}")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for name, train in trainings.items():
            place = Path(folder) / name.replace(", ", "-")
            last = 3 if name == "CycleDiff, published" else 2  # one step a stage
            checkpoint, took = checkpoint_of(lambda train=train, place=place: train(place), last), []
            for step in range(5):
                start = time.perf_counter()
                checkpoint.save(step)
                took.append(time.perf_counter() - start)
            size = checkpoint.path.stat().st_size / 1e6
            seconds = median(took)
            every = min(max(60 * seconds, EVERY[0]), EVERY[1])
            share = seconds / (seconds + every)
            print(f"{name:22}{size:8.1f}{seconds:18.2f}{every:8.0f}{share:8.2%}", flush=True)
            for file in Checkpoint.files(checkpoint.path):
                file.unlink()


if __name__ == "__main__":
    main()
