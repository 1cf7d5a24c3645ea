"""JupyterLab as the author uses it: a notebook run in the browser, a widget clicked, a training ended."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import expect

from lib.run.files import ROOT
from lib.run.weights import weights_metadata
from run_all import NOTEBOOKS

TRAINING = """
from pathlib import Path
from lib.translators.cyclegan import CycleGAN, Settings
from lib.data.phantom import Phantom
from lib.report.widgets import Watch
cohort = Phantom(patients=12, size=32, aff_share=0.4).cohort()
settings = Settings(steps=100_000, batch=2, width=4, blocks=1, discriminator_width=4, log_every=5, previews=20_000)
history = CycleGAN(settings).fit(cohort, Path("weights"), 0, cohort.select(label="NFF").first(4), Watch(every=1))
print("then goes on")
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab in a folder with notebook 01, small, and one that trains."""
    folder = tmp_path_factory.mktemp("author")
    first = nbformat.read(NOTEBOOKS / "01_data_exploration.ipynb", as_version=4)
    parameters = next(cell for cell in first.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in (("run_dir", f'"{folder / "run"}"'), ("phantom_patients", "30"), ("image_size", "32")):
        parameters.source, found = re.subn(rf"(?m)^{name} = [^ ]*", f"{name} = {value}", parameters.source)
        assert found == 1
    nbformat.write(first, folder / "01.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell(TRAINING)], metadata=first.metadata), folder / "training.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {f"JUPYTER_{kind}_DIR": str(folder / ".jupyter" / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"]
    command += ["--ServerApp.disable_check_xsrf=True"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | settings | {"PYTHONPATH": path}
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: kernels(address) == [] or server.poll() is not None)
        assert server.poll() is None, (folder / "log").read_text()
        yield address, folder
    finally:
        server.terminate()
        server.wait(20)


def kernels(address: str) -> list[dict] | None:
    """The server's kernels; None where it does not answer yet."""
    try:
        return json.load(urllib.request.urlopen(f"{address}/api/kernels"))
    except OSError:
        return None


def stop_kernels(address: str) -> None:
    for kernel in kernels(address):
        request = urllib.request.Request(f"{address}/api/kernels/{kernel['id']}", method="DELETE")
        urllib.request.urlopen(request).close()


def until(true, seconds: float = 60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.25)


def opened(browser, address: str, notebook: str):
    """A page with the notebook, all its cells running."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(120_000)
    page.goto(f"{address}/lab/tree/{notebook}?reset")
    page.locator(".jp-Notebook").wait_for()
    until(lambda: any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels(address)))
    page.wait_for_timeout(2000)  # until the page knows so too; else it asks for a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    return page


def test_notebook_01_runs_and_a_click_shows_other_images(lab, browser):
    address, folder = lab
    page = opened(browser, address, "01.ipynb")
    tool = page.locator(".jp-OutputArea-output", has=page.locator(".widget-dropdown"))
    picture = tool.locator("img")
    picture.wait_for()
    before = picture.get_attribute("src")
    tool.get_by_label("label", exact=True).select_option("AFF")
    expect(picture).not_to_have_attribute("src", before)
    page.locator(".jp-OutputArea-output", has_text="moves the").wait_for()  # the last cell
    assert not page.locator("[data-mime-type='application/vnd.jupyter.stderr'], .jp-RenderedText .ansi-red-fg").count()
    page.close()
    stop_kernels(address)
    assert (folder / "run" / "cohort" / "splits.csv").exists()


def test_a_training_is_drawn_while_its_cell_runs_and_an_interrupt_ends_it(lab, browser):
    address, folder = lab
    page = opened(browser, address, "training.ipynb")
    losses = page.locator(".jp-OutputArea-output img.widget-image").first
    losses.wait_for()
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Interrupt Kernel", exact=True).click()
    page.locator(".jp-OutputArea-output", has_text="then goes on").wait_for()
    page.close()
    metadata = weights_metadata(folder / "weights" / "weights.safetensors")
    assert 0 < metadata["stopped_at"] < metadata["steps"]
