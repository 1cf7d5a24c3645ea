"""The reader study: a balanced, blinded sheet, and answers that are never lost."""

import numpy as np
import pandas as pd
import pytest

from lib.data.cohort import Cohort
from lib.fidelity.reader_study import begun_or, next_number, outdated, read_answers, record, sheet


def images(prefix, n=20):
    table = pd.DataFrame({"image_id": [f"{prefix}{k}" for k in range(n)], "patient_id": [f"p{k}" for k in range(n)],
                          "label": ["AFF", "NFF"] * (n // 2), "view": "AP", "side": "left"})  # fmt: skip
    return Cohort(table, np.random.default_rng(len(prefix)).integers(0, 256, (n, 8, 8), np.uint8))


SYNTHETIC = {"cyclegan": images("g"), "cyclediff": images("d")}


@pytest.fixture(scope="module")
def study():
    return sheet(images("r", 40), SYNTHETIC, each=5, repeats=6, seed=3)


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
