"""Hashes: which images, tables and patients something was made of, in sixteen hexadecimal digits each."""

import hashlib
from pathlib import Path

import numpy as np

from lib.data.cohort import Cohort
from lib.data.pixels import blocks


def cohort_hash(cohort: Cohort) -> str:
    """Return digits that change with any image or label of the cohort."""
    digest = hashlib.sha256(cohort.table[["image_id", "patient_id", "label"]].to_csv(index=False).encode())
    for rows in blocks(len(cohort)):
        digest.update(np.ascontiguousarray(cohort.pixels[rows]))
    return digest.hexdigest()[:16]


def cohort_hashes(cohort: Cohort) -> list[str]:
    """Return `cohort_hash`, and digits that change with anything else that the table says."""
    return [cohort_hash(cohort), hashlib.sha256(cohort.table.to_csv(index=False).encode()).hexdigest()[:16]]


def patients_hash(cohort: Cohort) -> str:
    """Return digits for the set of patients: they say which patients weights have seen, not who they are."""
    return hashlib.sha256("\n".join(sorted(cohort.patients.index)).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return sixteen hexadecimal digits that change with any byte of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
