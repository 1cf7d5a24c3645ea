"""Progress: bars, and how long something takes in words."""

import os
from contextlib import contextmanager

import tqdm
import tqdm.auto


def duration(seconds: float) -> str:
    """Return how long that is, in the unit one would say it in.

    >>> duration(20), duration(420), duration(9000)
    ('20 seconds', '7.0 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def progress(total: int, initial: int = 0, desc: str = "") -> tqdm.tqdm:
    """Return a bar: a widget in Jupyter, a text line every few seconds in a headless run (LIB_PROGRESS=text)."""
    kind = os.environ.get("LIB_PROGRESS")
    if kind in ("text", "none"):
        return tqdm.tqdm(total=total, initial=initial, desc=desc, mininterval=10, ncols=100, disable=kind == "none")
    return tqdm.auto.tqdm(total=total, initial=initial, desc=desc)


@contextmanager
def no_progress():
    """Show no bars of what runs inside."""
    before, os.environ["LIB_PROGRESS"] = os.environ.get("LIB_PROGRESS", ""), "none"
    try:
        yield
    finally:
        os.environ["LIB_PROGRESS"] = before
