import os

os.environ["OMP_NUM_THREADS"] = "1"  # here and in notebooks' kernels: toys are faster so, and two processes fit

import shutil

import matplotlib
import pytest
import torch
from hypothesis import settings
from playwright.sync_api import sync_playwright

from lib.run.files import ROOT

matplotlib.use("Agg")
settings.register_profile("explore", deadline=None, max_examples=300)  # pytest --hypothesis-profile=explore
settings.register_profile("toy", deadline=None, max_examples=30, derandomize=True)  # the same examples every time
settings.load_profile("toy")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The notebooks first: the longest files, so that processes end together (`pytest -n 2`)."""
    longest = ["test_notebooks.py", "test_other_data.py"]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


@pytest.fixture(scope="session", autouse=True)
def no_links_left(tmp_path_factory):
    """Tables in temporary folders are reached by links in data/ (`lib.run.parameters.within_repository`)."""
    yield
    for path in (ROOT / "data").iterdir():
        if path.is_symlink() and path.readlink().is_relative_to(tmp_path_factory.getbasetemp()):
            path.unlink()


@pytest.fixture(scope="session")
def browser():
    """The installed Chromium, headless."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
