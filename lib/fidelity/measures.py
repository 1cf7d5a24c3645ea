"""Fidelity: how well synthetic radiographs imitate real ones of their class, and how well each kept its source.

Every distance (`lib.fidelity.distances`) stands beside two references: `real`, validation images of the class, and
`source`, untranslated images. Distances other than KID, which is unbiased, compare equally many images.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score

from lib.data.cohort import Cohort
from lib.data.hashes import cohort_hashes, file_hash
from lib.data.pixels import blocks
from lib.fidelity import synthesis
from lib.fidelity.distances import Space, distances, inception_available, spaces
from lib.fidelity.judge import Judge, zones
from lib.run.checkpoints import differences, set_aside
from lib.run.files import from_root, write_text, write_together
from lib.run.fingerprint import name_of, source_hash
from lib.run.randomness import generator
from lib.run.tasks import Machines, Task, run_tasks
from lib.statistics.kid import kid, kid_jackknife, kid_permutation_test
from lib.study import Fold, Study
from lib.translators.methods import METHODS, NOISE
from lib.translators.training import WEIGHTS

DIRECTIONS = {"AFF": "NFF→AFF", "NFF": "AFF→NFF"}  # by the label translated to
COLUMNS = ("method", "repeat", "fold", "direction", "features", "metric", "value", "ci_low", "ci_high", "n")
KID_COLUMNS = ("question", "metric", "a", "b", "n", "patients", "difference", "ci_low", "ci_high", "test", "statistic",
               "p", "repeat", "fold")  # fmt: skip
TRYOUT_IMAGES = 64  # validation images that every variant of a sampler translates
OF_JUDGE = ("transfer", "neither", "transfer_blurred", "transfer_noised")  # measured by its eye, not in pixels


# Distances between distributions --------------------------------------------------------------------------------------


def subsample(images: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw n rows without repetition, or all where there are fewer; of equally long arrays the same rows."""
    return images[np.sort(generator(seed).permutation(len(images))[:n])]


def distance_rows(sets: dict[str, Cohort], reference: Cohort, found: dict[str, Space]) -> list[dict]:
    """Measure the distance of each set from the same real images, in each space: rows of the fidelity table.

    KID uses all n images of a set, with an interval from a jackknife over the patients of both sides. The other
    distances depend on n, so they use as many images of each set and of the reference as the smallest has. FID's rows
    also say in how many `dimensions` it was computed.
    """
    n = min(len(reference), *(len(cohort) for cohort in sets.values()))
    rows = []
    for name, space in found.items():
        real = space.features(reference.pixels)
        few_real = subsample(real, n, seed=n)
        dimensions = space.leading(few_real).shape[1]
        for method, cohort in sets.items():
            generated, what = space.features(cohort.pixels), {"method": method, "features": name}
            estimate = kid_jackknife(generated, real, cohort.table.patient_id, reference.table.patient_id)
            rows.append({**what, "metric": "kid", **estimate[["value", "ci_low", "ci_high"]], "n": len(cohort)})
            for metric, value in distances(subsample(generated, n, seed=n), few_real, space.leading).items():
                used = {"dimensions": dimensions} if metric.startswith("fid") else {}
                rows.append({**what, "metric": metric, "value": value, "n": n, **used})
    return rows


# What became of each image -------------------------------------------------------------------------------------------


def zone_rows(table: pd.DataFrame, height: int) -> np.ndarray:
    """Return (N, height): whether a row of pixels touches the image's fracture zone (`lib.fidelity.judge.zones`)."""
    top, bottom = zones(table).T[..., None] * height
    rows = np.arange(height)
    return (rows >= np.floor(top)) & (rows < np.ceil(bottom))


def ssim_by_zone(a: np.ndarray, b: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean structural similarity of image pairs, (N,) inside and (N,) outside the fracture zone.

    `a` and `b` are (N, H, W) integers of the same type. NaN where a zone leaves nothing inside or outside.
    """
    inside, outside = np.full((2, len(a)), np.nan)
    for i, zone in enumerate(zone_rows(table, a.shape[1])):
        similarity = structural_similarity(a[i], b[i], data_range=np.iinfo(a.dtype).max, full=True)[1]
        if zone.any():
            inside[i] = similarity[zone].mean()
        if not zone.all():
            outside[i] = similarity[~zone].mean()
    return inside, outside


def change_in_zone(a: np.ndarray, b: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Return (N,): the share of all change from b to a that lies in the fracture zone; NaN where nothing changed."""
    change = np.concatenate([abs(a[rows].astype(np.float32) - b[rows]).sum(2) for rows in blocks(len(a))])
    with np.errstate(invalid="ignore"):
        return (change * zone_rows(table, a.shape[1])).sum(1) / change.sum(1)


def mean_change(translated: Cohort, source: Cohort) -> float:
    """Return the mean absolute change of a pixel, in shares of the grey scale."""
    return abs(translated.pixels[:].astype(float) - source.pixels[:]).mean() / np.iinfo(source.pixels.dtype).max


def blurred(pixels: np.ndarray) -> np.ndarray:
    """Blur (N, H, W) pixels with σ = 1/128 of the height: too mild to hide a fracture."""
    sigma = max(pixels.shape[1] / 128, 0.5)  # less than half a pixel would be no blur
    soft = np.empty(pixels.shape, pixels.dtype)
    for image, sharp in zip(soft, pixels, strict=True):
        image[:] = np.rint(gaussian_filter(sharp.astype(np.float32), sigma))
    return soft


def noised(pixels: np.ndarray) -> np.ndarray:
    """Add noise of 2 % of the grey scale, always the same, to (N, H, W) pixels."""
    top, rng = np.iinfo(pixels.dtype).max, generator(len(pixels))
    noisy = np.empty(pixels.shape, pixels.dtype)
    for image, clean in zip(noisy, pixels, strict=True):
        image[:] = np.clip(np.rint(clean + rng.normal(0, 0.02 * top, clean.shape)), 0, top)
    return noisy


def mean_by_patient(values: np.ndarray, patients: pd.Series) -> dict:
    """Return the mean over images, without NaN, with a 95 % percentile interval from resampling patients."""
    yes_or_no, values = np.asarray(values).dtype == bool, np.asarray(values, float)
    keep = ~np.isnan(values)
    values, patients = values[keep], np.asarray(patients)[keep]
    if not len(values):
        return {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": 0}
    groups = pd.Series(values).groupby(patients)
    sums, counts = groups.sum().to_numpy(), groups.count().to_numpy()
    rows = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    means = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    if yes_or_no and low == high:  # none or all of them: Clopper and Pearson, patients as trials
        bound = 0.025 ** (1 / len(sums))
        low, high = (bound, 1.0) if values.all() else (0.0, 1 - bound)
    return {"value": values.mean(), "ci_low": low, "ci_high": high, "n": len(values)}


def image_rows(method: str, translated: Cohort, source: Cohort, judge: Judge, counterfactual: Cohort | None) -> list:
    """Measure what became of each translated image: rows of the fidelity table.

    `transfer` is the share that the judge takes for the class translated to, `neither` the share it takes for neither
    class. `transfer_blurred` and `transfer_noised` ask again after a mild blur and mild noise, which images that only
    please the judge do not survive (Chu et al. 2017, arXiv:1712.02950). `ssim_outside` compares with the source outside
    the fracture zone. `change_in_zone` is the share of all change inside it, to be read beside `zone_share`, the zone's
    share of the image. `counterfactual_inside` and `counterfactual_outside` are SSIM to the phantom's counterfactual.
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
    """Return `kid` on the judge's features and the metrics of `image_rows`, to compare settings of a method.

    `reference` are real images of the class translated to; the other cohorts hold the same images in the same order.
    """
    rows = image_rows("", translated, source, judge, counterfactual)
    distance = kid(judge.features(translated.pixels), judge.features(reference.pixels))
    return {"kid": distance} | {row["metric"]: row["value"] for row in rows}


def reconstruction(back: Cohort, images: Cohort, judge: Judge) -> dict[str, float]:
    """Measure what an autoencoder keeps of a fracture, on images of both labels.

    `error_inside`, `error_outside`: mean absolute difference inside and outside the fracture zone, in shares of the
    grey scale; `auroc`, `auroc_reconstructed`: how well the judge tells AFF from NFF before and after.
    """
    top, inside = np.iinfo(images.pixels.dtype).max, zone_rows(images.table, images.size)
    by_row = [
        (abs(back.pixels[rows].astype(np.float32) - images.pixels[rows]) / top).mean(2) for rows in blocks(len(images))
    ]
    by_row = np.concatenate(by_row)
    found = {"error_inside": by_row[inside].mean(), "error_outside": by_row[~inside].mean()}
    for name, cohort in {"auroc": images, "auroc_reconstructed": back}.items():
        probabilities = judge.probabilities(cohort.pixels)
        found[name] = roc_auc_score(images.targets, probabilities[:, 1] - probabilities[:, 0])
    return found


class Tryout:
    """Lets variants of a model translate a fold's validation images from NFF to AFF, from noise of one seed."""

    def __init__(self, fold: Fold, judge: Judge, seed: int):
        validation, phantom = fold.validation, fold.phantom
        self.source = validation.select(label="NFF").first(TRYOUT_IMAGES)
        self.reference = validation.select(label="AFF")
        self.counterfactual = phantom.counterfactual(self.source) if phantom else None
        self.judge, self.seed = judge, seed

    def measure(self, model) -> dict[str, float]:
        """Translate the images; return `seconds` per image and what `at_a_glance` measures."""
        started = time.perf_counter()
        translated = model.translate(self.source, "AFF", seed=self.seed)
        seconds = (time.perf_counter() - started) / len(self.source)
        measured = at_a_glance(translated, self.source, self.reference, self.judge, self.counterfactual)
        return {"seconds": seconds, **measured}

    def table(self, model, variants: Sequence[dict[str, object]]) -> pd.DataFrame:
        """Measure a model with each variant of its sampler: the variant's fields, then what was measured."""
        return pd.DataFrame([variant | self.measure(model.with_sampler(**variant)) for variant in variants])

    def compare(self, models: Mapping[tuple, object], names: Sequence[str]) -> pd.DataFrame:
        """Measure several models; the parts of their keys stand in the columns `names`."""
        return pd.DataFrame([dict(zip(names, key, strict=True)) | self.measure(models[key]) for key in models])


# Tables --------------------------------------------------------------------------------------------------------------


def fidelity_table(
    fold: Fold, translated: dict[str, Cohort], judge: Judge, noise: Cohort | None = None, inception: str = "none"
) -> pd.DataFrame:
    """Measure one fold's fidelity in both directions: `COLUMNS` and `dimensions`, see `distance_rows`.

    `translated` holds, by method, the test images translated both ways (`lib.fidelity.synthesis.translate_test`).
    `noise` has no source, so only distances and the judge's verdicts are measured. Beside the methods stand `source`,
    `counterfactual`, a perfect translation on the phantom, and `real`: its distances are those of validation images,
    for the judge has fitted the training part, and its verdicts are on test images.
    """
    training, validation, test = fold.parts
    found, rows, test = spaces(judge, training, inception), [], judge.with_zones(test)
    for to, direction in DIRECTIONS.items():
        source, reference = test.take(test.table.label != to), test.select(label=to)
        outputs = {method: cohort.select(label=to) for method, cohort in translated.items()}
        sets = {"real": validation.select(label=to), "source": source, **outputs}
        if noise is not None and to == "AFF":
            sets[NOISE] = noise
        compared, other = {"source": Cohort(source.table.assign(label=to), source.pixels), **outputs}, None
        if fold.phantom:
            compared["counterfactual"] = other = fold.phantom.counterfactual(source)
        of_direction = distance_rows(sets, reference, found)
        for method, cohort in compared.items():
            of_direction += image_rows(method, cohort, source, judge, other)
        for method, cohort in {"real": reference, NOISE: sets.get(NOISE)}.items():
            if cohort is not None:
                of_images = image_rows(method, cohort, cohort, judge, None)
                of_direction += [row for row in of_images if row["features"] == "judge"]
        rows += [{**row, **fold.key, "direction": direction} for row in of_direction]
    return pd.DataFrame(rows)[[*COLUMNS, "dimensions"]].astype({"dimensions": "Int64"})


def measure_folds(study: Study, inception: str, machines: Machines) -> pd.DataFrame:
    """Measure the images of every fold, write `fidelity.csv` and return it, with the `dimensions` of FID.

    Features of `inception` are left out where its weights are not available (`inception_available`).
    """
    available = inception_available(inception)
    study.run.record("weights", inception=available or "not used")
    inception, tasks = inception if available else "none", {}
    for fold in study.folds:
        inputs = [home / synthesis.INPUTS for home in _homes(fold).values()]
        needs = (fold.folder("judge") / WEIGHTS, *inputs, from_root(inception))
        result = study.run / "fidelity" / f"{fold.name}.json"
        tasks[fold.name] = Task(partial(measure_fold, fold, inception), result, needs)
    run_tasks(tasks, study.run / "fidelity" / "tasks", machines)
    files = [study.run / "fidelity" / f"{name}.csv" for name in tasks]
    table = pd.concat([pd.read_csv(file, dtype={"dimensions": "Int64"}) for file in files], ignore_index=True)
    write_text(study.run / "fidelity.csv", table[list(COLUMNS)].to_csv(index=False))
    return table


def _homes(fold: Fold) -> dict[str, Path]:
    """Return the folders of what is measured: translated test images, and AFF images from noise."""
    homes = synthesis.sets(fold)
    return {name: home if name == NOISE else home / "test" for name, home in homes.items() if name in (*METHODS, NOISE)}


def measure_fold(fold: Fold, inception: str) -> None:
    """Measure a fold's images, into `fidelity/FOLD.csv` and `FOLD_kid.csv`, unless `FOLD.json` has the same inputs."""
    homes, judge = _homes(fold), fold.folder("judge")
    inputs = {name: json.loads((home / synthesis.INPUTS).read_text(encoding="utf-8")) for name, home in homes.items()}
    inputs |= {"judge": file_hash(judge / WEIGHTS), "phantom": repr(fold.phantom)}
    inputs |= {"inception": inception, "images": [*map(cohort_hashes, fold.parts)]}
    inputs |= {"code": name_of(measure_fold), "source": source_hash(measure_fold)}
    if (file := from_root(inception)).is_file():
        inputs |= {"inception_sha256": file_hash(file)}
    text, place = json.dumps(inputs, indent=1), fold.run / "fidelity"
    if (known := place / f"{fold.name}.json").exists():
        if (there := known.read_text(encoding="utf-8")) == text:
            return
        files = (f"{fold.name}.csv", f"{fold.name}_kid.csv", f"{fold.name}.json")
        set_aside(place, files, differences(json.loads(there), inputs), {})
    images, judge = {name: Cohort.load(home) for name, home in homes.items()}, Judge.load(judge)
    noise = images.pop(NOISE, None)
    tables = {".csv": fidelity_table(fold, images, judge, noise, inception)}
    tables["_kid.csv"] = kid_comparisons(fold, images, judge)
    texts = {fold.name + end: table.to_csv(index=False) for end, table in tables.items()}
    write_together(place, texts | {f"{fold.name}.json": text})


def kid_comparisons(fold: Fold, translated: dict[str, Cohort], judge: Judge) -> pd.DataFrame:
    """Compare the KID of each two methods on the same source images, a row a direction, permuting source patients.

    The columns are `KID_COLUMNS`; `a` is the later of the two in `METHODS`.
    """
    test, rows = fold.test, []
    for b, a in combinations([method for method in METHODS if method in translated], 2):
        for to, direction in DIRECTIONS.items():
            one, other = (translated[method].select(label=to) for method in (a, b))
            reference = test.select(label=to)
            features = [judge.features(cohort.pixels) for cohort in (one, other, reference)]
            result = kid_permutation_test(
                *features, one.table.patient_id, reference_patients=reference.table.patient_id.to_numpy()
            )
            asked = {"question": "RQ1", "metric": f"kid {direction}", "a": a, "b": b}
            rows.append({**asked, **result, "test": "permutation of source patients", **fold.key})
    return pd.DataFrame(rows, columns=KID_COLUMNS)


def kid_tests(study: Study) -> pd.DataFrame:
    """Read the `kid_comparisons` of all folds; no rows where fewer than two translators ran."""
    files = [study.run.require(f"fidelity/{fold.name}_kid.csv", "04_synthesis") for fold in study.folds]
    return pd.concat(map(pd.read_csv, files), ignore_index=True)


def closer_by_space(fidelity: pd.DataFrame, *methods: str) -> pd.DataFrame:
    """Name the method of lowest mean KID over folds, a row a direction, a column a feature space.

    The column `agree` says whether all spaces name the same. Without `methods` all translators are compared.
    """
    values = fidelity[(fidelity.metric == "kid") & fidelity.method.isin(methods or METHODS)]
    means = values.pivot_table(index="direction", columns=["features", "method"], values="value", sort=False)
    table = pd.DataFrame({space: means[space].idxmin(axis=1) for space in means.columns.unique("features")})
    return table.assign(agree=table.nunique(axis=1) == 1)
