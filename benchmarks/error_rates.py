"""Error rates of the study's tests where the truth is known: `python benchmarks/error_rates.py [COHORTS] [STUDIES]`.

Cohorts of the thesis' size (1,200 patients), by default 1,000 of each truth; what is wanted of each test stands in
`lib.statistics.simulation.WANTED`. Power by formula (`lib.statistics.planning`) is set beside that of simulated folds.
Exit status 1 where a test is not as wanted, or power is off its formula by more than 0.03. The bootstrap has 300 draws
here, a run's 10,000.
"""

from __future__ import annotations

import sys
import time

import pandas as pd

from lib.statistics.planning import power, power_of_equivalence, ratio_of_fold
from lib.statistics.simulation import (
    LEVEL,
    VALIDATION_SHARE,
    WANTED,
    all_rejections,
    equicorrelated_folds,
    p_values_of_seeds,
    rejections,
    simulated,
    verdicts,
)


def main(cohorts: int = 1000, studies: int = 5000) -> bool:
    start = time.perf_counter()
    found = verdicts(all_rejections(cohorts), strictly=True)
    print(found.round(4).to_string(), flush=True)
    for seeds in (2, 5):  # of these, the tests that should keep their level
        again = verdicts(
            pd.concat({"trained again": rejections(simulated(p_values_of_seeds, cohorts, seeds=seeds))}), strictly=True
        )
        again = again[[WANTED[key] == LEVEL for key in again.index]]
        print(f"\n{seeds} training seeds\n{again.round(4).to_string()}", flush=True)
        found = pd.concat([found, again])

    agree = True
    for repeats, folds, effect, margin in ((3, 5, 1.0, 1.5), (5, 5, 1.5, 1.5), (10, 10, 1.0, 1.0)):
        n, ratio = repeats * folds, ratio_of_fold(folds, VALIDATION_SHARE)
        different = rejections(equicorrelated_folds(studies, n, ratio, [effect]))["rejected"]
        equal = rejections(equicorrelated_folds(studies, n, ratio, margin=margin)[["TOST"]])["rejected"]
        pairs = (
            (different["corrected t"], power(effect, 1.0, n, ratio)),
            (equal["TOST"], power_of_equivalence(margin, 1.0, n, ratio)),
        )
        agree &= all(abs(simulated - formula) <= 0.03 for simulated, formula in pairs)
        (different, formula), (equal, of_equal) = pairs
        print(
            f"{repeats} × {folds}: δ = {effect} σ found {different:.3f}, by formula {formula:.3f}; no difference shown "
            f"within {margin} σ {equal:.3f}, by formula {of_equal:.3f}",
            flush=True,
        )
    off = found[~found["as wanted"]]
    print(f"\n{len(found) - len(off)} of {len(found)} as wanted, {time.perf_counter() - start:.0f} s")
    return agree and not len(off)


if __name__ == "__main__":
    sys.exit(not main(*map(int, sys.argv[1:])))
