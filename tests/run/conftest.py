import shutil

import pytest
from toy_study import FIRST, SECOND, command, write

from lib.run import executing


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """A study of two notebooks that ran once, with a profile and a parameter from the command line."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "notebooks/profiles").mkdir(parents=True)
    (folder / "notebooks/profiles/quick.yaml").write_text("# nothing differs\n")
    (folder / "notebooks/profiles/small.yaml").write_text("sizes: [4]\nrate: 1e-3\n")
    (folder / "notebooks/profiles/wrong.yaml").write_text("imagesize: 4\n")
    write(folder / "notebooks", "01_first", FIRST)
    write(folder / "notebooks", "02_second", SECOND)
    with pytest.MonkeyPatch.context() as patch:
        spec = folder / "jupyter/kernels/python3/kernel.json"  # another python3 that the user has installed
        spec.parent.mkdir(parents=True)
        spec.write_text('{"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}')
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("MPLBACKEND", "Agg")
        assert command(folder, "--profile", "small", "-p", "seed", "7", "--run", "a") == 0
    return folder


@pytest.fixture
def study(executed, tmp_path, monkeypatch):
    """A copy of it to spoil."""
    shutil.copytree(executed, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(executing, "describe_environment", dict)
    return tmp_path
