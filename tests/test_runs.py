import errno
import json
import os
import platform
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from lib import runs
from lib.runs import (
    HOLDER,
    LOCK,
    ROOT,
    WHERE,
    Busy,
    Damaged,
    NotYet,
    Run,
    code_files,
    duration,
    environment,
    fcntl,
    holder,
    sole_writer,
    write_text,
)


def test_relative_run_folder_counts_from_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    run = Run("runs/quick")
    assert run.folder == tmp_path / "runs/quick"
    assert run / "cohort" == tmp_path / "runs/quick/cohort"


def test_path_makes_its_folder(tmp_path):
    path = Run(tmp_path / "run").path("cohort", "table.csv")
    assert path == tmp_path / "run/cohort/table.csv"
    assert path.parent.is_dir()
    assert not path.exists()


def test_records_merge_and_numpy_values_become_plain(tmp_path):
    run = Run(tmp_path)
    run.record("weights", vgg="ImageNet", classifier="random")
    run.record("weights", classifier="ImageNet")
    run.record(seed=np.int64(3), size=np.array([1, 2]), file=tmp_path / "a")
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "weights": {"vgg": "ImageNet", "classifier": "ImageNet"},
        "seed": 3,
        "size": [1, 2],
        "file": str(tmp_path / "a"),
    }
    assert os.listdir(tmp_path) == ["manifest.json"]  # no temporary files


def test_require_names_the_file_and_the_notebook(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(NotYet, match=r"cohort/table\.csv is missing: run notebook 01_data_exploration.*--from 01"):
        run.require("cohort/table.csv", notebook="01_data_exploration")
    run.path("cohort", "table.csv").touch()
    assert run.require("cohort/table.csv", notebook="01_data_exploration") == tmp_path / "cohort/table.csv"


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path):
    (tmp_path / "quick").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*quick"):
        Run(tmp_path / "quick")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write"):
        Run(tmp_path / "quick")
    with pytest.raises(PermissionError, match="cannot write"):
        Run(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "answers.md"
    write_text(path, "old")

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match=r"cannot write .*answers\.md: No space left") as error:
        write_text(path, "new")
    assert error.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["answers.md"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(*paths):
        done.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_text(tmp_path / "answers.md", "new")
    assert done == ["file", "replace", "folder"]


def test_a_damaged_manifest_is_a_clear_error(tmp_path):
    (tmp_path / "manifest.json").write_text('{"seed": ')
    with pytest.raises(Damaged, match=r"manifest\.json is damaged"):
        Run(tmp_path).record(seed=1)
    assert (tmp_path / "manifest.json").read_text() == '{"seed": '


def test_differing_parameters_with_both_values(tmp_path):
    one, other, by_hand = (Run(tmp_path / name) for name in ("one", "other", "by_hand"))
    one.record(parameters={"seed": 0, "image_size": 64, "seeds": [0, 1], "share": 1.0, "old": 3})
    other.record(parameters={"seed": 1, "image_size": 64, "seeds": [0, 1, 2], "share": 0.5, "new": ""})
    found = one.differing(other, ignoring=("share",))
    assert found == {"seed": (0, 1), "seeds": ([0, 1], [0, 1, 2]), "old": (3, None), "new": (None, "")}
    assert one.differing(one) == {}
    by_hand.record("weights", classifier="random")
    assert one.differing(by_hand) == by_hand.differing(one) == {}


def test_code_files_follow_every_form_of_import(tmp_path):
    lib = tmp_path / "lib"
    (lib / "deep").mkdir(parents=True)
    sources = {
        "__init__.py": "",
        "a.py": "from lib import b",
        "b.py": "def f():\n    from .c import something",
        "c.py": "import numpy",
        "deep/__init__.py": "from .inner import x",
        "deep/inner.py": "from ..d import y\nfrom . import sister",
        "deep/sister.py": "",
        "d.py": "import lib.a",
        "unused.py": "",
    }
    for name, source in sources.items():
        (lib / name).write_text(source)

    def names(source):
        return {str(file.relative_to(lib)) for file in code_files(source, tmp_path)} - {"__init__.py"}

    assert names("import numpy as np, os.path") == set()
    assert names("import lib.c") == {"c.py"}
    assert names("from lib.a import thing") == {"a.py", "b.py", "c.py"}
    assert names("from lib import deep") == {name for name in sources if name != "unused.py"} - {"__init__.py"}


def test_the_environment_names_versions_and_machine():
    facts = environment()
    import torch

    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "not installed" not in facts["versions"].values()
    assert facts["device"].startswith(("cpu", "cuda", "mps"))
    assert facts["cores"] >= 1


def test_commit_and_changes_come_from_this_repository_alone(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs._commit() == (None, None)
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--no-verify", "-m", "one")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert runs._commit() == (commit, False)
    (tmp_path / "a").write_text("2")
    assert runs._commit() == (commit, True)
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(runs, "ROOT", tmp_path / "unpacked")  # a copy inside somebody else's repository
    assert runs._commit() == (None, None)


def test_messages_show_paths_from_the_repository(tmp_path):
    assert runs.shown(ROOT / "runs/quick/answers.md") == "runs/quick/answers.md"
    assert runs.shown(tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 seconds"), (89, "89 seconds"), (420, "7.0 minutes"), (9000, "2.5 hours")]
)
def test_durations_are_said_in_a_fitting_unit(seconds, said):
    assert duration(seconds) == said


def test_a_notebook_run_by_hand_does_not_overwrite_what_has_other_parameters(tmp_path):
    run = Run(tmp_path / "thesis")
    run.keep("02_cyclegan", {"steps": 5})
    run.record("notebooks", **{"02_cyclegan": {"parameters": {"steps": 120_000, "sizes": [1, 2]}}})
    run.keep("02_cyclegan", {"steps": 120_000, "sizes": [1, 2], "more": 1})
    with pytest.raises(ValueError, match=r"steps = 5 \(there 120000\)\. Set them as there, or work on a copy"):
        run.keep("02_cyclegan", {"steps": 5, "sizes": [1, 2]})


def test_where_a_training_runs_is_no_difference(tmp_path):
    one, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    one.record(parameters={"seed": 0, "executor": "here"}, notebooks={"02": {"parameters": {"executor": "here"}}})
    other.record(parameters={"seed": 0, **dict.fromkeys(WHERE, "slurm")})
    assert one.differing(other) == {}
    one.keep("02", {"executor": "slurm"})


# The lock


HOLD = """
import sys
from lib.runs import sole_writer
with sole_writer(sys.argv[1], "training") as lock:
    {inside}
"""
READY = "print('ready', flush=True); sys.stdin.read()"
WITH_CHILD = (
    "import subprocess; child = 'print(\\'ready\\', flush=True); import time; time.sleep({seconds})'; "
    "subprocess.Popen([sys.executable, '-c', child], pass_fds=(lock,)); sys.stdin.read()"
)


@contextmanager
def held(folder, inside=READY):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD.format(inside=inside), folder]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def named(folder, **changes):
    """A lock file as some owner would have left it."""
    owner = {"host": platform.node(), "pid": 2**22 + 1, "what": "training", "since": "then"} | changes
    (folder / LOCK).write_text(json.dumps(owner))


def test_one_writer_at_a_time(tmp_path):
    with held(tmp_path) as process:
        assert holder(tmp_path)["pid"] == process.pid
        message = rf"is being written by training \(process {process.pid} on .*, since 20.*\): wait for its end"
        with pytest.raises(Busy, match=message), sole_writer(tmp_path, "mine"):
            pass
        with pytest.raises(Busy, match=message):
            Run(tmp_path).keep("02_cyclegan", {})
        process.stdin.close()
        process.wait()
    assert (tmp_path / LOCK).read_text() == ""
    assert holder(tmp_path) is None
    with sole_writer(tmp_path, "mine"):
        Run(tmp_path).keep("02_cyclegan", {})  # as a kernel that this process started would
        assert set(json.loads((tmp_path / LOCK).read_text())) == {"host", "pid", "what", "since"}
    assert HOLDER not in os.environ


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path, "mine"):
        raise ZeroDivisionError
    assert holder(tmp_path) is None


@pytest.mark.skipif(fcntl is None, reason="no flock")
def test_a_killed_owners_lock_is_free_at_once(tmp_path, capsys):
    with held(tmp_path) as process:
        process.kill()
        process.wait()
        with sole_writer(tmp_path, "mine"):
            assert holder(tmp_path)["what"] == "mine"
    assert "training (process" in capsys.readouterr().err


@pytest.mark.skipif(fcntl is None, reason="no flock")
def test_what_a_killed_owner_started_is_waited_for(tmp_path, capsys):
    with held(tmp_path, WITH_CHILD.format(seconds=1.5)) as process:
        process.kill()
        process.wait()
        assert holder(tmp_path)["what"] == "training"
        with sole_writer(tmp_path, "mine"):
            assert process.stdout.read() == ""  # the child has ended
    assert "waiting until its kernel has ended, at most 60 s" in capsys.readouterr().err


@pytest.mark.skipif(fcntl is None, reason="no flock")
def test_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE", 0.3)
    with held(tmp_path, WITH_CHILD.format(seconds=2)) as process:
        process.kill()
        process.wait()
        with pytest.raises(Busy, match="training"), sole_writer(tmp_path, "mine"):
            pass


def test_another_machine_counts_while_it_gives_signs_of_life(tmp_path, monkeypatch, capsys):
    """Where flock ends at the machine: it is free here, but the file is another's."""
    named(tmp_path, host="elsewhere")
    assert holder(tmp_path)["host"] == "elsewhere"
    with pytest.raises(Busy, match="on elsewhere, since then"):
        Run(tmp_path).keep("02_cyclegan", {})
    signs = threading.Timer(0.5, os.utime, [tmp_path / LOCK])
    signs.start()
    with pytest.raises(Busy, match="on elsewhere, since then"), sole_writer(tmp_path, "mine"):
        pass
    signs.join()
    monkeypatch.setattr(runs, "STALE", 1)
    with sole_writer(tmp_path, "mine"):  # waits for a second without any
        assert json.loads((tmp_path / LOCK).read_text())["what"] == "mine"
    assert "waiting for a sign of life" in capsys.readouterr().err


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BEAT", 0.05)
    with sole_writer(tmp_path, "mine"):
        os.utime(tmp_path / LOCK, (1, 1))
        waited = threading.Event()
        while (tmp_path / LOCK).stat().st_mtime < 2:
            waited.wait(0.05)


def test_without_flock_the_file_alone_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "fcntl", None)
    with held(tmp_path) as process:
        with pytest.raises(Busy, match=f"process {process.pid}"), sole_writer(tmp_path, "mine"):
            pass
        process.kill()
        process.wait()
        with sole_writer(tmp_path, "mine"):
            assert holder(tmp_path)["what"] == "mine"
    named(tmp_path, pid=os.getpid())
    os.utime(tmp_path / LOCK, (1, 1))  # the number of a process that ended long ago, given to another
    assert holder(tmp_path) is None


def test_a_file_system_without_locks_is_as_without_flock(tmp_path, monkeypatch):
    class NoLocks:
        LOCK_EX = LOCK_NB = LOCK_UN = 0

        @staticmethod
        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runs, "fcntl", NoLocks)
    with sole_writer(tmp_path, "one"), pytest.raises(Busy, match="one"), sole_writer(tmp_path, "two"):
        pass
    assert holder(tmp_path) is None


def test_a_lock_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "quick").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*quick"), sole_writer(tmp_path / "quick", "mine"):
        pass


def test_texts_written_together_are_never_read_beside_older_ones(tmp_path, monkeypatch):
    texts = {"metrics.csv": "old", "predictions.csv": "old"}
    runs.write_together(tmp_path, texts)
    replace, seen = os.replace, []

    def replaced(part, path):
        seen.append({file.name: file.read_text() for file in tmp_path.glob("[!.]*")})
        replace(part, path)

    monkeypatch.setattr(os, "replace", replaced)
    runs.write_together(tmp_path, dict.fromkeys(texts, "new"))
    assert seen == [{}, {"metrics.csv": "new"}]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(texts, "new")
