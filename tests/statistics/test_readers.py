"""The reader study: a balanced, blinded sheet, answers that are never lost, and what they prove."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lib.data.cohort import Cohort
from lib.fidelity.reader_study import begun_or, next_number, outdated, read_answers, record, sheet
from lib.statistics.readers import accuracy, agreement, confusion, fleiss_kappa, images_needed


def images(prefix, n=20):
    table = pd.DataFrame({"image_id": [f"{prefix}{k}" for k in range(n)], "patient_id": [f"p{k}" for k in range(n)],
                          "label": ["AFF", "NFF"] * (n // 2), "view": "AP", "side": "left"})  # fmt: skip
    return Cohort(table, np.random.default_rng(len(prefix)).integers(0, 256, (n, 8, 8), np.uint8))


SYNTHETIC = {"cyclegan": images("g"), "cyclediff": images("d")}


@pytest.fixture(scope="module")
def study():
    return sheet(images("r", 40), SYNTHETIC, each=5, repeats=6, seed=3)


def answer_all(path, study, reader, origin, label=lambda row: row.label):
    for row in study.table.itertuples():
        record(path, reader, row.number, 2.5, origin=origin(row), label=label(row), plausibility=4, confidence=2)


def test_a_sheet_is_balanced_shuffled_and_repeats_late(study):
    table = study.table
    first = table[table["first"] == 0]
    assert first.groupby(["method", "label"]).size().to_dict() == {
        ("real", "AFF"): 10, ("real", "NFF"): 10, ("cyclegan", "AFF"): 5, ("cyclegan", "NFF"): 5,
        ("cyclediff", "AFF"): 5, ("cyclediff", "NFF"): 5,
    }  # fmt: skip
    assert list(table.number) == list(range(1, 47)) and (first.origin == "real").sum() == 20
    again = table[table["first"] > 0]
    assert len(again) == 6 and (again.number - again["first"] >= 20).all()
    assert np.array_equal(study.pixels[again.number - 1], study.pixels[again["first"] - 1])
    assert first.origin.ne(first.origin.shift()).sum() > 10
    same = sheet(images("r", 40), SYNTHETIC, each=5, repeats=6, seed=3)
    assert same.table.equals(table)
    assert not sheet(images("r", 40), SYNTHETIC, each=5, repeats=6, seed=4).table.equals(table)


@pytest.mark.parametrize(("each", "repeats", "message"), [(6, 0, "real has 10 images of NFF"), (2, 9, "repeats=9")])
def test_a_sheet_that_cannot_be_is_refused(each, repeats, message):
    with pytest.raises(ValueError, match=message):
        sheet(images("r", 20), SYNTHETIC, each, repeats, 0)


def test_answers_stay_with_the_images_they_were_given_on(tmp_path, study, capsys):
    other = sheet(images("r", 40), SYNTHETIC, each=5, repeats=6, seed=4)
    assert begun_or(other, tmp_path) is other and begun_or(study, tmp_path) is study, "nobody has answered yet"
    record(tmp_path / "answers.csv", "a", 1, 2.0, origin="real", label="AFF", plausibility=3, confidence=1)
    assert begun_or(study, tmp_path).table.image_id.equals(study.table.image_id) and not capsys.readouterr().out
    assert begun_or(other, tmp_path).table.image_id.equals(study.table.image_id)
    assert "the images it began with" in capsys.readouterr().out


def test_a_generator_trained_again_is_found_out(study):
    assert outdated(study, SYNTHETIC) == []
    again = Cohort(SYNTHETIC["cyclegan"].table, 255 - SYNTHETIC["cyclegan"].pixels)
    assert outdated(study, SYNTHETIC | {"cyclegan": again}) == ["cyclegan"]


def test_a_reader_goes_on_where_he_stopped(tmp_path, study):
    path = tmp_path / "answers.csv"
    assert next_number(path, "a", study) == 1
    given = {"origin": "real", "label": "AFF", "plausibility": 3, "confidence": 1}
    for number in (1, 2, 4):
        record(path, "a", number, 1.0, **given)
    record(path, "b", 1, 1.0, **given)
    assert next_number(path, "a", study) == 3 and next_number(path, "b", study) == 2
    record(path, "a", 2, 1.0, **(given | {"origin": "synthetic"}))
    table = read_answers(path)
    assert len(table) == 4 and table.query("reader == 'a' and number == 2").origin.item() == "synthetic"
    with pytest.raises(ValueError, match="origin: 'perhaps' is none of real, synthetic"):
        record(path, "a", 5, 1.0, **(given | {"origin": "perhaps"}))
    assert len(read_answers(path)) == 4


def test_one_who_knows_and_one_who_guesses(tmp_path, study):
    path = tmp_path / "answers.csv"
    answer_all(path, study, "knows", lambda row: row.origin)
    answer_all(path, study, "guesses", lambda row: "real" if row.number % 2 else "synthetic", lambda row: "NFF")
    answers = read_answers(path)
    found = accuracy(answers, study.table)
    assert found.loc["knows", ["n", "right", "accuracy", "label_accuracy"]].tolist() == [40, 40, 1, 1]
    assert found.loc["knows", "p"] == pytest.approx(2 * 0.5**40)
    assert found.loc["knows", "ci_low"] == pytest.approx(0.025 ** (1 / 40))  # Clopper & Pearson, closed form
    assert found.loc["guesses", "label_accuracy"] == 0.5
    table = confusion(answers[answers.reader == "knows"], study.table)
    assert table["taken for real"].to_dict() == {key: float(key[0] == "real") for key in table.index}
    agreed = agreement(answers, study.table).set_index(["who", "question"]).kappa
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
