"""A finished run's figures, published: what goes, what stays, and nothing by half."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.report import publish as module
from lib.report.publish import publish


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs/quick", ["01_a", "06_forest"])


@pytest.fixture
def to(tmp_path):
    return tmp_path / "repository/figures"


def make_run(folder, names, **manifest):
    (folder / "figures").mkdir(parents=True)
    notebook = {"state": "finished", "started": "2026-01-02T03:04:05", "title": "01 · A", "question": "Why?"}
    manifest = {
        "profile": "quick", "commit": "abc123", "parameters": {"seed": 7, "radiographs_csv": ""},
        "versions": {"torch": "2.14.1"}, "notebooks": {"01_a": notebook},
    } | manifest  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "answers.md").write_text("# Answers\n")
    for name in names:
        (folder / "figures" / f"{name}.pdf").write_text(f"%PDF of {name}")
        (folder / "figures" / f"{name}.txt").write_text(f"Caption of {name}: 1 | 2.\n")
        Image.new("RGB", (30, 20), "white").save(folder / "figures" / f"{name}.png")
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_figures_captions_and_what_made_them_are_published(run, to):
    assert publish(run, to) == to
    assert sorted(files(to)) == ["01_a.pdf", "01_a.png", "06_forest.pdf", "06_forest.png", "README.md", "answers.md"]
    assert files(to)["01_a.png"] == (run / "figures/01_a.png").read_bytes()
    readme = (to / "README.md").read_text()
    assert "| [06_forest](06_forest.pdf) | Caption of 06_forest: 1 \\| 2. |\n" in readme
    assert all(f"\n| {line} |\n" in readme for line in ("run | quick, profile quick", "commit | abc123"))
    assert "started | 2026-01-02" in readme and "seed = 7" in readme and "torch 2.14.1" in readme
    assert re.findall(r"!\[.*\]\((.*)\)", readme) == ["01_a.png", "06_forest.png"]
    assert "own radiographs" not in readme and "other code" not in readme
    before = files(to)
    publish(run, to)
    assert files(to) == before


def test_another_run_replaces_what_was_published_and_nothing_else(run, to, tmp_path):
    to.mkdir(parents=True)
    (to / "sketch.png").write_text("drawn by hand")
    (to / "more").mkdir()
    (to / "more/notes.txt").write_text("kept")
    publish(run, to)
    publish(make_run(tmp_path / "runs/full", ["06_forest", "07_new"]), to)
    pictures = [f"{name}.{kind}" for name in ("06_forest", "07_new") for kind in ("pdf", "png")]
    names = [*pictures, "README.md", "answers.md", "more", "sketch.png"]
    assert sorted(path.name for path in to.iterdir()) == names
    assert (to / "sketch.png").read_text() == "drawn by hand" and (to / "more/notes.txt").read_text() == "kept"
    assert "Figures of run full" in (to / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "06_forest.png"])
def test_what_somebody_else_wrote_is_not_overwritten(run, to, name):
    to.mkdir(parents=True)
    (to / name).write_text("by hand")
    with pytest.raises(FileExistsError, match=name):
        publish(run, to)
    assert files(to) == {name: b"by hand"} and [path.name for path in to.parent.iterdir()] == ["figures"]


def test_an_unfinished_run_is_not_published(run, to, tmp_path):
    record = {"state": "failed", "started": "2026-01-02T03:04:05"}
    broken = make_run(tmp_path / "runs/broken", ["01_a"], notebooks={"05_trials": record})
    with pytest.raises(ValueError, match="05_trials missing"):
        publish(broken, to)
    (run / "answers.md").unlink()
    with pytest.raises(ValueError, match=r"answers\.md missing"):
        publish(run, to)
    with pytest.raises(ValueError, match="not finished"):
        publish(tmp_path / "runs/never", to)
    assert not to.exists() and not (tmp_path / "runs/never").exists()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_whatever_fails_the_earlier_publication_stays(run, to, tmp_path, monkeypatch, nth):
    """A picture that cannot be read, or either of the two renames."""
    publish(run, to)
    before, other, replace, calls = files(to), make_run(tmp_path / "runs/full", ["01_a", "07_new"]), os.replace, []

    def failing(old, new):
        calls.append(old)
        if len(calls) == nth - 1:
            raise OSError("no space")
        replace(old, new)

    if nth == 1:
        (other / "figures/07_new.png").unlink()
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError):
        publish(other, to)
    assert files(to) == before and [path.name for path in to.parent.iterdir()] == ["figures"]


def test_a_publication_killed_between_its_renames_is_undone_by_the_next(run, to, tmp_path):
    publish(run, to)
    os.replace(to, to.with_name(".figures.before"))
    to.with_name(".figures.new").mkdir()
    publish(make_run(tmp_path / "runs/full", ["07_new"]), to)
    assert sorted(files(to)) == ["07_new.pdf", "07_new.png", "README.md", "answers.md"]
    assert [path.name for path in to.parent.iterdir()] == ["figures"]


def test_pictures_are_small_enough_for_git(run, to, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(run / "figures/01_a.png")
    greys = Image.fromarray(np.repeat(noise[..., :1], 3, axis=2))
    greys.save(run / "figures/06_forest.png")
    assert min((run / f"figures/{name}.png").stat().st_size for name in ("01_a", "06_forest")) > 90_000
    monkeypatch.setattr(module, "LARGEST", 80_000)
    publish(run, to)
    assert max(path.stat().st_size for path in to.glob("*.png")) <= 80_000
    monkeypatch.setattr(module, "ALTOGETHER", 60_000)
    publish(run, to)
    assert sum(path.stat().st_size for path in to.glob("*.png")) <= 60_000
    with Image.open(to / "01_a.png") as image:
        assert image.width / image.height == pytest.approx(4 / 3, abs=0.02)


def test_greys_lose_nothing_but_bytes(run, to, monkeypatch):
    greys = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    Image.fromarray(greys).convert("RGBA").save(run / "figures/01_a.png", compress_level=0)
    monkeypatch.setattr(module, "LARGEST", 20_000)
    publish(run, to)
    with Image.open(to / "01_a.png") as image:
        assert (np.asarray(image.convert("L")) == greys).all()


def test_what_is_published_tells_no_folder_and_says_what_to_take_care_of(to, tmp_path):
    csv = str(Path.home() / "hospital/cohort.csv")
    run = make_run(tmp_path / "runs/own", ["01_a"], parameters={"radiographs_csv": csv}, kept={"cyclegan/r0f0": "λ"})
    readme = (publish(run, to) / "README.md").read_text()
    assert str(Path.home()) not in readme and "They show own radiographs" in readme
    assert "| kept, though made by other code | cyclegan/r0f0: λ |" in readme
