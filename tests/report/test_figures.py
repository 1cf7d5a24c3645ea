import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.data.cohort import Cohort
from lib.fidelity.controls import CONTROLS
from lib.report import figures
from lib.run.folder import Run
from lib.trials.conditions import factorial


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    plt.close("all")


def pixels(n, dtype=np.uint8):
    return np.arange(n, dtype=dtype)[:, None, None] * np.ones((1, 8, 8), dtype)


def drawn(fig):
    """The first pixel of each image shown, in reading order."""
    return [ax.images[0].get_array()[0, 0] for ax in fig.axes if ax.images]


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_save_figure_writes_three_files_the_same_each_time(tmp_path):
    def save(folder):
        fig, ax = plt.subplots()
        ax.plot([1, 3, 2])
        figures.save_figure(fig, Run(folder), "curve", "A curve of 3 points.")
        assert not plt.fignum_exists(fig.number)
        return {file.name: file.read_bytes() for file in (folder / "figures").iterdir()}

    first, second = save(tmp_path / "a"), save(tmp_path / "b")
    assert sorted(first) == ["curve.pdf", "curve.png", "curve.txt"]
    assert first == second
    assert first["curve.txt"] == b"A curve of 3 points.\n"
    assert b"/Type3" not in first["curve.pdf"]


def test_a_picture_is_never_seen_with_another_caption(tmp_path, monkeypatch):
    """Whatever is killed in between: where the picture or the .pdf is there, so is its own caption."""
    folder, replace, seen = tmp_path / "figures", os.replace, []

    def save(caption):
        fig, ax = plt.subplots()
        ax.plot([1, len(caption)])
        figures.save_figure(fig, Run(tmp_path), "curve", caption)

    def replaced(part, path):
        seen.append(sorted(file.name for file in folder.glob("[!.]*")))
        replace(part, path)
        assert (folder / "curve.txt").read_text() == "New.\n"

    save("Old one.")
    monkeypatch.setattr(os, "replace", replaced)
    save("New.")
    assert seen == [[], ["curve.txt"], ["curve.pdf", "curve.txt"]]


def test_save_table_is_booktabs_and_keeps_all_digits(tmp_path):
    frame = pd.DataFrame({"method_name": ["a & b", "100 %"], "KID": [0.123456789, np.nan]})
    figures.save_table(frame, Run(tmp_path), "kid", "KID of both_methods, $x_1$, 95 % intervals")
    tex = (tmp_path / "tables/kid.tex").read_text()
    for part in (
        r"\toprule",
        r"\bottomrule",
        r"method\_name & KID \\",
        r"a \& b & 0.123 \\",
        r"100 \% & -- \\",
        r"\label{tab:kid}",
        r"\caption{KID of both\_methods, $x_1$, 95 \% intervals}",
    ):
        assert part in tex
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "tables/kid.csv"), frame)


def test_save_table_escapes_the_names_of_the_index_and_shortens_its_numbers(tmp_path):
    index = pd.MultiIndex.from_product([["in_verted"], [0.05, 1.0]], names=["start", "start_t"])
    figures.save_table(pd.DataFrame({"kid": [0.1, 0.2]}, index=index), Run(tmp_path), "starts", "Starts.")
    latex = (tmp_path / "tables/starts.tex").read_text()
    assert "start & start\\_t &" in latex and "in\\_verted" in latex
    assert " & 0.05 & 0.100" in latex and " & 1 & 0.200" in latex
    assert "start,start_t,kid" in (tmp_path / "tables/starts.csv").read_text()


def test_save_table_prints_a_named_index(tmp_path):
    frame = pd.DataFrame({"n": [3, 4]}, index=pd.Index(["train", "test"], name="part"))
    figures.save_table(frame, Run(tmp_path), "parts", "Patients.")
    assert r"train & 3 \\" in (tmp_path / "tables/parts.tex").read_text()
    assert (tmp_path / "tables/parts.csv").read_text() == "part,n\ntrain,3\ntest,4\n"
    figures.save_table(frame.assign(fold=0).set_index("fold", append=True), Run(tmp_path), "folds", "Patients.")
    assert (tmp_path / "tables/folds.csv").read_text() == "part,fold,n\ntrain,0,3\ntest,0,4\n"


@pytest.mark.parametrize("n", [1, 5, 8, 11])
def test_image_page_reads_row_by_row(n):
    fig = figures.image_page(pixels(n), titles=[f"t{i}" for i in range(n)], columns=4)
    assert drawn(fig) == list(range(n))
    assert [ax.get_title() for ax in fig.axes][:n] == [f"t{i}" for i in range(n)]
    assert fig.get_figwidth() <= figures.WIDTH + 1e-6


@pytest.mark.parametrize(("dtype", "limits"), [(np.uint8, (0, 255)), (np.uint16, (0, 65535)), (np.float32, (-1, 1))])
def test_grey_levels_span_the_type(dtype, limits):
    fig = figures.image_page(pixels(2, dtype)[:, None])
    assert fig.axes[0].images[0].get_clim() == limits


def test_image_page_titles_columns():
    fig = figures.image_page(pixels(4), list("abcd"), columns=2)
    assert [ax.get_title() for ax in fig.axes] == list("abcd") and fig.axes[0].get_gridspec().ncols == 2
    fig = figures.image_rows({"a": pixels(2), "b": pixels(2)}, ["NFF", "AFF"])
    assert [ax.get_title() for ax in fig.axes] == ["NFF", "AFF", "", ""]


def test_images_are_square_and_inside_the_page():
    fig = figures.image_rows({"source": pixels(5), "counterfactual": pixels(5)})
    for ax in fig.axes:
        box = ax.get_window_extent()
        assert box.width == pytest.approx(box.height, rel=1e-3)
    assert fig.get_figwidth() <= figures.WIDTH + 1e-6
    labels = [text for ax in fig.axes for text in ax.texts]
    assert [label.get_text() for label in labels] == ["source", "counterfactual"]
    fig.canvas.draw()
    assert all(label.get_window_extent().x0 >= 0 for label in labels)


def test_image_rows_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="same number of images"):
        figures.image_rows({"source": pixels(3), "CycleGAN": pixels(2)})


def test_sampling_cost_draws_a_line_a_solver_with_its_steps():
    table = pd.DataFrame(
        {"solver": ["euler", "euler", "heun"], "sampling_steps": [2, 4, 2], "seconds": [0.1, 0.2, 0.2]}
    )
    fig = figures.sampling_cost(table.assign(kid=[0.3, 0.2, 0.1]), ["kid"])
    (ax,) = fig.axes
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[0.3, 0.2], [0.1]]
    assert [text.get_text() for text in ax.texts] == ["2", "4", "2"] and ax.get_ylabel() == "kid"


def test_loss_curves_share_panels_and_keep_to_the_data():
    history = pd.DataFrame({"step": np.arange(100) * 10, "G": np.linspace(2, 1, 100), "D": 0.5, "cycle": np.nan})
    history.loc[::2, "cycle"] = 3.0
    fig = figures.loss_curves(history, [["G", "D"], ["cycle"]])
    together, alone = fig.axes
    assert [text.get_text() for text in together.get_legend().get_texts()] == ["G", "D"]
    assert alone.get_title() == "cycle"
    raw, smooth = alone.lines
    assert len(raw.get_xdata()) == 50
    assert np.allclose(smooth.get_ydata(), 3.0)
    falling = together.lines[1].get_ydata()
    assert np.all(np.diff(falling) <= 0)


def test_a_bar_that_would_hide_the_others_is_cut_off_and_said():
    rows = [("NFF→AFF", m, "kid", v) for m, v in (("source", 1.4), ("cyclegan", 0.03), ("noise", 525.0))]
    rows += [("AFF→NFF", m, "kid", v) for m, v in (("source", 1.3), ("cyclegan", 0.1))]
    table = pd.DataFrame(rows, columns=["direction", "method", "metric", "value"])
    table = table.assign(features="judge", ci_low=table.value - 0.1, ci_high=table.value + 0.1)
    above, below = figures.fidelity_bars(table, ["kid"]).axes
    assert below.get_xlim()[1] < 2
    assert below.get_xlabel() == "kid (noise, cut off: 525)" and above.get_ylabel() == "NFF→AFF"
    assert figures.fidelity_bars(table[table.method != "noise"], ["kid"]).axes[-1].get_xlabel() == "kid"


def test_curves_join_means_and_show_each_trial():
    table = pd.DataFrame({"condition": ["a"] * 4, "dose": [0.5, 0.5, 1, 1], "value": [0.6, 0.8, 0.9, 0.7]})
    (ax,) = figures.curves_over(table, "dose", "share").axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.5, 0.7], [1, 0.8]])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), table[["dose", "value"]])


def test_a_name_looks_the_same_whatever_else_is_drawn():
    """Two names of one figure never look alike; doses and standard augmentation keep their condition's colour."""
    names = (*factorial(), *CONTROLS, "cyclegan@0.5", "cyclegan@0.25", "cyclediff@0.5", "everybody")
    looks = [figures.look(name) for name in names]
    assert len(set(looks)) == len(names)
    assert {figures.look(name)[0] for name in ("cyclegan", "cyclegan+standard", "cyclegan@0.5")} == {figures.PALETTE[0]}
    assert [figures.title(name) for name in ("cyclediff@0.5", "cyclegan+standard", "real")] == [
        "CycleDiff@0.5", "CycleGAN+standard", "real"
    ]  # fmt: skip
    table = pd.DataFrame({"condition": ["real", "cyclegan"], "dose": 1, "value": 0.5})
    alone, together = (figures.curves_over(rows, "dose", "").axes[0].lines for rows in (table[1:], table))
    assert alone[0].get_color() == together[1].get_color() == figures.PALETTE[0]


def test_a_method_that_nobody_knew_is_drawn_beside_the_others():
    """However many methods there are: none is left out, none lies upon another."""
    methods = ("cyclegan", "cyclediff", *(f"method{i}" for i in range(8)))
    touched = pd.DataFrame({"perturbation": ["unchanged", "8 bits"], "touched": 0.1, "value": 0.5})
    errors = {method: touched.assign(ci_low=0.4, ci_high=0.6) for method in methods}
    left, right = figures.steganography_curves(errors, {name: pd.Series([2.0, 1.0]) for name in methods}).axes
    assert len({one[0].get_xdata()[0] for one in left.containers}) == len(methods)
    assert labels_of(right) == [figures.title(method) for method in methods]
    rows = pd.DataFrame({"method": methods, "direction": "NFF→AFF", "features": "judge", "metric": "kid", "value": 1.0})
    (ax,) = figures.fidelity_bars(rows.assign(ci_low=0.9, ci_high=1.1), ["kid"]).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == labels_of(right)
    history = pd.DataFrame({"step": [1, 2]} | {f"cycle_{i}": [2.0, 1.0] for i in range(9)})
    (ax,) = figures.loss_curves(history, [list(history)[1:]]).axes
    assert len(labels_of(ax)) == 9


def test_panels_join_what_differs_in_domain_alone_and_leave_out_what_is_nought():
    history = pd.DataFrame(
        {"step": [1, 2], "cycle_X": [1, 1], "D": [1, 2], "cycle_Y": [1, 1], "identity_X": [0, np.nan]}
    )
    assert figures.loss_panels(history) == [["cycle_X", "cycle_Y"], ["D"]]
    together, alone = figures.loss_curves(history).axes
    assert (together.get_title("left"), alone.get_title()) == ("cycle", "D") and labels_of(together) == ["X", "Y"]


def test_every_trial_is_a_dot_and_every_condition_a_mean():
    metrics = pd.DataFrame({"condition": ["real", "real", "cyclegan"], "metric": "auroc", "value": [0.6, 0.8, 0.9]})
    (ax,) = figures.condition_points(metrics, ["auroc"]).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["real", "CycleGAN"]
    dots = np.concatenate([dots.get_offsets() for dots in ax.collections])
    np.testing.assert_allclose(dots, [[0.6, 0], [0.8, 0], [0.9, 1]])
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.7, 0.9])


def test_validation_curves_are_means_over_folds_and_seeds():
    rows = [("real", fold, step, fold + step) for fold in (0, 1) for step in (1, 2)]
    history = pd.DataFrame(rows, columns=["condition", "fold", "step", "validation_auroc"])
    (ax,) = figures.validation_curves(history).axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 1.5], [2, 2.5]])


def test_patients_are_counted_by_their_images():
    table = pd.DataFrame({"patient_id": list("aabc"), "label": ["NFF", "NFF", "NFF", "AFF"]})
    table = table.assign(image_id=range(4), view="AP", side="left")
    (ax,) = figures.images_per_patient(Cohort(table, pixels(4))).axes
    assert sorted(bar.get_height() for bar in ax.patches) == [0, 0.5, 0.5, 1] and labels_of(ax) == ["NFF", "AFF"]


def test_forest_shows_each_interval_and_controls_in_grey():
    table = pd.DataFrame({"question": ["RQ1", "control"], "a": ["cyclediff", "oracle"], "b": ["cyclegan", "real"],
                          "difference": [0.1, 0.2], "ci_low": [0.0, 0.1], "ci_high": [0.3, 0.3]})  # fmt: skip
    (ax,) = figures.forest_plot(table, 0.01).axes
    np.testing.assert_allclose([bars.get_segments()[0][:, 0] for bars in ax.collections], [[0, 0.3], [0.1, 0.3]])
    assert [one[0].get_color() for one in ax.containers] == [figures.PALETTE[0], figures.GREY]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["RQ1: CycleDiff − CycleGAN", "control: oracle − real"]


def test_decision_curves_draw_every_condition():
    t = np.array([0.1, 0.2])
    (ax,) = figures.decision_curves({"real": np.array([0.1, 0.05]), "everybody": np.array([0.1, -0.1])}, t).axes
    assert labels_of(ax) == ["real", "everybody"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.1, 0.05])


def test_maps_are_laid_over_the_lower_row():
    fig = figures.overlaid(pixels(3), np.ones((3, 2, 2)), ["a", "b", "c"])
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 2, 2, 2]
    assert [ax.get_title() for ax in fig.axes[:3]] == ["a", "b", "c"]
    assert fig.axes[3].images[1].get_extent() == [-0.5, 7.5, 7.5, -0.5]
