"""The tools, clicked without a browser; and their pictures where nobody is there to click."""

import signal

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.fidelity import reader_study
from lib.fidelity.curation import pixel_hashes, read_verdicts
from lib.report import widgets
from lib.statistics import readers
from lib.translators.training import History


@pytest.fixture(scope="module")
def cohort():
    return Phantom(patients=20, size=16, aff_share=0.4, seed=4).cohort()


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as a notebook would have it."""
    found = []
    monkeypatch.setattr(widgets, "headless", lambda: False)
    monkeypatch.setattr(widgets, "display", lambda thing, **_: found.append(thing))
    monkeypatch.setattr(plt, "close", lambda *_: None)
    monkeypatch.setitem(plt.rcParams, "figure.max_open_warning", 0)
    yield found
    plt.close("all")


def controls(tool, kind=w.Widget):
    """All widgets inside of a tool."""
    inside = [tool]
    for child in getattr(tool, "children", ()):
        inside += controls(child)
    return [one for one in inside if isinstance(one, kind)]


def control(tool, name):
    return next(one for one in controls(tool) if getattr(one, "description", None) == name)


def pages(shown):
    return [one for one in shown if isinstance(one, plt.Figure)]


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_the_browser_shows_what_was_chosen(cohort, shown):
    tool = widgets.browse(cohort)
    assert titles(pages(shown)[-1]) == list(cohort.table.image_id[: widgets.PAGE])
    control(tool, "label").value = "AFF"
    aff = cohort.table[cohort.table.label == "AFF"]
    assert titles(pages(shown)[-1]) == list(aff.image_id[: widgets.PAGE])
    control(tool, "large (0: none)").value = 2
    assert titles(pages(shown)[-1])[0].startswith(aff.image_id.iloc[1])
    control(tool, "page").value = control(tool, "page").max  # beyond the last page of AFF: the last one
    control(tool, "large (0: none)").value = 0
    assert titles(pages(shown)[-1])[-1] == aff.image_id.iloc[-1]


def test_before_and_after(cohort, shown):
    inverted = Cohort(cohort.table, 255 - cohort.pixels)
    tool = widgets.before_after(cohort, {"cyclegan": inverted, "same": cohort})
    assert titles(pages(shown)[-1]) == [f"before: {cohort.table.image_id[0]}", "50 %", "CycleGAN", "difference"]
    control(tool, "method").value = "same"
    difference = pages(shown)[-1].axes[3].images[0].get_array()
    assert np.ptp(difference) == 0
    control(tool, "image").value = 3
    assert np.allclose(pages(shown)[-1].axes[0].images[0].get_array(), cohort.images()[2, 0], atol=1e-5)


def test_thresholds_count_patients(shown):
    table = pd.DataFrame({"condition": "real", "patient_id": list("aabcd"), "label": ["AFF"] * 3 + ["NFF"] * 2,
                          "probability": [0.2, 0.8, 0.9, 0.6, 0.1]})  # fmt: skip
    tool = widgets.thresholds(table)
    assert pages(shown)[-1]._suptitle.get_text() == "real: sensitivity 100.0%, specificity 50.0%"  # the first has 0.5
    control(tool, "threshold").value = 0.7
    assert pages(shown)[-1]._suptitle.get_text() == "real: sensitivity 50.0%, specificity 100.0%"


def test_steps_along_a_way(cohort, shown):
    pictures = {"source": np.stack([cohort.images()[:2]] * 3), "target": np.zeros((3, 2, 1, 16, 16))}
    tool = widgets.along(np.array([0.1, 0.5, 1.0]), pictures)
    control(tool, "step").value = 2
    assert titles(pages(shown)[-1]) == ["t = 0.5"]


def test_curation_is_saved_with_every_click_and_taken_up_again(cohort, shown, tmp_path):
    path = tmp_path / "verdicts.csv"
    tool = widgets.curate(cohort.first(3), path)
    control(tool, "why").value = "artefact"
    control(tool, "reject").click()
    assert read_verdicts(path).values.tolist() == [
        [cohort.table.image_id[0], pixel_hashes(cohort)[0], False, "artefact"]
    ]
    tool = widgets.curate(cohort.first(3), path)
    control(tool, "keep").click()
    control(tool, "keep").click()
    assert control(tool, "keep").disabled and len(read_verdicts(path)) == 3
    assert read_verdicts(path).keep.tolist() == [False, True, True]


def test_a_sheet_is_read_to_its_end_and_analysed(cohort, shown, tmp_path):
    made = Cohort(cohort.table.assign(image_id="g" + cohort.table.image_id), 255 - cohort.pixels)
    images, path = reader_study.sheet(cohort, {"cyclegan": made}, each=2, repeats=1, seed=0), tmp_path / "answers.csv"
    tool = widgets.read_sheet(images, path, "reader 1")
    for number in range(1, len(images) + 1):
        assert control(tool, "next").disabled
        if number == 4:  # closed and opened again
            tool = widgets.read_sheet(images, path, "reader 1")
        truth = images.table.iloc[number - 1]
        for name, value in {"origin": truth.origin, "label": truth.label, "plausibility": 5, "confidence": 3}.items():
            control(tool, name).value = value
        control(tool, "next").click()
        assert len(reader_study.read_answers(path)) == number
    assert control(tool, "next").disabled
    found = readers.accuracy(reader_study.read_answers(path), images.table)
    assert found.accuracy.tolist() == [1] and found.n.tolist() == [8]


def test_without_anybody_there_each_tool_is_a_picture(cohort, monkeypatch, tmp_path):
    shown, alts = [], []
    monkeypatch.setattr(widgets, "display", lambda thing, metadata=None: (shown.append(thing), alts.append(metadata)))
    assert widgets.headless()
    assert widgets.browse(cohort) is widgets.before_after(cohort, {"same": cohort}) is None
    made = Cohort(cohort.table.assign(method="cyclegan"), cohort.pixels)
    assert widgets.curate(made, tmp_path / "v.csv") is None and not (tmp_path / "v.csv").exists()
    assert [isinstance(one, plt.Figure) for one in shown] == [True, False] * 3
    assert all(len(alt["image/png"]["alt"]) > 20 for alt in alts[::2])


def test_a_training_is_drawn_while_it_runs_and_an_interrupt_ends_it(shown, tmp_path, capsys):
    (tmp_path / "previews").mkdir()
    np.save(tmp_path / "previews" / "0000050.npy", np.zeros((3, 16, 16), np.uint8))
    before = signal.getsignal(signal.SIGINT)
    try:
        history, watch = History(), widgets.Watch(every=0)
        history.record(50, stage="joint", learning_rate=1e-4, adversarial_G=0.5, adversarial_F=0.4, identity_X=0.0)
        assert not watch(history, tmp_path)
        assert all(bytes(picture.value).startswith(b"\x89PNG") for picture in controls(shown[0], w.Image))
        signal.raise_signal(signal.SIGINT)
        assert "next row" in watch.note.value
        assert watch(history, tmp_path) and "Stopped after step 50" in capsys.readouterr().out
        assert watch.note.value == widgets.KEEP and not watch(history, tmp_path), "the next training is another"
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_file_ends_a_training_where_nobody_clicks(tmp_path):
    history, watch = History(), widgets.Watch()
    history.record(50, learning_rate=1e-4, D_X=0.25)
    assert not watch(history, tmp_path)
    (tmp_path / "stop").touch()
    assert watch(history, tmp_path) and not (tmp_path / "stop").exists() and not watch(history, tmp_path)
