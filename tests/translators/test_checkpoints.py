"""Nothing is lost: trainings that are killed, and checkpoints that are torn."""

import errno
import os
import signal
from dataclasses import replace

import pandas as pd
import pytest
import test_cyclediff
import torch
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.run import checkpoints
from lib.run.checkpoints import Checkpoint
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclegan import CycleGAN
from lib.translators.training import History
from lib.trials import classifier


def killed(function, *arguments) -> None:
    """Call a function in a process of its own, which must be killed in it."""
    child = os.fork()
    if not child:
        try:
            function(*arguments)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# The file


def checkpoint(folder, inputs=None):
    history = History()
    return history, Checkpoint(folder / "checkpoint.pt", inputs or {"seed": 0}, {"history": history})


def two_saved(folder):
    history, saved = checkpoint(folder)
    for step in (1, 2):
        history.record(step, loss=torch.tensor(float(step)))
        saved.save(step)
    return history, saved


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_of_a_damaged_checkpoint_nothing_is_used(tmp_path, data):
    """Whatever byte changed, and wherever it was cut: the right state, or that of the checkpoint before."""
    two_saved(tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] ^= data.draw(st.integers(1, 255))
    else:
        del content[where:]
    path.write_bytes(content)
    history, again = checkpoint(tmp_path)
    done = again.load()
    assert done in (1, 2) and history.rows == [{"step": step, "loss": float(step)} for step in range(1, done + 1)]


def test_a_torn_checkpoint_is_named_and_the_one_before_goes_on(tmp_path, capsys):
    two_saved(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    assert checkpoint(tmp_path)[1].load() == 1
    assert "checkpoint.pt is torn" in capsys.readouterr().out
    (tmp_path / "checkpoint.before.pt").write_bytes(b"")
    assert checkpoint(tmp_path)[1].load() == 0
    assert "checkpoint.before.pt is torn" in capsys.readouterr().out


def test_a_changed_weight_is_noticed(tmp_path):
    """A bit of a tensor, which no unpickler would object to."""
    network = torch.nn.Linear(64, 64)
    saved = Checkpoint(tmp_path / "c.pt", {}, {"network": network})
    saved.save(1)
    content = bytearray((tmp_path / "c.pt").read_bytes())
    where = content.find(network.weight.detach().numpy().tobytes())
    assert where > 0
    content[where + 100] ^= 1
    (tmp_path / "c.pt").write_bytes(content)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 1, "PyTorch does not look"
    with pytest.raises(ValueError, match=r"c\.pt is torn"):
        checkpoints.read_whole(tmp_path / "c.pt")


def test_other_inputs_do_not_go_on_nor_does_what_came_before_them(tmp_path):
    two_saved(tmp_path)
    _, other = checkpoint(tmp_path, {"seed": 1})
    assert other.load() == 0
    other.save(5)
    assert checkpoint(tmp_path)[1].load() == 0, "what lies beside it is no longer this training's"


def test_another_number_of_processes_is_refused_before_anything_is_lost(tmp_path, capsys):
    two_saved(tmp_path)
    with pytest.raises(ValueError, match=r"made by 1 process, .*set num_processes to 1, or delete the file"):
        checkpoint(tmp_path, {"seed": 0, "processes": 2})[1].load()
    assert checkpoint(tmp_path, {"seed": 1, "processes": 2})[1].load() == 0
    assert "(step 2) is of another training (processes, seed): this one starts anew." in capsys.readouterr().out


def test_another_number_of_threads_is_told(tmp_path, monkeypatch, capsys):
    two_saved(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert checkpoint(tmp_path)[1].load() == 2
    assert "made by 1 threads, and goes on with 7" in capsys.readouterr().out


def half_saved(state, path):
    path.write_bytes(b"PK" + bytes(1000))
    die()


@pytest.mark.parametrize(
    ("module", "name", "instead"),
    [(torch, "save", half_saved), (os, "replace", die), (os, "fsync", die)],
    ids=["in the file", "before the renamings", "between the renamings"],
)
def test_killed_while_saving_the_last_checkpoint_stays(tmp_path, monkeypatch, module, name, instead):
    history, saved = two_saved(tmp_path)
    history.record(3, loss=3.0)

    def save():
        monkeypatch.setattr(module, name, instead)
        saved.save(3)

    killed(save)
    assert (tmp_path / "checkpoint.pt").exists() == (name != "fsync")
    assert checkpoint(tmp_path)[1].load() == 2


def test_a_full_disk_says_what_is_kept(tmp_path, monkeypatch):
    _, saved = two_saved(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt: No space left.*step 2 is kept"):
            saved.save(3)
    assert checkpoint(tmp_path)[1].load() == 2


def test_saving_takes_a_sixtieth_of_the_time_at_most_but_never_waits_five_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    _, saved = checkpoint(tmp_path)

    def slow(state, path, seconds):
        now[0] += seconds
        path.write_bytes(b"")

    for seconds, every in ((0.1, 120), (2.5, 150), (30, 285)):
        monkeypatch.setattr(checkpoints.torch, "save", lambda *arguments, s=seconds: slow(*arguments, s))
        saved.save(1)
        now[0] += every
        assert not saved.due()
        now[0] += 0.1
        assert saved.due()


# Trainings: killed while they save, again and again, each time a few steps further

CUTS = {"cyclegan": (1, 4, 5), "cyclediff": (2, 4, 6, 7, 9), "classifier": (1, 2, 5)}


def fit(name, folder):
    """History and weights of a toy training."""
    if name == "classifier":
        trained = classifier.train(
            toys.blob_cohort(), toys.blob_cohort(12, seed=1), toys.TINY, 0,
            standard=True, checkpoint=folder / "checkpoint.pt",
        )  # fmt: skip
        return trained.history, trained.network.state_dict(), trained.spent
    if name == "cyclegan":
        model = CycleGAN(replace(toys.TOY, identity=5.0, log_every=1))
        cohort = toys.line_cohort()
        history = model.fit(cohort, folder, seed=0, preview=cohort.first(4))
    else:
        model = CycleDiff(replace(test_cyclediff.KL, dropout=0.1), test_cyclediff.SAMPLER)
        history = model.fit(test_cyclediff.toy_cohort(size=32), folder, seed=0)
    final = checkpoints.read_whole(folder / "checkpoint.pt")["objects"]
    return history, {key: network.state_dict() for key, network in vars(model.networks).items()}, final


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", CUTS)
def test_a_training_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, name):
    """Weights, history and all that the last checkpoint holds: optimisers, averages, pools, what was spent."""
    history, weights, rest = fit(name, tmp_path / "whole")
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    save = Checkpoint.save

    def killed_at(step):
        def instead(self, done):
            if done == step:
                monkeypatch.setattr(checkpoints.torch, "save", half_saved)
            save(self, done)

        monkeypatch.setattr(Checkpoint, "save", instead)
        fit(name, tmp_path / "parts")

    for step in CUTS[name]:
        killed(killed_at, step)
        assert Checkpoint.files(tmp_path / "parts" / "checkpoint.pt")[0].exists() == (step > 1)
    again, weights_again, rest_again = fit(name, tmp_path / "parts")
    pd.testing.assert_frame_equal(again, history)
    assert same(weights_again, weights) and same(rest_again, rest)
    if name == "cyclediff":
        assert [len(rest[f"optimiser_{kind}"]["state"]) > 0 for kind in ("A", "D_A", "U", "T")] == [
            False,
            False,
            True,
            True,
        ]
    previews = [sorted(file.name for file in (tmp_path / part).rglob("*.npy")) for part in ("whole", "parts")]
    assert previews[0] == previews[1]
