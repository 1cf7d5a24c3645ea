"""Radiographs: one's own images, PNG, JPEG, TIFF or DICOM, made into a cohort.

Each file takes the same way:

    files.py       decode → values the file's author wanted to be seen → grey in [0, 1], dark background
    preparing.py   square pixels, square frame, antialiased
    table.py       a CSV that says which file shows which patient and which fracture → cohort, uint8, or uint16 as soon
                   as one file has more than 8 bits
    importing.py   a hospital's folder of DICOM files → such a CSV and pictures that name nobody

Of a file's own words only view and side are kept, where the CSV does not give them: no other tag, no name, no path.
"""

from lib.radiographs.files import Radiograph, read_image
from lib.radiographs.table import RadiographsError, read_radiographs

__all__ = ["Radiograph", "RadiographsError", "read_image", "read_radiographs"]
