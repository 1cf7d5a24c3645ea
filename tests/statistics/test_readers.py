"""Readers: what their answers prove."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lib.statistics.readers import accuracy, agreement, confusion, fleiss_kappa, images_needed


def sheet():
    """Twenty images of each origin and class, of which six come twice."""
    numbers = np.arange(1, 47)
    table = pd.DataFrame({"number": numbers, "first": np.where(numbers > 40, numbers - 40, 0)})
    shown = np.where(numbers > 40, numbers - 41, numbers - 1)
    origins, labels = np.array(["real", "synthetic"])[shown // 2 % 2], np.array(["AFF", "NFF"])[shown % 2]
    return table.assign(origin=origins, label=labels, method=np.where(origins == "real", "real", "cyclegan"))


def answers_of(reader, origin, label):
    return sheet()[["number"]].assign(reader=reader, origin=origin, label=label, plausibility=4)


def test_one_who_knows_and_one_who_guesses():
    truth = sheet()
    guessed = np.where(truth.number % 2, "real", "synthetic")
    answers = pd.concat([answers_of("knows", truth.origin, truth.label), answers_of("guesses", guessed, "NFF")])
    found = accuracy(answers, truth)
    assert found.loc["knows", ["n", "right", "accuracy", "label_accuracy"]].tolist() == [40, 40, 1, 1]
    assert found.loc["knows", "p"] == pytest.approx(2 * 0.5**40)
    assert found.loc["knows", "ci_low"] == pytest.approx(0.025 ** (1 / 40))  # Clopper & Pearson, closed form
    assert found.loc["guesses", "label_accuracy"] == 0.5
    table = confusion(answers[answers.reader == "knows"], truth)
    assert table["taken for real"].to_dict() == {key: float(key[0] == "real") for key in table.index}
    agreed = agreement(answers, truth).set_index(["who", "question"]).kappa
    assert agreed["knows, a second time", "origin"] == 1
    assert np.isnan(agreed["guesses, a second time", "label"])
    assert agreed["guesses and knows", "origin"] == pytest.approx(agreed["all readers", "origin"], abs=0.1)


def test_equivalence_needs_more_than_no_difference():
    def study_of(n):
        table = pd.DataFrame({"number": range(1, n + 1), "origin": ["real", "synthetic"] * (n // 2), "label": "AFF",
                              "method": "x", "first": 0, "image_id": map(str, range(n)), "patient_id": "p", "view": "",
                              "side": ""})  # fmt: skip
        answers = table.assign(reader="a", origin="real", plausibility=3, confidence=3)[
            ["reader", "number", "origin", "label", "plausibility", "confidence"]
        ]
        return accuracy(answers, table).iloc[0]

    few, many = study_of(20), study_of(400)
    assert few.accuracy == many.accuracy == 0.5 and few.p == many.p == 1
    assert few.p_equivalence > 0.2 and many.p_equivalence < 0.001
    assert many.p_equivalence == pytest.approx(binomtest(200, 400, 0.6, "less").pvalue)


def test_fleiss_kappa_of_the_paper():
    """The example that textbooks give: 14 raters, 10 subjects, 5 categories, κ = 0.210."""
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
              [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    ratings = np.array([np.repeat(np.arange(5), row) for row in counts])
    assert fleiss_kappa(ratings) == pytest.approx(0.2099, abs=5e-5)
    assert np.isnan(fleiss_kappa(np.zeros((4, 3))))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=20))
def test_fleiss_kappa_does_not_care_who_is_who(ratings):
    ratings = np.array(ratings)
    np.testing.assert_allclose(fleiss_kappa(ratings), fleiss_kappa(ratings[::-1, [2, 0, 1]]), atol=1e-12)


@pytest.mark.parametrize(("accuracy", "n"), [(0.6, 204), (0.65, 90), (0.7, 52), (0.75, 30)])
def test_images_needed_for_80_percent_power(accuracy, n):
    """The values usually given; the exact test's saw-tooth lies within a few images of them."""
    assert abs(images_needed(accuracy) - n) <= 8
    assert images_needed(1 - accuracy) == images_needed(accuracy)


def test_chance_cannot_be_told_from_chance():
    with pytest.raises(ValueError, match=r"cannot be told from 0\.5"):
        images_needed(0.5)
