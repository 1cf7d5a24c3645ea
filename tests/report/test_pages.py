"""Pages of a small run, and that an installation brings their templates."""

import fnmatch
import tomllib

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from lib.report import latex, pages
from lib.run.files import ROOT
from lib.run.folder import Run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "a", seed=1)


def make_run(folder, **parameters):
    run = Run(folder)
    record = {"state": "finished", "seconds": 90, "memory_mb": 12, "started": "2026-01-02", "title": "01 · A & B"}
    records = {"01_a": record | {"question": "Is $x < 1$?"}, "02_b": {**record, "state": "running", "question": "No?"}}
    run.record(parameters=parameters, notebooks=records)
    (folder / "answers.md").write_text("# Answers\n\nRQ1: 1 < 2.\n\n## RQ1\n\nAt length.\n")
    picture = run.path("figures", "06_forest.png")
    Image.new("RGB", (1200, 60), "white").save(picture)
    picture.with_suffix(".txt").write_text('Of "a" & b < c.\n')
    cells = [
        new_markdown_cell("# 01 · A & B\n\nIs $x < 1$?\n\nReads nothing. See [02](02_b.ipynb#x)."),
        new_code_cell("a = 1 < 2", outputs=[new_output("stream", text="1 < 2\n")]),
        new_markdown_cell("## One & *two*\n\n### Below"),
        new_code_cell("t", outputs=[new_output("display_data", {"text/html": "<table><tr><td>1</td></tr></table>"})]),
    ]
    nbformat.write(new_notebook(cells=cells), run.path("notebooks", "01_a.ipynb"))
    return run


def test_a_notebook_s_page_lists_its_sections_and_folds_its_code(run):
    text = pages.render(run / "notebooks/01_a.ipynb").read_text()
    assert "<title>01 · A &amp; B</title>" in text and 'href="02_b.html' in text
    assert '<li><a href="#01_a-1">One &amp; <em>two</em></a></li>' in text
    assert '<h2 id="01_a-1">One &amp; <em>two</em></h2>' in text
    assert text.index("<nav class") < text.index('<details class="code"') < text.index('<h2 id="')
    assert '<div class="wide" tabindex="0"><table>' in text and "1 &lt; 2" in text and "<script" not in text


def test_the_first_page_has_answers_figures_notebooks_and_facts_in_this_order(run):
    pages.render(run / "notebooks/01_a.ipynb")
    text = pages.index(run).read_text()
    order = ["RQ1: 1 &lt; 2.", "<img ", "At length.", '<details class="notebook" id="01_a">', "seed = 1"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert 'alt="Of &quot;a&quot; &amp; b &lt; c."' in text and 'width="1000" height="50"' in text
    assert text.count("<h1") == 1 and '<h4 id="01_a-1">' in text and 'href="#02_b"' not in text
    assert '<span class="finished">finished</span>, 1.5 min, 12 MB</span>' in text
    assert '<div class="notebook">' in text, "02 has no page yet"
    assert 'too:\n<a href="01_a.html">01_a</a>.' in text


def test_without_answers_the_first_page_says_so(run):
    (run / "answers.md").unlink()
    text = pages.index(run).read_text()
    assert "<h1>Run a</h1>" in text and "notebook 06 writes them" in text and "<img" not in text and "none yet" in text


def test_trainings_that_other_code_made_are_named_before_any_figure(run):
    assert "kept all the same" not in pages.index(run).read_text()
    run.record(kept={"cyclegan/r0f0/weights.safetensors": "lib/<translators>"})
    text = pages.index(run).read_text()
    assert text.index("<li>cyclegan/r0f0/weights.safetensors: lib/&lt;translators&gt;</li>") < text.index("<img ")


def test_two_runs_are_compared_side_by_side(run, tmp_path):
    other = make_run(tmp_path / "b<", seed=2)
    for one, value in ((run, 0.5), (other, 0.75)):
        one.path("trials", "metrics.csv").write_text(f"condition,metric,value\nreal,auroc,{value}\n")
    page = pages.compare(run, other)
    text = page.read_text()
    assert page == tmp_path / "a-against-b<.html" and "<h1>a against b&lt;</h1>" in text
    assert "<td>0.500</td>\n      <td>0.750</td>\n      <td>0.250</td>" in text and text.count("<img ") == 2
    assert "Fidelity" not in text and "None differs" not in text
    assert "<td>1</td>\n      <td>2</td>" in text
    other.record(parameters={"seed": 1})
    assert "<p>None differs.</p>" in pages.compare(run, other).read_text()


def test_an_installation_has_all_templates():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["lib.report"]
    files = [path.relative_to(pages.TEMPLATES.parent).as_posix() for path in pages.TEMPLATES.iterdir()]
    assert files and all(any(fnmatch.fnmatch(file, pattern) for pattern in patterns) for file in files)
    for environment in (pages.PAGES, latex.TEMPLATES):
        assert set(environment.list_templates()) == {path.name for path in pages.TEMPLATES.iterdir()}
    assert {"seaborn", "jinja2"} <= {name.split(">")[0] for name in project["project"]["dependencies"]}
