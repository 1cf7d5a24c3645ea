"""Training a translator in every fold of a study: one task a fold."""

from collections.abc import Callable
from functools import partial

import pandas as pd

from lib.data.cohort import Cohort
from lib.run.tasks import Machines, Task, run_tasks
from lib.study import Fold, Study
from lib.translators.training import WEIGHTS
from lib.translators.translator import Translator, train


def train_folds(
    study: Study,
    name: str,
    make: Callable[[], Translator],
    seed: int,
    machines: Machines,
    watch=None,
    images: Callable[[Fold], Cohort] = lambda fold: fold.train,
) -> pd.DataFrame:
    """Train a method's translator in every fold, into `NAME/FOLD`, and return what became of each task.

    On the way it translates a few NFF images of the fold's validation part.

    Parameters
    ----------
    make : makes an untrained translator, such as `partial(CycleGAN, settings)`
    images : what it trains on; anything but the training part is a leak, and a test of the audit
    """
    tasks = {}
    for fold in study.folds:
        folder, preview = fold.folder(name), fold.validation.select(label="NFF").first(8)
        do = partial(train, make, images(fold), folder, seed, preview)
        tasks[fold.name] = Task(do, folder / WEIGHTS)
    return run_tasks(tasks, study.run / name / "tasks", machines, data_parallel=True, watch=watch)
