import pytest
from nbformat.v4 import new_code_cell
from toy_study import command, write

from lib.run.files import ROOT, from_root
from lib.run.notebooks import read_notebooks
from lib.run.parameters import choose_parameters, within_repository


def test_shared_parameters_have_one_default(study, capsys):
    write(study / "notebooks", "03_third", [new_code_cell("seed = 1", metadata={"tags": ["parameters"]})])
    assert command(study) == 2
    assert "parameter seed is 0 in 01_first but 1 in 03_third" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["size = 2 * 3", "size = ", "print(1)", "a.b = 1"])
def test_parameters_are_literals(study, capsys, source):
    write(study / "notebooks", "03_third", [new_code_cell(source, metadata={"tags": ["parameters"]})])
    assert command(study) == 2
    assert "03_third.ipynb: the parameters cell must hold 'name = literal' lines" in capsys.readouterr().err


def test_values_take_the_type_of_the_default(study):
    notebooks = read_notebooks(study / "notebooks")
    table = study / "cohort.csv"
    table.touch()
    given = [("rate", "2"), ("how", "3"), ("sizes", "[]"), ("radiographs_csv", str(table))]
    values = choose_parameters(notebooks, {"rate": "1e-3"}, given)
    assert {name: values[name] for name, _ in given} == {
        "rate": 2.0, "how": "3", "sizes": [], "radiographs_csv": values["radiographs_csv"],
    }  # fmt: skip
    assert type(values["rate"]) is float
    linked = values["radiographs_csv"]
    assert linked.startswith("data/linked-") and from_root(linked).samefile(table)
    assert within_repository(ROOT / linked) == linked
    of_profile = choose_parameters(notebooks, {"radiographs_csv": str(table)}, [])
    assert of_profile["radiographs_csv"] == linked
