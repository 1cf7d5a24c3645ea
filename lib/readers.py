"""Reader study: can readers tell synthetic radiographs from real ones, and do they see the fracture they are to show?

A sheet is a shuffled, balanced sequence of real and synthetic images of both classes; some come twice, late, so that a
reader can be compared with himself. Answers are written after every click; a reader who comes back goes on. That nobody
tells them apart better than chance is no proof of likeness: equivalence is tested, within a margin that was stated
before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest
from sklearn.metrics import cohen_kappa_score

from lib.cohort import LABELS, Cohort
from lib.curation import pixel_hashes
from lib.files import shown, write_text
from lib.training import cohort_hash, generator

ORIGINS = ("real", "synthetic")
SCALE = (1, 2, 3, 4, 5)  # of plausibility and confidence
QUESTIONS = {"origin": ORIGINS, "label": LABELS, "plausibility": SCALE, "confidence": SCALE}
ANSWERS = ("reader", "number", *QUESTIONS, "seconds")
MARGIN = 0.1  # accuracies from 0.4 to 0.6 are as good as chance


def sheet(real: Cohort, synthetic: dict[str, Cohort], each: int, repeats: int, seed: int) -> Cohort:
    """The images of a study in the order in which they are shown.

    Parameters
    ----------
    real : images that no generator has seen
    synthetic : method → its images
    each : images of each method and class; as many real ones of each class as all methods have together
    repeats : images that come a second time, in the last part, so that at least half of the sheet lies between

    Returns
    -------
    Cohort with the columns `number` (from 1), `origin`, `method` ("real" or a key of `synthetic`) and `first` (the
    number of the first showing of a repeat, else 0)

    Raises
    ------
    ValueError
        Where there are too few images, or more repeats than half of them.
    """
    rng, chosen = generator(seed, 6), []
    for method, images in {"real": real, **synthetic}.items():
        wanted = each * len(synthetic) if method == "real" else each
        for label in LABELS:
            rows = np.flatnonzero(images.table.label == label)
            if len(rows) < wanted:
                raise ValueError(f"{method} has {len(rows)} images of {label}, the sheet needs {wanted}: lower `each`")
            picked = images.take(np.sort(rng.permutation(rows)[:wanted]))
            origin = ORIGINS[method != "real"]
            chosen.append(Cohort(picked.table.assign(method=method, origin=origin), picked.pixels))
    images = chosen[0].join(*chosen[1:])
    n = len(images)
    if not 0 <= repeats <= n // 2:
        raise ValueError(f"repeats={repeats}: from 0 to half of the {n} images")
    order = rng.permutation(n)
    again = rng.permutation(n // 2)[:repeats]  # positions in the first half
    once, twice = images.take(order), images.take(order[again])
    twice = Cohort(twice.table.assign(image_id=twice.table.image_id + "-again"), twice.pixels)
    shown = once.join(twice)
    numbers = {"number": np.arange(1, len(shown) + 1), "first": np.concatenate([np.zeros(n, int), again + 1])}
    return Cohort(shown.table.assign(**numbers), shown.pixels)


def begun_or(images: Cohort, folder: Path) -> Cohort:
    """The sheet of a study that has begun in the folder: answers belong to its images; else these, saved there."""
    if not len(read_answers(folder / "answers.csv")):
        images.save(folder)
        return images
    begun = Cohort.load(folder)
    if cohort_hash(begun) != cohort_hash(images):
        print(f"The reader study goes on with the images it began with; delete {shown(folder)} to draw others.")
    return begun


def outdated(images: Cohort, made: dict[str, Cohort]) -> list[str]:
    """The methods of a sheet whose images are not those that are there now: their generator was trained again since."""
    old = []
    for method in sorted(set(images.table.method) & set(made)):
        shown_then = pixel_hashes(images.take(np.flatnonzero(images.table.method == method)))
        old += [method] * (not set(shown_then) <= set(pixel_hashes(made[method])))
    return old


def read_answers(path: Path) -> pd.DataFrame:
    """All answers so far, with the columns `ANSWERS`; none where there is no file yet."""
    return pd.read_csv(path, dtype={"reader": str}) if Path(path).exists() else pd.DataFrame(columns=list(ANSWERS))


def record(path: Path, reader: str, number: int, seconds: float, **answers) -> None:
    """Add one answer to the file, whole or not at all; a second answer of a reader to a number takes the first's place.

    Raises
    ------
    ValueError
        Where an answer is none of `QUESTIONS`, or one is missing.
    """
    for question, allowed in QUESTIONS.items():
        if answers.get(question) not in allowed:
            raise ValueError(f"{question}: {answers.get(question)!r} is none of {', '.join(map(str, allowed))}")
    old = read_answers(path)
    kept = old[(old.reader != reader) | (old.number != number)]
    new = pd.DataFrame([{"reader": reader, "number": number, **answers, "seconds": round(seconds, 1)}])
    table = pd.concat([kept, new], ignore_index=True) if len(kept) else new
    write_text(path, table[list(ANSWERS)].to_csv(index=False))


def next_number(path: Path, reader: str, images: Cohort) -> int | None:
    """The first number that a reader has not answered; None where all are."""
    answers = read_answers(path)
    left = sorted(set(images.table.number) - set(answers.number[answers.reader == reader]))
    return int(left[0]) if left else None


# Analysis ------------------------------------------------------------------------------------------------------------


def joined(answers: pd.DataFrame, images: Cohort) -> pd.DataFrame:
    """Answers beside what is true: `true_origin`, `true_label`, `method`, `first`."""
    truth = images.table[["number", "origin", "label", "method", "first"]]
    return answers.merge(truth.rename(columns={"origin": "true_origin", "label": "true_label"}), on="number")


def accuracy(answers: pd.DataFrame, images: Cohort, margin: float = MARGIN) -> pd.DataFrame:
    """How often each reader tells real from synthetic, first showings alone.

    Returns
    -------
    DataFrame, a row a reader: `n, right, accuracy, ci_low, ci_high` (95 %, Clopper & Pearson 1934), `p` against 0.5
    (exact binomial, two-sided), `p_equivalence` (the larger of two one-sided exact tests against 0.5 ± margin), and
    `label_accuracy`, how often the class was seen
    """
    rows = {}
    both = joined(answers, images).query("first == 0")
    for reader, own in both.groupby("reader"):
        right, n = int((own.origin == own.true_origin).sum()), len(own)
        test = binomtest(right, n)
        interval = test.proportion_ci(method="exact")
        equivalence = max(
            binomtest(right, n, 0.5 - margin, "greater").pvalue, binomtest(right, n, 0.5 + margin, "less").pvalue
        )
        rows[reader] = {
            "n": n, "right": right, "accuracy": right / n, "ci_low": interval.low, "ci_high": interval.high,
            "p": test.pvalue, "p_equivalence": equivalence, "label_accuracy": (own.label == own.true_label).mean(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("reader")


def confusion(answers: pd.DataFrame, images: Cohort) -> pd.DataFrame:
    """By method and true class, over readers: shares `taken for real`, `taken for AFF`, and mean `plausibility`."""
    both = joined(answers, images).query("first == 0")
    both = both.assign(real=both.origin == "real", aff=both.label == "AFF")
    means = both.groupby(["method", "true_label"], sort=False)[["real", "aff", "plausibility"]].mean()
    return means.rename(columns={"real": "taken for real", "aff": "taken for AFF"})


def agreement(answers: pd.DataFrame, images: Cohort) -> pd.DataFrame:
    """Kappa of the questions on origin and class: of readers with each other, and of each with himself.

    Returns
    -------
    DataFrame `who, question, kappa, n` : Cohen 1960 for pairs and for repeats, Fleiss 1971 for all readers together;
    NaN where everything got one answer
    """
    both, rows = joined(answers, images), []
    for question in ("origin", "label"):
        table = both[both["first"] == 0].pivot_table(index="number", columns="reader", values=question, aggfunc="first")
        readers = list(table)
        for i, one in enumerate(readers):
            for other in readers[i + 1 :]:
                pair = table[[one, other]].dropna()
                rows.append((f"{one} and {other}", question, _cohen(pair[one], pair[other]), len(pair)))
        complete = table.dropna()
        if len(readers) > 1 and len(complete):
            rows.append(("all readers", question, fleiss_kappa(complete.to_numpy()), len(complete)))
        for reader, own in both.groupby("reader"):
            again = own[own["first"] > 0].merge(own, left_on="first", right_on="number", suffixes=("_again", ""))
            if len(again):
                kappa = _cohen(again[question], again[f"{question}_again"])
                rows.append((f"{reader}, a second time", question, kappa, len(again)))
    return pd.DataFrame(rows, columns=["who", "question", "kappa", "n"])


def _cohen(a: pd.Series, b: pd.Series) -> float:
    return float(cohen_kappa_score(a, b)) if len(set(a) | set(b)) > 1 else float("nan")


def fleiss_kappa(ratings: np.ndarray) -> float:
    """Agreement of several raters beyond chance: Fleiss 1971, doi:10.1037/h0031619, equations 1 to 7.

    Parameters
    ----------
    ratings : (subjects, raters) categories; NaN comes back where there is only one
    """
    categories = np.unique(ratings)
    n = ratings.shape[1]
    counts = (ratings[:, :, None] == categories).sum(1)  # (subjects, categories)
    P = ((counts**2).sum(1) - n) / (n * (n - 1))
    P_e = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return float((P.mean() - P_e) / (1 - P_e)) if P_e < 1 else float("nan")


def images_needed(accuracy: float, power: float = 0.8, level: float = 0.05) -> int:
    """How many images a reader of this true accuracy must see for the exact test against 0.5 to have this power.

    From there on it has it for every larger number too (the power of exact tests is a saw-tooth).

    Raises
    ------
    ValueError
        For an accuracy from which more than 10,000 images would be needed, or that is none.
    """
    if not 0 <= accuracy <= 1 or not 0 < power < 1:
        raise ValueError(f"accuracy={accuracy} and power={power} must lie between 0 and 1")
    n = np.arange(1, 10_001)
    low = binom.ppf(level / 2, n, 0.5)  # the smallest k with P(X ≤ k) ≥ level / 2
    low = np.where(binom.cdf(low, n, 0.5) > level / 2, low - 1, low)  # the largest that is still rejected
    found = binom.cdf(low, n, accuracy) + binom.sf(n - low - 1, n, accuracy)
    short = np.flatnonzero(found < power)
    if len(short) == len(n) or (len(short) and n[short[-1]] == n[-1]):
        raise ValueError(f"accuracy={accuracy} cannot be told from 0.5 with 10,000 images")
    return int(n[short[-1]] + 1) if len(short) else 1
