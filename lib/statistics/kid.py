"""KID: does one generator's output lie closer to real images than another's?

The kernel inception distance: unbiased MMD² with k(x, y) = (xᵀy/d + 1)³. Bińkowski et al. 2018, arXiv:1801.01401, on
all pairs instead of random subsets. It may be negative.
"""

import numpy as np
import pandas as pd
from scipy import stats


def kid(X, Y) -> float:
    """Return the KID of (n, d) and (m, d) features of two image sets, n, m ≥ 2."""
    X, Y = _features(X, Y)
    return float(_mmd(*(K.sum() for K in _kernels(X, Y)), len(X), len(Y)))


def kid_jackknife(X, Y, x_patients, y_patients) -> pd.Series:
    """Return KID with a 95 % interval from leaving out one patient at a time.

    A bootstrap would draw rows twice, and duplicates bias MMD upward. A patient of both sets leaves both at once; the
    patient of a synthetic image is that of its source. Series `value, ci_low, ci_high, standard_error, patients`.
    """
    value, left_out = _leave_one_out(*_features(X, Y), x_patients, y_patients)
    return pd.Series({"value": value, **_jackknife(value, left_out), "patients": len(left_out)})


def kid_permutation_test(
    a, b, reference, patients, permutations: int = 9999, seed: int = 0, reference_patients=None
) -> pd.Series:
    """Test T = KID(a, reference) − KID(b, reference) by swapping a and b for half of the source patients.

    Row i of a and of b was made from the same source image; all images of a patient are swapped together. The p-value
    is exact for these two trained generators; it says nothing of another training of the same methods.

    Parameters
    ----------
    a, b, reference : (n, d), (n, d) and (m, d) features of the two generators' images and of held-out real ones
    patients : (n,) the patient of each source image
    reference_patients : (m,) the patient of each real image, for the interval; by default one patient an image

    Returns
    -------
    Series `difference` (negative: a is closer), `ci_low, ci_high` (95 %, jackknife over source and reference
    patients), `statistic` (T), `p` = (1 + #{|T*| ≥ |T|}) / (1 + permutations), `standard_error, n, patients`
    """
    a, reference = _features(a, reference)
    b, _ = _features(b, reference)
    if a.shape != b.shape or len(patients) != len(a):
        raise ValueError(f"a {a.shape}, b {b.shape} and {len(patients)} patients must be of the same source images")
    if reference_patients is None:
        reference_patients = [f"reference {i}" for i in range(len(reference))]
    kid_a, left_out_a = _leave_one_out(a, reference, patients, reference_patients)
    kid_b, left_out_b = _leave_one_out(b, reference, patients, reference_patients)
    T = kid_a - kid_b

    # Swapping is a sign per image, z = ±1. Of a pair of images i, j the difference k(a*ᵢ, a*ⱼ) − k(b*ᵢ, b*ⱼ) is linear
    # in the signs, zᵢ (kaa − kbb + kab − kba)ᵢⱼ / 2 + the same of j, so that T* = Σ zᵢ wᵢ.
    n = len(a)
    paired = _kernel(a, a) - _kernel(b, b) + _kernel(a, b) - _kernel(b, a)
    np.fill_diagonal(paired, 0)
    w = paired.sum(1) / (n * (n - 1)) - 2 * (_kernel(a, reference) - _kernel(b, reference)).mean(1) / n
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    w = np.bincount(patient, w)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (permutations, len(w)))
    extreme = np.abs(signs @ w) >= abs(T) * (1 - 1e-9) - 1e-15
    p = (1 + extreme.sum()) / (1 + permutations)
    interval = _jackknife(T, left_out_a - left_out_b)
    return pd.Series({"difference": T, **interval, "statistic": T, "p": p, "n": n, "patients": len(w)})


def _features(X, Y) -> tuple[np.ndarray, np.ndarray]:
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or min(len(X), len(Y)) < 2:
        raise ValueError(f"KID needs (n, d) and (m, d) features of at least two images each, not {X.shape}, {Y.shape}")
    return X, Y


def _kernel(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return (X @ Y.T / X.shape[1] + 1) ** 3


def _mmd(xx, yy, xy, n, m):
    """Return unbiased MMD² from sums of the kernel over pairs of different images of X, of Y, and of one of each."""
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _kernels(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the kernel within X, within Y (of an image with itself: 0), and between them."""
    Kxx, Kyy, Kxy = _kernel(X, X), _kernel(Y, Y), _kernel(X, Y)
    np.fill_diagonal(Kxx, 0)
    np.fill_diagonal(Kyy, 0)
    return Kxx, Kyy, Kxy


def _leave_one_out(X, Y, x_patients, y_patients) -> tuple[float, np.ndarray]:
    """Return KID, and KID without each patient in turn (patients in sorted order).

    The latter are missing where only one image would be left of a set: so few patients allow no interval.
    """
    if len(x_patients) != len(X) or len(y_patients) != len(Y):
        raise ValueError(f"{len(X)} and {len(Y)} images, but patients of {len(x_patients)} and {len(y_patients)}")
    patients, index = np.unique([*map(str, x_patients), *map(str, y_patients)], return_inverse=True)
    of_x, of_y = (np.equal.outer(np.arange(len(patients)), i).astype(float) for i in np.split(index, [len(X)]))
    n, m = len(X) - of_x.sum(1), len(Y) - of_y.sum(1)
    if min(n.min(), m.min()) < 2:
        return kid(X, Y), np.full(len(patients), np.nan)
    Kxx, Kyy, Kxy = _kernels(X, Y)
    xx = Kxx.sum() - 2 * of_x @ Kxx.sum(1) + ((of_x @ Kxx) * of_x).sum(1)
    yy = Kyy.sum() - 2 * of_y @ Kyy.sum(1) + ((of_y @ Kyy) * of_y).sum(1)
    xy = Kxy.sum() - of_x @ Kxy.sum(1) - of_y @ Kxy.sum(0) + ((of_x @ Kxy) * of_y).sum(1)
    return kid(X, Y), _mmd(xx, yy, xy, n, m)


def _jackknife(value: float, left_out: np.ndarray) -> dict[str, float]:
    """Return the standard error and a 95 % interval of a value, from the values without each patient."""
    standard_error = float(np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - value) ** 2).sum()))
    wide = stats.norm.ppf(0.975) * standard_error
    return {"ci_low": value - wide, "ci_high": value + wide, "standard_error": standard_error}
