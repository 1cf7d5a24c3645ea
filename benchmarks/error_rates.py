"""Error rates of the study's tests where the truth is known: `python benchmarks/error_rates.py [COHORTS] [STUDIES]`.

Wanted with learners that are equally good (1,000 cohorts of the thesis' size, 3 × 5 cells): corrected t 0.02 to 0.065,
clustered AUC 0.03 to 0.09; naive t above 0.25 and DeLong on images above 0.15, which is why neither is used. Holm over
five true null hypotheses: at most 0.065. The same trained again with other seeds: at most 0.05 with the spread between
seeds, more without.
"""

from __future__ import annotations

import sys
import time

from lib.planning import power
from lib.simulation import equicorrelated_cells, rejections, simulated_cohorts, simulated_seeds


def report(title: str, table) -> None:
    print(f"\n{title}\n{table.round(4).to_string()}", flush=True)


def main(cohorts: int = 1000, studies: int = 5000) -> None:
    start = time.perf_counter()
    for patients in (300, 1200):
        equal, other = (simulated_cohorts(cohorts, patients, shift_b=shift) for shift in (0.35, 0.42))
        report(f"Equally good learners, {patients} patients, 3 × 5 cells", rejections(equal))
        report(f"The second learner sees more (0.42 against 0.35), {patients} patients", rejections(other))
    for seeds in (2, 3, 5):
        report(
            f"The same against itself, {seeds} seeds, one hold-out", rejections(simulated_seeds(cohorts, seeds=seeds))
        )
    report("Equicorrelated cells, 5 × 5, no effect, one contrast", rejections(equicorrelated_cells(studies, 5, 5)))
    family = rejections(equicorrelated_cells(studies, 3, 5, effects=[0.0] * 5))
    report("Equicorrelated cells, 3 × 5, five contrasts without effect", family)
    for repeats, folds, effect in ((3, 5, 1.0), (5, 5, 1.5), (10, 10, 1.0)):
        found = rejections(equicorrelated_cells(studies, repeats, folds, effects=[effect])).loc["corrected t"]
        expected = power(effect, 1.0, repeats, folds)
        print(f"power, {repeats} × {folds}, δ = {effect} σ: {found.rejected:.3f} found, {expected:.3f} by formula")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
