"""Reader study: can readers tell synthetic radiographs from real ones, and do they see the fracture they are to show?

A sheet is a shuffled, balanced sequence of real and synthetic images of both classes; some come twice, late, so that a
reader can be compared with himself. Answers are written after every click; a reader who comes back goes on. That nobody
tells them apart better than chance is no proof of likeness: equivalence is tested, within a margin that was stated
before.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest
from sklearn.metrics import cohen_kappa_score

from lib.data.cohort import Cohort

MARGIN = 0.1  # accuracies from 0.4 to 0.6 are as good as chance


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
