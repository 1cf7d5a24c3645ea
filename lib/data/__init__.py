"""Data: the cohort, and who trains, validates and tests on it. Files of radiographs are read in `lib.radiographs`.

cohort.py      the one thing that travels: a table of images and their pixels
pixels.py      pixels that stay on disk until they are read
phantom.py     radiographs drawn from their physics, the embedded default
splits.py      repeats and folds by patient
duplicates.py  the same radiograph twice, found before anybody trains
leaks.py       what must hold of patients and parts; hashes.py: which images these are; images.py: batches for networks
overview.py    how many patients and images there are of each kind
"""
