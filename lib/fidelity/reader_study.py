"""The reader study: which images readers see, and what they answer. What answers prove: `lib.statistics.readers`."""

from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.cohort import LABELS, Cohort
from lib.data.hashes import cohort_hash
from lib.fidelity.curation import pixel_hashes
from lib.run.files import shown, write_text
from lib.run.randomness import generator

SCALE = (1, 2, 3, 4, 5)
QUESTIONS = {"origin": ("real", "synthetic"), "label": LABELS, "plausibility": SCALE, "confidence": SCALE}
ANSWERS = ("reader", "number", *QUESTIONS, "seconds")


def sheet(real: Cohort, synthetic: dict[str, Cohort], each: int, repeats: int, seed: int) -> Cohort:
    """Draw the images of a study, in the order in which they are shown.

    There are `each` images of each class and method of `synthetic`, and as many `real` ones of each class as all
    methods have together. So many of the first half as `repeats` says come again at the end.

    Returns
    -------
    Cohort with the columns `number` (from 1), `origin`, `method` ("real" or a key of `synthetic`) and `first` (the
    number of the first showing of a repeat, else 0)
    """
    rng, chosen = generator(seed, 6), []
    for method, images in {"real": real, **synthetic}.items():
        wanted = each * len(synthetic) if method == "real" else each
        for label in LABELS:
            rows = np.flatnonzero(images.table.label == label)
            if len(rows) < wanted:
                raise ValueError(f"{method} has {len(rows)} images of {label}, the sheet needs {wanted}: lower `each`")
            picked = images.take(np.sort(rng.permutation(rows)[:wanted]))
            origin = "real" if method == "real" else "synthetic"
            chosen.append(Cohort(picked.table.assign(method=method, origin=origin), picked.pixels))
    images = chosen[0].join(*chosen[1:])
    n = len(images)
    if not 0 <= repeats <= n // 2:
        raise ValueError(f"repeats={repeats}: from 0 to half of the {n} images")
    order = rng.permutation(n)
    again = rng.permutation(n // 2)[:repeats]  # positions in the first half
    once, twice = images.take(order), images.take(order[again])
    both = once.join(Cohort(twice.table.assign(image_id=twice.table.image_id + "-again"), twice.pixels))
    numbers = {"number": np.arange(1, len(both) + 1), "first": np.concatenate([np.zeros(n, int), again + 1])}
    return Cohort(both.table.assign(**numbers), both.pixels)


def begin(real: Cohort, synthetic: dict[str, Cohort], most: int, seed: int, folder: Path) -> Cohort:
    """Draw a sheet of as many images of each method and class as there are, `most` at most, or go on with the old one.

    Half as many images as one method has of one class come twice.
    """
    each = min(real.table.label.value_counts().min() // len(synthetic), most)
    return begun_or(sheet(real, synthetic, each, repeats=max(each // 2, 1), seed=seed), folder)


def begun_or(images: Cohort, folder: Path) -> Cohort:
    """Load the sheet that readers have begun to answer in the folder; else save these images there."""
    if not len(read_answers(folder / "answers.csv")):
        images.save(folder)
        return images
    begun = Cohort.load(folder)
    if cohort_hash(begun) != cohort_hash(images):
        print(f"The reader study goes on with the images it began with; delete {shown(folder)} to draw others.")
    return begun


def outdated(images: Cohort, made: dict[str, Cohort]) -> list[str]:
    """Name the methods of a sheet whose images are no longer among those made: the generator was trained again."""
    old = []
    for method in sorted(set(images.table.method) & set(made)):
        if set(pixel_hashes(images.select(method=method))) - set(pixel_hashes(made[method])):
            old.append(method)
    return old


def read_answers(path: Path) -> pd.DataFrame:
    """Read all answers so far, with the columns `ANSWERS`; no file, no rows."""
    return pd.read_csv(path, dtype={"reader": str}) if Path(path).exists() else pd.DataFrame(columns=list(ANSWERS))


def record(path: Path, reader: str, number: int, seconds: float, **answers) -> None:
    """Add one answer to each of `QUESTIONS` to the file; a second one to the same number takes the first's place."""
    for question, allowed in QUESTIONS.items():
        if answers.get(question) not in allowed:
            raise ValueError(f"{question}: {answers.get(question)!r} is none of {', '.join(map(str, allowed))}")
    old = read_answers(path)
    kept = old[(old.reader != reader) | (old.number != number)]
    new = pd.DataFrame([{"reader": reader, "number": number, **answers, "seconds": round(seconds, 1)}])
    table = pd.concat([kept, new], ignore_index=True) if len(kept) else new
    write_text(path, table[list(ANSWERS)].to_csv(index=False))


def next_number(path: Path, reader: str, images: Cohort) -> int | None:
    """Return the first number that a reader has not answered; None where all are."""
    answers = read_answers(path)
    left = sorted(set(images.table.number) - set(answers.number[answers.reader == reader]))
    return int(left[0]) if left else None
