import errno
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from lib.run.files import ROOT, shown, without_paths, write_text, write_together


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


def test_messages_show_paths_from_the_repository(tmp_path):
    assert shown(ROOT / "runs/quick/answers.md") == "runs/quick/answers.md"
    assert shown(tmp_path) == str(tmp_path)


def test_texts_written_together_are_never_read_beside_older_ones(tmp_path, monkeypatch):
    texts = {"metrics.csv": "old", "predictions.csv": "old"}
    write_together(tmp_path, texts)
    replace, seen = os.replace, []

    def replaced(part, path):
        seen.append({file.name: file.read_text() for file in tmp_path.glob("[!.]*")})
        replace(part, path)

    monkeypatch.setattr(os, "replace", replaced)
    write_together(tmp_path, dict.fromkeys(texts, "new"))
    assert seen == [{}, {"metrics.csv": "new"}]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(texts, "new")


def test_paths_of_this_machine_are_forgotten(monkeypatch):
    text = f'File "{ROOT}/lib/x.py", in {Path.home()}/data and {sys.prefix}/lib: {ROOT}-other'
    forgotten = without_paths(text)
    assert 'File "./lib/x.py", in ~/data and python/lib: ' in forgotten
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    assert without_paths(f"{ROOT}/.venv/lib") == "python/lib"
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jörg"))
    assert without_paths("in /home/jörg/x and /home/jörg. " + json.dumps("/home/jörg")) == 'in ~/x and ~. "~"'
