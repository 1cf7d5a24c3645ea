"""The six notebooks, executed in the smoke profile on the phantom."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from matplotlib.figure import Figure

from lib.checks.verify import compare_runs
from lib.data.cohort import Cohort
from lib.data.hashes import patients_hash
from lib.report.pages import OPENING
from lib.run.folder import Run
from lib.run.notebooks import read_notebooks
from lib.run.weights import weights_metadata
from lib.study import Study
from run_all import NOTEBOOKS, main

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert main(["--profile", "smoke"], NOTEBOOKS, runs) == 0
    return runs / "smoke"


def columns(path):
    return list(pd.read_csv(path, nrows=1).columns)


def test_notebooks_are_committed_without_outputs():
    assert len(NAMES) == 6
    for name in NAMES:
        text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        assert text == nbformat.writes(nbformat.reads(text, 4)) + "\n", f"{name}: as JupyterLab saves it"
        cells = json.loads(text)["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), name
        others = [cell for cell in code if "parameters" not in cell["metadata"].get("tags", [])]
        assert len(others) == len(code) - 1, name
        assert max(len(cell["source"]) for cell in others) <= 45, name


def test_manifest_says_what_was_run(run):
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert {"parameters", "versions", "commit", "seed", "device", "weights"} <= set(manifest)
    assert [manifest["notebooks"][name]["state"] for name in NAMES] == ["finished"] * 6
    assert all(manifest["notebooks"][name]["seconds"] > 0 for name in NAMES)
    assert manifest["weights"]["classifier"].startswith("ResNet-18, random initialisation")
    assert "U-Net" in manifest["weights"]["cyclediff_perceptual"]


def test_cohort_and_splits(run):
    cohort = Cohort.load(run / "cohort")
    assert {"image_id", "patient_id", "label", "view", "side"} <= set(cohort.table)
    assert cohort.pixels.shape[1:] == (32, 32)


@pytest.mark.parametrize("method", ["cyclegan", "cyclediff"])
def test_translators_saw_the_training_patients_and_no_others(run, method):
    folder = run / method / "r0f0"
    assert "step" in columns(folder / "history.csv")
    training = Study.load(Run(run)).fold().train
    assert weights_metadata(folder / "weights.safetensors")["patients_hash"] == patients_hash(training)


def test_the_audit_looked_at_everything_and_found_nothing(run):
    audit = pd.read_csv(run / "audit.csv", keep_default_na=False)
    assert audit.passed.all() and (audit.compared > 0).all()
    assert set(audit.check) == {
        "patients in two parts", "patients of the splits without an image", "images in two parts",
        "images that change when prepared alone", "cyclegan fitted to other images", "cyclediff fitted to other images",
        "judge fitted to other images", "synthetic images from outside the training part",
        "synthetic images of another fold's generator",
        "synthetic images of patients who validate or test", "synthetic images that repeat a validation or test image",
    }  # fmt: skip
    text = (run / "notebooks" / "05_classifier_trials.html").read_text(encoding="utf-8")
    assert f"{len(audit)} of {len(audit)} checks passed." in text and "Budgets are equal." in text


@pytest.mark.parametrize("method", ["cyclegan", "cyclediff", "noise"])
def test_synthetic_images_have_their_provenance(run, method):
    synthetic = Cohort.load(run / "synthetic" / method / "r0f0")
    training = Study.load(Run(run)).fold().train
    assert set(synthetic.table.label) == {"AFF"} and set(synthetic.table.method) == {method}
    assert len(synthetic) + training.targets.sum() == len(training) - training.targets.sum(), "balanced"
    if method != "noise":
        patient = training.table.set_index("image_id").patient_id
        assert (synthetic.table.source_image_id.map(patient) == synthetic.table.patient_id).all()
        assert set(synthetic.table.source_label) == {"NFF"}


CONTRACT = {
    "cohort/splits.csv": "repeat fold patient_id part",
    "fidelity.csv": "method repeat fold direction features metric value ci_low ci_high n",
    "trials/predictions.csv": "condition repeat fold seed image_id patient_id label probability",
    "trials/metrics.csv": "condition repeat fold seed metric value",
    "statistics/comparisons.csv": (
        "question metric a b n patients difference ci_low ci_high test statistic p p_holm effect_size bf10 verdict"
    ),
}


@pytest.mark.parametrize("table", CONTRACT)
def test_tables_keep_the_contract(run, table):
    assert columns(run / table) == CONTRACT[table].split()


def test_tables_hold_every_method_and_question(run):
    fidelity = pd.read_csv(run / "fidelity.csv")
    assert {"cyclegan", "cyclediff", "noise", "real", "source", "counterfactual"} == set(fidelity.method)
    assert {"judge", "pca", "pixels"} == set(fidelity.features)
    assert {"kid", "fid", "precision", "recall", "transfer", "neither", "ssim_outside"} <= set(fidelity.metric)
    comparisons = pd.read_csv(run / "statistics" / "comparisons.csv")
    assert {"RQ1", "RQ2", "RQ3", "oversampling", "control"} == set(comparisons.question)


def test_what_stands_beside_the_comparisons(run):
    statistics = run / "statistics"
    asked = pd.read_csv(statistics / "comparisons.csv").query("metric == 'auroc'")
    assert {"again", "fake", "oracle", "useless", "permuted"} <= set(asked.a)
    assert len(pd.read_csv(statistics / "equivalence.csv")) == len(asked)
    assert set(pd.read_csv(statistics / "decisions.csv").unit) == {"patients", "images"}
    copies = pd.read_csv(run / "tables" / "04_memorisation.csv").query("planted == 0 and distance == 'pixels'")
    assert copies.set_index("method").copies["fake"] == 1
    assert (run / "reporting.md").read_text(encoding="utf-8").count("gap:") == 2
    spent = pd.read_csv(run / "tables" / "05_budgets.csv")
    assert spent[["steps", "images_seen", "validations"]].nunique().max() == 1
    assert {"04_steganography", "04_hallucination", "05_dose", "06_simulation"} <= {
        path.stem for folder in ("figures", "tables") for path in (run / folder).iterdir()
    }


def test_predictions_are_of_real_test_images_and_every_condition_had_equal_steps(run):
    predictions = pd.read_csv(run / "trials" / "predictions.csv")
    test = Study.load(Run(run)).fold().test
    labels = test.table.set_index("image_id").label
    for name, rows in predictions.groupby("condition"):
        assert sorted(rows.image_id) == sorted(test.table.image_id)
        assert (rows.set_index("image_id").label == labels).all() == (name != "permuted")
    metrics = pd.read_csv(run / "trials" / "metrics.csv")
    assert metrics[metrics.metric == "steps"].value.nunique() == 1


def test_answers_and_figures(run):
    answers = (run / "answers.md").read_text(encoding="utf-8")
    assert all(question in answers for question in ("RQ1", "RQ2", "RQ3"))
    stems = {path.stem for path in (run / "figures").glob("*.png")}
    assert len(stems) >= 15
    for stem in stems:
        pdf = (run / "figures" / f"{stem}.pdf").read_bytes()
        assert (b"/Type /Font " in pdf) == (b"/FontFile2" in pdf), f"{stem}: fonts are not embedded"
        assert (run / "figures" / f"{stem}.txt").read_text(encoding="utf-8").strip()
    tables = {path.stem for path in (run / "tables").iterdir()}
    assert len(tables) >= 15
    assert {path.name for path in (run / "tables").iterdir()} == {
        f"{t}.{kind}" for t in tables for kind in ("csv", "tex")
    }
    document = (run / "study.tex").read_text(encoding="utf-8")
    assert {*re.findall(r"figures/(.*)\.pdf", document)} == stems
    assert {*re.findall(r"tables/(.*)\.tex", document)} == tables


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex: install TeX Live")
def test_a_document_of_all_figures_tables_and_numbers_compiles(run, tmp_path):
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"-output-directory={tmp_path}", "study.tex"]
    for _ in range(2):  # longtable measures first
        done = subprocess.run(command, cwd=run, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "study.log").read_text(errors="replace")
    assert not re.findall("undefined|Float too large|Missing character", log)
    assert all(float(points) < 10 for points in re.findall(r"Overfull .hbox \(([\d.]+)pt", log))
    numbers = (run / "results.tex").read_text().count("newcommand")
    assert numbers > 100 and (run / "study.tex").read_text(encoding="utf-8").count("textbackslash") == numbers


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.loaded, self.followed, self.targets = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "link", "img", "iframe"):
            self.loaded += [attributes[key] for key in ("src", "href") if attributes.get(key)]
        if "id" in attributes:
            self.targets.append(attributes["id"])
        if tag == "a":
            self.followed.append(attributes.get("href", ""))


def test_pages_are_self_contained_and_their_links_lead_somewhere(run):
    pages = sorted((run / "notebooks").glob("*.html"))
    assert [page.stem for page in pages] == [*NAMES, "index"]
    for page in pages:
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert all(source.startswith("data:") for source in links.loaded), page.name
        for target in links.followed:
            if target.startswith("#"):
                assert target[1:] in links.targets, (page.name, target)
            elif not target.startswith("http"):
                assert (page.parent / target.split("#")[0]).exists(), (page.name, target)
        assert len(links.targets) == len(set(links.targets)), page.name
        assert "No description has been provided" not in page.read_text(encoding="utf-8"), "a picture without alt text"


def test_the_first_page_sent_alone_has_all_notebooks(run):
    page = (run / "notebooks" / "index.html").read_text(encoding="utf-8")
    assert all(f'<details class="notebook" id="{name}">' in page for name in NAMES)
    own = [(run / "notebooks" / f"{name}.html").read_text(encoding="utf-8").count("<img ") for name in NAMES]
    assert min(own) > 0 and page.count("<img ") == sum(own) + len(OPENING)
    assert page.count("<h1") == 1 and page.index("RQ3:") < page.index("<img "), "the answers come first"


def test_pages_open_offline_at_once_and_are_accessible(run, browser):
    """axe-core in light and dark, code unfolded on one page; no console message, no request."""
    for scheme in ("light", "dark"):
        context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 390, "height": 844})
        pages = sorted((run / "notebooks").glob("*.html"))
        for file in pages if scheme == "light" else pages[-1:]:  # index.html holds all of them
            page, messages, requests = context.new_page(), [], []
            page.on("console", lambda message, m=messages: m.append(message.text))
            page.on("pageerror", lambda error, m=messages: m.append(str(error)))
            page.on("request", lambda request, r=requests: r.append(request.url))
            page.goto(file.as_uri())
            if file.stem == "02_cyclegan":
                page.evaluate("document.querySelectorAll('details.code').forEach(one => one.open = true)")
            rules = None if scheme == "light" else {"runOnly": ["color-contrast"]}
            found = Axe().run(page, options=rules).response["violations"]
            serious = [
                (rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in ("serious", "critical")
            ]
            assert not serious, (file.name, scheme, serious)
            assert not messages and all(url.startswith(("file:", "data:")) for url in requests), file.name
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{file.name} is too wide"
            page.close()
        context.close()
    index = run / "notebooks" / "index.html"
    assert index.stat().st_size < 10e6
    page = browser.new_page()
    page.goto(index.as_uri() + "#05_classifier_trials-2")
    assert page.locator("#\\30 5_classifier_trials").get_attribute("open") is not None, "links unfold their notebook"
    page.emulate_media(media="print")
    headings = page.get_by_role("heading", name="Leak audit")
    assert headings.count() and headings.first.is_visible(), "folded notebooks are printed"


def test_a_second_run_does_nothing(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in (run / "notebooks").glob("*.ipynb")}
    assert main(["--profile", "smoke"], NOTEBOOKS, run.parent) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (run / "notebooks").glob("*.ipynb")}


def test_every_cell_may_be_run_again(run, tmp_path, monkeypatch):
    """Each code cell twice in a row, on a copy of the finished run: nothing breaks, and the results stay."""
    monkeypatch.setenv("LIB_PROGRESS", "none")
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **how: path.touch())  # saves a minute
    copy = tmp_path / "again"
    shutil.copytree(run, copy)
    records = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["notebooks"]
    for notebook in read_notebooks(NOTEBOOKS):
        values = {"__name__": "__main__"}
        for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
            code = compile(cell.source, f"{notebook.name}, code cell {number}", "exec")
            for _ in range(2):
                exec(code, values)
                if "parameters" in cell.metadata.get("tags", []):
                    values |= records[notebook.name]["parameters"] | {"run_dir": str(copy)}
    files = compare_runs(run, copy)
    assert len(files) > 60 and not files[files.differ > 0].to_dict("records")
    assert not list(copy.rglob("before-*")), "a training began anew"
