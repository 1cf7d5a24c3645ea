"""Distances: known answers, brute force, and what torch-fidelity and scikit-learn say of the same numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from lib.data.phantom import Phantom
from lib.fidelity.distances import (
    FID_COMPONENTS,
    density_coverage,
    distances,
    fid,
    fid_infinity,
    fid_warning,
    inception_available,
    leading,
    principal_components,
    spaces,
)
from lib.fidelity.judge import Judge
from lib.statistics.kid import kid


def normal(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def test_fid_of_two_known_normal_distributions_is_10():
    """‖(1, 2)‖² + tr(I + diag(4, 9) − 2 diag(2, 3)) = 5 + 2 + 13 − 10."""
    one = {"mu": np.zeros(2), "sigma": np.eye(2)}
    other = {"mu": np.array([1.0, 2.0]), "sigma": np.diag([4.0, 9.0])}
    value = fid_statistics_to_metric(one, other, verbose=False)["frechet_inception_distance"]
    assert value == pytest.approx(10)
    X, Y = normal(200_000, 2, 0), normal(200_000, 2, 1) * [2, 3] + [1, 2]
    assert fid(X, Y) == pytest.approx(10, abs=0.1)


def test_fid_of_the_same_distribution_is_far_from_0_and_its_extrapolation_is_not():
    X, Y = normal(400, 64, 0), normal(400, 64, 1)
    assert 4 < fid(X, Y) < 7
    assert abs(fid_infinity(X, Y)) < 0.15 * fid(X, Y)
    shifted = Y + 0.25  # the truth is 64 · 0.25² = 4
    assert fid_infinity(X, shifted) == pytest.approx(4, abs=0.8) and fid(X, shifted) > 8
    assert np.isnan(fid_infinity(X[:127], Y[:127]))


@pytest.mark.parametrize("n, nearer", [(60, 4), (36, 3)])
def test_fid_infinity_of_few_images_is_nearer_to_the_truth_than_fid(n, nearer):
    """At the numbers of a cell; the truth is 16 · (0.5² + (1.5 − 1)²) = 8, and 0 for the same distribution."""
    for shift, scale, truth in ((0.5, 1.5, 8), (0, 1, 0)):
        pairs = [(normal(n, 16, i), scale * normal(n, 16, 100 + i) + shift) for i in range(20)]
        plain, infinity = (np.array([of(X, Y) for X, Y in pairs]) for of in (fid, fid_infinity))
        assert abs(infinity - truth).mean() < abs(plain - truth).mean() / nearer
        assert abs(infinity.mean() - truth) < 1


def test_fid_warns_where_it_means_nothing_or_little():
    assert "singular" in fid_warning(16, 16) and "too few to extrapolate" in fid_warning(31, 16)
    assert "biased" in fid_warning(32, 16) and "too few" not in fid_warning(32, 16)
    assert fid_warning(5000, 64) == "" and "singular" in fid_warning(2048, 2048)
    X, Y = normal(1024, 16, 0), normal(1024, 16, 1)
    assert fid_warning(1024, 16) == "" and fid(X, Y) == pytest.approx(0.01 * 16, rel=0.2)


def test_kid_is_torch_fidelitys_on_one_subset_of_all_images():
    X, Y = normal(50, 8, 0), normal(50, 8, 1, 0.3)
    tensors = (torch.from_numpy(features) for features in (X, Y))
    theirs = kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=50, verbose=False)
    assert kid(X, Y) == pytest.approx(theirs["kernel_inception_distance_mean"])


def test_kid_of_unequal_numbers_is_unbiased_and_more_precise():
    """Of 30 real images, all 200 generated ones: 0 on average, with less spread than of 30 against 30."""
    pairs = [(normal(200, 4, i), normal(30, 4, 1000 + i)) for i in range(200)]
    every, equal = np.array([(kid(X, Y), kid(X[:30], Y)) for X, Y in pairs]).T
    assert abs(every.mean()) < 2.6 * every.std() / np.sqrt(200) and every.std() < 0.8 * equal.std()


def test_the_same_set_is_no_distance():
    X = normal(60, 5, 0)
    found = distances(X, X)
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_density_and_coverage_have_their_expectations():
    """Density 1, coverage 1 − 2⁻ᵏ where both sets come from one distribution (Naeem et al. 2020, section 3.3)."""
    values = [density_coverage(normal(300, 4, i), normal(300, 4, 100 + i)) for i in range(20)]
    assert np.mean([v["density"] for v in values]) == pytest.approx(1, abs=0.04)
    assert np.mean([v["coverage"] for v in values]) == pytest.approx(1 - 2**-5, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 12), n=st.integers(4, 12), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_density_and_coverage_by_loops(m, n, k, seed):
    Y, X = normal(m, 2, seed), normal(n, 2, seed + 100)
    counts = np.zeros(n)
    for i, x in enumerate(X):
        radius = sorted(np.linalg.norm(x - other) for j, other in enumerate(X) if j != i)[k - 1]
        counts[i] = sum(np.linalg.norm(x - y) <= radius for y in Y)
    found = density_coverage(Y, X, k)
    assert found == pytest.approx({"density": counts.sum() / (k * m), "coverage": (counts > 0).mean()})


def test_precision_is_of_the_generated_images():
    """One image over and over, taken from the reference, lies inside it (precision 1) and covers nothing of it."""
    real = normal(60, 5, 0)
    found = distances(real[[3] * 20], real)
    assert found["precision"] == 1 and found["recall"] < 0.2 and found["coverage"] < 0.3


def test_few_images_leave_distances_missing():
    found = distances(normal(3, 2, 0), normal(3, 2, 1))
    assert np.isfinite(found["fid"])
    assert all(np.isnan(found[name]) for name in ("precision", "recall", "density", "coverage", "fid_infinity"))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_order_does_not_matter(seed):
    X, Y = normal(30, 4, seed), normal(25, 4, seed + 1, 0.5)
    order = np.random.default_rng(seed).permutation(30)
    one, other = distances(X, Y), distances(X[order], Y)
    for metric, value in one.items():
        if metric == "fid_infinity":  # which draws subsets
            continue
        assert other[metric] == pytest.approx(value, nan_ok=True), metric


# Feature spaces


def test_leading_directions_are_those_of_greatest_variance():
    scales = np.array([1.0, 9, 3, 27, 0.1])
    X = normal(4000, 5, 0) * scales + 7
    found = leading(X, 3)(X)
    np.testing.assert_allclose(found.std(0), [27, 9, 3], rtol=0.05)
    np.testing.assert_allclose(abs(np.corrcoef(found.T, X[:, [3, 1, 2]].T)[:3, 3:]), np.eye(3), atol=0.05)
    assert leading(X[:4])(X).shape == (4000, 3), "four images span no more"


def test_fid_sees_the_leading_directions_alone():
    X, Y = normal(50, 5, 0), normal(50, 5, 1, 0.3)
    found = distances(X, Y, lambda features: features[:, :2])
    assert found["fid"] == fid(X[:, :2], Y[:, :2]) and found["fid_infinity"] == fid_infinity(X[:, :2], Y[:, :2])
    assert found["coverage"] == density_coverage(X, Y)["coverage"], "which takes all dimensions"


def test_principal_components_are_fitted_to_the_training_part_and_depth_does_not_matter():
    cohort = Phantom(patients=40, size=48, aff_share=0.4, seed=2).cohort()
    training = cohort.take(range(100))
    space = principal_components(training)
    features = space(training.pixels)
    assert features.shape == (100, 64)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(0, ddof=1), 1, rtol=1e-3)
    np.testing.assert_allclose(space(training.pixels.astype(np.uint16) * 257), features, atol=1e-3)
    assert principal_components(cohort.take(range(20)))(cohort.pixels).shape[1] == 19
    found = spaces(Judge(), training)
    assert list(found) == ["judge", "pca"]
    np.testing.assert_array_equal(found["pca"].leading(features), features[:, :FID_COMPONENTS])
    of_judge = found["judge"].leading(found["judge"].features(training.pixels))
    assert of_judge.shape == (100, FID_COMPONENTS) and (np.diff(of_judge.std(0)) <= 1e-9).all()
    np.testing.assert_allclose(of_judge.mean(0), 0, atol=1e-5)


def test_inception_is_used_only_where_it_can_be(tmp_path):
    assert inception_available("none") == ""
    with pytest.raises(ValueError, match="no such file"):
        inception_available(str(tmp_path / "inception.safetensors"))
