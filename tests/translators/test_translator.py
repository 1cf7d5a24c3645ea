import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import TOYS

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.translators.training import WEIGHTS, preview_due
from lib.translators.translator import seconds_needed, translated


@given(st.integers(1, 500), st.integers(0, 20))
def test_as_many_previews_as_asked_for_where_there_are_so_many_steps(steps, previews):
    due = [step for step in range(steps) if preview_due(step, steps, previews)]
    assert len(due) == min(previews, steps)
    assert not due or due[-1] == steps - 1


@pytest.mark.parametrize("generator", ["1234567890123456", "12e4567890123456", "00ab567890123456"])
def test_the_hash_of_the_generators_patients_stays_a_string(tmp_path, generator):
    sources = Phantom(patients=6, size=16, aff_share=0.4).cohort().select(label="NFF")
    made = translated(sources, "AFF", "negative", lambda x: -x, batch=4, generator=generator)
    made.save(tmp_path)
    assert set(Cohort.load(tmp_path).table.generator) == {generator}
    untrained = translated(made, "NFF", "negative", lambda x: -x, batch=4)
    assert "generator" not in untrained.table and "generator" not in sources.table


def test_a_translation_holds_its_integers_and_a_batch_of_floats(tmp_path):
    n, size = 1000, 64
    table = pd.DataFrame({"image_id": map(str, range(n)), "patient_id": "a", "label": "NFF", "view": "", "side": ""})
    Cohort(table, np.zeros((n, size, size), np.uint8)).save(tmp_path)
    sources = Cohort.load(tmp_path)
    tracemalloc.start()
    made = translated(sources, "AFF", "negative", lambda x: -x, batch=32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (made.pixels == 255).all()
    assert peak < 2 * n * size**2, "as floats they would take four times their bytes, and that several times"


@pytest.fixture(scope="module")
def cohort():
    return Phantom(patients=12, size=32, aff_share=0.4, seed=2).cohort()


@pytest.mark.parametrize("name", TOYS)
def test_a_training_that_was_stopped_keeps_what_it_learnt_and_goes_on_to_the_same_weights(name, cohort, tmp_path):
    kind, settings = TOYS[name]
    asked = []

    def watch(history, folder):
        asked.append(history.frame().step.iloc[-1])
        return asked[-1] == 4

    stopped = kind(settings)
    assert stopped.fit(cohort, tmp_path / "stopped", 0, watch=watch).step.iloc[-1] == 4
    kept = kind.load(tmp_path / "stopped")
    assert asked == [2, 4] and kept.metadata["stopped_at"] == 4 and kept.metadata["steps"] == 6
    images = cohort.select(label="NFF").first(2)
    assert (kept.translate(images, "AFF").pixels == stopped.translate(images, "AFF").pixels).all()

    went_on = kind(settings).fit(cohort, tmp_path / "stopped", 0, watch=watch)
    whole = kind(settings).fit(cohort, tmp_path / "whole", 0)
    pd.testing.assert_frame_equal(went_on, whole)
    weights = [(tmp_path / folder / WEIGHTS).read_bytes() for folder in ("stopped", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", TOYS)
def test_the_time_needed_is_that_of_all_steps_and_nothing_is_kept(name, cohort, tmp_path, monkeypatch, capfd):
    """With a clock that goes on by a second at each look, a step takes a second."""
    kind, settings = TOYS[name]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("lib.translators.translator.time.perf_counter", map(float, itertools.count()).__next__)
    assert seconds_needed(kind(settings), cohort) == 6
    longer = replace(settings, **{stage: 1000 * n for stage, n in settings.stages.items()})
    assert seconds_needed(kind(longer), cohort) == 6000
    assert not list(tmp_path.iterdir()) and not capfd.readouterr().err, "no bar, no folder"


def test_a_stop_is_not_asked_for_at_the_end(cohort, tmp_path):
    kind, settings = TOYS["cyclegan"]
    asked = []
    model = kind(settings)
    model.fit(cohort, tmp_path, 0, watch=lambda history, folder: asked.append(history.rows[-1]["step"]))
    assert asked == [2, 4] and "stopped_at" not in model.metadata


def test_diffusion_models_alone_cannot_translate(cohort, tmp_path):
    kind, settings = TOYS["cyclediff"]
    settings = replace(settings, log_every=1)
    with pytest.raises(RuntimeError, match="stopped after step 1, before the translators"):
        kind(settings).fit(cohort, tmp_path, 0, watch=lambda *_: True)
    assert not (tmp_path / WEIGHTS).exists()
    assert kind(settings).fit(cohort, tmp_path, 0).step.iloc[-1] == 6, "the checkpoint goes on"


@pytest.mark.parametrize("name", TOYS)
def test_old_weights_go_when_a_training_starts_anew_and_stay_when_it_goes_on(name, cohort, tmp_path, monkeypatch):
    kind, settings = TOYS[name]

    class Killed(Exception):
        pass

    def killed(*_, **__):
        raise Killed

    def fit(seed):
        kind(settings).fit(cohort, tmp_path, seed, preview=cohort.select(label="NFF").first(1))

    fit(seed=0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.name != "checkpoint.pt"}
    assert {WEIGHTS, "history.csv"} < {path.name for path in before}
    with monkeypatch.context() as patch:
        patch.setattr(kind, "save", killed)
        with pytest.raises(Killed):
            fit(seed=0)  # from its checkpoint: nothing is left to be done
        assert {path: path.read_bytes() for path in before} == before
        with pytest.raises(Killed):
            fit(seed=1)
    assert not (tmp_path / WEIGHTS).exists()
    fit(seed=0)
    assert {path: path.read_bytes() for path in before} == before
