"""Run: a run's folder, and the machinery that fills it. Knows nothing of radiographs, methods or statistics.

Read in this order:
files, locks, folder (`Run`, its manifest), progress, hardware, randomness: what everything needs;
settings, parameters: what a notebook may be told; notebooks, finished (what is unchanged, or why not), executing
(kernels, records), listing: what run_all.py does with notebooks;
rank, checkpoints, weights, fingerprint (which code a result follows from): what trainings need;
tasks, local (processes), slurm (jobs): work that is shared out.
"""
