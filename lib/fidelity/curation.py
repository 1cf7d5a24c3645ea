"""Curation: which synthetic images somebody looked at and rejected."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.cohort import Cohort
from lib.run.files import shown

VERDICTS = "verdicts.csv"  # what was decided by hand


def pixel_hashes(images: Cohort) -> list[str]:
    """Return sixteen hexadecimal digits of each image: a verdict is on pixels, for another image may get the id."""
    return [hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:16] for pixels in images.pixels]


def read_verdicts(path: Path) -> pd.DataFrame:
    """Read the table `image_id, pixels` (`pixel_hashes`), `keep, reason`; without a file it has no rows."""
    columns = {"image_id": str, "pixels": str, "keep": bool, "reason": str}
    if not Path(path).exists():
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    table = pd.read_csv(path, dtype=columns, keep_default_na=False)
    if missing := set(columns) - set(table):
        raise ValueError(f"{shown(path)} has no column {', '.join(sorted(missing))}: delete it, and decide anew")
    return table


def without_rejected(synthetic: dict[str, Cohort], path: Path) -> dict[str, Cohort]:
    """Leave out images that were rejected by hand, then keep the first images of each method, equally many."""
    verdicts = read_verdicts(path)
    rejected = set(verdicts.pixels[~verdicts.keep])
    kept = {
        method: images.take([found not in rejected for found in pixel_hashes(images)])
        for method, images in synthetic.items()
    }
    fewest = min((len(images) for images in kept.values()), default=0)
    return {method: images.first(fewest) for method, images in kept.items()}
