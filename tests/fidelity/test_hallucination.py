"""Hallucination: the reader reads, and what was invented or removed is counted."""

import numpy as np
import pytest

from lib.data.cohort import Cohort
from lib.data.phantom import MARKERS, Phantom, marker_places
from lib.fidelity.hallucination import Reader, flip_rates


@pytest.mark.parametrize("size", [32, 64, 160])
def test_the_reader_reads_images_it_has_not_seen(size):
    phantom = Phantom(patients=60, size=size, seed=6)
    cohort = phantom.cohort()
    half = len(cohort) // 2
    reader = Reader(cohort.first(half), phantom)
    assert reader.accuracy(cohort.take(range(half, len(cohort))), phantom) > 0.95
    deep = Cohort(cohort.table, cohort.pixels.astype(np.uint16) * 257)
    np.testing.assert_array_equal(reader(deep.pixels), reader(cohort.pixels))


def test_a_reader_needs_both_kinds():
    phantom = Phantom(patients=20, size=32, aff_share=0.5, seed=6, marker_difference=1.0)
    with pytest.raises(ValueError, match="all or none"):
        Reader(phantom.cohort().select(label="AFF"), phantom)


def test_invented_and_removed_markers_are_counted():
    phantom = Phantom(patients=60, size=64, aff_share=0.5, seed=6)
    test = phantom.cohort()
    marked = phantom.has_marker(test.table.image_id)
    reader = Reader(test, phantom)

    def rates(pixels):
        parts = [Cohort(test.table, pixels).select(label=label) for label in ("NFF", "AFF")]
        both = [part.translated(part.images(), to, "x") for part, to in zip(parts, ("AFF", "NFF"), strict=True)]
        return flip_rates({"x": both[0].join(both[1])}, test, phantom, reader).set_index(["method", "change"])

    stamped, wiped = test.pixels.copy(), test.pixels.copy()
    rows, columns, mask = marker_places(MARKERS["left"], 64)[0]
    nobody = np.flatnonzero(~marked)[::2]
    for i in nobody:
        stamped[i, rows, columns][mask] = 255
    for glyph in MARKERS.values():
        for rows, columns, _ in marker_places(glyph, 64):
            wiped[:, rows, columns] = np.minimum(wiped[:, rows, columns], 60)
    found = rates(stamped)
    assert found.value["x", "invented"].mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(found.value["x", "removed"], found.value["source", "removed"])
    assert (rates(wiped).value["x", "removed"] > 0.8).all()
    for method in ("source", "counterfactual"):
        assert (found.value[method, "invented"] < 0.05).all() and (found.value[method, "removed"] < 0.1).all()
