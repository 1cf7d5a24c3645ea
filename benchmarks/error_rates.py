"""Error rates of the study's tests where the truth is known: `python benchmarks/error_rates.py [COHORTS] [STUDIES]`.

Wanted with learners that are equally good (1,000 cohorts, 3 × 5 cells): corrected t 0.02 to 0.065, clustered AUC 0.03
to 0.09; naive t above 0.25 and DeLong on images above 0.15, which is why neither is used. Holm over five true null
hypotheses: at most 0.065.
"""

from __future__ import annotations

import sys
import time

from lib.simulation import equicorrelated_cells, power, rejections, simulated_cohorts


def report(title: str, table) -> None:
    print(f"\n{title}\n{table.round(4).to_string()}", flush=True)


def main(cohorts: int = 1000, studies: int = 5000) -> None:
    start = time.perf_counter()
    report("Equally good learners, 300 patients, 3 × 5 cells", rejections(simulated_cohorts(cohorts)))
    report("The second learner sees more (0.5 against 0.35)", rejections(simulated_cohorts(cohorts // 4, shift_b=0.5)))
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
