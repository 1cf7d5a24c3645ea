"""The cohort: the one thing that travels from notebook to notebook.

A cohort is a table, one row an image, and the pixels of those images. Real, phantom and synthetic radiographs are all
cohorts, so every step takes a cohort and gives a cohort or a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.pixels import BLOCK, File, OnDisk, blocks, joined, save_pixels, taken
from lib.run.files import write_text, written

LABELS = ("NFF", "AFF")  # a label's position is the number networks are trained on: AFF is the positive class
COLUMNS = ("image_id", "patient_id", "label", "view", "side")
CROP = ("crop_top", "crop_left", "crop_bottom", "crop_right")  # what is shown of the file's image, in its pixels
TO_SOURCE = ("xx", "xy", "x0", "yx", "yy", "y0")  # x in the file is xx · x + xy · y + x0, in pixels; y likewise
MEASURES = ("height", "width", "bits", "cropped", "contrast", "inversion", "metal", "writing")  # of quality control


@dataclass(frozen=True)
class Cohort:
    """Radiographs and what is known of each; selecting, joining and windowing read nothing of pixels on disk.

    Raises ValueError where table and pixels do not fit, a column is missing, an id repeats, or a label is unknown.
    """

    table: pd.DataFrame  # one row an image, with at least `COLUMNS`
    pixels: np.ndarray | OnDisk  # (N, H, W) uint8 or uint16, in the table's order

    def __post_init__(self):
        object.__setattr__(self, "table", self.table.reset_index(drop=True))
        if missing := [column for column in COLUMNS if column not in self.table]:
            raise ValueError(f"cohort table lacks the column {', '.join(missing)}")
        if self.pixels.ndim != 3 or len(self.pixels) != len(self.table):
            raise ValueError(f"{len(self.table)} table rows do not fit pixels of shape {self.pixels.shape} (N, H, W)")
        if self.pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, not {self.pixels.dtype}")
        if unknown := sorted(set(self.table.label) - set(LABELS)):
            raise ValueError(f"unknown label {unknown[0]!r}: labels are {' and '.join(LABELS)}")
        if (repeated := self.table.image_id.duplicated()).any():
            raise ValueError(f"image_id {self.table.image_id[repeated].iloc[0]!r} stands in the table more than once")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return self.pixels.shape[-1]

    @property
    def targets(self) -> np.ndarray:
        """(N,) int64, 1 for AFF and 0 for NFF."""
        return self.table.label.map(LABELS.index).to_numpy(np.int64)

    @property
    def patients(self) -> pd.Series:
        """patient_id → label; a patient with an AFF in any image is an AFF patient."""
        return self.table.groupby("patient_id").label.min()  # AFF comes first

    def take(self, rows) -> Cohort:
        """Return the images at these positions, or where this boolean mask is true."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(int)
        return Cohort(self.table.iloc[rows], taken(self.pixels, rows))

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[np.ndarray, Cohort]]:
        """Yield row numbers and images, in order, at most `size` at a time."""
        for rows in blocks(len(self), size):
            yield rows, self.take(rows)

    def first(self, n: int) -> Cohort:
        """Return the first n images, or all where there are fewer."""
        return self.take(range(min(n, len(self))))

    def select(self, **columns) -> Cohort:
        """Return the images whose columns have the given value, or one of the given values.

        >>> cohort.select(label="AFF", view="AP", patient_id=training_patients)  # doctest: +SKIP
        """
        keep = np.ones(len(self), bool)
        for column, wanted in columns.items():
            if column not in self.table:
                raise ValueError(f"the cohort has no column {column!r}; it has {', '.join(self.table)}")
            wanted = [wanted] if np.isscalar(wanted) else list(wanted)
            keep &= self.table[column].isin(wanted).to_numpy()
        return self.take(keep)

    def find(self, image_ids) -> Cohort:
        """Return the images of these ids, in their order; raise KeyError where one is missing."""
        return self.take(pd.Series(range(len(self)), self.table.image_id).loc[list(image_ids)])

    def join(self, *others: Cohort) -> Cohort:
        """Append other cohorts; columns that one of them lacks become missing values."""
        cohorts = [self, *others]
        if len({(c.pixels.dtype, c.pixels.shape[1:]) for c in cohorts}) > 1:
            raise ValueError("cohorts of different image size or bit depth cannot be joined")
        table = pd.concat([c.table for c in cohorts], ignore_index=True)
        return Cohort(table, joined([c.pixels for c in cohorts]))

    def images(self) -> np.ndarray:
        """Return (N, 1, H, W) float32 in [-1, 1], as networks take them."""
        return to_images(self.pixels)

    def translated(self, images: np.ndarray, to: str, method: str, generator: str | None = None) -> Cohort:
        """Make the synthetic cohort of what a translator made of it, (N, 1, H, W) in [-1, 1]; see `provenance`."""
        pixels = np.where(self.padding, 0, to_pixels(images, self.pixels.dtype))
        return Cohort(self.provenance(to, method, generator), pixels)

    def provenance(self, to: str, method: str, generator: str | None = None) -> pd.DataFrame:
        """Make the table of the synthetic images that a method makes of these, one of each, with the label `to`.

        Each keeps its source's patient, view and side, and names its source.

        Parameters
        ----------
        generator : `lib.data.hashes.patients_hash` of those who trained the method; None: it was not trained
        """
        of_source = ["subtype", "split", "generator", *MEASURES]  # what described the source alone
        table = self.table.drop(columns=of_source, errors="ignore").assign(
            source_image_id=self.table.image_id,
            source_label=self.table.label,
            image_id=[f"{method}-{to}-{source}" for source in self.table.image_id],
            label=to,
            method=method,
        )
        if generator is not None:
            table["generator"] = generator
        return table

    def copies(self, rows: np.ndarray, method: str) -> Cohort:
        """Repeat the images at these positions under new ids, with the provenance of synthetic images."""
        made = self.table.iloc[rows]
        made = made.assign(
            source_image_id=made.image_id,
            source_label=made.label,
            image_id=[f"{method}-{i}-{image_id}" for i, image_id in enumerate(made.image_id)],
            method=method,
        )
        return Cohort(made, taken(self.pixels, rows))

    @property
    def padding(self) -> np.ndarray:
        """(N, H, W) bool, where a square shows nothing of its file's image; nowhere without columns `CROP`."""
        outside = np.zeros((len(self), self.size, self.size), bool)
        if not set(CROP) <= set(self.table):
            return outside
        middles = np.arange(self.size) + 0.5
        x, y = middles, middles[:, None]
        for image, (top, left, bottom, right), (xx, xy, x0, yx, yy, y0) in zip(
            outside, self.table[list(CROP)].to_numpy(), self.table[list(TO_SOURCE)].to_numpy(), strict=True
        ):
            source_x, source_y = xx * x + xy * y + x0, yx * x + yy * y + y0
            image[:] = (source_x < left) | (source_x > right) | (source_y < top) | (source_y > bottom)
        return outside

    def windowed(self, black: float, white: float) -> Cohort:
        """Stretch grey levels so that `black` and `white`, shares of the full range, become its ends."""
        top = np.iinfo(self.pixels.dtype).max
        levels = np.clip((np.arange(top + 1) / top - black) / (white - black), 0, 1)
        levels = np.rint(levels * top).astype(self.pixels.dtype)
        on_disk = isinstance(self.pixels, OnDisk)
        return Cohort(self.table, self.pixels.through(levels) if on_disk else levels[self.pixels])

    def save(self, folder: str | Path) -> None:
        """Write `pixels.npy` and `table.csv` into a folder."""
        starts = range(0, max(len(self), 1), BLOCK)  # one empty block of an empty cohort
        save_blocks(folder, self.table, (self.pixels[start : start + BLOCK] for start in starts))

    @classmethod
    def load(cls, folder: str | Path) -> Cohort:
        """Read what `save` wrote; the pixels stay on disk, and are read where they are indexed."""
        folder = Path(folder)
        ids = dict.fromkeys(("image_id", "patient_id", "source_image_id", "generator"), str)
        table = pd.read_csv(folder / "table.csv", dtype=ids, keep_default_na=False, na_values=[""])
        return cls(table, OnDisk.of(File(folder / "pixels.npy")))


def save_blocks(folder: str | Path, table: pd.DataFrame, images: Iterable[np.ndarray]) -> None:
    """Save a cohort whose pixels (n, H, W) come block by block, in the order of the table."""
    table_path, pixels_path = Path(folder, "table.csv"), Path(folder, "pixels.npy")
    with written(pixels_path) as path:
        save_pixels(path, len(table), images)
        table_path.unlink(missing_ok=True)  # a cohort is there when its table is
    write_text(table_path, table.to_csv(index=False))


def to_images(pixels: np.ndarray) -> np.ndarray:
    """Turn (N, H, W) integers into (N, 1, H, W) float32 in [-1, 1]: the range of their type, black to white."""
    return (np.asarray(pixels, np.float32) * (2 / np.iinfo(pixels.dtype).max) - 1)[:, None]


def to_pixels(images: np.ndarray, dtype) -> np.ndarray:
    """Turn (N, 1, H, W) in [-1, 1] into (N, H, W) in the integer range of `dtype`, rounded."""
    top = np.iinfo(dtype).max
    return np.rint((np.clip(images[:, 0], -1, 1) + 1) * (top / 2)).astype(dtype)
