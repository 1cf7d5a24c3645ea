"""Widgets: tools to look and to decide with in Jupyter. A headless run shows one picture of each, its first state."""

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
import seaborn as sns
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from lib.data.cohort import LABELS, Cohort
from lib.fidelity import reader_study
from lib.fidelity.curation import pixel_hashes, read_verdicts
from lib.report.figures import COLOURS, WIDTH, image_page, image_rows, loss_curves, title
from lib.run.files import write_text
from lib.statistics.metrics import by_patient
from lib.translators.training import History

ALL = "all"
PAGE = 24  # thumbnails
KEEP = "Interrupt the kernel (■) to end this training and keep what was learnt."
REASONS = ("", "no fracture", "two fractures", "anatomy broken", "artefact", "other")  # for rejecting an image


def headless() -> bool:
    """Return whether nobody is there to click."""
    return get_ipython() is None or os.environ.get("LIB_PROGRESS") == "text"


def explore(draw: Callable[..., Figure], about: str, **controls: w.Widget) -> w.Widget | None:
    """Show the figure that `draw` makes of the controls' values, again whenever one changes; headless: once.

    `about` says what there is to see, as the picture's caption.
    """
    if headless():
        picture(draw(**{name: control.value for name, control in controls.items()}), about)
        return None
    output = w.interactive_output(lambda **values: show(draw(**values), about), controls)
    tool = w.VBox([w.HBox(list(controls.values()), layout=w.Layout(flex_flow="row wrap")), output])
    display(tool)
    return tool


def show(figure: Figure, about: str) -> None:
    """Display a figure with a text for those who do not see it."""
    display(figure, metadata={"image/png": {"alt": about}})
    plt.close(figure)


def picture(figure: Figure, about: str) -> None:
    """Show what a headless run shows of a tool."""
    show(figure, about)
    display(Markdown(f"*{about} A tool to click, where the notebook runs in Jupyter.*"))


def browse(cohort: Cohort, splits: pd.DataFrame | None = None) -> w.Widget | None:
    """Show pages of thumbnails by label, view, side and part of the first fold; one large; grey levels stretched."""
    table = cohort.table
    if splits is not None:
        parts = splits.drop_duplicates("patient_id").set_index("patient_id").part
        table = table.assign(part=table.patient_id.map(parts).fillna("no part"))
    columns = [name for name in ("label", "view", "side", "part") if name in table and table[name].nunique() > 1]

    def draw(page: int, image: int, window: tuple[int, int], **chosen) -> Figure:
        fits = [table[name].eq(value) for name, value in chosen.items() if value != ALL]
        rows = np.flatnonzero(np.logical_and.reduce([np.ones(len(table), bool), *fits]))
        if not len(rows):
            nothing = plt.figure(figsize=(WIDTH, 0.5))
            nothing.text(0, 0.5, "No image is like that.")
            return nothing
        black, white = window[0] / 100, max(window[1], window[0] + 1) / 100
        if image:
            row = rows[min(image, len(rows)) - 1]
            about = table.iloc[row]
            one = cohort.take([row]).windowed(black, white)
            return image_page(one, [f"{about.image_id}: {', '.join(about[columns])}"], columns=1)
        start = min((page - 1) * PAGE, (len(rows) - 1) // PAGE * PAGE)
        shown = cohort.take(rows[start : start + PAGE]).windowed(black, white)
        return image_page(shown, list(shown.table.image_id))

    large = {"description": "large (0: none)", "style": {"description_width": "initial"}}
    controls = {name: w.Dropdown(options=[ALL, *sorted(set(table[name]))], description=name) for name in columns}
    controls |= {
        "page": w.BoundedIntText(1, min=1, max=-(-len(cohort) // PAGE), description="page"),
        "image": w.BoundedIntText(0, min=0, max=len(cohort), **large),
        "window": w.IntRangeSlider(value=(0, 100), min=0, max=100, description="window %"),
    }
    return explore(draw, "Radiographs of the cohort, a page of thumbnails.", **controls)


def before_after(source: Cohort, outputs: Mapping[str, Cohort]) -> w.Widget | None:
    """Show an image, its translation, any mixture of the two, and their difference.

    `outputs` maps a method (or "counterfactual") to what it made of the source's images, in their order.
    """

    def draw(method: str, image: int, mixture: int) -> Figure:
        before, after = source.take([image - 1]).images(), outputs[method].take([image - 1]).images()
        mixed = before + (after - before) * mixture / 100
        rows = np.concatenate([before, mixed, after, np.clip((after - before) / 2, -1, 1)])
        about = source.table.image_id.iloc[image - 1]
        return image_page(rows, [f"before: {about}", f"{mixture} %", title(method), "difference"], columns=4)

    return explore(
        draw,
        "A radiograph, a mixture of it and its translation, the translation, and what it changed.",
        method=w.Dropdown(options=list(outputs), description="method"),
        image=w.IntSlider(1, min=1, max=len(source), description="image"),
        mixture=w.IntSlider(50, min=0, max=100, description="mixture %"),
    )


def along(times: np.ndarray, pictures: Mapping[str, np.ndarray]) -> w.Widget | None:
    """Show what a diffusion model and its translator see of the first image at one time of its way.

    `pictures` maps names to (times, images, 1, H, W) in [-1, 1].
    """

    def draw(step: int) -> Figure:
        shown = {name: picture[step - 1 : step, 0].clip(-1, 1) for name, picture in pictures.items()}
        return image_rows(shown, [f"t = {times[step - 1]:.2g}"])

    about = "One image on its way through time, as both diffusion models and the translator see it."
    return explore(draw, about, step=w.IntSlider(1, min=1, max=len(times), description="step"))


def thresholds(predictions: pd.DataFrame, start: float = 0.5) -> w.Widget | None:
    """Show what a threshold does: probabilities of patients by class, confusion matrix, sensitivity, specificity.

    `predictions` has `condition, patient_id, label, probability`; a patient's images, seeds and folds are averaged.
    """
    means = by_patient(predictions[["condition", "patient_id", "label", "probability"]])

    def draw(condition: str, threshold: float) -> Figure:
        own = means[means.condition == condition]
        called = np.where(own.probability >= threshold, "AFF", "NFF")
        matrix = pd.crosstab(own.label, called).reindex(index=LABELS, columns=LABELS, fill_value=0)
        fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, WIDTH * 0.35), width_ratios=(2, 1))
        sns.histplot(own, x="probability", hue="label", hue_order=LABELS, palette=COLOURS, bins=np.linspace(0, 1, 26),
                     alpha=0.6, edgecolor="none", ax=left)  # fmt: skip
        left.axvline(threshold, color="black", linewidth=1)
        left.set(xlabel="probability of AFF", ylabel="patients")
        sns.move_legend(left, "lower right", bbox_to_anchor=(1, 1), ncols=2, title=None)
        sns.heatmap(matrix, annot=True, fmt="d", cmap="Blues", cbar=False, ax=right)
        right.set(xlabel="", ylabel="", xticklabels=[f"called {label}" for label in LABELS])
        right_calls = np.diag(matrix) / matrix.sum(axis=1).clip(lower=1)
        rates = f"sensitivity {right_calls['AFF']:.1%}, specificity {right_calls['NFF']:.1%}"
        fig.suptitle(f"{title(condition)}: {rates}", fontsize=9)
        return fig

    return explore(
        draw,
        "Probabilities of test patients by class, the threshold, and the decisions that it makes.",
        condition=w.Dropdown(options=list(dict.fromkeys(means.condition)), description="condition"),
        threshold=w.FloatSlider(start, min=0, max=1, step=0.01, description="threshold"),
    )


class Watch:
    """A training while it runs, its losses and newest translations, for `lib.translators.translator.Translator.fit`.

    Interrupting the kernel (■) ends the training and keeps what was learnt; a second time, it interrupts as usual. So
    does, also in a headless run, an empty file named `stop` in the training's folder; it is taken away. (A button would
    be clicked in vain: ipykernel 7.4 hands clicks on what a running cell has displayed to that cell.) A picture is
    drawn `every` so many seconds.
    """

    def __init__(self, every: float = 10):
        self.every, self.drawn_at, self.wanted = every, 0.0, False
        self.note, self.losses, self.previews = w.Label(KEEP), w.Image(format="png"), w.Image(format="png")
        if not headless():
            display(w.VBox([self.note, self.losses, self.previews]))
            self._listen()

    def _listen(self) -> None:
        """Take interrupts until the notebook's cell ends; then ipykernel takes them back."""
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
            self.losses.value = _png(loss_curves(few))
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


def curate(synthetic: Cohort, path: Path) -> w.Widget | None:
    """Keep or reject synthetic images, one after the other, with a reason; saved with every click."""
    if headless():
        few = synthetic.first(8)
        return picture(image_page(few, list(few.table.method)), "Synthetic images to be kept or rejected.")
    hashes = np.array(pixel_hashes(synthetic))
    reason = w.Dropdown(options=REASONS, description="why")
    keep, reject = buttons = [w.Button(description=word) for word in ("keep", "reject")]

    def left() -> list[int]:
        return np.flatnonzero(~np.isin(hashes, read_verdicts(path).pixels.to_list())).tolist()

    def begin() -> None:
        reason.value = ""
        keep.disabled = reject.disabled = not left()

    def decide(button: w.Button) -> None:
        row = left()[0]
        verdict = {"image_id": synthetic.table.image_id.iloc[row], "pixels": hashes[row]}
        verdict |= {"keep": button is keep, "reason": reason.value}
        table = pd.concat([read_verdicts(path), pd.DataFrame([verdict])], ignore_index=True)
        write_text(path, table.to_csv(index=False))

    about = "The synthetic image to decide on."
    return _one_by_one(synthetic, left, begin, decide, about, buttons, [w.HBox([*buttons, reason])])


def read_sheet(images: Cohort, path: Path, reader: str) -> w.Widget | None:
    """Read the sheet of a reader study, image by image; saved with every click, and taken up again.

    `images` are of `lib.fidelity.reader_study.sheet`, the answers of the `reader` (a pseudonym) are kept in `path`.
    """
    if headless():
        few = images.first(8)
        about = "The first images of the reader study, real and synthetic."
        return picture(image_page(few, [f"{number}" for number in few.table.number]), about)
    done, start = w.Button(description="next"), [0.0]
    answers = {
        name: w.ToggleButtons(options=options, value=None, description=name, style={"button_width": "auto"})
        for name, options in reader_study.QUESTIONS.items()
    }

    def left() -> range:
        number = reader_study.next_number(path, reader, images)
        return range(len(images) if number is None else number - 1, len(images))

    def begin() -> None:
        for answer in answers.values():
            answer.value = None
        start[0] = time.monotonic()
        check()

    def check(_=None) -> None:
        done.disabled = not left() or any(answer.value is None for answer in answers.values())

    def save(_) -> None:
        given = {name: answer.value for name, answer in answers.items()}
        reader_study.record(path, reader, left()[0] + 1, time.monotonic() - start[0], **given)

    for answer in answers.values():
        answer.observe(check, "value")
    return _one_by_one(images, left, begin, save, "An image of the sheet.", [done], [*answers.values(), done])


def _one_by_one(images: Cohort, left, begin, save, about: str, buttons: list[w.Button], below: list) -> w.Widget:
    """Show the first of the rows that are `left`, and the next one after each click that `save` has written.

    `begin` makes the controls `below` the image ready for the next one; `about` is for those who do not see it.
    """
    output, progress = w.Output(), w.Label()

    def advance() -> None:
        rows = left()
        progress.value = f"{len(images) - len(rows)} of {len(images)} done{'' if rows else ', thank you'}"
        with output:
            output.clear_output(wait=True)
            if rows:
                show(image_page(images.take([rows[0]]), columns=1), about)
        begin()

    def clicked(button: w.Button) -> None:
        save(button)
        advance()

    for button in buttons:
        button.on_click(clicked)
    advance()
    tool = w.VBox([progress, output, *below])
    display(tool)
    return tool
