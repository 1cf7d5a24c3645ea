"""The study: what notebook 01 saves is what the others load, and each fold knows its own parts alone."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lib.data.phantom import Phantom
from lib.data.splits import fit_windows, keep_aff, make_splits
from lib.run.folder import NotYet, Run
from lib.study import Study

PHANTOM = Phantom(patients=40, size=16, aff_share=0.4, seed=1)


@pytest.fixture
def study(tmp_path):
    cohort = PHANTOM.cohort()
    return Study(Run(tmp_path / "run"), cohort, make_splits(cohort.patients, repeats=2, folds=3, seed=0), PHANTOM)


def test_parts_divide_the_cohort_by_patient(study):
    assert [fold.name for fold in study.folds] == ["r0f0", "r0f1", "r0f2", "r1f0", "r1f1", "r1f2"]
    for fold in study.folds:
        ids = [image for part in fold.parts for image in part.table.image_id]
        assert sorted(ids) == sorted(study.cohort.table.image_id)
        patients = [set(part.table.patient_id) for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, patients)) == 40 and not len(fold.unused)
        assert all(set(part.table.label) == {"AFF", "NFF"} for part in fold.parts)


def test_a_fold_that_there_is_not_is_an_error_that_names_those_there_are(study):
    assert study.fold(1, 2).key == {"repeat": 1, "fold": 2}
    with pytest.raises(ValueError, match="no fold r2f0: choose one of r0f0, r0f1, r0f2, r1f0"):
        study.fold(2)


def test_patients_that_a_smaller_share_leaves_out_are_unused(study):
    fewer = replace(study, splits=keep_aff(study.splits, study.cohort.patients, 0.5, seed=0))
    for fold, whole in zip(fewer.folds, study.folds, strict=True):
        gone = set(whole.train.table.patient_id) - set(fold.train.table.patient_id)
        assert gone and set(fold.unused.table.patient_id) == gone and set(fold.unused.table.label) == {"AFF"}


@pytest.mark.parametrize("phantom", [PHANTOM, None])
@pytest.mark.parametrize("windowed", [True, False])
def test_what_is_saved_is_what_is_loaded(study, phantom, windowed):
    replace(study, windows=fit_windows(study.splits, study.cohort, (20, 80))).save()  # of an earlier call
    windows = fit_windows(study.splits, study.cohort, (5, 95)) if windowed else None
    saved = replace(study, phantom=phantom, windows=windows)
    saved.save()
    loaded = Study.open(study.run.folder, "02_cyclegan", {})
    assert loaded.splits.equals(study.splits) and loaded.phantom == phantom
    for ours, theirs in zip(saved.folds, loaded.folds, strict=True):
        assert np.array_equal(ours.train.pixels, theirs.train.pixels)
        plain = study.fold(ours.repeat, ours.number)
        assert np.array_equal(ours.train.pixels, plain.train.pixels) != windowed


def test_a_study_before_notebook_01_and_another_runs_parameters_are_refused(study):
    with pytest.raises(NotYet, match="run notebook 01_data_exploration first"):
        Study.open(study.run.folder, "02_cyclegan", {})
    study.save()
    study.run.record(notebooks={"02_cyclegan": {"parameters": {"seed": 1}}})
    with pytest.raises(ValueError, match="made with other parameters"):
        Study.open(study.run.folder, "02_cyclegan", {"seed": 0})


def test_a_half_saved_study_is_none(study, monkeypatch):
    study.save()
    monkeypatch.setattr(Phantom, "save", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        study.save()
    with pytest.raises(NotYet):
        Study.load(study.run)


def test_a_fold_that_is_sent_away_is_small_and_knows_of_no_other(study):
    study.save()
    loaded = Study.load(study.run)
    fewer = replace(loaded, splits=loaded.splits[loaded.splits.repeat == 0])
    sent = pickle.dumps(loaded.fold(0, 1))
    assert sent == pickle.dumps(fewer.fold(0, 1)), "more repeats make no other task of it"
    assert len(sent) < study.cohort.pixels.nbytes and sent != pickle.dumps(loaded.fold(0, 2))
    arrived = pickle.loads(sent)
    assert arrived.name == "r0f1" and arrived.folder("judge") == study.run / "judge" / "r0f1"
    assert np.array_equal(arrived.test.pixels, study.fold(0, 1).test.pixels)


def test_patients_and_images_are_counted_by_part_and_class(study):
    counts = study.counts_by_part()
    assert list(counts.index) == ["train", "validation", "test"]
    fold_means = pd.DataFrame(
        [
            {f"{label} images": (part.table.label == label).sum() for label in ("AFF", "NFF")}
            for fold in study.folds
            for part in fold.parts
        ]
    )
    for column in fold_means:
        by_part = fold_means[column].to_numpy().reshape(-1, 3).mean(0)
        np.testing.assert_allclose(counts[column], by_part)
    assert counts[["AFF patients", "NFF patients"]].to_numpy().sum() == 40
