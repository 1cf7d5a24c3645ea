"""Controls: conditions whose worth is known beforehand, run through the same code as the study's own.

A study that cannot tell an oracle from copies, or finds something where labels were shuffled, proves nothing. The
generators among them make AFF images for a training set as translators do.
"""

from __future__ import annotations

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
    """Return whether a condition, dose and augmentation aside, is a control."""
    return re.split("[+@]", condition)[0] in CONTROLS


def without_controls(predictions: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of conditions that are no controls; all rows where there are only controls."""
    studied = ~predictions.condition.map(is_control).astype(bool)
    return predictions[studied] if studied.any() else predictions


def fake(training: Cohort, number: int, seed: int) -> Cohort:
    """Copy AFF training images, each as often as any other, but for one."""
    aff = generator(seed, 1).permutation(np.flatnonzero(training.targets == 1))
    return training.copies(np.resize(aff, number), "fake")


def oracle(sources: Cohort, hidden: Cohort, phantom: Phantom | None, seed: int) -> Cohort:
    """Make what a perfect generator would add.

    Parameters
    ----------
    sources : NFF training images; on the phantom each is rendered with an atypical fracture
    hidden : on real radiographs, AFF images of patients in no part of the fold (`training_aff_share` below 1)

    Raises
    ------
    ValueError
        Where neither is to be had.
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
    """Shuffle labels among all patients of the parts; all images of a patient get one label.

    Among all, not within each part: a patient who got into two parts would keep one label in both, and an AUROC above
    0.5 would tell. (A copy under another patient's name has a label of its own; `lib.data.duplicates` looks for those.)
    Shuffled anew until every part has two patients of each label, as AUC tests need, or as few as it had before.

    Parameters
    ----------
    key : the shuffle is a pure function of it, such as (repeat, fold)
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
    """Join the training part and the images of one test patient: what the leak audit must not let pass."""
    return fold.train.join(fold.test.select(patient_id=fold.test.table.patient_id.iloc[0]))
