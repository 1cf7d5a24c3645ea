import numpy as np
import pandas as pd
import pytest

from lib.cohort import Cohort
from lib.phantom import Phantom
from lib.synthesis import VERDICTS, both_ways, chosen_sources, images_needed, pixel_hashes, without_rejected

COHORT = Phantom(patients=30, size=16, aff_share=0.2).cohort()


class Negative:
    """A translator that turns black into white."""

    def translate(self, cohort, to):
        return cohort.translated(-cohort.images(), to, "negative")


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


def test_both_ways_exchanges_the_labels_and_keeps_the_provenance():
    translated = both_ways(Negative(), COHORT)
    source = COHORT.table.set_index("image_id").loc[translated.table.source_image_id]
    assert (translated.table.label.to_numpy() != source.label.to_numpy()).all()
    assert (translated.table.patient_id.to_numpy() == source.patient_id.to_numpy()).all()
    rows = COHORT.table.reset_index().set_index("image_id")["index"].loc[translated.table.source_image_id]
    np.testing.assert_array_equal(translated.pixels, 255 - COHORT.pixels[rows])


def test_rejected_images_are_left_out_and_methods_stay_equally_many(tmp_path):
    cohort = Phantom(patients=8, size=16, aff_share=0.4, seed=4).cohort().first(6)
    shades = {"a": cohort.pixels, "b": 255 - cohort.pixels}
    made = {m: Cohort(cohort.table.assign(image_id=m + cohort.table.image_id), pixels) for m, pixels in shades.items()}
    path = tmp_path / VERDICTS
    assert [len(images) for images in without_rejected(made, path).values()] == [6, 6]
    rejected = made["a"].take([1, 4])
    verdicts = {"image_id": rejected.table.image_id, "pixels": pixel_hashes(rejected), "keep": False, "reason": "other"}
    pd.DataFrame(verdicts).to_csv(path, index=False)
    kept = without_rejected(made, path)
    assert [len(images) for images in kept.values()] == [4, 4]
    assert not set(rejected.table.image_id) & set(kept["a"].table.image_id)
    anew = {"a": Cohort(made["a"].table, made["a"].pixels // 2)}  # a generator trained again: nobody has judged these
    assert len(without_rejected(anew, path)["a"]) == 6
