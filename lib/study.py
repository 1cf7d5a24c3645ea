"""The study: a run's cohort, its folds and its phantom, loaded together.

study = Study.open(run_dir, "02_cyclegan", globals())
for fold in study.folds:
    model.fit(fold.train, study.run / "cyclegan" / fold.name, seed)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.data.splits import PARTS, fold_keys, read_splits
from lib.run.folder import Run

FIRST = "01_data_exploration"  # the notebook that makes a study


@dataclass(frozen=True)
class Study:
    """What every notebook after the first works on.

    Parameters
    ----------
    run : the run's folder, which also knows what was made before
    cohort : real or phantom radiographs
    splits : `repeat, fold, patient_id, part`, see `lib.data.splits`
    phantom : what the cohort was drawn from; None: real radiographs
    """

    run: Run
    cohort: Cohort
    splits: pd.DataFrame
    phantom: Phantom | None = None

    @classmethod
    def load(cls, run: Run) -> Study:
        """Load what notebook 01 has made.

        Raises
        ------
        NotYet
            Where notebook 01 has not run.
        """
        splits = read_splits(run.require("cohort/splits.csv", FIRST))
        folder = run.require("cohort/table.csv", FIRST).parent
        return cls(run, Cohort.load(folder), splits, Phantom.load(folder))

    @classmethod
    def open(cls, run_dir: str | Path, notebook: str, values: Mapping[str, object]) -> Study:
        """Load a run's study for a notebook, unless the run was made with other parameters.

        Parameters
        ----------
        values : the notebook's `globals()`, see `lib.run.folder.Run.check_parameters`
        """
        run = Run(run_dir)
        run.check_parameters(notebook, values)
        return cls.load(run)

    @property
    def folds(self) -> list[Fold]:
        """All folds of all repeats, in order."""
        return [Fold(self, repeat, fold) for repeat, fold in fold_keys(self.splits)]

    def fold(self, repeat: int = 0, fold: int = 0) -> Fold:
        """One fold.

        Raises
        ------
        ValueError
            Where the splits have none of this repeat and number.
        """
        if (repeat, fold) not in fold_keys(self.splits):
            names = ", ".join(one.name for one in self.folds)
            raise ValueError(f"the splits have no fold r{repeat}f{fold}: choose one of {names}")
        return Fold(self, repeat, fold)


@dataclass(frozen=True)
class Fold:
    """One repeat and fold of the protocol: who trains, who validates, who tests."""

    study: Study
    repeat: int
    number: int

    @property
    def name(self) -> str:
        """The folder that holds what belongs to this fold: `r0f0`."""
        return f"r{self.repeat}f{self.number}"

    @property
    def key(self) -> dict[str, int]:
        """The columns that name this fold in tables: `repeat` and `fold`."""
        return {"repeat": self.repeat, "fold": self.number}

    @property
    def splits(self) -> pd.DataFrame:
        """The rows of the table of splits that describe this fold."""
        splits = self.study.splits
        return splits[(splits.repeat == self.repeat) & (splits.fold == self.number)]

    def folder(self, *above: str) -> Path:
        """Return this fold's folder below a folder of the run: `fold.folder("synthetic", "cyclegan")`."""
        return self.study.run.folder.joinpath(*above, self.name)

    def part(self, name: str) -> Cohort:
        """Select the images of one part, in this fold's window of grey levels."""
        splits = self.splits
        return self._windowed(self.study.cohort.select(patient_id=splits.patient_id[splits.part == name]))

    @property
    def train(self) -> Cohort:
        return self.part("train")

    @property
    def validation(self) -> Cohort:
        return self.part("validation")

    @property
    def test(self) -> Cohort:
        return self.part("test")

    @property
    def parts(self) -> list[Cohort]:
        """Training, validation and test images."""
        return [self.part(name) for name in PARTS]

    @property
    def unused(self) -> Cohort:
        """The images of patients who are in no part: AFF that `training_aff_share` leaves out."""
        cohort = self.study.cohort
        return self._windowed(cohort.take(~cohort.table.patient_id.isin(self.splits.patient_id).to_numpy()))

    def _windowed(self, cohort: Cohort) -> Cohort:
        splits = self.splits
        return cohort.windowed(*splits[["black", "white"]].iloc[0]) if "black" in splits else cohort
