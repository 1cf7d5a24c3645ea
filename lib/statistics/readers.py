"""Readers: can they tell synthetic radiographs from real ones, and do they see the fracture that is to be there?

That nobody tells them apart better than chance is no proof of likeness: equivalence is tested, within a margin that was
stated before. How images are shown and answers kept: `lib.fidelity.reader_study`.

answers : `reader, number, origin, label, plausibility`
sheet : what was shown, with the truth: `number, origin, label, method`, and `first`, the number of an image's first
    showing where it came twice, else 0
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest
from sklearn.metrics import cohen_kappa_score

MARGIN = 0.1  # accuracies from 0.4 to 0.6 are as good as chance


def joined(answers: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    """Put answers beside what is true: `true_origin`, `true_label`, `method`, `first`."""
    truth = sheet[["number", "origin", "label", "method", "first"]]
    return answers.merge(truth.rename(columns={"origin": "true_origin", "label": "true_label"}), on="number")


def accuracy(answers: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    """Test how often each reader tells real from synthetic, first showings alone.

    Returns
    -------
    DataFrame, a row a reader: `n, right, accuracy, ci_low, ci_high` (95 %, Clopper & Pearson 1934), `p` against 0.5
    (exact binomial, two-sided), `p_equivalence` (the larger of two one-sided exact tests against 0.5 ± `MARGIN`), and
    `label_accuracy`, how often the class was seen
    """
    rows = {}
    for reader, own in joined(answers, sheet).query("first == 0").groupby("reader"):
        right, n = int((own.origin == own.true_origin).sum()), len(own)
        test = binomtest(right, n)
        interval = test.proportion_ci(method="exact")
        one_sided = binomtest(right, n, 0.5 - MARGIN, "greater"), binomtest(right, n, 0.5 + MARGIN, "less")
        rows[reader] = {
            "n": n, "right": right, "accuracy": right / n, "ci_low": interval.low, "ci_high": interval.high,
            "p": test.pvalue, "p_equivalence": max(one.pvalue for one in one_sided),
            "label_accuracy": (own.label == own.true_label).mean(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("reader")


def confusion(answers: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    """Return by method and true class: shares `taken for real`, `taken for AFF`, and mean `plausibility`."""
    both = joined(answers, sheet).query("first == 0")
    both = both.assign(**{"taken for real": both.origin == "real", "taken for AFF": both.label == "AFF"})
    asked = ["taken for real", "taken for AFF", "plausibility"]
    return both.groupby(["method", "true_label"], sort=False)[asked].mean()


def agreement(answers: pd.DataFrame, sheet: pd.DataFrame) -> pd.DataFrame:
    """Return kappa of origin and class: of readers with each other, and of each reader with their own second answer.

    Cohen 1960 for pairs and for repeats, Fleiss 1971 for all readers together; NaN where everything got one answer.
    Columns: `who, question, kappa, n`.
    """
    both, rows = joined(answers, sheet), []
    for question in ("origin", "label"):
        table = both[both["first"] == 0].pivot_table(index="number", columns="reader", values=question, aggfunc="first")
        for one, other in combinations(table, 2):
            pair = table[[one, other]].dropna()
            rows.append((f"{one} and {other}", question, _cohen(pair[one], pair[other]), len(pair)))
        complete = table.dropna()
        if table.shape[1] > 1 and len(complete):
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
    """Return the agreement of raters (subjects, raters) beyond chance, Fleiss 1971; NaN where there is one category."""
    from statsmodels.stats import inter_rater

    with np.errstate(invalid="ignore"):
        return float(inter_rater.fleiss_kappa(inter_rater.aggregate_raters(ratings)[0]))


def images_needed(accuracy: float) -> int:
    """Return how many images a reader of this true accuracy must see for the exact test against 0.5 to have 80 % power.

    From there on it has it for every larger number too (the power of exact tests is a saw-tooth). ValueError where more
    than 10,000 images would be needed.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy={accuracy} must lie between 0 and 1")
    n = np.arange(1, 10_001)
    low = binom.ppf(0.025, n, 0.5)  # the smallest k with P(X ≤ k) ≥ 2.5 %
    low = np.where(binom.cdf(low, n, 0.5) > 0.025, low - 1, low)  # the largest that is still rejected
    found = binom.cdf(low, n, accuracy) + binom.sf(n - low - 1, n, accuracy)
    short = np.flatnonzero(found < 0.8)
    if len(short) and short[-1] == len(n) - 1:
        raise ValueError(f"accuracy={accuracy} cannot be told from 0.5 with 10,000 images")
    return int(n[short[-1]] + 1) if len(short) else 1
