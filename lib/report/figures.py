"""Figures and tables as the thesis prints them; importing this file sets the house style."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from lib.data.cohort import LABELS, Cohort
from lib.report import latex
from lib.run.files import write_text, write_together, written
from lib.run.folder import Run
from lib.statistics.metrics import METRICS

WIDTH = 6.3  # inches: the text width of the thesis
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008

pd.set_option("display.max_colwidth", None)
plt.rcParams.update(
    {
        "figure.figsize": (WIDTH, WIDTH * 0.6),
        "figure.dpi": 130,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 300,
        "pdf.fonttype": 42,  # TrueType: printers and LaTeX can search and embed the text
        "ps.fonttype": 42,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(linestyle=["-", "--", ":"]) * plt.cycler(color=PALETTE),
        "lines.linewidth": 1.2,
    }
)


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
    """Write `tables/NAME.csv` (all digits) and `.tex` (`lib.report.latex.table`) into the run, and show the table once.

    The index is printed where it has a name, or one of its levels has.
    """
    named = any(level is not None for level in frame.index.names)
    texts = {f"{name}.csv": frame.to_csv(index=named), f"{name}.tex": latex.table(frame, name, caption, digits)}
    write_together(run / "tables", texts)
    if get_ipython() is not None:
        shown = frame.style.format(precision=digits, na_rep="–").format_index(latex.label, axis=0).set_caption(caption)
        display(shown if named else shown.hide(axis="index"))


def image_page(
    images, titles: Sequence[str] | None = None, columns: int = 8, column_titles: Sequence[str] | None = None
) -> Figure:
    """A page of radiographs, row by row.

    Parameters
    ----------
    images : Cohort, or array (N, H, W) or (N, 1, H, W)
        Integers span their type's range from black to white, floats -1 … 1.
    titles : N texts, each above its image
    columns : images in a row
    column_titles : one text a column, above the first row
    """
    pixels = _pixels(images)
    columns = min(columns, len(pixels))
    fig, axes = _grid(-(-len(pixels) // columns), columns, pixels, bool(titles), bool(titles or column_titles))
    for i, ax in enumerate(axes.flat):
        if i < len(pixels):
            _draw(ax, pixels[i])
            if titles is not None:
                ax.set_title(titles[i], fontsize=7, pad=2)
    for ax, title in zip(axes[0], column_titles or (), strict=False):
        ax.set_title(title, pad=3)
    return fig


def image_rows(rows: Mapping[str, np.ndarray], column_titles: Sequence[str] | None = None) -> Figure:
    """Labelled rows of radiographs, one column a patient: source, CycleGAN, CycleDiff, counterfactual …

    Parameters
    ----------
    rows : label → Cohort or array as for `image_page`; every row with the same number of images
    column_titles : one text a column, above the first row
    """
    pixels = {label: _pixels(images) for label, images in rows.items()}
    counts = {label: len(row) for label, row in pixels.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"every row needs the same number of images, not {counts}")
    left = 0.1 + max(TextPath((0, 0), label, size=plt.rcParams["font.size"]).get_extents().width for label in rows) / 72
    first = next(iter(pixels.values()))
    fig, axes = _grid(len(rows), len(first), first, False, bool(column_titles), left)
    for ax, title in zip(axes[0], column_titles or (), strict=False):
        ax.set_title(title, pad=3)
    for (label, row), line in zip(pixels.items(), axes, strict=True):
        for image, ax in zip(row, line, strict=True):
            _draw(ax, image)
        line[0].annotate(
            label, (0, 0.5), (-5, 0), xycoords="axes fraction", textcoords="offset points", ha="right", va="center"
        )
    return fig


def loss_panels(history: pd.DataFrame) -> list[list[str]]:
    """The losses of a history by panel of `loss_curves`: terms that differ only in domain or generator share one."""
    panels: dict[str, list[str]] = {}
    for column in history.columns.drop(["step", "stage", "learning_rate"], errors="ignore"):
        if history[column].notna().any() and history[column].ne(0).any():
            panels.setdefault(re.sub("_[XYGF]$", "", column), []).append(column)
    return list(panels.values())


def loss_curves(history: pd.DataFrame, columns: Sequence[str | Sequence[str]]) -> Figure:
    """A training's losses over its steps: every value faint, their running mean on top.

    Parameters
    ----------
    history : table with `step` and the named columns; missing values are left out. Where a column `stage` changes,
        a dotted line
    columns : one panel each; columns named together share a panel
    """
    panels = [[panel] if isinstance(panel, str) else list(panel) for panel in columns]
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    fig, axes = plt.subplots(down, across, figsize=(WIDTH, 1.9 * down), squeeze=False, sharex=True)
    for ax, panel in zip(axes.flat, panels, strict=False):
        for colour, column in zip(PALETTE, panel, strict=False):
            curve = history.set_index("step")[column].dropna()
            smooth = curve.rolling(max(1, len(curve) // 30), center=True, min_periods=1).mean()
            ax.plot(curve.index, curve, color=colour, alpha=0.25, linewidth=0.6)
            ax.plot(smooth.index, smooth, color=colour, label=column, marker="o" if len(curve) == 1 else "")
        if len(panel) > 1:
            ax.legend()
        else:
            ax.set_title(panel[0])
    stages = history.step[history.stage != history.stage.shift(-1)].iloc[:-1] if "stage" in history else ()
    for ax in axes.flat[: len(panels)]:
        for end in stages:
            ax.axvline(end, color="0.6", linewidth=0.6, linestyle=":")
        ax.ticklabel_format(axis="y", useOffset=False)
    for ax in axes.flat[len(panels) - across : len(panels)]:
        ax.tick_params(labelbottom=True)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    fig.supxlabel("step", fontsize=9)
    return fig


def sampling_cost(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """What quality costs: metrics against the seconds an image takes, a line for each solver, steps beside the points.

    Parameters
    ----------
    table : columns `solver`, `steps`, `seconds` and the metrics
    metrics : one panel each
    """
    fig, axes = plt.subplots(1, len(metrics), figsize=(WIDTH, 2.3), squeeze=False)
    for ax, metric in zip(axes.flat, metrics, strict=True):
        for colour, (solver, rows) in zip(PALETTE, table.groupby("solver", sort=False), strict=False):
            ax.plot(1000 * rows.seconds, rows[metric], "o-", color=colour, label=solver, markersize=3)
            for row in rows.itertuples():
                at = (1000 * row.seconds, getattr(row, metric))
                ax.annotate(row.steps, at, (2, 3), textcoords="offset points", size=7)
        ax.set(xlabel="milliseconds an image", ylabel=metric.replace("_", " "))
    axes[0, 0].legend()
    return fig


def images_per_patient(cohort: Cohort) -> Figure:
    """Share of each class's patients by their number of radiographs."""
    fig, ax = plt.subplots(figsize=(WIDTH * 0.6, 2.0))
    most = int(cohort.table.patient_id.value_counts().max())
    for colour, shift, label in zip(PALETTE, (-0.2, 0.2), LABELS, strict=False):
        counts = cohort.select(label=label).table.patient_id.value_counts().value_counts(normalize=True)
        ax.bar(counts.index + shift, counts, 0.4, color=colour, label=label)
    ax.set(xlabel="radiographs", ylabel="share of patients", xticks=range(1, most + 1))
    ax.legend()
    return fig


def fidelity_bars(fidelity: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """One panel a metric and direction: each method's value, mean over cells, with the interval of one cell."""
    directions = list(dict.fromkeys(fidelity.direction))
    fig, axes = plt.subplots(
        len(directions), len(metrics), figsize=(WIDTH, 1.5 * len(directions) + 0.3), squeeze=False, sharex="col"
    )
    for line, direction in zip(axes, directions, strict=True):
        for ax, metric in zip(line, metrics, strict=True):
            ax.xaxis.set_tick_params(labelbottom=True)
            rows = fidelity[(fidelity.direction == direction) & (fidelity.metric == metric)]
            rows = (
                rows[rows.features != "inception"].groupby("method", sort=False)[["value", "ci_low", "ci_high"]].mean()
            )
            errors = np.abs(rows[["ci_low", "ci_high"]].to_numpy().T - rows.value.to_numpy())
            colours = ["0.6" if method in ("real", "source") else PALETTE[0] for method in rows.index]
            ax.barh(rows.index, rows.value, xerr=errors, color=colours, error_kw={"linewidth": 0.8})
            ax.axvline(0, color="black", linewidth=0.6)
            ax.invert_yaxis()
            if ax is line[0]:
                ax.set_ylabel(direction)
            if direction == directions[-1]:
                ax.set_xlabel(metric.replace("_", " "))
    for ax, metric in zip(axes[-1], metrics, strict=True):
        values = fidelity[(fidelity.metric == metric) & (fidelity.features != "inception")]
        rest = values[values.method != "noise"]
        if len(rest) < len(values) and values.value.max() > 3 * rest.value.max():  # a bar that would hide all others
            ax.set_xlim(min(rest.ci_low.min(), 0), 1.1 * rest.ci_high.max())
            cut = values[values.method == "noise"].value.mean()
            ax.set_xlabel(f"{metric.replace('_', ' ')} (noise, cut off: {cut:.3g})")
    return fig


def condition_points(metrics: pd.DataFrame, names: Sequence[str]) -> Figure:
    """One panel a metric: every trial a dot, the mean of each condition a bar."""
    conditions = list(dict.fromkeys(metrics.condition))
    fig, axes = plt.subplots(1, len(names), figsize=(WIDTH, 0.24 * len(conditions) + 0.8), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        for row, condition in enumerate(conditions):
            values = metrics.value[(metrics.condition == condition) & (metrics.metric == name)]
            ax.plot(values, [row] * len(values), "o", color=PALETTE[0], markersize=3, alpha=0.6)
            ax.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color="black")
        ax.set(yticks=range(len(conditions)), yticklabels=conditions, xlabel=METRICS[name])
    axes[0][0].invert_yaxis()
    return fig


def validation_curves(history: pd.DataFrame) -> Figure:
    """AUROC of validation patients over the steps, a line a condition, mean over cells and seeds."""
    fig, ax = plt.subplots(figsize=(WIDTH, 2.6))
    curves = history.groupby(["condition", "step"], sort=False).validation_auroc.mean()
    styles = [(colour, line) for line in ("-", "--") for colour in PALETTE]
    for (condition, curve), (colour, line) in zip(curves.groupby("condition", sort=False), styles, strict=False):
        ax.plot(curve.droplevel(0), color=colour, linestyle=line, label=condition)
    ax.set(xlabel="optimiser step", ylabel="AUROC (validation)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def curves_over(table: pd.DataFrame, x: str, label: str) -> Figure:
    """AUROC of test patients over a dose or a share: each trial a dot, the means of a condition joined by a line.

    Parameters
    ----------
    table : `condition`, the column `x`, and `value`
    label : of the horizontal axis
    """
    fig, ax = plt.subplots(figsize=(WIDTH * 0.7, WIDTH * 0.42))
    for name, rows in table.groupby("condition", sort=False):
        (line,) = ax.plot(rows.groupby(x).value.mean(), label=name)
        ax.plot(rows[x], rows.value, ".", color=line.get_color(), alpha=0.5)
    ax.set(xlabel=label, ylabel="AUROC of patients")
    fig.legend(loc="outside right center")
    return fig


def decision_curves(benefits: Mapping[str, np.ndarray], thresholds: np.ndarray) -> Figure:
    """Net benefit over the threshold probability, a line a condition (`lib.statistics.metrics.net_benefit`)."""
    fig, ax = plt.subplots(figsize=(WIDTH * 0.7, WIDTH * 0.42))
    for name, benefit in benefits.items():
        ax.plot(thresholds, benefit, **({"color": "0.6", "ls": "-."} if name == "everybody" else {}), label=name)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set(xlabel="threshold probability", ylabel="net benefit", ylim=(-0.05, None))
    fig.legend(loc="outside right center")
    return fig


def overlaid(images, maps: np.ndarray, titles: Sequence[str]) -> Figure:
    """Radiographs in one row, below each the same with a map from 0 to 1 laid over it.

    Parameters
    ----------
    images : Cohort, or array as for `image_page`
    maps : (N, h, w), scaled to the images
    titles : N texts
    """
    pixels = _pixels(images)
    fig, axes = _grid(2, len(pixels), pixels, False, True)
    height, width = pixels.shape[1:]
    for image, heat, title, (upper, lower) in zip(pixels, maps, titles, axes.T, strict=True):
        for ax in (upper, lower):
            _draw(ax, image)
        lower.imshow(heat, cmap="inferno", alpha=0.45, vmin=0, vmax=1, interpolation="bilinear",
                     extent=(-0.5, width - 0.5, height - 0.5, -0.5))  # fmt: skip
        upper.set_title(title, fontsize=7, pad=2)
    return fig


def steganography_curves(errors: Mapping[str, pd.DataFrame], spectra: Mapping[str, pd.Series]) -> Figure:
    """Cycle errors against what was touched, and power spectra of what the methods make.

    Parameters
    ----------
    errors : by method, `lib.fidelity.steganography.cycle_errors`
    spectra : by name, `lib.fidelity.steganography.radial_spectrum`
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, WIDTH * 0.45))
    for method, table in errors.items():
        left.errorbar(table.perturbation, table.value, (table.value - table.ci_low, table.ci_high - table.value),
                      fmt="o", ms=4, capsize=2, label=method)  # fmt: skip
        left.plot(table.perturbation, table.touched, "_", color="0.5", ms=9)
    left.plot([], [], "_", color="0.5", ms=9, label="size of the touch")
    left.set(ylabel="error of the way back", ylim=(0, None))
    left.tick_params("x", rotation=60)
    left.legend()
    for name, spectrum in spectra.items():
        right.plot(spectrum, label=name)
    right.set(xlabel="frequency (cycles a pixel)", ylabel="power", yscale="log")
    right.legend()
    return fig


def forest_plot(comparisons: pd.DataFrame, margin: float) -> Figure:
    """Each comparison's difference with its 95 % interval, beside the band of ±margin."""
    fig, ax = plt.subplots(figsize=(WIDTH, 0.28 * len(comparisons) + 0.7))
    ax.axvspan(-margin, margin, color="0.9")
    ax.axvline(0, color="black", linewidth=0.6)
    for row, c in enumerate(comparisons.itertuples()):
        ax.plot([c.ci_low, c.ci_high], [row, row], color=PALETTE[0])
        ax.plot(c.difference, row, "o", color=PALETTE[0], markersize=4)
    names = [f"{c.question}: {c.a} − {c.b}" for c in comparisons.itertuples()]
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel="difference in AUROC")
    ax.set_ylim(len(names) - 0.5, -0.5)
    return fig


def _pixels(images) -> np.ndarray:
    """(N, H, W) from a cohort, (N, H, W) or (N, 1, H, W)."""
    pixels = np.asarray(getattr(images, "pixels", images))
    return pixels[:, 0] if pixels.ndim == 4 else pixels


def _draw(ax, image: np.ndarray) -> None:
    low, high = (0, np.iinfo(image.dtype).max) if image.dtype.kind == "u" else (-1, 1)
    ax.imshow(image, cmap="gray", vmin=low, vmax=high)


def _grid(rows: int, columns: int, pixels: np.ndarray, row_titles: bool, top_title: bool, left: float = 0.0):
    """Axes without frames, a hair apart; inches for titles and for labels at the left."""
    gap, title = 0.03, 0.16
    width = (WIDTH - left - gap * (columns - 1)) / columns
    width = min(width, 1.4)
    height = width * pixels.shape[1] / pixels.shape[2]
    between = gap + title * row_titles
    total = (left + columns * width + gap * (columns - 1), rows * height + between * (rows - 1) + title * top_title)
    fig = plt.figure(figsize=total, layout="none")
    axes = fig.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / total[0],
            "right": 1,
            "bottom": 0,
            "top": 1 - title * top_title / total[1],
            "wspace": gap / width,
            "hspace": between / height,
        },
    )
    for ax in axes.flat:
        ax.set_axis_off()
    return fig, axes
