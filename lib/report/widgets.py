"""Widgets: tools to look and to decide with in Jupyter. In a headless run each is one picture of its first state."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from lib.data.cohort import LABELS, Cohort
from lib.fidelity.curation import pixel_hashes, read_verdicts
from lib.report.figures import PALETTE, WIDTH, image_page, image_rows, loss_curves, loss_panels
from lib.run.files import write_text
from lib.statistics import readers
from lib.statistics.metrics import by_patient
from lib.translators.training import History

ALL = "all"
PAGE = 24  # thumbnails
KEEP = "Interrupt the kernel (■) to end this training and keep what was learnt."
REASONS = ("", "no fracture", "two fractures", "anatomy broken", "artefact", "other")  # for rejecting an image


def headless() -> bool:
    """Whether nobody is there to click."""
    return get_ipython() is None or os.environ.get("LIB_PROGRESS") == "text"


def explore(draw: Callable[..., Figure], about: str, **controls: w.Widget) -> w.Widget | None:
    """Show the figure that `draw` makes of the controls' values, again whenever one changes; headless: once.

    Parameters
    ----------
    about : what there is to see, the picture's caption
    """
    if headless():
        picture(draw(**{name: control.value for name, control in controls.items()}), about)
        return None
    output = w.interactive_output(lambda **values: show(draw(**values), about), controls)
    tool = w.VBox([w.HBox(list(controls.values()), layout=w.Layout(flex_flow="row wrap")), output])
    display(tool)
    return tool


def show(figure: Figure, about: str) -> None:
    display(figure, metadata={"image/png": {"alt": about}})
    plt.close(figure)


def picture(figure: Figure, about: str) -> None:
    """What a headless run shows of a tool."""
    show(figure, about)
    display(Markdown(f"*{about} A tool to click, where the notebook runs in Jupyter.*"))


# Looking -------------------------------------------------------------------------------------------------------------


def browse(cohort: Cohort, splits: pd.DataFrame | None = None) -> w.Widget | None:
    """Pages of thumbnails by label, view, side and part of the first cell; one of them large; grey levels stretched."""
    parts = {} if splits is None else splits.drop_duplicates("patient_id").set_index("patient_id").part.to_dict()
    table = cohort.table.assign(part=[parts.get(patient, "no part") for patient in cohort.table.patient_id])
    columns = [name for name in ("label", "view", "side", "part") if table[name].nunique() > 1]

    def draw(page: int, image: int, window: tuple[int, int], **chosen) -> Figure:
        rows = np.flatnonzero(
            np.all([table[n].eq(v) | (v == ALL) for n, v in chosen.items()] or [[True] * len(table)], 0)
        )
        if not len(rows):
            return _text("No image is like that.")
        black, white = window[0] / 100, max(window[1], window[0] + 1) / 100
        if image:
            row = rows[min(image, len(rows)) - 1]
            one, about = cohort.take([row]).windowed(black, white), table.iloc[row]
            return image_page(one, [f"{about.image_id}: {', '.join(about[columns])}"], columns=1)
        start = min((page - 1) * PAGE, (len(rows) - 1) // PAGE * PAGE)
        shown = cohort.take(rows[start : start + PAGE]).windowed(black, white)
        return image_page(shown, list(shown.table.image_id))

    controls = {name: w.Dropdown(options=[ALL, *sorted(set(table[name]))], description=name) for name in columns}
    controls |= {
        "page": w.BoundedIntText(1, min=1, max=-(-len(cohort) // PAGE), description="page"),
        "image": w.BoundedIntText(
            0, min=0, max=len(cohort), description="large (0: none)", style={"description_width": "initial"}
        ),
        "window": w.IntRangeSlider(value=(0, 100), min=0, max=100, description="window %"),
    }
    return explore(draw, "Radiographs of the cohort, a page of thumbnails.", **controls)


def before_after(source: Cohort, outputs: Mapping[str, Cohort]) -> w.Widget | None:
    """An image, its translation, any mixture of the two, and their difference.

    Parameters
    ----------
    outputs : method (or "counterfactual") → what it made of the source's images, in their order
    """

    def draw(method: str, image: int, mixture: int) -> Figure:
        before, after = source.take([image - 1]).images(), outputs[method].take([image - 1]).images()
        mixed = before + (after - before) * mixture / 100
        rows = np.concatenate([before, mixed, after, np.clip((after - before) / 2, -1, 1)])
        about = source.table.image_id.iloc[image - 1]
        return image_page(rows, [f"before: {about}", f"{mixture} %", method, "difference"], columns=4)

    return explore(
        draw,
        "A radiograph, a mixture of it and its translation, the translation, and what it changed.",
        method=w.Dropdown(options=list(outputs), description="method"),
        image=w.IntSlider(1, min=1, max=len(source), description="image"),
        mixture=w.IntSlider(50, min=0, max=100, description="mixture %"),
    )


def along(times: np.ndarray, pictures: Mapping[str, np.ndarray], image: int = 0) -> w.Widget | None:
    """What a diffusion model and its translator see of one image at one time of its way.

    Parameters
    ----------
    pictures : name → (times, images, 1, H, W) in [-1, 1]
    """

    def draw(step: int) -> Figure:
        shown = {name: picture[step - 1 : step, image].clip(-1, 1) for name, picture in pictures.items()}
        return image_rows(shown, [f"t = {times[step - 1]:.2g}"])

    about = "One image on its way through time, as both diffusion models and the translator see it."
    return explore(draw, about, step=w.IntSlider(1, min=1, max=len(times), description="step"))


def thresholds(predictions: pd.DataFrame, start: float = 0.5) -> w.Widget | None:
    """What a threshold does: probabilities of patients by class, confusion matrix, sensitivity, specificity.

    Parameters
    ----------
    predictions : `condition, patient_id, label, probability`; the mean over a patient's images, seeds and cells is used
    start : the threshold to begin with
    """
    means = by_patient(predictions[["condition", "patient_id", "label", "probability"]])

    def draw(condition: str, threshold: float) -> Figure:
        own = means[means.condition == condition]
        called = own.probability >= threshold
        matrix = pd.crosstab(own.label, called).reindex(index=LABELS, columns=[False, True], fill_value=0)
        fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, WIDTH * 0.35), width_ratios=(2, 1))
        for colour, label in zip(PALETTE, LABELS, strict=False):
            left.hist(own.probability[own.label == label], np.linspace(0, 1, 26), alpha=0.6, color=colour, label=label)
        left.axvline(threshold, color="black", linewidth=1)
        left.set(xlabel="probability of AFF", ylabel="patients")
        left.legend()
        right.imshow(matrix, cmap="Blues", aspect="auto")
        for (row, column), count in np.ndenumerate(matrix.to_numpy()):
            right.annotate(
                f"{count}",
                (column, row),
                ha="center",
                va="center",
                color="white" if 2 * count > matrix.to_numpy().max() else "black",
            )
        right.set(xticks=[0, 1], xticklabels=["called NFF", "called AFF"], yticks=[0, 1], yticklabels=LABELS)
        sensitivity, specificity = matrix.loc["AFF", True] / max(matrix.loc["AFF"].sum(), 1), matrix.loc["NFF", False]
        specificity = specificity / max(matrix.loc["NFF"].sum(), 1)
        fig.suptitle(f"{condition}: sensitivity {sensitivity:.1%}, specificity {specificity:.1%}", fontsize=9)
        return fig

    return explore(
        draw,
        "Probabilities of test patients by class, the threshold, and the decisions that it makes.",
        condition=w.Dropdown(options=list(dict.fromkeys(means.condition)), description="condition"),
        threshold=w.FloatSlider(start, min=0, max=1, step=0.01, description="threshold"),
    )


def _text(words: str) -> Figure:
    fig = plt.figure(figsize=(WIDTH, 0.5))
    fig.text(0, 0.5, words)
    return fig


class Watch:
    """A training while it runs, for `lib.translators.translator.Translator.fit`: its losses and its newest
    translations.

    Interrupting the kernel (■) ends the training and keeps what was learnt; a second time, it interrupts as usual. So
    does, also in a headless run, an empty file named `stop` in the training's folder; it is taken away. (A button would
    be clicked in vain: ipykernel 7.4 hands clicks on what a running cell has displayed to that cell.)

    Parameters
    ----------
    every : seconds between two pictures
    """

    def __init__(self, every: float = 10):
        self.every, self.drawn_at, self.wanted = every, 0.0, False
        self.note, self.losses, self.previews = w.Label(KEEP), w.Image(format="png"), w.Image(format="png")
        if not headless():
            display(w.VBox([self.note, self.losses, self.previews]))
            self._listen()

    def _listen(self) -> None:
        """Until the notebook's cell ends; then ipykernel takes interrupts back."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, *_) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted, self.note.value = True, "Ends with the next row of losses; interrupt again to end now."

    def __call__(self, history: History, folder: Path) -> bool:
        """Draw what is new, and say whether to stop."""
        losses, file = history.frame(), Path(folder, "stop")
        if not headless() and time.monotonic() - self.drawn_at > self.every:
            self._listen()
            start, few = time.monotonic(), losses.iloc[:: len(losses) // 300 + 1]
            self.losses.value = _png(loss_curves(few, loss_panels(few)))
            if course := sorted(Path(folder, "previews").glob("[!.]*.npy")):
                self.previews.value = _png(image_rows({f"step {int(course[-1].stem):,}": np.load(course[-1])}))
            self.drawn_at = time.monotonic()
            self.every = max(self.every, 50 * (self.drawn_at - start))  # two per cent of the time at most
        stop = self.wanted or file.exists()
        if stop:
            file.unlink(missing_ok=True)
            self.wanted, self.note.value = False, KEEP
            print(f"Stopped after step {losses.step.iloc[-1]:,}; what was learnt is kept. The same again goes on.")
        return stop


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=plt.rcParams["figure.dpi"])
    plt.close(figure)
    return file.getvalue()


# Deciding ------------------------------------------------------------------------------------------------------------


def curate(synthetic: Cohort, path: Path) -> w.Widget | None:
    """Keep or reject synthetic images, one after the other, with a reason; saved with every click."""
    if headless():
        about = "Synthetic images to be kept or rejected."
        picture(image_page(synthetic.first(8), list(synthetic.first(8).table.method), columns=8), about)
        return None
    output, progress = w.Output(), w.Label()
    reason = w.Dropdown(options=REASONS, description="why")
    keep, reject = (w.Button(description=word) for word in ("keep", "reject"))

    hashes = np.array(pixel_hashes(synthetic))

    def left() -> list[int]:
        return np.flatnonzero(~np.isin(hashes, read_verdicts(path).pixels.to_list())).tolist()

    def advance() -> None:
        rows = left()
        progress.value = f"{len(synthetic) - len(rows)} of {len(synthetic)} seen"
        keep.disabled = reject.disabled = not rows
        with output:
            output.clear_output(wait=True)
            if rows:
                show(image_page(synthetic.take(rows[:1]), columns=1), "The synthetic image to decide on.")

    def decide(button: w.Button) -> None:
        row = left()[0]
        verdict = {"image_id": synthetic.table.image_id.iloc[row], "pixels": hashes[row]}
        verdict |= {"keep": button is keep, "reason": reason.value}
        table = pd.concat([read_verdicts(path), pd.DataFrame([verdict])], ignore_index=True)
        write_text(path, table.to_csv(index=False))
        reason.value = ""
        advance()

    for button in (keep, reject):
        button.on_click(decide)
    advance()
    tool = w.VBox([progress, output, w.HBox([keep, reject, reason])])
    display(tool)
    return tool


def read_sheet(images: Cohort, path: Path, reader: str) -> w.Widget | None:
    """The sheet of a reader study (`lib.statistics.readers`), image by image; saved with every click, and taken up
    again.

    Parameters
    ----------
    images : of `lib.fidelity.reader_study.sheet`
    path : where answers are kept
    reader : a pseudonym
    """
    if headless():
        about = "The first images of the reader study, real and synthetic."
        picture(image_page(images.first(8), [f"{number}" for number in images.table.number[:8]], columns=8), about)
        return None
    output, progress, done = w.Output(), w.Label(), w.Button(description="next")
    answers = {
        name: w.ToggleButtons(options=options, value=None, description=name, style={"button_width": "auto"})
        for name, options in readers.QUESTIONS.items()
    }
    since = {"start": time.monotonic()}

    def advance() -> None:
        number = readers.next_number(path, reader, images)
        progress.value = "All images are read, thank you." if number is None else f"{number} of {len(images)}"
        for answer in answers.values():
            answer.value = None
        done.disabled = True
        with output:
            output.clear_output(wait=True)
            if number is not None:
                show(image_page(images.take([number - 1]), columns=1), f"Image {number} of the sheet.")
        since["start"] = time.monotonic()

    def check(_) -> None:
        complete = all(answer.value is not None for answer in answers.values())
        done.disabled = not complete or readers.next_number(path, reader, images) is None

    def save(_) -> None:
        number, seconds = readers.next_number(path, reader, images), time.monotonic() - since["start"]
        given = {name: answer.value for name, answer in answers.items()}
        readers.record(path, reader, number, seconds, **given)
        advance()

    for answer in answers.values():
        answer.observe(check, "value")
    done.on_click(save)
    advance()
    tool = w.VBox([progress, output, *answers.values(), done])
    display(tool)
    return tool
