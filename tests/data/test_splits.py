"""Splits: by patient, stratified, repeatable."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.cohort import Cohort
from lib.data.splits import check_splits, fit_windows, keep_aff, make_splits, predefined_splits, read_splits


def make_patients(aff: int, nff: int) -> pd.Series:
    """aff + nff patients whose order says nothing about their label."""
    labels = np.random.default_rng(aff * 1000 + nff).permutation(["AFF"] * aff + ["NFF"] * nff)
    return pd.Series(labels, [f"p{k:04}" for k in range(aff + nff)])


@settings(deadline=None, max_examples=40)
@given(
    aff=st.integers(12, 40),
    nff=st.integers(20, 120),
    folds=st.integers(1, 6),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_every_fold_is_grouped_stratified_and_complete(aff, nff, folds, repeats, seed):
    patients = make_patients(aff, nff)
    splits = make_splits(patients, repeats, folds, seed)
    assert list(splits) == ["repeat", "fold", "patient_id", "part"]
    grouped = splits.groupby(["repeat", "fold"])
    assert len(grouped) == repeats * folds
    test_share = 0.25 if folds == 1 else 1 / folds
    for _, rows in grouped:
        assert sorted(rows.patient_id) == sorted(patients.index)  # each once: the parts are disjoint
        for label, n in (("AFF", aff), ("NFF", nff)):
            parts = rows.part[rows.patient_id.map(patients).eq(label)].value_counts()
            assert abs(parts["test"] - n * test_share) <= 1
            assert abs(parts["validation"] - 0.2 * (n - parts["test"])) <= 0.5
    if folds > 1:
        tested = splits[splits.part == "test"]
        assert not tested.duplicated(["repeat", "patient_id"]).any()
        assert len(tested) == repeats * len(patients)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(0, 1000), st.randoms())
def test_the_order_of_patients_does_not_matter(folds, seed, random):
    patients = make_patients(10, 30)
    shuffled = patients.loc[random.sample(list(patients.index), len(patients))]
    assert make_splits(patients, 2, folds, seed).equals(make_splits(shuffled, 2, folds, seed))


@pytest.mark.parametrize("folds", [1, 5])
def test_more_repeats_leave_the_earlier_as_they_were(folds):
    patients = make_patients(20, 80)
    splits = make_splits(patients, 4, folds, seed=3)
    assert make_splits(patients, 2, folds, seed=3).equals(splits[splits["repeat"] < 2])
    assert not make_splits(patients, 4, folds, seed=4).equals(splits)
    tests = splits[splits.part == "test"].groupby(["repeat", "fold"]).patient_id.agg(frozenset)
    assert tests.nunique() == 4 * folds


@pytest.mark.parametrize(("aff", "folds"), [(4, 1), (4, 2), (6, 3), (8, 4), (11, 5)])
def test_the_fewest_patients_that_fit(aff, folds):
    check_splits(
        make_splits(make_patients(aff, 30), 1, folds, seed=0, test_share=0.9, validation_share=0.9),
        make_patients(aff, 30),
    )


@pytest.mark.parametrize(("aff", "folds"), [(4, 1), (11, 5)])
def test_every_fold_tests_on_two_patients_of_each_class(aff, folds):
    """One alone has no variance: no interval could be given."""
    patients = make_patients(aff, 30)
    tested = make_splits(patients, 1, folds, seed=0).query("part == 'test'")
    assert (tested.groupby(["fold", tested.patient_id.map(patients)]).size() >= 2).all()


@pytest.mark.parametrize(
    ("aff", "nff", "folds", "message"),
    [
        (
            4,
            50,
            5,
            "class AFF has 4 patients; folds=5 needs at least 10 .* set folds to 2 or less, or bring more",
        ),
        (50, 4, 5, "class NFF has 4 patients"),
        (3, 50, 2, "class AFF has 3 patients; folds=2 needs at least 4 .* every fold: bring more patients"),
        (2, 50, 1, "class AFF has 2 patients; folds=1 needs at least 4 .* every fold: bring more patients"),
        (0, 50, 3, "class AFF has 0 patients"),
    ],
)
def test_too_few_patients(aff, nff, folds, message):
    with pytest.raises(ValueError, match=message):
        make_splits(make_patients(aff, nff), 1, folds, seed=0)


def test_repeats_that_cannot_differ():
    with pytest.raises(ValueError, match=r"repeats \d+ and \d+ test on the same patients: 8 patients are too few"):
        make_splits(make_patients(4, 4), 40, 1, seed=0)  # 6 × 6 possible test sets


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"folds": 0}, {"test_share": 1.5}, {"validation_share": 0}])
def test_parameters_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_splits(make_patients(9, 9), **{"repeats": 1, "folds": 1, "seed": 0, **wrong})


def make_table(**patients):
    """patient → (split, label), two images each."""
    rows = [(patient, *split_label) for patient, split_label in patients.items() for _ in range(2)]
    return pd.DataFrame(rows, columns=["patient_id", "split", "label"])


SIX = {
    "a": ("train", "AFF"), "b": ("train", "NFF"), "c": ("validation", "AFF"),
    "d": ("validation", "NFF"), "e": ("test", "AFF"), "f": ("test", "NFF"),
}  # fmt: skip


def test_predefined_splits():
    splits = predefined_splits(make_table(**SIX))
    assert splits.to_dict("records") == [
        {"repeat": 0, "fold": 0, "patient_id": patient, "part": part} for patient, (part, _) in SIX.items()
    ]


def test_predefined_splits_with_a_patient_of_both_labels():
    table = pd.concat([make_table(**SIX), make_table(e=("test", "NFF"))])
    assert len(predefined_splits(table)) == 6


def test_bad_predefined_splits():
    with pytest.raises(ValueError, match="no column split"):
        predefined_splits(make_table(**SIX).drop(columns="split"))
    with pytest.raises(ValueError, match="patient 'a' is in two parts of repeat 0, fold 0"):
        predefined_splits(pd.concat([make_table(**SIX), make_table(a=("test", "AFF"))]))
    with pytest.raises(ValueError, match="no AFF patient in the validation part of repeat 0, fold 0"):
        predefined_splits(make_table(**SIX | {"c": ("validation", "NFF")}))
    with pytest.raises(ValueError, match="unknown part 'holdout'"):
        predefined_splits(make_table(**SIX | {"c": ("holdout", "AFF")}))
    with pytest.raises(ValueError, match="unknown part ''"):
        predefined_splits(make_table(**SIX | {"c": (None, "AFF")}))


@pytest.mark.parametrize("first", ["0000", "NA"])
def test_ids_survive_the_file(tmp_path, first):
    patients = make_patients(4, 8).rename(lambda patient: patient[1:]).rename({"0000": first})
    splits = make_splits(patients, 2, 2, seed=0)
    splits.to_csv(tmp_path / "splits.csv", index=False)
    assert read_splits(tmp_path / "splits.csv").equals(splits)


def test_a_smaller_share_of_aff_is_part_of_a_larger_one_and_nobody_else_moves():
    patients = make_patients(40, 80)
    splits = make_splits(patients, 2, 2, 0)
    train = (splits.part == "train") & (splits.patient_id.map(patients) == "AFF")
    before = None
    for share in (0.1, 0.25, 0.5, 1.0):
        kept = keep_aff(splits, patients, share, 0).set_index(["repeat", "fold", "patient_id"]).part
        full = splits.set_index(["repeat", "fold", "patient_id"]).part
        assert (full.loc[kept.index] == kept).all() and len(kept[~kept.index.duplicated()]) == len(kept)
        gone = full.index.difference(kept.index)
        assert set(gone) <= set(full.index[train.to_numpy()])
        for repeat, fold in ((0, 0), (0, 1), (1, 0), (1, 1)):
            n = train[(splits.repeat == repeat) & (splits.fold == fold)].sum()
            assert len([key for key in gone if key[:2] == (repeat, fold)]) == n - round(share * n)
        assert before is None or set(before) <= set(kept.index)
        before = kept.index
    pd.testing.assert_frame_equal(keep_aff(splits, patients, 1.0, 0), splits)
    with pytest.raises(ValueError, match="training_aff_share=0 must lie above 0"):
        keep_aff(splits, patients, 0, 0)


@given(
    st.lists(st.integers(0, 65535), min_size=1, max_size=40),
    st.floats(0, 50, allow_nan=False),
    st.floats(51, 100, allow_nan=False),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_windows_are_the_percentiles_that_numpy_finds(levels, low, high, dtype):
    levels = np.array(levels, dtype=np.uint16).astype(dtype)
    wanted = np.percentile(levels, [low, high]) / np.iinfo(dtype).max
    table = pd.DataFrame({"image_id": [*map(str, range(len(levels)))], "patient_id": "a", "label": "AFF"})
    cohort = Cohort(table.assign(view="", side=""), levels[:, None, None])
    splits = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": ["a"], "part": "train"})
    if wanted[0] == wanted[1]:
        with pytest.raises(ValueError, match="the same grey level"):
            fit_windows(splits, cohort, (low, high))
    else:
        found = fit_windows(splits, cohort, (low, high))
        assert [*found.iloc[0]] == [0, 0, *wanted]
