"""Synthesis: which images are made of which, the same whether a process was killed on the way or not."""

import os
import pickle
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from toys import TOYS

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.fidelity import synthesis
from lib.fidelity.curation import VERDICTS, pixel_hashes
from lib.fidelity.synthesis import (
    check_methods,
    chosen_sources,
    images_needed,
    known_methods,
    load,
    load_test,
    make_sets,
    set_others_aside,
    synthesise,
    translate_test,
)
from lib.run.folder import NotYet, Run
from lib.run.tasks import Machines
from lib.study import Study
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


def test_a_set_is_made_anew_where_its_generator_was_trained_anew(tmp_path, monkeypatch):
    study, asked = Study(Run(tmp_path), COHORT, make_splits(COHORT.patients, 1, 1, seed=0)), []
    monkeypatch.setattr(synthesis, "run_tasks", lambda tasks, *_: asked.append(tasks))
    monkeypatch.setattr(synthesis, "check_methods", lambda *_: None)

    def keys() -> dict[str, str]:
        make_sets(study, ["cyclegan", "noise", "useless"], 1.0, 0, Machines())
        return {name: task.key("", {}) for name, task in asked[-1].items()}

    before = keys()
    assert set(before) == {"r0f0-cyclegan", "r0f0-cyclegan-test", "r0f0-noise", "r0f0-useless"}
    for method, changed in (("cyclegan", {"r0f0-cyclegan", "r0f0-cyclegan-test"}), ("cyclediff", {"r0f0-noise"})):
        weights = tmp_path / method / "r0f0" / "weights.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"others")
        now = keys()
        assert {name for name in now if now[name] != before[name]} == changed
        before = now


def test_methods_are_known_and_trained_before_anything_is_made(tmp_path):
    study = Study(Run(tmp_path), COHORT, make_splits(COHORT.patients, 1, 1, seed=0))
    with pytest.raises(ValueError, match=r"unknown \['cyclgan'\]; there are cyclegan, cyclediff, noise, fake"):
        check_methods(study, ["cyclgan"])
    check_methods(study, ["fake", "oracle"])
    for method, notebook in (("cyclegan", "02_cyclegan"), ("noise", "03_cyclediff")):
        with pytest.raises(NotYet, match=f"run notebook {notebook} first"):
            check_methods(study, ["fake", method])


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture(scope="module")
def phantom():
    return Phantom(patients=16, size=32, aff_share=0.3, seed=3)


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """A study with both translators of its fold, hardly trained."""
    cohort, folder = phantom.cohort(), tmp_path_factory.mktemp("run")
    study = Study(Run(folder), cohort, make_splits(cohort.patients, 1, 1, seed=0), phantom)
    for name, (kind, settings) in TOYS.items():
        kind(settings).fit(study.fold().train, study.fold().folder(name), 0)
    return study


@pytest.fixture
def fold(trained, tmp_path, monkeypatch):
    for name in TOYS:
        (tmp_path / name).symlink_to(trained.run / name)
    monkeypatch.setattr(synthesis, "CHUNK", 4)
    monkeypatch.setenv("LIB_PROGRESS", "none")
    return replace(trained, run=Run(tmp_path)).fold()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", known_methods())
def test_a_set_is_what_its_generator_makes_at_once(fold, phantom, method):
    training = fold.train
    sources = chosen_sources(training, images_needed(training, 1.0), 5)
    made = synthesise(fold, method, 1.0, 5)
    match method:
        case "cyclegan" | "cyclediff":
            model = {"cyclegan": CycleGAN, "cyclediff": CycleDiff}[method].load(fold.folder(method))
            whole = model.translate(sources, "AFF", batch=4)
        case "noise":
            whole = CycleDiff.load(fold.folder("cyclediff")).sample(len(sources), "AFF", 5, training, batch=4)
        case "fake":
            whole = synthesis.controls.fake(training, len(sources), 5)
        case "useless":
            whole = Cohort(sources.table.assign(method="useless"), sources.pixels)
        case "oracle":
            whole = phantom.counterfactual(sources)
    np.testing.assert_array_equal(made.pixels, whole.pixels)
    assert set(made.table.label) == {"AFF"} and set(made.table.method) == {method} and len(made) == len(sources)
    home = fold.folder("synthetic", method)
    if method in ("cyclegan", "cyclediff", "noise"):
        assert (home / "table.csv").read_text() == whole.table.to_csv(index=False)
    assert sorted(path.name for path in home.iterdir()) == ["inputs.json", "pixels.npy", "table.csv"]


def test_test_images_are_translated_both_ways_and_keep_their_provenance(fold):
    test, made = fold.test, translate_test(fold, "cyclegan")
    model = CycleGAN.load(fold.folder("cyclegan"))
    ways = [model.translate(test.select(label=label), to, batch=4) for label, to in (("NFF", "AFF"), ("AFF", "NFF"))]
    np.testing.assert_array_equal(made.pixels, np.concatenate([way.pixels for way in ways]))
    source = test.table.set_index("image_id").loc[made.table.source_image_id]
    assert (made.table.label.to_numpy() != source.label.to_numpy()).all()
    assert (made.table.patient_id.to_numpy() == source.patient_id.to_numpy()).all()


@pytest.mark.parametrize("method", ["cyclegan", "noise", "test"])
def test_killed_at_any_file_and_called_again_it_makes_the_same_and_no_chunk_twice(fold, monkeypatch, method):
    make, folder = partial(synthesise, fold, method, 0.9, 0), fold.run / "synthetic"
    if method == "test":
        make = partial(translate_test, fold, "cyclegan")
    make()
    whole = files(folder)
    shutil.rmtree(folder)
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
    assert files(folder) == whole and kills >= 2
    assert len(finished) == len(set(finished)), "nothing is made twice"
    assert len(made) == len(Cohort.load(next(folder.rglob("table.csv")).parent))


def test_what_is_there_from_the_same_inputs_is_not_made_again(fold, monkeypatch):
    make = partial(synthesise, fold, "cyclegan")
    first = make(0.9, 0)

    def translate(*_, **__):
        raise Killed

    monkeypatch.setattr(CycleGAN, "translate", translate)
    assert np.array_equal(make(0.9, 0).pixels, first.pixels)
    other = replace(fold, cohort=Cohort(fold.cohort.table.assign(view="AP"), fold.cohort.pixels))
    for changed in (partial(make, 0.9, 1), partial(make, 0.8, 0), partial(synthesise, other, "cyclegan", 0.9, 0)):
        with pytest.raises(Killed):
            changed()
        assert not (fold.folder("synthetic", "cyclegan") / "table.csv").exists(), "no set of other inputs stays"


def test_weights_trained_again_translate_again(fold):
    before = translate_test(fold, "cyclegan")
    (fold.run / "cyclegan").unlink()
    CycleGAN(Settings(steps=1, batch=2, width=4, blocks=1, discriminator_width=4)).fit(
        fold.train, fold.folder("cyclegan"), 9
    )
    after = translate_test(fold, "cyclegan")
    assert before.table.equals(after.table) and not np.array_equal(before.pixels, after.pixels)


def test_it_can_be_sent_to_another_process(fold, tmp_path):
    fold.cohort.save(tmp_path / "cohort")
    task = partial(synthesise, replace(fold, cohort=Cohort.load(tmp_path / "cohort")), "useless", 1.0, 0)
    sent = pickle.dumps(task)
    assert len(sent) < 10**5 and np.array_equal(pickle.loads(sent)().pixels, task().pixels)


def test_sets_of_other_methods_and_folds_are_set_aside(tmp_path, trained):
    study = replace(trained, run=Run(tmp_path))
    for home in ("cyclegan/r0f0", "cyclegan/r1f0", "cyclegan/r0f0/test", "noise/r0f0"):
        study.cohort.first(2).save(tmp_path / "synthetic" / home)
    (tmp_path / "synthetic" / "verdicts.csv").write_text("by hand")
    set_others_aside(study, ["cyclegan", "cyclediff"])
    synthetic = tmp_path / "synthetic"
    aside, *others = sorted(path.name for path in synthetic.iterdir())
    assert others == ["cyclegan", "verdicts.csv"] and aside.startswith("before-")
    there = {path.parent.relative_to(synthetic).as_posix() for path in synthetic.rglob("table.csv")}
    assert there == {"cyclegan/r0f0", "cyclegan/r0f0/test", f"{aside}/cyclegan/r1f0", f"{aside}/noise/r0f0"}


def test_a_training_set_that_has_enough_is_an_error(fold):
    with pytest.raises(ValueError, match="r0f0 has no fewer AFF than asked for: raise synthetic_ratio"):
        synthesise(fold, "useless", 0.1, 0)


def test_what_was_made_is_loaded_in_the_order_of_the_methods_and_half_made_sets_are_refused(fold):
    assert load(fold) == load_test(fold) == {}
    for method in ("useless", "noise", "cyclegan"):
        synthesise(fold, method, 1.0, 0)
    translate_test(fold, "cyclegan")
    assert list(load(fold)) == ["cyclegan", "noise", "useless"] and list(load_test(fold)) == ["cyclegan"]
    (fold.folder("synthetic", "noise") / "table.csv").unlink()
    with pytest.raises(NotYet, match="run notebook 04_synthesis first"):
        load(fold)


def test_rejected_images_are_left_out_where_that_is_asked(fold):
    for method in ("useless", "fake"):
        synthesise(fold, method, 1.0, 0)
    rejected = load(fold)["useless"].first(3)
    verdicts = {"image_id": rejected.table.image_id, "pixels": pixel_hashes(rejected), "keep": False, "reason": ""}
    pd.DataFrame(verdicts).to_csv(fold.run / "synthetic" / VERDICTS, index=False)
    everything, kept = load(fold), load(fold, curated=True)
    assert {len(images) for images in kept.values()} == {len(everything["useless"]) - 3}
    assert not set(kept["useless"].table.image_id) & set(rejected.table.image_id)
