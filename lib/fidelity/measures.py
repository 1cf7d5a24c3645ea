"""Fidelity: how well synthetic radiographs imitate real ones of their class, and how well each kept its source.

Every distance (`lib.fidelity.distances`) stands beside two references: `real`, validation images of the class, and
`source`,
untranslated images. All but KID, which is unbiased, are taken of equally many images.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score

from lib.data.cohort import LABELS, Cohort
from lib.data.hashes import cohort_hashes
from lib.data.phantom import Phantom
from lib.data.pixels import blocks
from lib.data.splits import PARTS, fold_keys, fold_name
from lib.fidelity.distances import Space, distances, spaces
from lib.fidelity.judge import Judge, zones
from lib.fidelity.synthesis import INPUTS, TRANSLATORS
from lib.run.checkpoints import differences, set_aside
from lib.run.files import from_root, write_together
from lib.run.fingerprint import name_of, source_hash
from lib.run.randomness import generator
from lib.run.tasklist import Task
from lib.statistics.inference import kid, kid_jackknife, kid_permutation_test

DIRECTIONS = {"AFF": "NFF→AFF", "NFF": "AFF→NFF"}  # by the label translated to
OF_JUDGE = ("transfer", "neither", "transfer_blurred", "transfer_noised")  # measured by its eye, not in pixels


# Distances between distributions --------------------------------------------------------------------------------------


def subsample(images: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n rows drawn without repetition, or all where there are fewer; the same rows of equally long arrays."""
    return images[np.sort(generator(seed).permutation(len(images))[:n])]


def distance_rows(sets: dict[str, Cohort], reference: Cohort, found: dict[str, Space]) -> list[dict]:
    """Rows of the fidelity table: each set against the same real test images, in each space.

    KID takes all images, with an interval from a jackknife over patients (of both sides); its `n` is the number of the
    set, against all of the reference. The other distances depend on the numbers, so they are taken of n images of each
    set and of the reference alike, as many as the smallest of them has; FID's rows also say in how many `dimensions`.
    """
    n = min(len(reference), *(len(cohort) for cohort in sets.values()))
    rows = []
    for name, space in found.items():
        real = space.features(reference.pixels)
        few_real = subsample(real, n, seed=n)
        dimensions = space.leading(few_real).shape[1]
        for method, cohort in sets.items():
            generated, what = space.features(cohort.pixels), {"method": method, "features": name}
            kid = kid_jackknife(generated, real, cohort.table.patient_id, reference.table.patient_id)
            rows.append({**what, "metric": "kid", **kid[["value", "ci_low", "ci_high"]], "n": len(cohort)})
            for metric, value in distances(subsample(generated, n, seed=n), few_real, space.leading).items():
                used = {"dimensions": dimensions} if metric.startswith("fid") else {}
                rows.append({**what, "metric": metric, "value": value, "n": n, **used})
    return rows


# What became of each image -------------------------------------------------------------------------------------------


def zone_rows(table: pd.DataFrame, height: int) -> np.ndarray:
    """(N, height) whether a row of pixels touches the image's fracture zone (`lib.fidelity.judge.zones`)."""
    top, bottom = zones(table).T[..., None] * height
    rows = np.arange(height)
    return (rows >= np.floor(top)) & (rows < np.ceil(bottom))


def ssim_by_zone(a: np.ndarray, b: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mean structural similarity of image pairs inside and outside the fracture zone.

    Parameters
    ----------
    a, b : (N, H, W) integer pixels of the same type
    table : N rows; `zone_top`, `zone_bottom` where the cohort has them (see `lib.fidelity.judge.zones`)

    Returns
    -------
    inside, outside : (N,) each; NaN where a zone leaves nothing outside
    """
    height, top_value = a.shape[1], np.iinfo(a.dtype).max
    inside, outside = np.full(len(a), np.nan), np.full(len(a), np.nan)
    for i, zone in enumerate(zone_rows(table, height)):
        similarity = structural_similarity(a[i], b[i], data_range=top_value, full=True)[1]
        if zone.any():
            inside[i] = similarity[zone].mean()
        if not zone.all():
            outside[i] = similarity[~zone].mean()
    return inside, outside


def change_in_zone(a: np.ndarray, b: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """(N,) share of the absolute change from b to a that lies in the fracture zone; NaN where nothing changed.

    Parameters
    ----------
    a, b : (N, H, W) integer pixels of the same type
    table : N rows, as for `ssim_by_zone`
    """
    change = np.concatenate([abs(a[rows].astype(np.float32) - b[rows]).sum(2) for rows in blocks(len(a))])
    with np.errstate(invalid="ignore"):
        return (change * zone_rows(table, a.shape[1])).sum(1) / change.sum(1)


def blurred(pixels: np.ndarray) -> np.ndarray:
    """(N, H, W) pixels after a Gaussian blur of σ = 1/128 of the height: too mild to hide a fracture."""
    sigma = max(pixels.shape[1] / 128, 0.5)  # less than half a pixel would be no blur
    soft = np.empty(pixels.shape, pixels.dtype)
    for image, sharp in zip(soft, pixels, strict=True):
        image[:] = np.rint(gaussian_filter(sharp.astype(np.float32), sigma))
    return soft


def noised(pixels: np.ndarray) -> np.ndarray:
    """(N, H, W) pixels with noise of 2 % of the grey scale, always the same."""
    top, rng = np.iinfo(pixels.dtype).max, generator(len(pixels))
    noisy = np.empty(pixels.shape, pixels.dtype)
    for image, clean in zip(noisy, pixels, strict=True):
        image[:] = np.clip(np.rint(clean + rng.normal(0, 0.02 * top, clean.shape)), 0, top)
    return noisy


def mean_by_patient(values: np.ndarray, patients: pd.Series, draws: int = 2000, seed: int = 0) -> dict:
    """Mean over images with a 95 % percentile interval from resampling patients."""
    yes_or_no = np.asarray(values).dtype == bool
    values, patients = np.asarray(values, float), pd.Series(np.asarray(patients))
    keep = ~np.isnan(values)
    groups = pd.DataFrame({"value": values[keep], "patient": patients[keep].to_numpy()}).groupby("patient").value
    sums, counts = groups.sum().to_numpy(), groups.count().to_numpy()
    if not len(sums):
        return {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": 0}
    rows = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    if yes_or_no and low == high:  # none or all of them: Clopper and Pearson, patients as trials
        bound = 0.025 ** (1 / len(sums))
        low, high = (bound, 1.0) if values[keep].all() else (0.0, 1 - bound)
    return {"value": values[keep].mean(), "ci_low": low, "ci_high": high, "n": int(keep.sum())}


def image_rows(method: str, translated: Cohort, source: Cohort, judge: Judge, counterfactual: Cohort | None) -> list:
    """Rows of the fidelity table about each translated image: transfer, what it kept, and the counterfactual.

    `transfer` is the share that the judge takes for the class translated to, `neither` the share it takes for no
    fracture at all; `transfer_blurred` and `transfer_noised` ask again after a mild blur and mild noise, which images
    that only please the judge do not survive (Chu et al. 2017, arXiv:1712.02950). `ssim_outside` compares with the
    source outside the fracture zone, `change_in_zone` is the share of all change that lies inside, to be compared with
    `zone_share`, the zone's share of the image; `counterfactual_inside` and `counterfactual_outside` compare with the
    phantom's rendering of the same patient with the other fracture.
    """
    to, patients = translated.table.label.iloc[0], source.table.patient_id
    verdicts = judge.verdicts(translated.pixels)
    values = {"transfer": verdicts == to, "neither": verdicts == "neither"}
    values["transfer_blurred"] = judge.verdicts(blurred(translated.pixels)) == to
    values["transfer_noised"] = judge.verdicts(noised(translated.pixels)) == to
    values["change_in_zone"] = change_in_zone(translated.pixels, source.pixels, source.table)
    values["zone_share"] = zone_rows(source.table, source.size).mean(1)
    values["ssim_outside"] = ssim_by_zone(translated.pixels, source.pixels, source.table)[1]
    if counterfactual is not None:
        inside, outside = ssim_by_zone(translated.pixels, counterfactual.pixels, source.table)
        values |= {"counterfactual_inside": inside, "counterfactual_outside": outside}
    return [
        {"method": method, "features": "judge" if metric in OF_JUDGE else "pixels", "metric": metric,
         **mean_by_patient(value, patients)}
        for metric, value in values.items()
    ]  # fmt: skip


def at_a_glance(
    translated: Cohort, source: Cohort, reference: Cohort, judge: Judge, counterfactual: Cohort | None = None
) -> dict[str, float]:
    """A few numbers of one direction, without intervals, to compare settings while a method is set up.

    Parameters
    ----------
    translated, source : the same images, in the same order
    reference : real images of the class translated to
    counterfactual : on the phantom, the source images with the other fracture

    Returns
    -------
    `kid`, on the judge's features, and the metrics of `image_rows`
    """
    rows = image_rows("", translated, source, judge, counterfactual)
    distance = kid(judge.features(translated.pixels), judge.features(reference.pixels))
    return {"kid": distance} | {row["metric"]: row["value"] for row in rows}


def reconstruction(back: Cohort, images: Cohort, judge: Judge) -> dict[str, float]:
    """What an autoencoder keeps of a fracture, on images of both labels.

    `error_inside`, `error_outside`: mean absolute difference inside and outside the fracture zone, in shares of the
    grey scale; `auroc`, `auroc_reconstructed`: how well the judge tells AFF from NFF before and after.
    """
    top = np.iinfo(images.pixels.dtype).max
    by_row = [
        (abs(back.pixels[rows].astype(np.float32) - images.pixels[rows]) / top).mean(2) for rows in blocks(len(images))
    ]
    inside, by_row = zone_rows(images.table, images.size), np.concatenate(by_row)

    def auroc(pixels: np.ndarray) -> float:
        probabilities = judge.probabilities(pixels)
        return roc_auc_score(images.targets, probabilities[:, 1] - probabilities[:, 0])

    return {
        "error_inside": by_row[inside].mean(), "error_outside": by_row[~inside].mean(),
        "auroc": auroc(images.pixels), "auroc_reconstructed": auroc(back.pixels),
    }  # fmt: skip


# Tables --------------------------------------------------------------------------------------------------------------


def fidelity_table(
    translated: dict[str, Cohort],
    training: Cohort,
    validation: Cohort,
    test: Cohort,
    judge: Judge,
    counterfactual: Cohort | None = None,
    noise: Cohort | None = None,
    inception: str = "none",
) -> pd.DataFrame:
    """One cell's fidelity, both directions.

    Parameters
    ----------
    translated : by method, the test images translated both ways (`lib.fidelity.synthesis.translate_test`)
    training, validation, test : the cell's real images; `real` compares test with validation images, not with those of
        the training part, which the judge has fitted
    counterfactual : the test images with the other fracture, on the phantom
    noise : AFF images sampled from noise: they have no source, so only their distances are measured

    Returns
    -------
    DataFrame `method, direction, features, metric, value, ci_low, ci_high, n, dimensions`; methods also `real`,
        `source` and, on the phantom, `counterfactual`: what the metrics of single images say of a perfect translation.
        `n` images of the method were measured (see `distance_rows`), by FID in so many `dimensions`
    """
    found, rows = spaces(judge, training, inception), []
    test = judge.with_zones(test)
    for to, direction in DIRECTIONS.items():
        away = next(label for label in LABELS if label != to)
        source, reference = test.select(label=away), test.select(label=to)
        outputs = {method: cohort.select(label=to) for method, cohort in translated.items()}
        sets = {"real": validation.select(label=to), "source": source, **outputs}
        if noise is not None and to == "AFF":
            sets["noise"] = noise
        other = None if counterfactual is None else counterfactual.select(label=to)
        compared = {"source": Cohort(source.table.assign(label=to), source.pixels), **outputs}
        if other is not None:
            compared["counterfactual"] = other
        of_direction = distance_rows(sets, reference, found)
        for method, cohort in compared.items():
            of_direction += image_rows(method, cohort, source, judge, other)
        for method, cohort in {"real": reference, "noise": sets.get("noise")}.items():
            if cohort is not None:
                of_images = image_rows(method, cohort, cohort, judge, None)
                of_direction += [row for row in of_images if row["features"] == "judge"]
        rows += [{**row, "direction": direction} for row in of_direction]
    columns = ["method", "direction", "features", "metric", "value", "ci_low", "ci_high", "n", "dimensions"]
    return pd.DataFrame(rows)[columns].astype({"dimensions": "Int64"})


def tasks_of(
    folder: Path,
    methods: list[str],
    cohort: Cohort,
    splits: pd.DataFrame,
    phantom: Phantom | None,
    inception: str,
) -> dict[str, Task]:
    """By name, `measure_fold` of every cell."""
    pieces = {}
    for cell in fold_keys(splits):
        do = partial(measure_fold, folder, cell, cohort, splits, methods, phantom, inception)
        of_cell = [home / INPUTS for home in _sets(folder, cell, methods).values()]
        needs = (Path(folder, "judge", fold_name(*cell), "judge.safetensors"), *of_cell, from_root(inception))
        pieces[fold_name(*cell)] = Task(do, Path(folder, "fidelity", f"{fold_name(*cell)}.json"), needs)
    return pieces


def _sets(folder: Path, cell: tuple[int, int], methods: list[str]) -> dict[str, Path]:
    """By method, the folder of the images that are measured: translated test images, or AFF images from noise."""
    homes = {method: Path(folder, "synthetic", method, fold_name(*cell)) for method in methods}
    return {
        method: home if method == "noise" else home / "test"
        for method, home in homes.items()
        if method in (*TRANSLATORS, "noise")
    }


def measure_fold(
    folder: Path,
    cell: tuple[int, int],
    cohort: Cohort,
    splits: pd.DataFrame,
    methods: list[str],
    phantom: Phantom | None,
    inception: str,
) -> None:
    """One cell's `fidelity_table` and, where both translators ran, `kid_comparison`, of the images and the judge that
    lie in the run: into `fidelity/CELL.csv` and `CELL_kid.csv`, unless they are there from the same inputs.

    Parameters
    ----------
    folder : of the run
    methods : those whose images were made, see `lib.fidelity.synthesis.METHODS`
    phantom : what the cohort was drawn from, None: real radiographs
    inception : as in `lib.fidelity.distances.spaces`
    """
    name, homes = fold_name(*cell), _sets(folder, cell, methods)
    weights = Path(folder, "judge", name, "judge.safetensors")
    inputs = {method: json.loads((home / INPUTS).read_text(encoding="utf-8")) for method, home in homes.items()}
    inputs |= {"judge": hashlib.sha256(weights.read_bytes()).hexdigest()[:16], "phantom": repr(phantom)}
    training, validation, test = parts = [cohort.part(splits, *cell, part) for part in PARTS]
    inputs |= {"inception": inception, "images": [*map(cohort_hashes, parts)]}
    inputs |= {"code": name_of(measure_fold), "source": source_hash(measure_fold)}
    if (file := from_root(inception)).is_file():
        inputs |= {"inception_sha256": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}
    text, place = json.dumps(inputs, indent=1), Path(folder, "fidelity")
    if (known := place / f"{name}.json").exists():
        if (there := known.read_text(encoding="utf-8")) == text:
            return
        unlike, files = differences(json.loads(there), inputs), (f"{name}.csv", f"{name}_kid.csv", f"{name}.json")
        set_aside(place, files, unlike, {})
    images, judge = {method: Cohort.load(home) for method, home in homes.items()}, Judge.load(weights.parent)
    noise, counterfactual = images.pop("noise", None), phantom.counterfactual(test) if phantom else None
    table = fidelity_table(images, training, validation, test, judge, counterfactual, noise, inception)
    tables = {f"{name}.csv": table}
    if len(images) == len(TRANSLATORS):
        tables[f"{name}_kid.csv"] = kid_comparison(images, test, judge, "cyclediff", "cyclegan")
    repeat, fold = cell
    texts = {file: table.assign(repeat=repeat, fold=fold).to_csv(index=False) for file, table in tables.items()}
    write_together(place, texts | {f"{name}.json": text})


def closer_by_space(fidelity: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Which of two methods has the lower KID in each feature space, and whether the spaces agree.

    Parameters
    ----------
    fidelity : `method, direction, features, metric, value`; means over cells are compared

    Returns
    -------
    DataFrame, one row a direction: a column a space with the method that is closer, and `agree`
    """
    values = fidelity[(fidelity.metric == "kid") & fidelity.method.isin([a, b])]
    means = values.pivot_table(index="direction", columns=["features", "method"], values="value", sort=False)
    found = means.columns.unique("features")
    table = pd.DataFrame({space: means[space].idxmin(axis=1) for space in found})
    return table.assign(agree=table.nunique(axis=1) == 1)


def kid_comparison(translated: dict[str, Cohort], test: Cohort, judge: Judge, a: str, b: str) -> pd.DataFrame:
    """Is one method's KID lower than another's on the same source images? A row a direction, permuting source patients.

    Columns are those of `statistics/comparisons.csv`, question RQ1, without the adjusted p.
    """
    rows = []
    for to, direction in DIRECTIONS.items():
        one, other = (translated[method].select(label=to) for method in (a, b))
        reference = test.select(label=to)
        features = [judge.features(cohort.pixels) for cohort in (one, other, reference)]
        result = kid_permutation_test(
            *features, one.table.patient_id, reference_patients=reference.table.patient_id.to_numpy()
        )
        rows.append(
            {"question": "RQ1", "metric": f"kid {direction}", "a": a, "b": b, "n": result.n,
             "patients": result.patients,
             "difference": result.difference, "ci_low": result.ci_low, "ci_high": result.ci_high,
             "test": "permutation of source patients", "statistic": result.statistic, "p": result.p}
        )  # fmt: skip
    return pd.DataFrame(rows)
