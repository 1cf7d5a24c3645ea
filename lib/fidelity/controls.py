"""Controls: conditions whose worth is known beforehand, run through the same code as the study's own.

A study that cannot tell an oracle from copies, or finds something where labels were shuffled, proves nothing. The
generators among them make AFF images for a training set as translators do.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.data.cohort import LABELS, Cohort
from lib.data.phantom import Phantom
from lib.run.randomness import generator
from lib.study import Fold

CONTROL_GENERATORS = {
    "fake": "copies of AFF training images, passed off as a generator's",
    "oracle": "AFF images that nothing else has seen, real ones or drawn: what no generator can beat",
    "useless": "NFF training images as they are, labelled AFF",
}
CONTROLS = {
    "again": "the real training images once more, with other seeds",
    **CONTROL_GENERATORS,
    "permuted": "labels shuffled among the patients of a fold, so that there is nothing to learn",
}


def is_control(condition: str) -> bool:
    """Return whether a condition is a control, whatever its dose and augmentation."""
    return re.split("[+@]", condition)[0] in CONTROLS


def without_controls(predictions: pd.DataFrame) -> pd.DataFrame:
    """Drop the rows of controls, unless there are only controls."""
    studied = ~predictions.condition.map(is_control).astype(bool)
    return predictions[studied] if studied.any() else predictions


def fake(training: Cohort, number: int, seed: int) -> Cohort:
    """Copy AFF training images; how often each is copied differs by one at most."""
    aff = generator(seed, 1).permutation(np.flatnonzero(training.targets == 1))
    return training.copies(np.resize(aff, number), "fake")


def oracle(sources: Cohort, hidden: Cohort, phantom: Phantom | None, seed: int) -> Cohort:
    """Make what a perfect generator would add: as many new AFF images as there are NFF `sources`.

    The phantom renders each source with an atypical fracture. Real radiographs come from `hidden`, AFF images of
    patients in no part of the fold; a ValueError where there are none.
    """
    if phantom is not None:
        made = phantom.counterfactual(sources)
        ids = "oracle-AFF-" + sources.table.image_id
        return Cohort(made.table.assign(image_id=ids, source_label=sources.table.label, method="oracle"), made.pixels)
    if not len(hidden):
        raise ValueError(
            "the oracle needs AFF images that nothing else sees: set training_aff_share below 1, "
            "which hides those of the other AFF training patients"
        )
    return hidden.copies(np.resize(generator(seed, 2).permutation(len(hidden)), len(sources)), "oracle")


def useless(sources: Cohort) -> Cohort:
    """Label the NFF images themselves AFF."""
    pixels = np.empty(sources.pixels.shape, sources.pixels.dtype)
    for rows, few in sources.blocks():
        pixels[rows] = np.where(few.padding, 0, few.pixels)
    return Cohort(sources.provenance("AFF", "useless"), pixels)


def permuted_labels(parts: Sequence[Cohort], *key: int) -> list[Cohort]:
    """Shuffle labels among all patients of the parts, as a pure function of a key such as (repeat, fold).

    All images of a patient get one label. A patient who is in two parts by mistake keeps it in both, so an AUROC above
    0.5 shows the leak. The draw is repeated until each part has two patients of each label, or as few as it had before.
    """
    patients = pd.concat([part.patients for part in parts])
    patients = patients[~patients.index.duplicated()]
    needed = [min(2, _rarer(part)) for part in parts]
    for attempt in range(1000):
        labels = pd.Series(generator(*key, 3, attempt).permutation(patients.to_numpy()), patients.index)
        shuffled = [Cohort(part.table.assign(label=part.table.patient_id.map(labels)), part.pixels) for part in parts]
        if all(_rarer(part) >= n for part, n in zip(shuffled, needed, strict=True)):
            return shuffled
    raise ValueError("labels cannot be shuffled so that every part has both: a part has too few patients")


def _rarer(part: Cohort) -> int:
    """Count the patients of the label that has fewer."""
    return int(part.patients.value_counts().reindex(LABELS, fill_value=0).min())


def with_canary(fold: Fold) -> Cohort:
    """Join the training part and the images of one test patient: a leak that the audit must find."""
    return fold.train.join(fold.test.select(patient_id=fold.test.table.patient_id.iloc[0]))
