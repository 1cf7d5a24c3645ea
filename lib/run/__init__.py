"""Run: the folder of a run, and the machinery that fills it. Knows nothing of radiographs, methods or statistics.

Files: files, locks, folder (`Run` and its manifest), progress, hardware, randomness.
Notebooks, for run_all.py: notebooks (read), parameters and settings (chosen), finished (what is unchanged, and why
not), executing (kernels, records), listing. Read in this order.
Trainings: rank, checkpoints, weights, fingerprint (which code a result follows from).
Work that is shared out: tasks, local (processes), slurm (jobs).
"""
