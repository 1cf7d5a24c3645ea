import errno
import json
import os
import platform
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from lib.run import locks
from lib.run.files import ROOT
from lib.run.folder import Run
from lib.run.locks import HOLDER, LOCK, Busy, fcntl, holder, sole_writer

HOLD = """
import sys
from lib.run.locks import sole_writer
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
            Run(tmp_path).check_parameters("02_cyclegan", {})
        process.stdin.close()
        process.wait()
    assert (tmp_path / LOCK).read_text() == ""
    assert holder(tmp_path) is None
    with sole_writer(tmp_path, "mine"):
        Run(tmp_path).check_parameters("02_cyclegan", {})  # as a kernel that this process started would
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


def test_whoever_a_dead_owner_left_behind_is_told_from_him(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = {"host": platform.node(), "pid": gone.pid, "what": "run_all.py", "since": "now"}
    assert f"a process that run_all.py (process {gone.pid} on" in locks.held_by(tmp_path, owner)


@pytest.mark.skipif(fcntl is None, reason="no flock")
def test_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
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
        Run(tmp_path).check_parameters("02_cyclegan", {})
    signs = threading.Timer(0.5, os.utime, [tmp_path / LOCK])
    signs.start()
    with pytest.raises(Busy, match="on elsewhere, since then"), sole_writer(tmp_path, "mine"):
        pass
    signs.join()
    monkeypatch.setattr(locks, "STALE", 1)
    with sole_writer(tmp_path, "mine"):  # waits for a second without any
        assert json.loads((tmp_path / LOCK).read_text())["what"] == "mine"
    assert "waiting for a sign of life" in capsys.readouterr().err


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    with sole_writer(tmp_path, "mine"):
        os.utime(tmp_path / LOCK, (1, 1))
        waited = threading.Event()
        while (tmp_path / LOCK).stat().st_mtime < 2:
            waited.wait(0.05)


def test_without_flock_the_file_alone_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
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

    monkeypatch.setattr(locks, "fcntl", NoLocks)
    with sole_writer(tmp_path, "one"), pytest.raises(Busy, match="one"), sole_writer(tmp_path, "two"):
        pass
    assert holder(tmp_path) is None


def test_a_lock_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "quick").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*quick"), sole_writer(tmp_path / "quick", "mine"):
        pass
