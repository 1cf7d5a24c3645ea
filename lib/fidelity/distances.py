"""Distances between two sets of images, in more than one feature space: KID, FID, precision, recall, density, coverage.

A feature space turns (N, H, W) integer pixels into (N, d) numbers. Distances miss what their space cannot see, so
there are always two spaces, of different kinds (`spaces`), and a third where Inception's weights are at hand. FID uses
a space's leading directions alone, for it means nothing where there are as many dimensions as images.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from torch.nn.functional import interpolate

from lib.data.cohort import Cohort
from lib.data.images import Images
from lib.data.pixels import BLOCK, OnDisk
from lib.fidelity.judge import Judge
from lib.run.files import from_root
from lib.run.randomness import generator
from lib.run.weights import read_weights

NEIGHBOURS = 5  # of density and coverage; precision and recall have 3, their paper's
COMPONENTS = 64  # of the principal components, as many as the judge has features
FID_COMPONENTS = 16  # dimensions of FID: its extrapolation needs twice as many images, and AFF are few
FID_IMAGES = 64  # a dimension: FID of two samples of one distribution is then about 1 % of its total variance


# Feature spaces ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """Holds what turns images into features, and features into the few dimensions that FID uses."""

    features: Callable[[np.ndarray], np.ndarray]  # (N, H, W) integer pixels → (N, d)
    leading: Callable[[np.ndarray], np.ndarray]  # (N, d) → (N, k): most variance in the training part first, k ≤ 16


def spaces(judge: Judge, training: Cohort, inception: str = "none") -> dict[str, Space]:
    """Return the feature spaces of a fold, by name.

    `judge` sees fractures and little else. `pca`, the principal components of the training images, sees exposure, pose
    and anatomy, and hardly a thin line. `inception` is left out where it is "none", see `inception_available`.
    """

    def space(features):
        return Space(features, leading(features(training.pixels)))

    pca = Space(principal_components(training), lambda features: features[:, :FID_COMPONENTS])  # in order already
    found = {"judge": space(judge.features), "pca": pca}
    return found if inception == "none" else found | {"inception": space(inception_features(inception))}


def leading(features: np.ndarray, components: int = FID_COMPONENTS) -> Callable[[np.ndarray], np.ndarray]:
    """Fit the projection of (N, d) features on `components` or fewer principal components, not rescaled."""
    n, d = features.shape
    return PCA(min(components, d, n - 1), svd_solver="full").fit(np.asarray(features, np.float64)).transform


def principal_components(training: Cohort) -> Callable[[np.ndarray], np.ndarray]:
    """Fit the first principal components of images of at most 32 × 32 pixels, each of variance 1 in training."""

    def thumbnails(pixels):
        return shrunk(pixels, 32).reshape(len(pixels), -1)

    components = min(COMPONENTS, len(training) - 1)
    fitted = PCA(components, whiten=True, svd_solver="full").fit(thumbnails(training.pixels))
    return lambda pixels: fitted.transform(thumbnails(pixels))


def shrunk(pixels: np.ndarray | OnDisk, most: int) -> np.ndarray:
    """Shrink (N, H, W) integers to (N, side, side) float32 in [-1, 1], at most `most` pixels a side, by averaging."""
    side = min(most, pixels.shape[-1])
    batches = Images(pixels).split(BLOCK)
    return torch.cat([interpolate(x, (side, side), mode="bilinear", antialias=True)[:, 0] for x in batches]).numpy()


def inception_available(weights: str) -> str:
    """Describe Inception's weights: "" where they are not wanted, or cannot be loaded, which is printed.

    `weights` is "none", "download" (from torch-fidelity's usual address), or the path of a safetensors file.
    """
    if weights == "none":
        return ""
    try:
        _inception(weights)
    except (OSError, RuntimeError) as error:
        print(f"Inception's weights could not be had ({error}): distances are those of judge and pca alone.")
        return ""
    return "inception-v3-compat" + (f" from {from_root(weights).name}" if weights != "download" else "")


def _inception(weights: str) -> torch.nn.Module:
    import torch_fidelity  # here and below, since it takes seconds

    with tempfile.TemporaryDirectory() as folder:
        path = None
        if weights != "download":  # torch-fidelity opens any pickle, and nothing else: it gets one of plain tensors
            path = str(Path(folder, "inception.pth"))
            torch.save(read_weights(weights, "inception_weights"), path)
        return torch_fidelity.utils.create_feature_extractor(
            "inception-v3-compat",
            ["2048"],
            cuda=torch.cuda.is_available(),
            verbose=False,
            feature_extractor_weights_path=path,
        )


def inception_features(weights: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that computes Inception's 2048 features of grey images, repeated to RGB of 8 bits."""
    network = _inception(weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    @torch.inference_mode()
    def features(pixels):
        batches = []
        for images in Images(pixels).split(64):
            grey = ((images + 1) * 127.5).round().to(torch.uint8)
            batches.append(network(grey.expand(-1, 3, -1, -1).to(device))[0].cpu())
        return torch.cat(batches).numpy()

    return features


# Distances -----------------------------------------------------------------------------------------------------------


def distances(generated: np.ndarray, real: np.ndarray, leading: Callable = np.asarray) -> dict[str, float]:
    """Measure the distances of (n, d) generated from (m, d) real features that depend on n and m.

    Compare values of the same n and m only: `fid` is biased upward, more with fewer images or more dimensions, and
    `fid_infinity` corrects that as far as a straight line in 1/n can. Both use what `leading` returns (`Space`).
    `precision` and `recall` (Kynkäänniemi et al. 2019, arXiv:1904.06991), and `density` and `coverage`
    (`density_coverage`), use all d dimensions and are NaN where there are too few images.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    few = leading(generated), leading(real)
    found = {"fid": fid(*few), "fid_infinity": fid_infinity(*few), "precision": np.nan, "recall": np.nan}
    if min(len(generated), len(real)) > 3:
        values = prc_features_to_metric(_tensor(generated), _tensor(real), verbose=False)
        found |= {name: float(values[name]) for name in ("precision", "recall")}
    return found | density_coverage(generated, real)


def _tensor(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(features, np.float64))


def fid(X: np.ndarray, Y: np.ndarray) -> float:
    """Return the Fréchet distance of two normal distributions, ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = (fid_features_to_statistics(_tensor(features)) for features in (X, Y))
    return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def fid_infinity(X: np.ndarray, Y: np.ndarray) -> float:
    """Extrapolate FID to infinitely many images: the intercept of FID against 1/n.

    Chong & Forsyth 2020, arXiv:1911.07023. Both sets shrink together, from n to d images. NaN where n < 2d, for there
    FID is no straight line in 1/n.
    """
    n, d = min(len(X), len(Y)), X.shape[1]
    if n < 2 * d:
        return np.nan
    ns, rng = np.unique(np.geomspace(d, n, 6).round().astype(int)), generator(n, d)
    values = [
        np.mean([fid(X[rng.permutation(len(X))[:size]], Y[rng.permutation(len(Y))[:size]]) for _ in range(16)])
        for size in ns
    ]
    return float(np.polyfit(1 / ns, values, 1)[1])


def fid_warning(n: int, dimensions: int) -> str:
    """Say what is wrong with the FID of n images in so many dimensions; "" where little is."""
    what = f"FID of {n} images in {dimensions} dimensions"
    if n <= dimensions:
        return f"{what}: the covariance is singular, the value means nothing."
    if n < 2 * dimensions:
        return f"{what} is biased upward, and they are too few to extrapolate: read it beside real and source only."
    if n < FID_IMAGES * dimensions:
        return f"{what} is biased upward: read it beside real and source, and beside fid_infinity."
    return ""


def density_coverage(generated: np.ndarray, real: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """Return density and coverage of generated images among the k-nearest-neighbour balls of real ones.

    Naeem et al. 2020, arXiv:2002.09797, eq. 3 and 4, of M generated features y and N real ones x:
    density = (1/kM) Σⱼ Σᵢ 1[yⱼ ∈ B(xᵢ, NNₖ(xᵢ))], unbounded, expected 1 where both are alike;
    coverage = (1/N) Σᵢ 1[∃j: yⱼ ∈ B(xᵢ, NNₖ(xᵢ))], then expected about 1 − 2⁻ᵏ. Both are NaN where N ≤ k.
    """
    if len(real) <= k:
        return {"density": np.nan, "coverage": np.nan}
    radius = np.sort(cdist(real, real), axis=1)[:, k]  # the first is the distance to itself
    inside = cdist(real, generated) <= radius[:, None]
    return {"density": float(inside.sum() / (k * len(generated))), "coverage": float(inside.any(1).mean())}
