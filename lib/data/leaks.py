"""Leaks: what no training may do, whoever calls it. The audit of a whole run is `lib.checks.audit`."""

from itertools import combinations

import numpy as np

from lib.data.cohort import Cohort


class LeakError(ValueError):
    """Something would be trained, selected or tested on images it must not see there."""


def is_synthetic(cohort: Cohort) -> np.ndarray:
    """Return (N,) bool: which images some method made."""
    return cohort.table.method.notna().to_numpy() if "method" in cohort.table else np.zeros(len(cohort), bool)


def check_sources(synthetic: Cohort, real: Cohort) -> None:
    """Raise LeakError unless every synthetic image was made from one of `real`, a training part, of its patient."""
    made = synthetic.table
    patient = made.source_image_id.map(real.table.set_index("image_id").patient_id)
    for image in made[patient.isna()].itertuples():
        raise LeakError(f"{image.image_id} was made from {image.source_image_id}, not an image of the training part")
    for image in made[patient != made.patient_id].itertuples():
        raise LeakError(f"{image.image_id} belongs to patient {image.patient_id}, its source to {patient[image.Index]}")


def check_parts(training: Cohort, validation: Cohort, test: Cohort) -> None:
    """Raise LeakError where a patient is in two parts, or a synthetic image validates or tests."""
    parts = {"training": training, "validation": validation, "test": test}
    for a, b in combinations(parts, 2):
        if shared := sorted(set(parts[a].table.patient_id) & set(parts[b].table.patient_id)):
            raise LeakError(f"patient {shared[0]} is in the {a} and in the {b} images ({len(shared)} such patients)")
    for name in ("validation", "test"):
        if (synthetic := is_synthetic(parts[name])).any():
            raise LeakError(f"{parts[name].table.image_id[synthetic].iloc[0]} is synthetic and in the {name} part")
