"""Figures and tables as the thesis prints them; importing this file sets the house style.

A class, a method or a condition has one colour and one kind of line in every figure: see `look`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from lib.data.cohort import LABELS, Cohort
from lib.fidelity.controls import CONTROLS
from lib.report import latex
from lib.run.files import write_text, write_together, written
from lib.run.folder import Run
from lib.statistics.metrics import METRICS
from lib.translators.methods import METHODS, NOISE

WIDTH = 6.3  # inches: the text width of the thesis
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
GREY = "0.6"  # references, and whatever has no colour of its own
COLOURS = {
    **dict(zip((*METHODS, NOISE), cycle(PALETTE), strict=False)),
    **dict(zip(("AFF", "NFF"), PALETTE[4:], strict=False)),
    **dict(zip(("oversampling", "standard", "real"), PALETTE[4:], strict=False)),
}
OTHERS = dict(zip(("undersampling", "weighted", *CONTROLS), cycle(PALETTE), strict=False))  # dash, dot

pd.set_option("display.max_colwidth", None)
plt.rcParams.update(
    {
        "figure.dpi": 130,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 300,
        "pdf.fonttype": 42,  # TrueType: printers and LaTeX can search and embed the text
        "font.size": 9,
        "axes.titlesize": 9,
        "legend.fontsize": 8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=PALETTE),
        "lines.linewidth": 1.2,
    }
)


def title(name: str) -> str:
    """Return a condition's or method's name as readers know it: `cyclegan@0.5` is CycleGAN@0.5."""
    method, *rest = re.split("(?=[@+])", name, maxsplit=1)
    return "".join([METHODS[method].title if method in METHODS else method, *rest])


def look(name: str) -> tuple[str, tuple[float, ...]]:
    """Return a name's colour, and the dashes and gaps of its line; () is a line without gaps.

    Augmentation adds a dash, a smaller dose a dot: the smaller, the wider the gap.
    """
    base, _, dose = name.partition("@")
    base, _, augmentation = base.partition("+")
    dashes = () if base in COLOURS else (4, 1.5, 1, 1.5)
    dashes += (4, 1.5) if augmentation else ()
    dashes += (1, 1 / float(dose)) if dose else ()
    return (COLOURS | OTHERS).get(base, GREY), dashes


def _looks(names: Iterable[str]) -> dict[str, dict]:
    """Return what seaborn needs to draw titles of conditions as lines."""
    looks = {title(name): look(name) for name in names}
    return {
        "palette": {name: colour for name, (colour, _) in looks.items()},
        "dashes": {name: dashes or "" for name, (_, dashes) in looks.items()},
    }


def save_figure(fig: Figure, run: Run, name: str, caption: str) -> None:
    """Write `figures/NAME.pdf`, `.png` and the caption as `.txt` into the run, and show the figure once."""
    files = {kind: run.path("figures", f"{name}.{kind}") for kind in ("txt", "pdf", "png")}
    for file in files.values():  # where a picture is there, its caption is of the same figure
        file.unlink(missing_ok=True)
    write_text(files["txt"], caption + "\n")
    for kind in ("pdf", "png"):  # without dates, the same figure is the same file
        with written(files[kind]) as part:
            fig.savefig(part, metadata={"CreationDate": None} if kind == "pdf" else None)
    if get_ipython() is not None:
        display(fig, metadata={"image/png": {"alt": caption}})
        display(Markdown(f"*{caption}*"))
    plt.close(fig)


def save_table(frame: pd.DataFrame, run: Run, name: str, caption: str, digits: int = 3) -> None:
    """Write `tables/NAME.csv` (all digits) and `.tex` (`lib.report.latex.table`) into the run; show the table once."""
    named = any(level is not None for level in frame.index.names)
    texts = {f"{name}.csv": frame.to_csv(index=named), f"{name}.tex": latex.table(frame, name, caption, digits)}
    write_together(run / "tables", texts)
    if get_ipython() is not None:
        shown = frame.style.format(precision=digits, na_rep="–").format_index(latex.label, axis=0).set_caption(caption)
        display(shown if named else shown.hide(axis="index"))


def image_page(images, titles: Sequence[str] = (), columns: int = 8) -> Figure:
    """Draw a page of radiographs, row by row; the N `titles` stand above their images.

    `images` is a Cohort, or an array (N, H, W) or (N, 1, H, W). Integers span their type's range from black to white,
    floats -1 … 1.
    """
    pixels = _pixels(images)
    fig, axes = _grid(pixels, min(columns, len(pixels)), bool(titles), bool(titles))
    for ax, text in zip(axes.flat, titles, strict=False):
        ax.set_title(text, fontsize=7, pad=2)
    return fig


def image_rows(rows: Mapping[str, np.ndarray], column_titles: Sequence[str] = ()) -> Figure:
    """Draw labelled rows of radiographs, one column a patient: source, CycleGAN, CycleDiff, counterfactual …

    `rows` maps labels to as many images each, as of `image_page`; `column_titles` stand above the first row.
    """
    pixels = {title(label): _pixels(images) for label, images in rows.items()}
    counts = {label: len(row) for label, row in pixels.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"every row needs the same number of images, not {counts}")
    size = plt.rcParams["font.size"]
    left = 0.1 + max(TextPath((0, 0), label, size=size).get_extents().width for label in pixels) / 72
    images = np.concatenate(list(pixels.values()))
    fig, axes = _grid(images, len(images) // len(rows), False, bool(column_titles), left)
    for ax, text in zip(axes[0], column_titles, strict=False):
        ax.set_title(text, pad=3)
    for label, ax in zip(pixels, axes[:, 0], strict=True):
        ax.annotate(
            label, (0, 0.5), (-5, 0), xycoords="axes fraction", textcoords="offset points", ha="right", va="center"
        )
    return fig


def first_of(rows: Mapping[str, Cohort], most: int = 8) -> dict[str, Cohort]:
    """Cut rows to the same number of images, as many as the shortest has."""
    n = min(most, *map(len, rows.values()))
    return {name: images.first(n) for name, images in rows.items()}


def loss_panels(history: pd.DataFrame) -> list[list[str]]:
    """Return the losses of a history that share a panel: those that differ only in domain or generator."""
    losses = history.drop(columns=["step", "stage", "learning_rate"], errors="ignore").fillna(0).any()
    return [list(panel) for _, panel in losses.index[losses].to_series().groupby(_without_domain, sort=False)]


def _without_domain(column: str) -> str:
    return re.sub("_[XYGF]$", "", column)


def loss_curves(history: pd.DataFrame, panels: Sequence[Sequence[str]] | None = None) -> Figure:
    """Draw a training's losses over its steps: every value faint, their running mean on top.

    `history` has `step` and the losses; missing values are left out. Where a column `stage` changes, there is a dotted
    line. Columns of one of the `panels` share it, by default those of `loss_panels`.
    """
    panels = loss_panels(history) if panels is None else panels
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    fig, axes = plt.subplots(down, across, figsize=(WIDTH, 1.9 * down), squeeze=False, sharex=True)
    stages = history.step[history.stage != history.stage.shift(-1)].iloc[:-1] if "stage" in history else ()
    for ax, panel in zip(axes.flat, panels, strict=False):
        stems = {_without_domain(column) for column in panel}
        stem = stems.pop() if len(stems) == 1 else ""
        for colour, column in zip(cycle(PALETTE), panel, strict=False):
            curve = history.set_index("step")[column].dropna()
            smooth = curve.rolling(max(1, len(curve) // 30), center=True, min_periods=1).mean()
            ax.plot(curve, color=colour, alpha=0.25, linewidth=0.6)
            ax.plot(smooth, color=colour, label=column.removeprefix(f"{stem}_"), marker="o" if len(curve) == 1 else "")
        for end in stages:
            ax.axvline(end, color=GREY, linewidth=0.6, linestyle=":")
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.tick_params(labelbottom=True)
        ax.set_title(stem, loc="left" if len(panel) > 1 else "center", fontsize=8)
        if len(panel) > 1:
            ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, handlelength=1, borderpad=0, columnspacing=1)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    fig.supxlabel("step", fontsize=9)
    return fig


def sampling_cost(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Draw metrics against the seconds an image takes, a panel each: a line for each solver, steps beside the points.

    The table has columns `solver, sampling_steps, seconds` and the metrics.
    """
    table = table.assign(milliseconds=1000 * table.seconds)
    fig, axes = plt.subplots(1, len(metrics), figsize=(WIDTH, 2.3), squeeze=False)
    for ax, metric in zip(axes.flat, metrics, strict=True):
        sns.lineplot(table, x="milliseconds", y=metric, hue="solver", style="solver", markers=True, dashes=False,
                     legend="auto" if ax is axes[0, -1] else False, ax=ax)  # fmt: skip
        for steps, *at in table[["sampling_steps", "milliseconds", metric]].itertuples(index=False):
            ax.annotate(steps, at, (3, 4), textcoords="offset points", size=7)
        ax.margins(0.1)
        ax.set(xlabel="milliseconds an image", ylabel=metric.replace("_", " "))
        ax.ticklabel_format(axis="y", useOffset=False)
    _legend_beside(axes[0, -1])
    return fig


def images_per_patient(cohort: Cohort) -> Figure:
    """Draw the share of each class's patients by their number of radiographs."""
    fig, ax = plt.subplots(figsize=(WIDTH * 0.6, 2.0))
    counts = cohort.table.groupby(["label", "patient_id"]).size().rename("radiographs").reset_index()
    sns.histplot(counts, x="radiographs", hue="label", hue_order=LABELS, palette=COLOURS, alpha=1, multiple="dodge",
                 stat="probability", common_norm=False, discrete=True, shrink=0.8, edgecolor="none", ax=ax)  # fmt: skip
    ax.set(ylabel="share of patients", xticks=range(1, counts.radiographs.max() + 1))
    _legend_beside(ax)
    return fig


def fidelity_bars(fidelity: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Draw each method's value by metric and direction: mean over folds, with the interval of one fold."""
    shown = fidelity[(fidelity.features != "inception") & fidelity.metric.isin(metrics)]
    methods, directions = shown.method.unique(), shown.direction.unique()
    means = shown.groupby(["direction", "metric", "method"])[["value", "ci_low", "ci_high"]].mean()
    height = (0.2 * len(methods) + 0.3) * len(directions) + 0.3
    fig, axes = plt.subplots(
        len(directions), len(metrics), figsize=(WIDTH, height), squeeze=False, sharex="col", sharey=True
    )
    for line, direction in zip(axes, directions, strict=True):
        for ax, metric in zip(line, metrics, strict=True):
            rows = means.loc[direction, metric].reindex(methods)
            errors = (rows[["ci_low", "ci_high"]].sub(rows.value, axis=0)).abs().T
            ax.barh([title(method) for method in methods], rows.value, xerr=errors, error_kw={"linewidth": 0.8},
                    color=[look(method)[0] if method in (*METHODS, NOISE) else GREY for method in methods])  # fmt: skip
            ax.axvline(0, color="black", linewidth=0.6)
            ax.locator_params("x", nbins=3)
        line[0].set_ylabel(direction)
    axes[0, 0].invert_yaxis()
    for ax, metric in zip(axes[-1], metrics, strict=True):
        ax.set_xlabel(metric.replace("_", " "))
        _cut_off_noise(ax, shown[shown.metric == metric])
    return fig


def _cut_off_noise(ax, values: pd.DataFrame) -> None:
    """Cut off the bar of noise, and say so, where it would hide all others."""
    noise, rest = (values[(values.method == NOISE) == is_noise] for is_noise in (True, False))
    most = rest[["value", "ci_high"]].max().max()
    if noise.value.max() > 3 * most:
        ax.set_xlim(min(rest.ci_low.min(), 0), 1.1 * most)
        ax.set_xlabel(f"{ax.get_xlabel()} ({NOISE}, cut off: {noise.value.mean():.3g})")


def condition_points(metrics: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Draw one panel a metric: every trial a dot, the mean of each condition a bar."""
    conditions = metrics.condition.unique()
    fig, axes = plt.subplots(1, len(names), figsize=(WIDTH, 0.24 * len(conditions) + 0.8), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        rows = metrics[metrics.metric == name]
        rows = rows.assign(condition=rows.condition.map(title))
        sns.stripplot(rows, x="value", y="condition", hue="condition", palette=_looks(conditions)["palette"], size=4,
                      alpha=0.6, jitter=False, legend=False, ax=ax)  # fmt: skip
        sns.pointplot(rows, x="value", y="condition", errorbar=None, linestyle="none", color="black", marker="|",
                      markersize=11, markeredgewidth=1.3, zorder=3, ax=ax)  # fmt: skip
        ax.set(xlabel=METRICS[name], ylabel="")
    return fig


def validation_curves(history: pd.DataFrame) -> Figure:
    """Draw the AUROC of validation patients over the steps, a line a condition, mean over folds and seeds."""
    fig, ax = plt.subplots(figsize=(WIDTH, 2.8))
    _lines(history, "step", "validation_auroc", ax)
    ax.set(xlabel="optimiser step", ylabel="AUROC (validation)")
    return fig


def _lines(table: pd.DataFrame, x: str, y: str, ax) -> None:
    """Draw the means of `y` at each `x`, a line for each `condition`, the legend beside them."""
    looks = _looks(table.condition.unique())
    table = table.assign(condition=table.condition.map(title))
    sns.lineplot(table, x=x, y=y, hue="condition", style="condition", **looks, errorbar=None, ax=ax)
    _legend_beside(ax)


def _legend_beside(ax) -> None:
    sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title=None)


def curves_over(table: pd.DataFrame, x: str, label: str) -> Figure:
    """Draw the AUROC of test patients over a dose or a share: each trial a dot, the means of a condition a line.

    The table has columns `condition`, `x` and `value`; the label is that of the horizontal axis.
    """
    fig, ax = plt.subplots(figsize=(WIDTH * 0.8, WIDTH * 0.42))
    _lines(table, x, "value", ax)
    colours = [look(name)[0] for name in table.condition]
    ax.scatter(table[x], table.value, 10, colours, alpha=0.5, linewidths=0)
    ax.set(xlabel=label, ylabel="AUROC of patients")
    return fig


def decision_curves(benefits: Mapping[str, np.ndarray], thresholds: np.ndarray) -> Figure:
    """Draw net benefit over the threshold probability, a line a condition (`lib.statistics.metrics.net_benefit`)."""
    fig, ax = plt.subplots(figsize=(WIDTH * 0.8, WIDTH * 0.42))
    table = pd.DataFrame(benefits, index=pd.Index(thresholds, name="threshold"))
    _lines(table.melt(var_name="condition", ignore_index=False).reset_index(), "threshold", "value", ax)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set(xlabel="threshold probability", ylabel="net benefit", ylim=(-0.05, None))
    return fig


def overlaid(images, maps: np.ndarray, titles: Sequence[str]) -> Figure:
    """Draw radiographs (as of `image_page`) in one row, titled, below each the same with a map laid over it.

    The maps (N, h, w) go from 0 to 1 and are scaled to the images.
    """
    pixels = _pixels(images)
    fig, axes = _grid(np.concatenate([pixels, pixels]), len(pixels), False, True)
    height, width = pixels.shape[1:]
    for heat, text, (upper, lower) in zip(maps, titles, axes.T, strict=True):
        upper.set_title(text, fontsize=7, pad=2)
        lower.imshow(heat, cmap="inferno", alpha=0.45, vmin=0, vmax=1, interpolation="bilinear",
                     extent=(-0.5, width - 0.5, height - 0.5, -0.5))  # fmt: skip
    return fig


def steganography_curves(errors: Mapping[str, pd.DataFrame], spectra: Mapping[str, pd.Series]) -> Figure:
    """Draw cycle errors against what was touched, and power spectra of what the methods make.

    `errors` are of `lib.fidelity.steganography.cycle_errors` by method, `spectra` of its `radial_spectrum` by name.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, WIDTH * 0.45))
    for number, (method, table) in enumerate(errors.items()):
        at = np.arange(len(table)) + 0.6 * ((number + 0.5) / len(errors) - 0.5)  # side by side
        left.errorbar(at, table.value, (table.value - table.ci_low, table.ci_high - table.value), fmt="o", ms=4,
                      capsize=2, color=look(method)[0])  # fmt: skip
        left.plot(at, table.touched, "_", color=GREY, ms=6, label="" if number else "size of the touch")
        left.set_xticks(range(len(table)), table.perturbation, rotation=60)
    left.set(ylabel="error of the way back", ylim=(0, None))
    left.legend(loc="lower left", bbox_to_anchor=(0, 1))
    _lines(
        pd.concat(spectra, names=["condition", "frequency"]).rename("power").reset_index(), "frequency", "power", right
    )
    right.set(xlabel="frequency (cycles a pixel)", yscale="log")
    return fig


def forest_plot(comparisons: pd.DataFrame, margin: float) -> Figure:
    """Draw each comparison's difference with its 95 % interval, beside the band of ±margin; controls in grey."""
    fig, ax = plt.subplots(figsize=(WIDTH, 0.24 * len(comparisons) + 0.7))
    ax.axvspan(-margin, margin, color="0.9", linewidth=0)
    ax.axvline(0, color="black", linewidth=0.6)
    for row, c in enumerate(comparisons.itertuples()):
        ax.errorbar(c.difference, row, xerr=[[c.difference - c.ci_low], [c.ci_high - c.difference]], fmt="o",
                    markersize=4, color=GREY if c.question == "control" else PALETTE[0])  # fmt: skip
    names = [f"{c.question}: {title(c.a)} − {title(c.b)}" for c in comparisons.itertuples()]
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlabel="difference in AUROC")
    return fig


def _pixels(images) -> np.ndarray:
    """Return (N, H, W) from a cohort, (N, H, W) or (N, 1, H, W)."""
    pixels = np.asarray(getattr(images, "pixels", images))
    return pixels[:, 0] if pixels.ndim == 4 else pixels


def _grid(pixels: np.ndarray, columns: int, row_titles: bool, top_title: bool, left: float = 0.0):
    """Draw images without frames, a hair apart; room for titles, and `left` inches for labels."""
    rows, gap, title = -(-len(pixels) // columns), 0.03, 0.16
    width = min((WIDTH - left - gap * (columns - 1)) / columns, 1.4)
    height = width * pixels.shape[1] / pixels.shape[2]
    between = gap + title * row_titles
    total = (left + columns * width + gap * (columns - 1), rows * height + between * (rows - 1) + title * top_title)
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=total, layout="none")
    top = 1 - title * top_title / total[1]
    fig.subplots_adjust(left / total[0], 0, 1, top, wspace=gap / width, hspace=between / height)
    low, high = (0, np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else (-1, 1)
    for ax, image in zip(axes.flat, pixels, strict=False):
        ax.imshow(image, cmap="gray", vmin=low, vmax=high)
    for ax in axes.flat:
        ax.set_axis_off()
    return fig, axes
