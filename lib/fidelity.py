"""Fidelity: how well synthetic radiographs imitate real ones of their class, and how well each kept its source.

Distances between distributions (KID, FID, precision, recall) come from torch-fidelity on the features of a judge
(`lib.judge`) of one-channel radiographs, and on Inception's where its weights are at hand. Every value stands beside
two references at the same number of images: `real`, validation images of the class, and `source`, untranslated images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch_fidelity
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from lib.cohort import LABELS, Cohort
from lib.judge import Judge, zones
from lib.runs import from_root
from lib.statistics import kid, kid_jackknife, kid_permutation_test
from lib.training import generator

DIRECTIONS = {"AFF": "NFF→AFF", "NFF": "AFF→NFF"}  # by the label translated to
DISTANCES = {
    "kid": "kernel_inception_distance_mean",
    "fid": "frechet_inception_distance",
    "precision": "precision",
    "recall": "recall",
}


# Features ------------------------------------------------------------------------------------------------------------


class JudgeFeatures(FeatureExtractorBase):
    """torch-fidelity's view of a judge: (B, 1, H, W) float32 in [-1, 1] to (B, features)."""

    def __init__(self, name, features_list, judge_folder: str, **kwargs):
        super().__init__(name, features_list)
        self.network = Judge.load(Path(judge_folder)).network

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pooled",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "pooled"

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.network.features(images).float(),)


def register_judge() -> None:
    """Make "judge" known to torch-fidelity; calling it again does nothing."""
    if "judge" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor("judge", JudgeFeatures)


class Images(Dataset):
    """A cohort's images as torch-fidelity wants them: float for the judge, grey 8-bit RGB for Inception."""

    def __init__(self, cohort: Cohort, rgb: bool):
        if rgb:
            self.images = torch.from_numpy(np.rint((cohort.images() + 1) * 127.5).astype(np.uint8)).expand(
                -1, 3, -1, -1
            )
        else:
            self.images = torch.from_numpy(cohort.images())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.images[row]


def inception_available(weights: str) -> str:
    """What can be said of Inception's weights: "" where they are not wanted or cannot be had (which is printed).

    Parameters
    ----------
    weights : "none", "download" (torch-fidelity's usual address), or the path of the weights file
    """
    if weights == "none":
        return ""
    path = None if weights == "download" else str(from_root(weights))
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"inception_weights {weights!r}: no such file; give its path, 'download' or 'none'")
    try:
        torch_fidelity.utils.create_feature_extractor(
            "inception-v3-compat", ["2048"], cuda=False, verbose=False, feature_extractor_weights_path=path
        )
    except (OSError, RuntimeError) as error:
        print(f"Inception's weights could not be had ({error}): distances are computed on the judge's features alone.")
        return ""
    return "inception-v3-compat" + (f" from {Path(path).name}" if path else "")


# Distances between distributions -------------------------------------------------------------------------------------


def distances(generated: Cohort, reference: Cohort, features: str, judge_folder: Path, inception: str = "none") -> dict:
    """KID, FID, precision and recall of generated against real images.

    With as many generated as real images KID takes all pairs (one subset of all): the unbiased estimate, without subset
    noise. FID of n images in d dimensions is biased upward, the more the smaller n: compare it with the references at
    the same n only. Precision and recall need four images, else they are missing.
    """
    register_judge()
    judged = features == "judge"
    n = min(len(generated), len(reference))
    extractor = {"feature_extractor": "judge", "judge_folder": str(judge_folder)}
    if not judged:
        extractor = {"feature_extractor": "inception-v3-compat"}
        if inception != "download":
            extractor["feature_extractor_weights_path"] = str(from_root(inception))
    values = torch_fidelity.calculate_metrics(
        input1=Images(generated, not judged), input2=Images(reference, not judged), cuda=torch.cuda.is_available(),
        kid=True, fid=True, prc=n > 3, kid_subsets=1, kid_subset_size=n, save_cpu_ram=True, cache=False, verbose=False,
        **extractor,
    )  # fmt: skip
    return {name: float(values.get(key, np.nan)) for name, key in DISTANCES.items()}


def subsample(cohort: Cohort, n: int, seed: int) -> Cohort:
    """n images drawn without repetition, or all where there are fewer."""
    return cohort.take(np.sort(generator(seed).permutation(len(cohort))[:n]))


def distance_rows(
    sets: dict[str, Cohort], reference: Cohort, judge_folder: Path, features: str, inception: str
) -> list:
    """Rows of the fidelity table: each set against the same real test images, at the same number of images.

    KID's interval is a jackknife over patients (of both sides), on the judge's features.
    """
    n = min(len(reference), *(len(cohort) for cohort in sets.values()))
    judge, rows = Judge.load(judge_folder), []
    reference = subsample(reference, n, seed=n)
    reference_features = judge.features(reference.pixels)
    for method, cohort in sets.items():
        cohort = subsample(cohort, n, seed=n)
        for metric, value in distances(cohort, reference, features, judge_folder, inception).items():
            row = {"method": method, "features": features, "metric": metric, "value": value, "n": n}
            if metric == "kid" and features == "judge":
                patients = cohort.table.patient_id, reference.table.patient_id
                interval = kid_jackknife(judge.features(cohort.pixels), reference_features, *patients)
                row |= {"ci_low": interval.ci_low, "ci_high": interval.ci_high}
            rows.append(row)
    return rows


# What became of each image -------------------------------------------------------------------------------------------


def zone_rows(table: pd.DataFrame, height: int) -> np.ndarray:
    """(N, height) whether a row of pixels touches the image's fracture zone (`lib.judge.zones`)."""
    top, bottom = zones(table).T[..., None] * height
    rows = np.arange(height)
    return (rows >= np.floor(top)) & (rows < np.ceil(bottom))


def ssim_by_zone(a: np.ndarray, b: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mean structural similarity of image pairs inside and outside the fracture zone.

    Parameters
    ----------
    a, b : (N, H, W) integer pixels of the same type
    table : N rows; `zone_top`, `zone_bottom` where the cohort has them (see `lib.judge.zones`)

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
    fracture at all; `ssim_outside` compares with the source outside the fracture zone; `counterfactual_inside` and
    `counterfactual_outside` with the phantom's rendering of the same patient with the other fracture.
    """
    to, patients = translated.table.label.iloc[0], source.table.patient_id
    verdicts = judge.verdicts(translated.pixels)
    values = {"transfer": verdicts == to, "neither": verdicts == "neither"}
    values["ssim_outside"] = ssim_by_zone(translated.pixels, source.pixels, source.table)[1]
    if counterfactual is not None:
        inside, outside = ssim_by_zone(translated.pixels, counterfactual.pixels, source.table)
        values |= {"counterfactual_inside": inside, "counterfactual_outside": outside}
    return [
        {"method": method, "features": "judge" if metric in ("transfer", "neither") else "pixels", "metric": metric,
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
    difference = abs(back.pixels.astype(np.float32) - images.pixels) / np.iinfo(images.pixels.dtype).max
    inside, by_row = zone_rows(images.table, images.size), difference.mean(2)

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
    validation: Cohort,
    test: Cohort,
    judge_folder: Path,
    counterfactual: Cohort | None = None,
    noise: Cohort | None = None,
    inception: str = "none",
) -> pd.DataFrame:
    """One cell's fidelity, both directions.

    Parameters
    ----------
    translated : by method, the test images translated both ways (`lib.synthesis.both_ways`)
    validation, test : the cell's real images; not those of the training part, which the judge has fitted
    counterfactual : the test images with the other fracture, on the phantom
    noise : AFF images sampled from noise: they have no source, so only their distances are measured

    Returns
    -------
    DataFrame `method, direction, features, metric, value, ci_low, ci_high, n`; methods also `real`, `source` and,
        on the phantom, `counterfactual`: what the metrics of single images say of a perfect translation
    """
    judge, rows = Judge.load(judge_folder), []
    for to, direction in DIRECTIONS.items():
        away = next(label for label in LABELS if label != to)
        source, reference = test.select(label=away), test.select(label=to)
        outputs = {method: cohort.select(label=to) for method, cohort in translated.items()}
        sets = {"real": validation.select(label=to), "source": source, **outputs}
        if noise is not None and to == "AFF":
            sets["noise"] = noise
        found = []
        for features in ("judge", "inception") if inception != "none" else ("judge",):
            found += distance_rows(sets, reference, judge_folder, features, inception)
        other = None if counterfactual is None else counterfactual.select(label=to)
        untranslated = Cohort(source.table.assign(label=to), source.pixels)
        compared = {"source": untranslated, **outputs}
        if other is not None:
            compared["counterfactual"] = other
        for method, cohort in compared.items():
            found += image_rows(method, cohort, source, judge, other)
        for method, cohort in {"real": reference, "noise": sets.get("noise")}.items():
            if cohort is not None:
                found += [row for row in image_rows(method, cohort, cohort, judge, None) if row["features"] == "judge"]
        rows += [{**row, "direction": direction} for row in found]
    columns = ["method", "direction", "features", "metric", "value", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows)[columns]


def kid_comparison(translated: dict[str, Cohort], test: Cohort, judge_folder: Path, a: str, b: str) -> pd.DataFrame:
    """Is one method's KID lower than another's on the same source images? A row a direction, permuting source patients.

    Columns are those of `statistics/comparisons.csv`, question RQ1, without the adjusted p.
    """
    judge, rows = Judge.load(judge_folder), []
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
