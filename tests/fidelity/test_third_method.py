"""A third translator is one file and one row: everything else runs over the table of methods."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from lib.checks.audit import synthetic_checks, weights_checks
from lib.data.cohort import Cohort
from lib.data.hashes import cohort_hash, patients_hash
from lib.data.phantom import Phantom
from lib.data.splits import make_splits
from lib.fidelity import judge, synthesis
from lib.fidelity.measures import closer_by_space, kid_tests, measure_folds
from lib.fidelity.steganography import cycle_errors
from lib.run.folder import Run
from lib.run.tasks import Machines
from lib.run.weights import save_weights, weights_metadata
from lib.study import Study
from lib.translators.folds import train_folds
from lib.translators.methods import METHODS
from lib.translators.training import WEIGHTS
from lib.translators.translator import translated
from lib.trials.conditions import condition, training_set


class Shade:
    """Makes every image darker, and calls that its translation."""

    name, factor = "cyclegan", 0.9

    def __init__(self):
        self.metadata = {}

    def fit(self, cohort, folder, seed, preview=None, watch=None):
        self.metadata = {"patients_hash": patients_hash(cohort), "cohort_hash": cohort_hash(cohort)}
        save_weights(folder / WEIGHTS, {"network": torch.nn.Linear(1, 1)}, self.metadata)

    def translate(self, cohort, to="AFF", batch=32):
        shade = partial(torch.mul, torch.tensor(self.factor))
        return translated(cohort, to, self.name, shade, batch, self.metadata["patients_hash"])

    @classmethod
    def load(cls, folder):
        found = cls()
        found.metadata = weights_metadata(folder / WEIGHTS)
        return found


class Darker(Shade):
    name, factor = "cyclediff", 0.5


class Identity(Shade):
    name, factor = "identity", 1.0


def test_a_third_row_is_trained_synthesised_measured_audited_and_added(tmp_path, monkeypatch):
    monkeypatch.setenv("LIB_PROGRESS", "none")
    for name, toy in (("cyclegan", Shade), ("cyclediff", Darker)):  # which take no time
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], translator=toy))
    row = replace(METHODS["cyclegan"], name="identity", title="Identity", translator=Identity)
    monkeypatch.setitem(METHODS, "identity", row)
    phantom = Phantom(patients=24, size=32, aff_share=0.4, seed=3)
    cohort = phantom.cohort()
    Study(Run(tmp_path), cohort, make_splits(cohort.patients, 1, 2, seed=0), phantom).save()
    study, machines = Study.load(Run(tmp_path)), Machines()

    for name, method in METHODS.items():
        assert list(train_folds(study, name, method.translator, 0, machines).state) == ["done"] * 2
    judge.train_folds(study, 2, 0, machines)
    trained = weights_checks(study)
    assert list(trained.check) == [f"{name} fitted to other images" for name in (*METHODS, "judge")]
    assert trained.passed.all() and (trained.compared == 2).all()

    synthesis.make_sets(study, [*METHODS, "useless"], 1.0, 0, machines)
    for fold in study.folds:
        made = synthesis.load(fold)
        assert list(made) == ["cyclegan", "cyclediff", "identity", "useless"]
        checks = synthetic_checks(fold, made)
        assert set(checks[checks["where"].str.endswith("identity")].passed) == {True}
        aff = training_set(condition("identity@0.5"), fold.train, made, 0)[0].select(method="identity")
        assert len(aff) == round(len(made["identity"]) / 2) and set(aff.table.label) == {"AFF"}
    assert condition("identity+standard").description == (
        "AFF images added that Identity translated from NFF training images; rotated, flipped, cropped"
    )

    table = measure_folds(study, "none", machines)
    assert {*METHODS, "real", "source", "counterfactual"} == set(table.method)
    assert (study.run / "fidelity.csv").exists() and study.run.manifest["weights"]["inception"] == "not used"
    pairs = kid_tests(study)[["a", "b"]].value_counts().to_dict()
    assert pairs == {
        (a, b): 4 for a, b in (("cyclediff", "cyclegan"), ("identity", "cyclegan"), ("identity", "cyclediff"))
    }
    closer = closer_by_space(table)
    assert len(closer) == 2 and set(closer.judge) | set(closer.pca) <= set(METHODS)

    unchanged = METHODS["identity"].translator.load(study.fold().folder("identity"))
    assert cycle_errors(unchanged, study.fold().test.select(label="NFF").first(4)).value.iloc[0] == pytest.approx(
        0, abs=1e-4
    )

    synthesis.make_sets(study, ["identity"], 1.0, 0, machines)  # the others are set aside
    assert set(measure_folds(study, "none", machines).method) == {"identity", "real", "source", "counterfactual"}
    assert not len(kid_tests(study))
    assert isinstance(synthesis.load_test(study.fold())["identity"], Cohort)
