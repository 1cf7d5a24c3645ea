"""Controls: conditions whose worth is known beforehand, run through the same code as the study's own.

A study that cannot tell an oracle from copies, or finds something where labels were shuffled, proves nothing. The
generators among them make AFF images for a training set as translators do.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib.cohort import Cohort
from lib.phantom import Phantom
from lib.synthesis import copies
from lib.training import generator

GENERATORS = {
    "fake": "copies of AFF training images, passed off as a generator's",
    "oracle": "AFF images that nothing else has seen, real ones or drawn: what no generator can beat",
    "useless": "NFF training images as they are, labelled AFF",
}
CONTROLS = {
    "again": "the real training images once more, with other seeds",
    **GENERATORS,
    "permuted": "labels shuffled among the patients of each part",
}


def fake(training: Cohort, number: int, seed: int) -> Cohort:
    """Copies of AFF training images, each as often as any other, but for one."""
    aff = generator(seed, 1).permutation(np.flatnonzero(training.targets == 1))
    return copies(training, np.resize(aff, number), "fake")


def oracle(sources: Cohort, hidden: Cohort, phantom: Phantom | None, seed: int) -> Cohort:
    """What a perfect generator would add.

    Parameters
    ----------
    sources : NFF training images; on the phantom each is rendered with an atypical fracture
    hidden : on real radiographs, AFF images of patients in no part of the cell (`training_aff_share` below 1)

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
    return copies(hidden, np.resize(generator(seed, 2).permutation(len(hidden)), len(sources)), "oracle")


def useless(sources: Cohort) -> Cohort:
    """The NFF images themselves, labelled AFF."""
    return sources.translated(sources.images(), "AFF", "useless")


def hidden_aff(cohort: Cohort, splits: pd.DataFrame, cell: tuple[int, int]) -> Cohort:
    """AFF images of patients who are in no part of a cell."""
    named = splits[(splits.repeat == cell[0]) & (splits.fold == cell[1])].patient_id
    return cohort.take(~cohort.table.patient_id.isin(named) & (cohort.targets == 1))


def permuted_labels(cohort: Cohort, seed: int) -> Cohort:
    """The cohort with its patients' labels shuffled among them; all images of a patient get one label."""
    patients = cohort.patients
    labels = pd.Series(generator(seed, 3).permutation(patients.to_numpy()), patients.index)
    return Cohort(cohort.table.assign(label=cohort.table.patient_id.map(labels)), cohort.pixels)


def with_canary(training: Cohort, cohort: Cohort, splits: pd.DataFrame, cell: tuple[int, int]) -> Cohort:
    """The training part with the images of one test patient: what the leak audit must not let pass."""
    test = cohort.part(splits, *cell, "test")
    return training.join(test.select(patient_id=test.table.patient_id.iloc[0]))
