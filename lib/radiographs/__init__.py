"""Radiographs: one's own images, PNG, JPEG, TIFF or DICOM, made into a cohort.

Each file takes the same way:

    files.py       decode → values the file's author wanted to be seen → grey in [0, 1], dark background
    preparing.py   borders off, writing hidden, upright, square, antialiased: the steps, and the cache
    geometry.py    each step, and the way back from a square's pixels to the file's
    writing.py     burned-in text, found and painted over
    measures.py    numbers for quality control (`lib.radiographs.quality`)
    table.py       a CSV that says which file shows which patient and which fracture → cohort, uint8, or uint16 as soon
                   as one file has more than 8 bits
    importing.py   a hospital's folder of DICOM files → such a CSV and pictures that name nobody

Of a file's own words only view and side are kept, where the CSV does not give them: no other tag, no name, no path.
"""

from lib.radiographs.decoding import Radiograph, read_image
from lib.radiographs.preparing import Preparation
from lib.radiographs.table import RadiographsError, read_radiographs

__all__ = ["Preparation", "Radiograph", "RadiographsError", "read_image", "read_radiographs"]
