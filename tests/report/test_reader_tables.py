"""The reader study, reported: tables where there are answers, and sentences in any case."""

import numpy as np
import pandas as pd
import pytest
from toys import blob_cohort

from lib.data.cohort import Cohort
from lib.data.splits import make_splits
from lib.fidelity.reader_study import record, sheet
from lib.report.readers import reader_study
from lib.run.folder import Run
from lib.study import Study


@pytest.fixture
def study(tmp_path):
    cohort = blob_cohort()
    return Study(Run(tmp_path / "run"), cohort, make_splits(cohort.patients, 1, 1, 0))


def test_without_answers_it_says_how_many_images_are_needed(study):
    said = reader_study(study)
    assert said.splitlines()[0] == "No reader has answered yet."
    assert "60%: " in said and not (study.run / "tables").exists()


def test_answers_become_tables_and_a_generator_trained_again_is_named(study):
    table = study.cohort.table
    made = Cohort(table.assign(image_id="made-" + table.image_id), 255 - study.cohort.pixels)
    made.save(study.run.path("synthetic", "cyclegan", "r0f0", "test"))
    images = sheet(study.cohort, {"cyclegan": made}, each=4, repeats=2, seed=0)
    images.save(study.run / "reader_study")
    for row in images.table.itertuples():
        given = {"origin": row.origin, "label": row.label, "plausibility": 3, "confidence": 3}
        record(study.run / "reader_study" / "answers.csv", "a", row.number, 1.0, **given)
    assert reader_study(study).splitlines()[0] == f"1 reader(s), {len(images)} answers."
    told = pd.read_csv(study.run / "tables" / "06_readers.csv")
    assert told[["reader", "n", "accuracy"]].to_numpy().tolist() == [["a", 16, 1.0]]
    assert {"06_readers_by_method.csv", "06_readers_agree.csv"} <= {f.name for f in (study.run / "tables").iterdir()}
    Cohort(made.table, np.zeros_like(made.pixels)).save(study.run / "synthetic" / "cyclegan" / "r0f0" / "test")
    assert reader_study(study).startswith(
        "cyclegan was trained again since: the answers are about its earlier images.\n"
    )
