"""Peak resident memory of the stages of notebooks 01, 04 and 05 on 20,000 images of 256 px, each in its own process.

python benchmarks/memory.py FOLDER [STAGE ...]     # all stages without names; FOLDER needs 5 GB

The images are smooth random fields with noise under a phantom's table, since drawing as many phantoms takes a quarter
of an hour and more. What takes time by the image, and keeps nothing of it, is done for some images; its time for all is
extrapolated and printed.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from lib.checks.audit import duplicate_checks, part_checks, synthetic_checks
from lib.data.cohort import Cohort, save_blocks
from lib.data.duplicates import BLOCK, duplicate_pairs, duplicates
from lib.data.phantom import Phantom
from lib.data.pixels import blocks
from lib.data.splits import make_splits, read_splits
from lib.fidelity.judge import Judge
from lib.fidelity.measures import fidelity_table
from lib.fidelity.memorisation import memorisation_table
from lib.fidelity.synthesis import synthesise, translate_test
from lib.radiographs.quality import quality
from lib.report.figures import image_page
from lib.run.folder import Run
from lib.study import Study
from lib.translators.cyclegan import CycleGAN
from lib.translators.cyclegan import Settings as GANSettings
from lib.trials.classifier import Settings
from lib.trials.trials import run_trials

IMAGES, SIZE, GIB, FIRST = 20_000, 256, 2**30, (0, 0)
SOME = 200  # images, where time grows with them and memory does not


def extrapolated(name: str, function, of: int, to: int = IMAGES):
    """Run something on a part of the images, and print how long it would take on all."""
    start = time.perf_counter()
    result = function()
    took = time.perf_counter() - start
    print(f"    {name}: {of} in {took:.0f} s, {to} would take {took * to / of / 60:.0f} minutes", flush=True)
    return result


def cohort(folder: Path) -> None:
    table = Phantom(patients=round(IMAGES / 3.55), size=SIZE).table.head(IMAGES)

    def fields(rows: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(rows[0])
        coarse = torch.from_numpy(rng.random((len(rows), 1, 12, 12), np.float32))
        smooth = interpolate(coarse, (SIZE, SIZE), mode="bicubic")[:, 0].clamp(0, 1).numpy()
        return (smooth * 191 + rng.integers(0, 64, smooth.shape, np.uint8)).astype(np.uint8)

    save_blocks(folder / "cohort", table, map(fields, blocks(len(table))))
    splits = make_splits(table.groupby("patient_id").label.first(), 1, 1, seed=0, test_share=0.3)
    splits.to_csv(folder / "cohort" / "splits.csv", index=False)


def read(folder: Path) -> Study:
    return Study(Run(folder), Cohort.load(folder / "cohort"), read_splits(folder / "cohort" / "splits.csv"))


def exploration(folder: Path) -> None:
    study = read(folder)
    images, splits = study.cohort, study.splits
    images = Cohort(images.table, np.asarray(images.pixels))  # notebook 01 has just drawn them
    patients = images.table.patient_id
    few = images.first(2 * BLOCK)

    def search():
        return duplicates(few.pixels, images.pixels, few.table.patient_id, patients)

    extrapolated("duplicates, the part of them that all images need included", search, len(few))
    pairs = duplicate_pairs(images.first(SOME))
    extrapolated("quality", lambda: quality(images.first(SOME), pairs), SOME)
    part_checks(images, splits)
    duplicate_checks(images, splits, pairs)
    image_page(images.take(images.table.query("label == 'NFF'").index[:24]), columns=8)
    images.save(folder / "again")


def synthesis(folder: Path) -> None:
    study = read(folder)
    images, splits = study.cohort, study.splits
    gan = CycleGAN(GANSettings(steps=1, batch=1, width=4, blocks=1, discriminator_width=4))
    gan.fit(study.fold().train, folder / "cyclegan" / "r0f0", 0)
    made = synthesise(folder, "cyclegan", FIRST, images, splits, 1.0, 0)
    useless = synthesise(folder, "useless", FIRST, images, splits, 1.0, 0)
    print(f"    {len(made)} and {len(useless)} images made", flush=True)
    few = {(FIRST, "cyclegan"): made.first(BLOCK)}
    extrapolated("audit of synthetic images", lambda: synthetic_checks(few, images, splits), BLOCK, len(made))


def judging(folder: Path) -> None:
    study = read(folder)
    images, splits = study.cohort, study.splits
    training, validation, test = study.fold().parts
    judge = Judge(channels=4)  # a quarter of the notebook's, for the time
    judge.fit(training, folder / "judge" / "r0f0", 2, 0)
    translated = {"cyclegan": translate_test(folder, "cyclegan", FIRST, images, splits)}
    fidelity_table(translated, training, validation, test, judge)
    made = {"cyclegan": synthesise(folder, "cyclegan", FIRST, images, splits, 1.0, 0)}
    memorisation_table(made, *(part.select(label="AFF") for part in (training, test)), judge, shares=(0.2,))


def trials(folder: Path) -> None:
    study = read(folder)
    images, splits = study.cohort, study.splits
    settings = Settings("resnet18", "none", steps=2, validate_every=2, lr=1e-3)

    def synthetic(repeat: int, fold: int) -> dict[str, Cohort]:
        return {"cyclegan": Cohort.load(folder / "synthetic" / "cyclegan" / f"r{repeat}f{fold}")}

    run_trials(images, splits, synthetic, ["cyclegan"], [0], settings, folder / "trials")


STAGES = {function.__name__: function for function in (cohort, exploration, synthesis, judging, trials)}


def main(folder: str, *stages: str) -> None:
    if stages[:1] == ("--inside",):
        start = time.perf_counter()
        STAGES[stages[1]](Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}))
        return
    for stage in stages or STAGES:
        command = [sys.executable, __file__, folder, "--inside", stage]
        *told, result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        result = json.loads(result)
        verdict = "under" if result["peak"] < 4 * GIB else "NOT under"
        print(
            f"{stage}: peak {result['peak'] / GIB:.2f} GiB, {verdict} 4, in {result['seconds']:.0f} s", *told, sep="\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
