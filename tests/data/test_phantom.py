import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.cohort import LABELS
from lib.data.phantom import (
    FAILURES,
    MU_CORTEX,
    MU_MARROW,
    MU_SOFT,
    Fracture,
    Patient,
    Phantom,
    bone_attenuation,
    ramp,
)

SMALL = Phantom(patients=20, size=32, aff_share=0.3, seed=3)


@pytest.fixture(scope="module")
def cohort():
    return SMALL.cohort()


def straight_tube(fractures=None):
    return Patient("NFF", "left", 1, 14.0, 5.0, 0.0, (0.0, 0.0), (75.0, 65.0), fractures or {})


def test_unbroken_tube_attenuates_by_its_chords():
    u, v = np.meshgrid(np.linspace(-20, 20, 81), np.linspace(-10, 10, 5))
    A = bone_attenuation(u, v, straight_tube(), None, 0.0, 0.5)
    outer = 2 * np.sqrt(np.maximum(14**2 - u**2, 0))
    inner = 2 * np.sqrt(np.maximum(9**2 - u**2, 0))
    np.testing.assert_allclose(A, (MU_CORTEX - MU_SOFT) * (outer - inner) + (MU_MARROW - MU_SOFT) * inner, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.floats(-1, 1), st.floats(-0.8, 0.8), st.floats(-3, 3), st.floats(0, 1.6))
def test_fragments_without_gap_or_displacement_make_an_unbroken_bone(slope, twist, height, angle):
    """Cut along any surface and put together again, the bone is whole: fragments lose and double nothing."""
    fracture = Fracture("oblique", height=height, slope=slope, gap=0.0, twist=twist)
    u, v = np.meshgrid(np.linspace(-16, 16, 33), np.linspace(-20, 20, 41))
    broken = bone_attenuation(u, v, straight_tube(), fracture, angle, 0.5)
    np.testing.assert_allclose(broken, bone_attenuation(u, v, straight_tube(), None, angle, 0.5), atol=1e-9)


def test_a_gap_removes_bone_and_displacement_moves_it():
    u, v = np.meshgrid(np.linspace(-30, 30, 121), np.linspace(-40, 40, 161))
    intact = bone_attenuation(u, v, straight_tube(), None, 0.0, 0.5)
    gap = bone_attenuation(u, v, straight_tube(), Fracture("transverse", 0.0, 0.0, gap=4.0), 0.0, 0.5)
    assert gap.sum() < intact.sum()
    assert np.all(gap[np.abs(v) < 1.4] == 0)
    np.testing.assert_array_equal(gap[np.abs(v) > 4], intact[np.abs(v) > 4])
    shifted = Fracture("transverse", 0.0, 0.0, gap=4.0, shift=(5.0, 0.0, 0.0))
    moved = bone_attenuation(u, v, straight_tube(), shifted, 0.0, 0.5)
    below = v < -5
    np.testing.assert_allclose(
        moved[below].reshape(-1, 121)[:, 10:], intact[below].reshape(-1, 121)[:, :-10], atol=1e-9
    )


def test_overlapping_fragments_attenuate_twice():
    u, v = np.meshgrid(np.array([0.0]), np.linspace(-30, 30, 121))
    shortened = Fracture("transverse", 0.0, 0.0, gap=0.0, shift=(0.0, 0.0, 4.0))
    A = bone_attenuation(u, v, straight_tube(), shortened, 0.0, 0.5)
    once = bone_attenuation(u, v, straight_tube(), None, 0.0, 0.5)
    np.testing.assert_allclose(A[(v > 1) & (v < 3)], 2 * once[(v > 1) & (v < 3)])


def test_transverse_line_is_darker_than_the_shaft_beside_it():
    """An AFF seen from the front darkens the shaft at its line, and hardly above it."""
    phantom = Phantom(patients=60, size=128, aff_share=0.5, overlap=0.0, seed=1)
    rows = phantom.table[(phantom.table.subtype == "transverse") & (phantom.table.view == "AP")].head(6)
    broken = phantom.render(rows.image_id, rows.label).astype(float)
    intact = phantom.render(rows.image_id, ["erased"] * len(rows)).astype(float)
    for image, whole, row in zip(broken, intact, rows.itertuples(), strict=True):
        zone = slice(int(row.zone_top * 128), int(row.zone_bottom * 128) + 1)
        assert (whole - image)[zone].max() > 25
        outside = np.r_[image[: zone.start] - whole[: zone.start]]
        assert np.abs(outside).mean() < 6


def test_every_image_is_a_function_of_seed_patient_and_image(cohort):
    again = Phantom(patients=35, size=32, aff_share=0.3, seed=3)
    assert again.table.head(len(cohort)).equals(cohort.table)
    np.testing.assert_array_equal(again.render(cohort.table.image_id[5:9], cohort.table.label[5:9]), cohort.pixels[5:9])
    assert not np.array_equal(
        Phantom(patients=20, size=32, aff_share=0.3, seed=4).cohort().pixels[:5], cohort.pixels[:5]
    )


def test_known_pixels():
    """Guards the physics: where these means change, every figure does. Tolerance for other numpy builds."""
    means = Phantom(patients=3, size=64, seed=0).cohort().pixels.mean((1, 2))
    np.testing.assert_allclose(means, [87.6, 84.1, 79.7, 97.8, 106.8, 96.6, 77.0, 114.7, 125.0], atol=0.5)


def test_patients_have_one_to_eight_images_of_one_label_and_side(cohort):
    groups = Phantom(patients=400, size=32).table.groupby("patient_id")
    assert groups.size().between(1, 8).all()
    assert abs(groups.size().mean() - 3.6) < 0.25
    assert (groups[["label", "side"]].nunique() == 1).all(axis=None)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.05, 0.5), st.integers(20, 300))
def test_share_of_aff_patients_holds_for_every_prefix(seed, share, patients):
    phantom = Phantom(aff_share=share, seed=seed)
    labels = [phantom.patient(number).label for number in range(patients)]
    assert abs(labels.count("AFF") - share * patients) <= 2.5


def test_counterfactual_changes_label_and_fracture_but_not_the_anatomy_above_it(cohort):
    other = SMALL.counterfactual(cohort)
    assert (other.table.label != cohort.table.label).all()
    assert (other.table.patient_id == cohort.table.patient_id).all()
    np.testing.assert_array_equal(SMALL.counterfactual(SMALL.cohort()).pixels, other.pixels)
    inside, above = [], []
    for a, b, row in zip(
        cohort.pixels.astype(float), other.pixels.astype(float), cohort.table.itertuples(), strict=True
    ):
        top, bottom = int(row.zone_top * 32), int(np.ceil(row.zone_bottom * 32))
        inside.append(np.abs(a - b)[top:bottom].mean())
        above.append(np.abs(a - b)[:top].mean() if top else np.nan)
    assert np.mean(inside) > 2 * np.nanmean(above)


def test_failures_are_neither_fracture(cohort):
    """Each failure differs from the image it failed on, and from the others."""
    ids = cohort.table.image_id[:6]
    drawn = {kind: SMALL.render(ids, [kind] * 6).astype(float) for kind in FAILURES}
    drawn["own"] = cohort.pixels[:6].astype(float)
    kinds = list(drawn)
    for i, a in enumerate(kinds):
        for b in kinds[i + 1 :]:
            assert np.abs(drawn[a] - drawn[b]).mean() > 0.3, (a, b)


def test_overlap_is_the_share_of_normal_fractures_that_are_hard_to_tell():
    """Without it every fracture has its class' features; with it they overlap in slope and thickening."""

    def fractures(overlap, n):
        phantom = Phantom(aff_share=0.5, overlap=overlap)
        return [phantom.patient(number).fractures for number in range(n)]

    for overlap in (0.0, 0.4):
        drawn = fractures(overlap, 1500)
        hard = {name: np.mean([f[name].subtype == "nearly transverse" for f in drawn]) for name in LABELS}
        assert hard["NFF"] == pytest.approx(overlap, abs=0.04)
        assert hard["AFF"] == 0
    clear = fractures(0.0, 300)
    assert min(abs(f["NFF"].slope) for f in clear) > np.tan(np.deg2rad(30))
    assert all(f["NFF"].beak == 0 and f["AFF"].beak >= 0.5 for f in clear)
    hard = fractures(1.0, 300)
    assert max(abs(f["NFF"].slope) for f in hard) < np.tan(np.deg2rad(16))
    assert 0.1 < np.mean([f["NFF"].beak > f["AFF"].beak for f in hard]) < 0.4


def test_half_drawn_lines_never_pass_for_incomplete_atypical_ones():
    """An incomplete AFF breaks the lateral cortex alone, so the medial half is drawn of a line that is transverse."""
    phantom = Phantom(patients=40, size=64, aff_share=0.3, overlap=1.0, seed=2)
    table = phantom.table
    rows = table[(table["view"] == "AP") & table.image_id.str.endswith("-0")].reset_index(drop=True)
    half, whole = (phantom.render(rows.image_id, [kind] * len(rows)).astype(float) for kind in ("half drawn", "erased"))
    change = np.abs(half - whole).sum(1)  # by column
    middle = 32 + np.array([phantom.exposure(int(i[1:5]), 0).offset[0] for i in rows.image_id]) * 64 / 90
    towards_lateral = np.where(rows.side == "left", 1, -1)[:, None] * (np.arange(64)[None] + 0.5 - middle[:, None])
    lateral, medial = (np.where(side, change, 0).sum() for side in (towards_lateral > 5, towards_lateral < -5))
    assert medial > 3 * lateral


def test_doubled_lines_are_both_there():
    """Each line darkens the bone where only it runs."""
    phantom = Phantom(patients=40, size=64, aff_share=0.3, overlap=0.0, seed=2)
    ids = phantom.table.image_id[phantom.table["view"] == "AP"][:20]
    doubled, whole, aff, nff = (
        phantom.render(ids, [kind] * 20).astype(float) for kind in ("doubled", "erased", "AFF", "NFF")
    )
    for own, other in ((aff, nff), (nff, aff)):
        line = (whole - own > 40) & (np.abs(whole - other) < 10)
        assert line.sum() > 100
        assert (whole - doubled)[line].mean() > 0.3 * (whole - own)[line].mean()


def test_zone_does_not_tell_the_label(cohort):
    """It holds both fractures, so it is the same for the image and its counterfactual."""
    assert (
        SMALL.counterfactual(cohort)
        .table[["zone_top", "zone_bottom"]]
        .equals(cohort.table[["zone_top", "zone_bottom"]])
    )
    assert (cohort.table.zone_top < cohort.table.zone_bottom).all()


def test_every_patient_has_a_zone():
    # With seed 9, radius² − l² of some patients was rounded to less than 0 at the edge of the bone.
    assert Phantom(patients=400, size=16, seed=9).table[["zone_top", "zone_bottom"]].notna().all(axis=None)


def test_saved_phantom_comes_back(tmp_path):
    SMALL.save(tmp_path)
    assert Phantom.load(tmp_path) == SMALL
    assert Phantom.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("wrong", [{"aff_share": 0.0}, {"overlap": 1.5}, {"patients": 1}, {"size": 8}])
def test_impossible_phantoms_are_refused(wrong):
    with pytest.raises(ValueError, match="no phantom can be drawn"):
        Phantom(**wrong)


def test_ramp_is_symmetric():
    x = np.linspace(-2, 2, 41)
    np.testing.assert_allclose(ramp(x, 1.5) + ramp(-x, 1.5), 1)


def test_table_has_the_contract_columns(cohort):
    assert isinstance(cohort.table, pd.DataFrame)
    assert {"image_id", "patient_id", "label", "view", "side", "zone_top", "zone_bottom"} <= set(cohort.table)


def test_markers_change_their_prevalence_and_nothing_else():
    plain, equal = (
        Phantom(patients=60, size=32, aff_share=0.5, seed=3),
        Phantom(60, 32, 0.5, seed=3, marker_difference=0),
    )
    pd.testing.assert_frame_equal(plain.table, equal.table)
    np.testing.assert_array_equal(plain.cohort().pixels, equal.cohort().pixels)
    assert plain.has_marker(plain.table.image_id).mean() == pytest.approx(0.3, abs=0.08)
    aff = (plain.table.label == "AFF").to_numpy()
    for difference in (0.5, 1.0):
        phantom = Phantom(60, 32, 0.5, seed=3, marker_difference=difference)
        pd.testing.assert_frame_equal(phantom.table, plain.table)
        marked = phantom.has_marker(phantom.table.image_id)
        assert marked[aff].mean() - marked[~aff].mean() == pytest.approx(difference, abs=0.15)
        same = marked == plain.has_marker(plain.table.image_id)
        np.testing.assert_array_equal(phantom.cohort().pixels[same], plain.cohort().pixels[same])
        bright = (phantom.cohort().pixels == 255).sum((1, 2))
        without = (phantom.counterfactual(phantom.cohort()).pixels == 255).sum((1, 2))
        assert (bright[marked] > 5).all() and (without[marked] > 5).all(), "a counterfactual keeps the marker"
    with pytest.raises(ValueError, match="marker_difference=2"):
        Phantom(60, 32, marker_difference=2)


def test_an_unknown_drawing_is_refused(cohort):
    with pytest.raises(ValueError, match="unknown drawing 'halfdrawn'; there are NFF, AFF"):
        Phantom(patients=2, size=32).render(["p0000-0"], ["halfdrawn"])
