"""Synthesis: which images are made of which, the same whether a process was killed on the way or not."""

import os
import pickle
import shutil
from functools import partial

import numpy as np
import pytest
from toys import TOYS

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.fidelity import synthesis
from lib.fidelity.synthesis import (
    METHODS,
    chosen_sources,
    images_needed,
    remove_others,
    synthesise,
    tasks_of,
    translate_test,
)
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclegan import CycleGAN, Settings

COHORT = Phantom(patients=30, size=16, aff_share=0.2).cohort()


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_images_needed_reach_the_ratio(ratio):
    aff = COHORT.targets.sum()
    assert (aff + images_needed(COHORT, ratio)) / (len(COHORT) - aff) == pytest.approx(ratio, abs=0.01)


def test_nothing_is_needed_where_the_ratio_is_reached():
    assert images_needed(COHORT.select(label="AFF"), 1.0) == 0


def test_sources_are_nff_used_once_and_drawn_by_the_seed():
    sources = chosen_sources(COHORT, 20, seed=1)
    assert set(sources.table.label) == {"NFF"} and sources.table.image_id.is_unique and len(sources) == 20
    assert sources.table.equals(chosen_sources(COHORT, 20, seed=1).table)
    assert not sources.table.equals(chosen_sources(COHORT, 20, seed=2).table)
    with pytest.raises(ValueError, match="lower synthetic_ratio"):
        chosen_sources(COHORT, len(COHORT), seed=1)


# Making them: toys at 32 px, in chunks of 4 ---------------------------------------------------------------------------

CELL = (0, 0)


def test_a_set_is_made_anew_where_its_generator_was_trained_anew(tmp_path):
    splits = make_splits(COHORT.patients, 1, 1, seed=0)
    given = tmp_path, ["cyclegan", "noise", "useless"], COHORT, splits, 1.0, 0, None

    def keys() -> dict[str, str]:
        return {name: piece.key(b"") for name, piece in tasks_of(*given).items()}

    before = keys()
    assert set(before) == {"r0f0-cyclegan", "r0f0-cyclegan-test", "r0f0-noise", "r0f0-useless"}
    for method, changed in (("cyclegan", {"r0f0-cyclegan", "r0f0-cyclegan-test"}), ("cyclediff", {"r0f0-noise"})):
        weights = tmp_path / method / "r0f0" / "weights.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"others")
        now = keys()
        assert {name for name in now if now[name] != before[name]} == changed
        before = now


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture(scope="module")
def phantom():
    return Phantom(patients=16, size=32, aff_share=0.3, seed=3)


@pytest.fixture(scope="module")
def study(phantom):
    cohort = phantom.cohort()
    return cohort, make_splits(cohort.patients, 1, 1, seed=0)


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    """A run's folder with both translators of its cell, hardly trained."""
    folder, (cohort, splits) = tmp_path_factory.mktemp("run"), study
    for name, (kind, settings) in TOYS.items():
        kind(settings).fit(cohort.part(splits, *CELL, "train"), folder / name / "r0f0", 0)
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    for name in TOYS:
        (tmp_path / name).symlink_to(trained / name)
    monkeypatch.setattr(synthesis, "CHUNK", 4)
    monkeypatch.setenv("LIB_PROGRESS", "none")
    return tmp_path


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", METHODS)
def test_a_set_is_what_its_generator_makes_at_once(run, study, phantom, method):
    cohort, splits = study
    training = cohort.part(splits, *CELL, "train")
    sources = chosen_sources(training, images_needed(training, 1.0), 5)
    made = synthesise(run, method, CELL, cohort, splits, 1.0, 5, phantom)
    match method:
        case "cyclegan" | "cyclediff":
            model = {"cyclegan": CycleGAN, "cyclediff": CycleDiff}[method].load(run / method / "r0f0")
            whole = model.translate(sources, "AFF", batch=4)
        case "noise":
            whole = CycleDiff.load(run / "cyclediff" / "r0f0").sample(len(sources), "AFF", 5, training, batch=4)
        case "fake":
            whole = synthesis.controls.fake(training, len(sources), 5)
        case "useless":
            whole = Cohort(sources.table.assign(method="useless"), sources.pixels)
        case "oracle":
            whole = phantom.counterfactual(sources)
    np.testing.assert_array_equal(made.pixels, whole.pixels)
    assert set(made.table.label) == {"AFF"} and set(made.table.method) == {method} and len(made) == len(sources)
    home = run / "synthetic" / method / "r0f0"
    if method in ("cyclegan", "cyclediff", "noise"):
        assert (home / "table.csv").read_text() == whole.table.to_csv(index=False)
    assert sorted(path.name for path in home.iterdir()) == ["inputs.json", "pixels.npy", "table.csv"]


def test_test_images_are_translated_both_ways_and_keep_their_provenance(run, study):
    cohort, splits = study
    test, made = cohort.part(splits, *CELL, "test"), translate_test(run, "cyclegan", CELL, *study)
    model = CycleGAN.load(run / "cyclegan" / "r0f0")
    ways = [model.translate(test.select(label=label), to, batch=4) for label, to in (("NFF", "AFF"), ("AFF", "NFF"))]
    np.testing.assert_array_equal(made.pixels, np.concatenate([way.pixels for way in ways]))
    source = test.table.set_index("image_id").loc[made.table.source_image_id]
    assert (made.table.label.to_numpy() != source.label.to_numpy()).all()
    assert (made.table.patient_id.to_numpy() == source.patient_id.to_numpy()).all()


@pytest.mark.parametrize("method", ["cyclegan", "noise", "test"])
def test_killed_at_any_file_and_called_again_it_makes_the_same_and_no_chunk_twice(run, study, monkeypatch, method):
    cohort, splits = study
    make = {
        "cyclegan": partial(synthesise, run, "cyclegan", CELL, cohort, splits, 0.9, 0),
        "noise": partial(synthesise, run, "noise", CELL, cohort, splits, 0.9, 0),
        "test": partial(translate_test, run, "cyclegan", CELL, cohort, splits),
    }[method]
    make()
    whole = files(run / "synthetic")
    shutil.rmtree(run / "synthetic")
    replace, finished, calls = os.replace, [], 0

    def killed(part, path):  # every third file is not written, and the process ends
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise Killed
        replace(part, path)
        finished.extend([path] if path.parent.name == "chunks" else [])

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", killed)
        for kills in range(100):  # noqa: B007
            try:
                made = make()
                break
            except Killed:
                pass
    assert files(run / "synthetic") == whole and kills >= 2
    assert len(finished) == len(set(finished)), "nothing is made twice"
    assert len(made) == len(Cohort.load(next((run / "synthetic").rglob("table.csv")).parent))


def test_what_is_there_from_the_same_inputs_is_not_made_again(run, study, monkeypatch):
    cohort, splits = study
    make = partial(synthesise, run, "cyclegan", CELL, cohort, splits)
    first = make(0.9, 0)

    def translate(*_, **__):
        raise Killed

    monkeypatch.setattr(CycleGAN, "translate", translate)
    assert np.array_equal(make(0.9, 0).pixels, first.pixels)
    other = Cohort(cohort.table.assign(view="AP"), cohort.pixels)
    for changed in (
        partial(make, 0.9, 1),
        partial(make, 0.8, 0),
        partial(synthesise, run, "cyclegan", CELL, other, splits, 0.9, 0),
    ):
        with pytest.raises(Killed):
            changed()
        assert not (run / "synthetic/cyclegan/r0f0/table.csv").exists(), "no set of other inputs stays"


def test_weights_trained_again_translate_again(run, study):
    cohort, splits = study
    before = translate_test(run, "cyclegan", CELL, cohort, splits)
    (run / "cyclegan").unlink()
    CycleGAN(Settings(steps=1, batch=2, width=4, blocks=1, discriminator_width=4)).fit(
        cohort.part(splits, *CELL, "train"), run / "cyclegan" / "r0f0", 9
    )
    after = translate_test(run, "cyclegan", CELL, cohort, splits)
    assert before.table.equals(after.table) and not np.array_equal(before.pixels, after.pixels)


def test_it_can_be_sent_to_another_process(run, study, tmp_path):
    cohort, splits = study
    cohort.save(tmp_path / "cohort")
    task = partial(synthesise, run, "useless", CELL, Cohort.load(tmp_path / "cohort"), splits, 1.0, 0)
    sent = pickle.dumps(task)
    assert len(sent) < 10**5 and np.array_equal(pickle.loads(sent)().pixels, task().pixels)


def test_sets_of_other_methods_and_cells_are_removed(tmp_path, study):
    cohort, splits = study
    for home in ("cyclegan/r0f0", "cyclegan/r1f0", "cyclegan/r0f0/test", "noise/r0f0"):
        cohort.first(2).save(tmp_path / "synthetic" / home)
    (tmp_path / "synthetic" / "verdicts.csv").write_text("by hand")
    remove_others(tmp_path, ["cyclegan", "cyclediff"], splits)
    left = {str(path.parent.relative_to(tmp_path / "synthetic")) for path in tmp_path.rglob("table.csv")}
    assert left == {"cyclegan/r0f0", "cyclegan/r0f0/test"}
    assert sorted(path.name for path in (tmp_path / "synthetic").iterdir()) == ["cyclegan", "verdicts.csv"]


def test_a_training_set_that_has_enough_is_an_error(run, study):
    with pytest.raises(ValueError, match="r0f0 has no fewer AFF than asked for: raise synthetic_ratio"):
        synthesise(run, "useless", CELL, *study, 0.1, 0)
