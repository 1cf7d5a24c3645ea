import pandas as pd

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.fidelity.curation import VERDICTS, pixel_hashes, without_rejected


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
