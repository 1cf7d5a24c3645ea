import itertools

import numpy as np
import pandas as pd
import pingouin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel

from lib.statistics.bootstrap import (
    _resample,
    bca_constants,
    bca_p,
    bca_quantiles,
    patient_bootstrap,
    weighted_metrics,
)
from lib.statistics.inference import (
    bayes_factor,
    clustered_auc_test,
    clustered_mcnemar_test,
    corrected_t_test,
    delong_test,
    mcnemar_test,
    rope,
    seed_differences,
    tost,
    with_training_seeds,
)
from lib.statistics.kid import _kernel, kid, kid_jackknife, kid_permutation_test
from lib.statistics.metrics import evaluate

quick = settings(deadline=None, max_examples=40)


def with_moments(n, mean, variance, seed=0):
    """n numbers of exactly this mean and (ddof = 1) variance."""
    d = np.random.default_rng(seed).normal(size=n)
    return mean + (d - d.mean()) / d.std(ddof=1) * np.sqrt(variance)


# Corrected t-test

# correctR, vignette: 30 resamples, 80 training and 20 test samples
CORRECTR = with_moments(30, 0.17745579073676387, 0.01917854808853526)


def test_corrected_t_of_three_folds():
    # baycomp tests/test_single.py: mean 1, corrected variance 13.3333, df 2
    result = corrected_t_test([1, 5, -3], 1 / 2)
    assert result.df == 2
    assert result.standard_error**2 == pytest.approx(40 / 3)
    assert result.statistic == pytest.approx(0.273861, abs=1e-6)
    assert result.p == pytest.approx(0.809883, abs=1e-6)


def test_corrected_t_of_two_repeats_of_two_folds():
    # baycomp tests/test_single.py: mean 1, variance 32/3 (1/4 + 1), df 3
    result = corrected_t_test([1, 5, -3, 1], 1)
    assert (result.df, result.difference) == (3, 1)
    assert result.standard_error**2 == pytest.approx(32 / 3 * (1 / 4 + 1))


def test_corrected_t_of_correctr():
    result = corrected_t_test(CORRECTR, 20 / 80)
    assert result.statistic == pytest.approx(2.407318, abs=1e-6)
    assert result.p == pytest.approx(0.02265982, abs=1e-8)
    # two one-sided tests with margin 0.25
    assert rope(CORRECTR, 20 / 80, 0.25).above == pytest.approx(0.166599, abs=1e-6)


def test_corrected_t_of_scikit_learns_example():
    # "Statistical comparison of models using grid search": 10 × 10 folds; its p is one-sided
    d = with_moments(100, 0.01, 0.00146667)
    result = corrected_t_test(d, 10 / 90)
    assert result.statistic == pytest.approx(0.7503, abs=1e-4)
    assert result.p == pytest.approx(0.4548, abs=1e-4)
    assert rope(d, 10 / 90, 0).above == pytest.approx(0.773, abs=1e-3)
    assert rope(d, 10 / 90, 0.01).within == pytest.approx(0.432, abs=1e-3)


def test_corrected_t_interval_is_where_p_is_5_percent():
    result = corrected_t_test(CORRECTR, 0.25)
    for bound in (result.ci_low, result.ci_high):
        assert corrected_t_test(CORRECTR - bound, 0.25).p == pytest.approx(0.05)
    assert corrected_t_test(CORRECTR - result.ci90_low, 0.25).p == pytest.approx(0.10)


def test_tost_of_correctr():
    # The data of correctR's vignette with a margin of 0.25: p = 0.166599
    result = corrected_t_test(CORRECTR, 20 / 80)
    assert tost(result.difference, result.standard_error, 0.25, result.df) == pytest.approx(0.166599, abs=1e-6)


@quick
@given(st.floats(-1, 1), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(2, 50))
def test_tost_is_the_90_percent_interval(difference, standard_error, margin, df):
    wide = stats.t(df).ppf(0.95) * standard_error
    if abs(abs(difference) + wide - margin) > 1e-9:
        within = -margin < difference - wide and difference + wide < margin
        assert (tost(difference, standard_error, margin, df) < 0.05) == within


def test_tost_refuses_no_margin_and_no_spread():
    assert np.isnan(tost(0.0, 0.0, 0.1))
    with pytest.raises(ValueError, match="margin"):
        tost(0.0, 1.0, 0.0)


def test_corrected_t_without_spread():
    nothing = corrected_t_test([0, 0, 0], 0.25)
    assert (nothing.statistic, nothing.p, nothing.ci_low, nothing.ci_high, nothing.effect_size) == (0, 1, 0, 0, 0)
    equal = corrected_t_test([-0.1, -0.1, -0.1], 0.25)
    assert (equal.statistic, equal.p) == (-np.inf, 0)
    assert np.isnan(bayes_factor(equal.statistic, equal.df, 3))
    assert rope([0.1, 0.1], 0.25, 0.05).tolist() == [0, 0, 1]


@pytest.mark.parametrize("differences, ratio", [([1], 0.25), ([1, np.nan], 0.25), ([[1, 2]], 0.25), ([1, 2], 0)])
def test_corrected_t_refuses(differences, ratio):
    with pytest.raises(ValueError, match=r"differences|test_train_ratio"):
        corrected_t_test(differences, ratio)


@quick
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30), st.floats(0.05, 2), st.floats(0.1, 10))
def test_corrected_t_changes_sign_with_the_pair_and_not_with_the_scale(differences, ratio, scale):
    d = np.array(differences)
    result, swapped, scaled = (corrected_t_test(values, ratio) for values in (d, -d, d * scale))
    assert swapped.statistic == pytest.approx(-result.statistic)
    assert swapped.ci_low == pytest.approx(-result.ci_high)
    assert scaled.p == pytest.approx(result.p) == pytest.approx(swapped.p)
    probabilities = rope(d, ratio, 1)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities.below == pytest.approx(rope(-d, ratio, 1).above)


def test_corrected_t_keeps_its_level_where_the_naive_one_does_not():
    # 5 × 5 folds, equicorrelated with ρ = 1/K: the naive test's type-I error is 0.451
    rng = np.random.default_rng(0)
    d = rng.normal(size=(2000, 25)) * np.sqrt(0.8) + rng.normal(size=(2000, 1)) * np.sqrt(0.2)
    corrected = np.mean([corrected_t_test(row, 1 / 4).p < 0.05 for row in d[:250]])
    naive = np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue < 0.05)
    assert 0.015 < corrected < 0.095
    assert naive == pytest.approx(0.451, abs=0.04)


def test_bayes_factor():
    assert bayes_factor(2, 14, 15) == pytest.approx(1.25303, abs=1e-5)
    assert bayes_factor(2.5, 24, 1 / (1 / 25 + 1 / 4)) == pytest.approx(3.05, abs=5e-3)
    # with so few effective observations "no effect" cannot be supported: BF01 at t = 0, 5 × 5 and 10 × 10
    assert 1 / bayes_factor(0, 24, 1 / (1 / 25 + 1 / 4)) == pytest.approx(2.2, abs=0.05)
    assert 1 / bayes_factor(0, 99, 1 / (1 / 100 + 1 / 9)) == pytest.approx(3.0, abs=0.06)


@pytest.mark.parametrize("t, n", [(0, 10), (-1.3, 6), (2, 15), (5, 40), (30, 15)])
def test_bayes_factor_of_independent_observations_is_pingouins(t, n):
    assert bayes_factor(t, n - 1, n) == pytest.approx(pingouin.bayesfactor_ttest(t, n, paired=True), rel=1e-3)


# Training seeds


def test_seed_differences_of_student_s_sleep_data():
    # R: t.test(extra ~ group, paired = TRUE, data = sleep): −1.58 (−2.4598858 to −0.7001142), p = 0.002833
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    results = pd.DataFrame(
        [{"drug": drug, "seed": i, "extra": value} for drug, values in (("1", first), ("2", second))
         for i, value in enumerate(values)]
    )  # fmt: skip
    row = seed_differences(results.sample(frac=1, random_state=0), "drug", "2").iloc[0]
    assert (row.drug, row.metric, row.reference, row.seeds) == ("1", "extra", "2", 10)
    assert row[["difference", "ci_low", "ci_high"]].tolist() == pytest.approx([-1.58, -2.4598858, -0.7001142])
    assert row.p == pytest.approx(0.002833, abs=1e-6)


def test_seed_differences_needs_two_seeds():
    results = pd.DataFrame({"ablation": ["a", "b"], "seed": [0, 0], "kid": [0.1, 0.2]})
    with pytest.raises(ValueError, match="b and a share 1 training seeds"):
        seed_differences(results, "ablation", "a")


# AUC tests

Y = np.array([int(label) for label in "111001000011"])
PATIENTS = np.array([1, 1, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6])
S1 = np.array([0.9, 0.8, 0.35, 0.2, 0.3, 0.7, 0.6, 0.1, 0.4, 0.5, 0.65, 0.85])
S2 = np.array([0.7, 0.6, 0.3, 0.25, 0.5, 0.8, 0.65, 0.2, 0.45, 0.35, 0.4, 0.55])


def readings(seed, n=40, images=3):
    """Labels, two scores with ties, and patients, some of whom have images of both classes."""
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, n, n * images))
    labels = (rng.random(n) < 0.4).astype(int)[patients]
    labels = np.where(rng.random(len(labels)) < 0.1, 1 - labels, labels)
    a, b = np.round(1.5 * (labels + rng.normal(size=n)[patients] + rng.normal(size=(2, len(labels)))))
    return labels, a, b, patients


def brute_force_variance(labels, a, b, patients):
    """Obuchowski's covariance matrix of both AUCs by loops, and the variance of their difference."""
    M, N = labels.sum(), (1 - labels).sum()
    everyone = sorted(set(patients))
    count, I10, I01 = len(everyone), len(set(patients[labels == 1])), len(set(patients[labels == 0]))
    X, Y, auc = {}, {}, []
    for k, scores in enumerate((a, b)):
        kernel = {
            (i, j): float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j])
            for i in range(len(labels))
            for j in range(len(labels))
            if labels[i] == 1 and labels[j] == 0
        }
        auc.append(sum(kernel.values()) / (M * N))
        for patient in everyone:
            mine = [i for i in range(len(labels)) if patients[i] == patient]
            beaten = [sum(v for (i, _), v in kernel.items() if i == m) / N for m in mine if labels[m]]
            beating = [sum(v for (_, j), v in kernel.items() if j == m) / M for m in mine if not labels[m]]
            X[k, patient], Y[k, patient] = sum(v - auc[k] for v in beaten), sum(v - auc[k] for v in beating)
    cov = np.zeros((2, 2))
    for k, q in itertools.product((0, 1), repeat=2):
        S10 = I10 / ((I10 - 1) * M) * sum(X[k, p] * X[q, p] for p in everyone)
        S01 = I01 / ((I01 - 1) * N) * sum(Y[k, p] * Y[q, p] for p in everyone)
        S11 = count / (count - 1) * sum(X[k, p] * Y[q, p] + X[q, p] * Y[k, p] for p in everyone)
        cov[k, q] = S10 / M + S01 / N + S11 / (M * N)
    return auc, cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]


def test_delong_and_clustered_known_answers():
    delong, clustered = delong_test(Y, S1, S2), clustered_auc_test(Y, S1, S2, PATIENTS)
    for result in (delong, clustered):
        assert (result.auc_a, result.auc_b) == (pytest.approx(0.916667, abs=1e-6), pytest.approx(0.75))
        assert result.difference == pytest.approx(1 / 6)
    assert delong.statistic == pytest.approx(1.463850, abs=1e-6)
    assert delong.p == pytest.approx(0.143235, abs=1e-6)
    assert clustered.standard_error == pytest.approx(0.108298, abs=1e-6)
    assert clustered.statistic == pytest.approx(1.538968, abs=1e-6)
    assert clustered.p == pytest.approx(0.123812, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_clustered_auc_equals_loops(seed):
    labels, a, b, patients = readings(seed, n=12)
    auc, variance = brute_force_variance(labels, a, b, patients)
    result = clustered_auc_test(labels, a, b, patients)
    assert [result.auc_a, result.auc_b] == pytest.approx(auc)
    assert result.standard_error**2 == pytest.approx(variance)


def test_aucs_of_several_trainings_are_averaged():
    rng = np.random.default_rng(0)
    y, patients = np.repeat([1, 0], [20, 30]), np.arange(50) // 2
    a, b = rng.normal(size=(3, 50)) + y, rng.normal(size=(2, 50))
    found = clustered_auc_test(y, a, b, patients)
    assert found.auc_a == pytest.approx(np.mean([roc_auc_score(y, scores) for scores in a]))
    assert found.auc_b == pytest.approx(np.mean([roc_auc_score(y, scores) for scores in b]))
    once = clustered_auc_test(y, a[0], b[0], patients)
    pd.testing.assert_series_equal(clustered_auc_test(y, a[[0, 0]], b[[0]], patients), once)


def test_training_seeds_widen_an_auc_test_by_what_they_vary():
    """Satterthwaite by hand: 0.03² of the test and 0.04² of the seeds make 0.05²; df = 0.05⁴ · 3 / 0.04⁴."""
    result = pd.Series({"difference": 0.1, "standard_error": 0.03, "auc_a": 0.9, "auc_b": 0.8, "effect_size": 0.6})
    seeds = 0.1 + np.array([-1, -1, 1, 1]) * 0.08 * np.sqrt(3 / 4)  # SD 0.08, of the mean 0.04
    found = with_training_seeds(result, seeds)
    assert found.standard_error == pytest.approx(0.05) and found.df == pytest.approx(3 * (5 / 4) ** 4)
    assert found.statistic == pytest.approx(2)
    assert found.p == pytest.approx(2 * stats.t.sf(2, found.df))
    assert (found.ci_low, found.auc_a) == (pytest.approx(0.1 - 0.05 * stats.t.ppf(0.975, found.df)), 0.9)
    for unvarying in ([0.1], [0.1, 0.1]):
        kept = with_training_seeds(result, unvarying)
        assert kept.standard_error == 0.03 and kept.df == np.inf


def test_auc_effect_is_the_distance_of_normal_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 4000)
    result = delong_test(labels, rng.normal(size=8000) + 1.5 * labels, rng.normal(size=8000) + 0.5 * labels)
    assert result.effect_size == pytest.approx(1.0, abs=0.1)
    assert np.isnan(delong_test([0, 0, 1, 1], [1, 2, 3, 4], [1, 3, 2, 4]).effect_size)


@quick
@given(st.integers(0, 10_000))
def test_auc_test_invariances(seed):
    labels, a, b, patients = readings(seed)
    result = clustered_auc_test(labels, a, b, patients)
    assert result.auc_a == pytest.approx(roc_auc_score(labels, a))
    assert result.auc_b == pytest.approx(roc_auc_score(labels, b))

    single = clustered_auc_test(labels, a, b, np.arange(len(labels)))
    pd.testing.assert_series_equal(single, delong_test(labels, a, b))

    twice = clustered_auc_test(*(np.repeat(values, 2) for values in (labels, a, b, patients)))
    assert twice.statistic == pytest.approx(result.statistic)

    swapped = clustered_auc_test(labels, b, a, patients)
    assert swapped.statistic == pytest.approx(-result.statistic)
    assert swapped.ci_low == pytest.approx(-result.ci_high)

    transformed = clustered_auc_test(labels, np.exp(a), b**3 - 7, [f"patient {p}" for p in patients])
    pd.testing.assert_series_equal(transformed, result)

    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = clustered_auc_test(*(values[order] for values in (labels, a, b, patients)))
    assert shuffled.p == pytest.approx(result.p)


def test_duplicated_images_deceive_delong():
    labels, a, b, _ = readings(1)
    once, twice = delong_test(labels, a, b), delong_test(*(np.repeat(values, 2) for values in (labels, a, b)))
    assert twice.statistic / once.statistic == pytest.approx(np.sqrt(2), rel=0.02)


def test_identical_scores_are_no_difference():
    for result in (delong_test(Y, S1, S1 * 2), clustered_auc_test(Y, S1, S1, PATIENTS)):
        assert (result.difference, result.statistic, result.p) == (0, 0, 1)


@pytest.mark.parametrize(
    "labels, a, message",
    [
        ([1, 1, 1], [1, 2, 3], "NFF"), ([0, 0, 0], [1, 2, 3], "AFF"), ([0, 0, 1], [1, 2, 3], "AFF"),
        ([0, 1, 2], [1, 2, 3], "labels must be"), ([0, 1], [1, 2, 3], "one length"),
        ([0, 0, 1, 1], [1, 2, 3, np.nan], "finite"),
    ],
)  # fmt: skip
def test_auc_tests_refuse(labels, a, message):
    with pytest.raises(ValueError, match=message):
        delong_test(labels, a, a)


def test_auc_tests_need_two_patients_of_a_class():
    with pytest.raises(ValueError, match="two patients with AFF"):
        clustered_auc_test([1, 1, 0, 0], [1, 2, 3, 4], [4, 3, 2, 1], ["p1", "p1", "p2", "p3"])


def test_clustered_auc_keeps_its_level_where_delong_on_images_does_not():
    rng = np.random.default_rng(0)
    clustered, delong = [], []
    for _ in range(400):  # two exchangeable readers of 60 patients with 4 images each
        labels = np.repeat(np.arange(60) < 20, 4).astype(int)
        patient = np.repeat(np.arange(60), 4)
        common = labels + rng.normal(size=60)[patient]
        a, b = (common + rng.normal(size=60)[patient] + 0.5 * rng.normal(size=240) for _ in range(2))
        clustered.append(clustered_auc_test(labels, a, b, patient).p < 0.05)
        delong.append(delong_test(labels, a, b).p < 0.05)
    assert 0.02 < np.mean(clustered) < 0.10
    assert np.mean(delong) > 0.20


# Patient bootstrap


@quick
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10), st.integers(0, 3)), max_size=40),
    st.sampled_from([0.0, 0.35, 0.5, 1.0]),
)
def test_weighted_metrics_equal_evaluate_on_repeated_patients(rows, threshold):
    labels, probabilities, counts = np.array([(1, 6, 1), (0, 6, 2), *rows]).T
    weights = np.stack([counts, np.ones(len(counts))])
    fast = weighted_metrics(labels, probabilities / 10, threshold, weights)
    for sample, w in enumerate(weights.astype(int)):
        slow = evaluate(np.repeat(labels, w), np.repeat(probabilities / 10, w), threshold)
        assert {metric: values[sample] for metric, values in fast.items()} == pytest.approx(slow)


def test_bootstrap_equals_the_slow_way():
    rng = np.random.default_rng(3)
    labels, patients = np.array([1] * 8 + [0] * 20), np.arange(28)
    a, b = rng.random((2, 3, 28)) * 0.7 + 0.3 * labels
    thresholds = np.array([[0.5, 0.6, 0.4], [0.5, 0.45, 0.7]])
    fast = patient_bootstrap(labels, a, b, *thresholds, patients, draws=15, seed=7)

    def by_seed(rows):
        values = [
            {m: x - y for (m, x), y in zip(evaluate(labels[rows], a[s][rows], thresholds[0, s]).items(),
                                           evaluate(labels[rows], b[s][rows], thresholds[1, s]).values(), strict=True)}
            for s in range(3)
        ]  # fmt: skip
        return pd.DataFrame(values)

    same = np.random.default_rng(7)
    weights = _resample(labels, patients, 15, same).astype(int)
    of_patients = pd.DataFrame([by_seed(np.repeat(patients, w)).mean() for w in weights])
    of_seeds = by_seed(patients).std() / np.sqrt(3)
    slow = of_patients + np.outer(same.standard_t(2, 15), of_seeds)
    pd.testing.assert_series_equal(fast.difference, by_seed(patients).mean(), check_names=False)
    without = pd.DataFrame([by_seed(np.delete(patients, i)).mean() for i in patients])
    for metric, row in fast.iterrows():
        both = np.hypot(of_patients[metric].std(), of_seeds[metric])
        z0, acceleration = bca_constants(row.difference, slow[metric], [without[metric][:8], without[metric][8:]])
        constants = z0, acceleration * (of_patients[metric].std() / both) ** 3
        bounds = bca_quantiles(slow[metric], *constants, (0.025, 0.05, 0.95, 0.975))
        assert row[["ci_low", "ci90_low", "ci90_high", "ci_high"]].tolist() == pytest.approx(bounds.tolist())
        assert row.p == pytest.approx(bca_p(slow[metric], *constants))
        assert row.standard_error == pytest.approx(both)


def test_bca_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.exponential(size=12), rng.exponential(size=30) + 0.3

    def difference(x, y, axis=-1):
        return x.mean(axis) - y.mean(axis)

    expected = stats.bootstrap((x, y), difference, method="BCa", n_resamples=999, rng=1)
    left_out = [np.array([difference(np.delete(x, i), y) for i in range(12)]),
                np.array([difference(x, np.delete(y, i)) for i in range(30)])]  # fmt: skip
    drawn = expected.bootstrap_distribution
    constants = bca_constants(difference(x, y), drawn, left_out)
    assert bca_quantiles(drawn, *constants, (0.025, 0.975)) == pytest.approx(list(expected.confidence_interval))


def test_bca_p_is_where_the_interval_touches_zero():
    drawn = np.random.default_rng(0).normal(1.5, 1, 20_000)
    p = bca_p(drawn, 0.1, 0.02)
    low, high = bca_quantiles(drawn, 0.1, 0.02, (p / 2, 1 - p / 2))
    assert low == pytest.approx(0, abs=0.02)
    assert high > 1


def test_patients_are_drawn_within_their_class_with_all_they_have():
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0])
    patients = np.array(["a", "b", "c", "d", "e", "f", "g", "both", "both", "too", "too"])
    weights = _resample(labels, patients, 500, np.random.default_rng(0))
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:7].sum(1) == 4).all()
    assert (weights[:, 7] == weights[:, 8]).all()
    assert weights[:, 0].std() > 0.5
    assert weights.mean(0) == pytest.approx(np.ones(11), abs=0.2)


def test_bootstrap_agrees_with_delong():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [60, 140])
    common = labels + rng.normal(size=200)
    a, b = (1 / (1 + np.exp(-common - rng.normal(size=200))) for _ in range(2))
    auroc = patient_bootstrap(labels, a, b, [0.5], [0.5], np.arange(200), draws=20_000).loc["auroc"]
    delong = delong_test(labels, a, b)
    assert auroc.difference == pytest.approx(delong.difference)
    assert auroc.standard_error == pytest.approx(delong.standard_error, rel=0.1)
    assert auroc.p == pytest.approx(delong.p, abs=0.05)


def test_bootstrap_of_identical_predictions():
    rng = np.random.default_rng(0)
    labels, p = np.repeat([1, 0], [10, 30]), rng.random(40)
    result = patient_bootstrap(labels, p, p, [0.5], [0.5], np.arange(40), draws=50)
    assert (result.p == 1).all()
    assert (result[["difference", "ci_low", "ci_high", "statistic"]] == 0).all(axis=None)


def test_bootstrap_counts_the_spread_between_seeds():
    # Of three trainings one finds every AFF and two find none: with patients alone nothing would vary.
    labels = np.repeat([1, 0], [10, 30])
    right, wrong = labels * 0.8 + 0.1, labels * 0.0 + 0.1
    three = [right, wrong, wrong], [wrong] * 3, [0.5] * 3, [0.5] * 3
    found = patient_bootstrap(labels, *three, np.arange(40), draws=40_000).loc["sensitivity"]
    expected = stats.ttest_1samp([1, 0, 0], 0)
    interval = expected.confidence_interval()
    assert [found.ci_low, found.ci_high] == pytest.approx([interval.low, interval.high], abs=0.1)
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    alone = patient_bootstrap(labels, right, wrong, [0.5], [0.5], np.arange(40), draws=400).loc["sensitivity"]
    assert (alone.ci_low, alone.ci_high) == (1, 1)  # conditional on that one training


# Decisions


def test_mcnemar_of_pingouins_example():
    # pingouin, dataset chi2_mcnemar: 40 and 8 discordant of 100, exact p = 3.3053e-06
    only_a, only_b = np.arange(100) < 40, np.arange(100) >= 92
    result = mcnemar_test(~only_b, ~only_a)
    assert result.p == pytest.approx(3.305e-06, rel=1e-3)
    assert result.difference == pytest.approx(0.32)
    assert mcnemar_test(~only_a, ~only_b).p == pytest.approx(result.p)
    assert mcnemar_test([True, False], [True, False]).p == 1


def test_durkalskis_example():
    # b = (2, 0, 1, 3), c = (0, 1, 0, 1), n = (3, 2, 2, 5): χ² = 1.03018, p = 0.31012
    right_a = np.array([1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0], bool)
    right_b = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0], bool)
    patients = np.repeat([0, 1, 2, 3], [3, 2, 2, 5])
    result = clustered_mcnemar_test(right_a, right_b, patients)
    assert result.statistic == pytest.approx(1.03018, abs=1e-5)
    assert result.p == pytest.approx(0.31012, abs=1e-5)
    twice = clustered_mcnemar_test(*(np.repeat(values, 2) for values in (right_a, right_b, patients)))
    pd.testing.assert_series_equal(twice, result)


def test_singleton_clusters_are_mcnemars_chi_square():
    only_a, only_b = np.arange(100) < 40, np.arange(100) >= 92
    result = clustered_mcnemar_test(~only_b, ~only_a, np.arange(100))
    assert result.statistic == pytest.approx((40 - 8) ** 2 / (40 + 8))
    assert clustered_mcnemar_test(only_a, only_a, np.arange(100)).p == 1


# KID


def mmd(X, Y):
    d = np.shape(X)[1]
    Kxx, Kyy, Kxy = (polynomial_kernel(p, q, degree=3, gamma=1 / d, coef0=1) for p, q in ((X, X), (Y, Y), (X, Y)))
    n, m = Kxy.shape
    return (Kxx.sum() - Kxx.trace()) / (n * (n - 1)) + (Kyy.sum() - Kyy.trace()) / (m * (m - 1)) - 2 * Kxy.mean()


def features(seed, *shape, shift=0.0):
    return np.random.default_rng(seed).normal(size=shape) + shift


def test_kid_known_answer():
    assert kid([[1, 0], [0, 1], [1, 1]], [[0, 0], [2, 1], [1, 2]]) == pytest.approx(-0.4166667)
    X, Y = features(0, 9, 5), features(1, 7, 5, shift=1)
    assert kid(X, Y) == pytest.approx(mmd(X, Y)) == pytest.approx(kid(Y, X))


def test_kid_of_the_same_distribution_is_zero_on_average():
    values = [kid(features(2 * s, 30, 4), features(2 * s + 1, 30, 4)) for s in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_kid_jackknife_equals_leaving_patients_out():
    X, Y = features(0, 12, 3), features(1, 8, 3, shift=0.5)
    x_patients, y_patients = np.array(list("aaabbccdddee")), np.array(list("eeffghhh"))  # e has images in both
    left_out = [mmd(X[x_patients != p], Y[y_patients != p]) for p in "abcdefgh"]
    result = kid_jackknife(X, Y, x_patients, y_patients)
    assert result.value == pytest.approx(mmd(X, Y))
    assert result.patients == 8
    assert result.standard_error**2 == pytest.approx(7 / 8 * ((left_out - result.value) ** 2).sum())
    assert result.ci_high - result.value == pytest.approx(1.959964 * result.standard_error)


def test_kid_jackknife_covers_the_truth_and_sees_patients():
    true = kid(features(10, 1500, 3), features(11, 1500, 3, shift=0.7))
    covered, wider = [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        people = np.repeat(np.arange(30), 4)
        x, y = (0.95 * rng.normal(size=(30, 3))[people] + 0.312 * rng.normal(size=(120, 3)) for _ in range(2))
        result = kid_jackknife(x, y + 0.7, people, people + 100)
        covered.append(result.ci_low < true < result.ci_high)
        images_alone = kid_jackknife(x, y + 0.7, np.arange(120), np.arange(120) + 1000)
        wider.append(result.standard_error / images_alone.standard_error)
    assert np.mean(covered) > 0.87
    assert np.mean(wider) > 1.3


def test_kid_permutation_equals_swapping_by_hand():
    patients = np.array(list("aabbbcddee"))
    a, b, reference = features(0, 10, 3, shift=0.4), features(1, 10, 3), features(2, 7, 3, shift=0.5)
    T = mmd(a, reference) - mmd(b, reference)
    swapped = []
    for choice in itertools.product([False, True], repeat=5):
        swap = np.array([choice["abcde".index(p)] for p in patients])[:, None]
        swapped.append(mmd(np.where(swap, b, a), reference) - mmd(np.where(swap, a, b), reference))
    exact = np.mean(np.abs(swapped) >= abs(T) * (1 - 1e-9))
    result = kid_permutation_test(a, b, reference, patients)
    assert result.difference == pytest.approx(T) == pytest.approx(kid(a, reference) - kid(b, reference))
    assert result.p == pytest.approx(exact, abs=0.02)
    assert (result.n, result.patients) == (10, 5)


def test_kid_permutation_tells_the_closer_generator():
    source, reference, patients = features(0, 60, 4), features(1, 40, 4, shift=1), np.arange(60) // 3
    close, far = source + 0.9, source + 0.3
    result = kid_permutation_test(close, far, reference, patients)
    assert result.difference < 0
    assert result.p < 0.001
    assert result.ci_high < 0
    swapped = kid_permutation_test(far, close, reference, patients)
    assert swapped.difference == pytest.approx(-result.difference)
    assert swapped.ci_low == pytest.approx(-result.ci_high)
    same = kid_permutation_test(close, close, reference, patients, permutations=99)
    assert (same.difference, same.p) == (0, 1)


def test_kid_permutation_keeps_its_level():
    p = [
        kid_permutation_test(features(4 * s, 40, 3), features(4 * s + 1, 40, 3), features(4 * s + 2, 20, 3),
                             np.arange(40) // 2, permutations=199).p
        for s in range(200)
    ]  # fmt: skip
    assert np.mean(np.array(p) <= 0.05) < 0.10
    assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.parametrize(
    "X, Y", [(np.ones((1, 2)), np.ones((3, 2))), (np.ones((3, 2)), np.ones((3, 4))), (np.ones(3), np.ones(3))]
)
def test_kid_refuses(X, Y):
    with pytest.raises(ValueError, match="at least two images"):
        kid(X, Y)


def test_kid_jackknife_of_one_patient_has_no_interval():
    X, Y = np.random.default_rng(0).normal(size=(2, 5, 3))
    result = kid_jackknife(X, Y, ["only"] * 5, list("abcde"))
    assert result.value == pytest.approx(kid(X, Y))
    assert np.isnan(result.ci_low) and np.isnan(result.ci_high)


# Known answers of the naive tests, and what is too little to be significant


def test_naive_t_of_scikit_learns_example():
    # "Statistical comparison of models using grid search": what its uncorrected t-test gives
    naive = stats.ttest_1samp(with_moments(100, 0.01, 0.00146667), 0, alternative="greater")
    assert naive.statistic == pytest.approx(2.611, abs=1e-3)
    assert naive.pvalue == pytest.approx(0.0052, abs=5e-5)


@pytest.mark.parametrize(("repeats", "folds", "rate"), [(1, 5, 0.138), (3, 5, 0.342), (5, 5, 0.451), (10, 10, 0.570)])
def test_the_naive_t_is_the_corrected_one_inflated(repeats, folds, rate):
    """By √(1 + n / (K − 1)): what it rejects where the corrected test has its level, in closed form."""
    n, ratio = repeats * folds, 1 / (folds - 1)
    d = with_moments(n, 0.01, 0.0004)
    inflation = stats.ttest_1samp(d, 0).statistic / corrected_t_test(d, ratio).statistic
    assert inflation == pytest.approx(np.sqrt(1 + n * ratio))
    assert 2 * stats.t(n - 1).sf(stats.t(n - 1).ppf(0.975) / inflation) == pytest.approx(rate, abs=5e-4)


@pytest.mark.parametrize(("n", "folds", "effective", "bf01"), [(25, 5, 3.45, 4.7), (100, 10, 8.26, 9.0)])
def test_a_naive_bayes_factor_makes_much_of_nothing(n, folds, effective, bf01):
    """As many folds taken for independent would support "no effect" twice as well, or more."""
    n_effective = 1 / (1 / n + 1 / (folds - 1))
    assert n_effective == pytest.approx(effective, abs=5e-3)
    naive = 1 / pingouin.bayesfactor_ttest(0, n, paired=True)
    assert naive == pytest.approx(bf01, abs=0.06)
    assert naive > 2 / bayes_factor(0, n - 1, n_effective)


def test_mcnemar_of_pingouins_data():
    answers = pingouin.read_dataset("chi2_mcnemar")
    observed, expected = pingouin.chi2_mcnemar(answers, "treatment_X", "treatment_Y")
    assert expected.chi2["mcnemar"] == pytest.approx(20.020833, abs=1e-6)
    result = mcnemar_test(answers.treatment_X, answers.treatment_Y)
    assert result.p == pytest.approx(expected.p_exact["mcnemar"]) == pytest.approx(3.3053e-06, rel=1e-4)
    assert {observed.iloc[0, 1], observed.iloc[1, 0]} == {40, 8}


def test_wilcoxon_of_five_pairs_is_never_significant():
    assert stats.wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5]).pvalue == pytest.approx(0.0625)


@pytest.mark.parametrize(("generators", "smallest"), [(3, 0.10), (4, 0.029), (5, 0.008)])
def test_so_many_generators_of_each_method_can_be_significant(generators, smallest):
    def difference(x, y, axis):
        return x.mean(axis) - y.mean(axis)

    better, worse = np.arange(generators), np.arange(generators) + 10
    found = stats.permutation_test((better, worse), difference, vectorized=True, n_resamples=np.inf)
    assert found.pvalue == pytest.approx(smallest, abs=5e-4)


def test_biased_kid_known_answer():
    X, Y = np.array([[1, 0], [0, 1], [1, 1]]), np.array([[0, 0], [2, 1], [1, 2]])
    biased = _kernel(X, X).mean() + _kernel(Y, Y).mean() - 2 * _kernel(X, Y).mean()
    assert biased == pytest.approx(6.7777778)
