"""The study: a run's cohort, its folds and its phantom, loaded together.

study = Study.open(run_dir, "02_cyclegan", globals())
for fold in study.folds:
    model.fit(fold.train, fold.folder("cyclegan"), seed)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib.data.cohort import Cohort
from lib.data.phantom import Phantom
from lib.data.splits import PARTS, fold_keys, read_splits
from lib.run.files import write_text
from lib.run.folder import Run

FIRST = "01_data_exploration"  # the notebook that makes a study


@dataclass(frozen=True, eq=False)
class Study:
    """What every notebook after the first works on."""

    run: Run
    cohort: Cohort
    splits: pd.DataFrame  # `repeat, fold, patient_id, part`, see `lib.data.splits`
    phantom: Phantom | None = None  # what the cohort was drawn from; None: real radiographs
    windows: pd.DataFrame | None = None  # of grey levels, see `lib.data.splits.fit_windows`; None: as they are

    @classmethod
    def load(cls, run: Run) -> Study:
        """Load what notebook 01 has saved; raise NotYet where it has not run."""
        splits = read_splits(run.require("cohort/splits.csv", FIRST))
        folder = run.require("cohort/table.csv", FIRST).parent
        windows = pd.read_csv(path) if (path := folder / "windows.csv").exists() else None
        return cls(run, Cohort.load(folder), splits, Phantom.load(folder), windows)

    @classmethod
    def open(cls, run_dir: str | Path, notebook: str, values: Mapping[str, object]) -> Study:
        """Load a run's study for a notebook with these `globals()`; raise ValueError where other parameters made it."""
        run = Run(run_dir)
        run.check_parameters(notebook, values)
        return cls.load(run)

    def save(self) -> None:
        """Write `cohort/` of the run; where `splits.csv` is there, so is all of it."""
        folder = self.run / "cohort"
        for name in ("splits.csv", "windows.csv", "phantom.json"):
            (folder / name).unlink(missing_ok=True)
        self.cohort.save(folder)
        if self.phantom is not None:
            self.phantom.save(folder)
        if self.windows is not None:
            write_text(folder / "windows.csv", self.windows.to_csv(index=False))
        write_text(folder / "splits.csv", self.splits.to_csv(index=False))

    @property
    def folds(self) -> list[Fold]:
        """All folds of all repeats, in order."""
        return [self.fold(*key) for key in fold_keys(self.splits)]

    def fold(self, repeat: int = 0, number: int = 0) -> Fold:
        """Return one fold; raise ValueError where the splits have none of this repeat and number."""
        found, window = _of_fold(self.splits, repeat, number), None
        if found.empty:
            names = ", ".join(f"r{r}f{f}" for r, f in fold_keys(self.splits))
            raise ValueError(f"the splits have no fold r{repeat}f{number}: choose one of {names}")
        if self.windows is not None:
            window = tuple(_of_fold(self.windows, repeat, number)[["black", "white"]].iloc[0])
        return Fold(self.run, self.cohort, found, repeat, number, self.phantom, window)

    def counts_by_part(self) -> pd.DataFrame:
        """Count patients and images of each class in each part: means over folds, indexed by part."""
        images = self.splits.merge(self.cohort.table[["patient_id", "image_id", "label"]], on="patient_id")
        counts = images.groupby(["part", "label"]).agg(patients=("patient_id", "size"), images=("image_id", "size"))
        counts["patients"] = images.drop_duplicates(["repeat", "fold", "patient_id"]).groupby(["part", "label"]).size()
        counts = (counts / len(fold_keys(self.splits))).unstack("label").reindex(PARTS)
        counts.columns = [f"{label} {unit}" for unit, label in counts.columns]
        return counts


@dataclass(frozen=True, eq=False)
class Fold:
    """One repeat and fold of the protocol: who trains, who validates, who tests.

    Tasks hold it when they are sent to other processes: of the splits it has its own rows alone, so that more repeats
    make no other tasks of those that are done, and a cohort on disk stays there.
    """

    run: Run
    cohort: Cohort  # of the study, all of it
    splits: pd.DataFrame  # the rows about this fold
    repeat: int
    number: int  # of the fold in its repeat
    phantom: Phantom | None
    window: tuple[float, float] | None  # grey levels that become black and white, in shares of the full range

    @property
    def name(self) -> str:
        """The folder that holds what belongs to this fold: `r0f0`."""
        return f"r{self.repeat}f{self.number}"

    @property
    def key(self) -> dict[str, int]:
        """The columns that name this fold in tables: `repeat` and `fold`."""
        return {"repeat": self.repeat, "fold": self.number}

    def folder(self, *above: str) -> Path:
        """Return this fold's folder below one of the run: `fold.folder("synthetic", "cyclegan")`."""
        return self.run.folder.joinpath(*above, self.name)

    def part(self, name: str) -> Cohort:
        """Select the images of one part, in this fold's window of grey levels."""
        return self._windowed(self.cohort.select(patient_id=self.splits.patient_id[self.splits.part == name]))

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
        return self._windowed(self.cohort.take(~self.cohort.table.patient_id.isin(self.splits.patient_id).to_numpy()))

    def _windowed(self, cohort: Cohort) -> Cohort:
        return cohort.windowed(*self.window) if self.window else cohort


def _of_fold(table: pd.DataFrame, repeat: int, number: int) -> pd.DataFrame:
    return table[(table.repeat == repeat) & (table.fold == number)].reset_index(drop=True)
