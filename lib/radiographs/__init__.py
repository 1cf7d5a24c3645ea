"""Radiographs: one's own files, PNG, JPEG, TIFF or DICOM, made into a cohort (`lib.data`, which knows no files).

decoding.py    a file → grey in [0, 1], as its author wanted it to be seen
geometry.py    cutting, turning, scaling, and the way back from a square's pixels to the file's
writing.py     burned-in text, found and painted over
preparing.py   a radiograph → a square, step by step; the cache
table.py       a CSV that says which file shows which patient → a cohort
importing.py   a hospital's folder of DICOM files → such a CSV and pictures that name nobody
quality.py     what can be measured of an image without training, and what is suspicious about it
"""
