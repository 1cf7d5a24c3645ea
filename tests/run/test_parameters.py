import json
from dataclasses import fields

import pytest
from nbformat.v4 import new_code_cell
from toy_study import command, manifest, write

from lib.run import settings
from lib.run.files import ROOT, from_root
from lib.run.folder import Run
from lib.run.notebooks import Mistake, read_notebooks
from lib.run.parameters import choose_parameters, within_repository
from lib.translators.methods import METHODS


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


# Settings of a method -------------------------------------------------------------------------------------------------

TOY = """
from dataclasses import dataclass

from lib.run.settings import FromParameters


@dataclass(frozen=True)
class Settings(FromParameters):
    \"\"\"How a toy is trained.\"\"\"

    steps: int = 10  # updates
    width: int = 24  # channels = features; paper: 128
    enlarge: float = 286 / 256
    levels: tuple[int, ...] = (1, 2)  # by size
    shared: bool | None = (
        None  # one for both
    )

    divisor = 4


@dataclass(frozen=True)
class Sampler(FromParameters):
    start: str = "fresh"  # or "inverted"


@dataclass(frozen=True)
class Result:
    loss: float = 0.0
"""
CELL = (
    'run_dir = "runs/quick"\nseed = 0\ntoy_steps = 5  # few\ntoy_settings = {}  # seldom changed\nlimit = float("nan")'
)


@pytest.fixture
def toy(study, monkeypatch):
    """The study with a third notebook, whose method `toy` has settings."""
    (study / "lib/translators/toy").mkdir(parents=True)
    (study / "lib/translators/toy/settings.py").write_text(TOY)
    monkeypatch.setattr(settings, "ROOT", study)
    seen = 'run.record(toy=repr((toy_steps, toy_settings, limit)))\nrun.check_parameters("03_toy", globals())'
    cells = [
        new_code_cell(CELL, metadata={"tags": ["parameters"]}),
        new_code_cell(f"from lib.run.folder import Run\nrun = Run(run_dir)\n{seen}"),
    ]
    write(study / "notebooks", "03_toy", cells)
    (study / "notebooks/profiles/quick.yaml").write_text("toy_levels: [4]\ntoy_enlarge: 2\n")
    return study


def chosen(toy, *given, profile=()):
    return choose_parameters(read_notebooks(toy / "notebooks"), dict(profile), list(given))


def test_settings_are_read_from_the_source_with_their_meaning(toy):
    assert settings.settings_of("toy_") == {
        "steps": (10, "updates"),
        "width": (24, "channels = features; paper: 128"),
        "enlarge": (286 / 256, ""),
        "levels": ([1, 2], "by size"),
        "shared": (None, "one for both"),
        "start": ("fresh", 'or "inverted"'),
    }
    assert settings.settings_of("nothing_") == {}
    (toy / "lib/translators/toy/settings.py").write_text(TOY.replace("286 / 256", "FULL"))
    with pytest.raises(ValueError, match=r"settings.py, line 13: the default of enlarge must be a literal"):
        settings.settings_of("toy_")


def test_settings_are_those_of_the_dataclasses():
    """What is read without an import is what an import finds."""
    for method in METHODS.values():
        kinds = [kind for kind in method.translator.kinds.values() if issubclass(kind, settings.FromParameters)]
        found = {field.name: field.default for kind in kinds for field in fields(kind)}
        read = {name: default for name, (default, _) in settings.settings_of(f"{method.name}_").items()}
        assert not settings.unlike(found, read)


def test_settings_have_flat_names_and_go_into_their_dictionary(toy):
    whole = {"width": 24, "enlarge": 286 / 256, "levels": [1, 2], "shared": None, "start": "fresh"}
    assert chosen(toy)["toy_settings"] == whole
    given = [("toy_width", "48"), ("toy_steps", "7"), ("toy_start", "inverted"), ("toy_shared", "true")]
    values = chosen(toy, *given, profile={"toy_levels": [4], "toy_enlarge": 2})
    assert values["toy_steps"] == 7
    assert values["toy_settings"] == {
        "width": 48, "enlarge": 2.0, "levels": [4], "shared": True, "start": "inverted",
    }  # fmt: skip
    assert type(values["toy_settings"]["enlarge"]) is float
    together = chosen(toy, ("toy_settings", "{width: 48, steps: 7}"), profile={"toy_settings": {"levels": [4]}})
    assert together["toy_settings"] == whole | {"width": 48, "levels": [4]}
    assert together["toy_steps"] == 7  # a cell's parameter, where both name it


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("toy_widht", "3"), "unknown parameter 'toy_widht' in -p, did you mean 'toy_width'?; --list shows all"),
        (("toy_stepz", "3"), "unknown parameter 'toy_stepz' in -p, did you mean 'toy_steps'?"),
        (("toy_width", "wide"), "parameter toy_width must be int (default 24), not 'wide'"),
        (("toy_levels", "3"), "parameter toy_levels must be list, like '[0, 1]' (default [1, 2]), not 3"),
        (("toy_settings", "{widht: 3}"), "unknown parameter 'toy_widht' in toy_settings, did you mean 'toy_width'?"),
        (("toy_settings", "3"), "parameter toy_settings must be dict (default {}), not 3"),
    ],
)
def test_wrong_settings_are_refused(toy, given, message):
    with pytest.raises(Mistake) as mistake:
        chosen(toy, given)
    assert str(mistake.value).startswith(message)


def test_a_wrong_name_in_the_notebook_s_dictionary_is_refused(toy):
    cell = new_code_cell('toy_settings = {"widht": 3}', metadata={"tags": ["parameters"]})
    write(toy / "notebooks", "03_toy", [cell])
    with pytest.raises(Mistake, match="unknown parameter 'toy_widht' in toy_settings of the notebook, did you mean"):
        chosen(toy)


def test_settings_reach_the_notebook_and_the_manifest_and_are_named_singly(toy, capsys):
    other = ["--run", "b", "-p", "toy_width", "48"]
    assert command(toy, *other) == 0
    assert manifest(toy, "b")["toy"] == "(5, {'width': 48, 'enlarge': 2.0, 'levels': [4]}, nan)"
    whole = {"width": 48, "enlarge": 2.0, "levels": [4], "shared": None, "start": "fresh"}
    assert manifest(toy, "b")["parameters"]["toy_settings"] == whole
    assert manifest(toy, "b")["notebooks"]["03_toy"]["parameters"]["toy_settings"] == whole
    capsys.readouterr()
    assert command(toy, *other) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 3  # NaN is like NaN
    assert command(toy, *other, "--list") == 0
    out = capsys.readouterr().out
    assert "    toy_steps = 5  # few\n    toy_settings = {}  # seldom changed\n" in out
    assert "    toy_width = 24 → 48  # channels = features; paper: 128\n    toy_enlarge = 1.1171875 → 2.0\n" in out
    assert "    toy_start = 'fresh'  # or" in out
    assert command(toy, "--run", "b") == 2
    assert "runs/b was made with toy_width = 48 (03_toy), now it is 24: take another" in capsys.readouterr().err
    run = Run(toy / "runs/b")
    by_hand = {"seed": 0, "toy_steps": 5, "toy_settings": {"enlarge": 2, "levels": (4,)}, "limit": float("nan")}
    run.check_parameters("03_toy", by_hand | {"toy_settings": whole | {"levels": (4,)}})
    with pytest.raises(ValueError, match=r"other parameters, .*overwritten: toy_width = 24 \(there 48\)\. Set them"):
        run.check_parameters("03_toy", by_hand)
    record = manifest(toy, "b")
    record["parameters"]["toy_settings"] |= {"width": 24}
    (toy / "runs/c").mkdir()
    (toy / "runs/c/manifest.json").write_text(json.dumps(record))
    assert run.differing(Run(toy / "runs/c")) == {"toy_width": (48, 24)}
    assert command(toy, "--compare", "b", "c") == 0
    assert "toy_width: 48 → 24\n" in capsys.readouterr().out


def test_names_of_a_run_from_before_there_were_dictionaries_are_the_same(toy):
    """They were parameters of the cells."""
    values = chosen(toy)
    old, new = Run(toy / "runs/old"), Run(toy / "runs/new")
    old.record(parameters=settings.flat(values))
    new.record(parameters=values)
    assert old.differing(new) == {}
