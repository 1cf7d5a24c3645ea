"""How fast DICOM files become a cohort: `python benchmarks/radiographs.py [FILES]`, 300 by default.

Made files of 2,000 × 3,000 pixels, 16 bit, uncompressed (12 MB each), prepared at 256 px over all cores, then once more
with nothing new. Wanted: 4,300 in under 6 minutes with less than 2 GB of memory, a second call in under 3 seconds.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lib.radiographs.preparing import Preparation
from lib.radiographs.table import read_radiographs

WANTED = 4300


def write(path: Path, number: int) -> None:
    """Write a DICOM file of noise around a bright shaft, each another."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 3000, 2000, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.WindowCenter, ds.WindowWidth = 30000, 50000
    across = np.exp(-(((np.arange(2000) - 900 - number) / 250) ** 2)) * 40000
    pixels = across + np.random.default_rng(number).integers(0, 9000, (3000, 2000))
    ds.PixelData = pixels.astype(np.uint16).tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


def main(files: int = 300) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            write(Path(folder, f"{number}.dcm"), number)
        rows = {"path": [f"{n}.dcm" for n in range(files)], "patient_id": [f"p{n // 4}" for n in range(files)]}
        csv = Path(folder, "table.csv")
        pd.DataFrame(rows).assign(label="NFF").to_csv(csv, index=False)
        for call in ("first", "second"):
            start = time.perf_counter()
            read_radiographs(csv, 256, cache=Path(folder, "cache"), how=Preparation(crop=True))
            seconds = time.perf_counter() - start
            all_of_them = WANTED * seconds / files
            print(f"{call} call: {files / seconds:.1f} images a second, so {WANTED:,} take {all_of_them:.0f} s")
    here, child = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"peak memory: {here:.2f} GiB here, {child:.2f} GiB the largest worker")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
