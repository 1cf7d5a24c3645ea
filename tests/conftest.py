import matplotlib
import pytest
import torch
from hypothesis import settings

from lib.runs import ROOT

matplotlib.use("Agg")
settings.register_profile("toy", deadline=None, max_examples=30)
settings.load_profile("toy")
torch.set_num_threads(1)  # toy networks are faster on one thread, above all on a busy machine


@pytest.fixture(scope="session", autouse=True)
def no_links_left():
    """Tables in temporary folders are reached by links in data/ (`run_all.within_repository`)."""
    before = set((ROOT / "data").iterdir())
    yield
    for path in set((ROOT / "data").iterdir()) - before:
        if path.is_symlink():
            path.unlink()
