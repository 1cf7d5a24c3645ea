"""Nothing is lost: trainings that are killed, and checkpoints that are torn."""

import errno
import json
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


# What no longer fits


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def training(folder, code="def fit(): return 1", step=None, **inputs):
    """A checkpoint of ten steps whose code is `code`; saved where `step` says how far."""
    inputs = {"settings": {"batch": 4}, "seed": 0, "steps": 10} | inputs
    history = History()
    saved = Checkpoint(folder / "checkpoint.pt", inputs | {"source": code}, {"history": history}, results=["w.bin"])
    if step:
        saved.save(step)
    return saved


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"settings": {"batch": 1}}, r"settings\.batch: 4 then, 1 now"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"cohort_hash": "b"}, "cohort_hash: a then, b now"),
        ({"seed": 1, "settings": {"batch": 1}}, r"seed: 0 then, 1 now; settings\.batch: 4 then, 1 now"),
        ({"seed": 1, "source": "def fit(): return 2"}, "seed: 0 then, 1 now"),
    ],
)
@pytest.mark.parametrize("mode", ["", "keep"])
def test_a_half_done_training_of_other_settings_is_refused_and_nothing_is_lost(
    tmp_path, monkeypatch, other, said, mode
):
    monkeypatch.setenv("LIB_OTHER_TRAINING", mode)
    training(tmp_path, step=3, cohort_hash="a")
    before = files_of(tmp_path)
    inputs = {"cohort_hash": "a"} | other
    with pytest.raises(ValueError, match=f"half-done training with other settings .*{said}.*set them as then"):
        training(tmp_path, inputs.pop("source", "def fit(): return 1"), **inputs).load()
    assert files_of(tmp_path) == before
    assert training(tmp_path, cohort_hash="a").load() == 3


@pytest.mark.parametrize(
    ("step", "now", "said"),
    [
        (10, {"seed": 1}, "seed: 0 then, 1 now"),
        (10, {"code": "other"}, "source: def fit(): return 1 then, other now"),
        (3, {"code": "other"}, "source: def fit(): return 1 then, other now"),
        (3, {"settings": {"batch": 4, "new": 1}}, "settings.new: missing then, 1 now"),
    ],
)
def test_what_no_longer_fits_is_set_aside_with_what_differs(tmp_path, capsys, step, now, said):
    saved = training(tmp_path)
    saved.seconds = 3000.0 * step
    saved.save(step)
    (tmp_path / "w.bin").write_bytes(b"weights")
    before = files_of(tmp_path)
    other = training(tmp_path, **now)
    assert other.load() == 0
    assert files_of(tmp_path) == before, "nothing moves before all processes have read it"
    other.make_room()
    (place,) = tmp_path.glob("before-*")
    after = files_of(place)
    why = json.loads(after.pop("checkpoint.why.json"))
    assert after == before and [path.name for path in tmp_path.iterdir()] == [place.name]
    assert why["step"] == step and why["inputs"]["seed"] == 0 and why["seconds"] >= 3000 * step
    out = capsys.readouterr().out
    assert said in out and f"set aside in {place.name}; making it anew takes about 8.3 hours" in out
    assert training(place).load() == step, "it goes on where it is put back"
    assert training(tmp_path, **now).load() == 0


def test_two_that_are_set_aside_in_the_same_second_do_not_overwrite_each_other(tmp_path):
    for number in range(3):
        (tmp_path / "w.bin").write_text(str(number))
        checkpoints.set_aside(tmp_path, ["w.bin"], {}, {})
    assert sorted(path.read_text() for path in tmp_path.glob("before-*/w.bin")) == ["0", "1", "2"]


def test_keeping_goes_on_with_other_code_says_so_and_asks_once(tmp_path, monkeypatch, capsys):
    training(tmp_path, step=3)
    monkeypatch.setenv("LIB_OTHER_TRAINING", "keep")
    saved = training(tmp_path, "def fit(): return 2")
    assert saved.load() == 3
    assert "is kept, though it was made by other code" in capsys.readouterr().out
    saved.save(10)
    said = {"checkpoint": "source: def fit(): return 1 then, def fit(): return 2 now"}
    assert checkpoints.kept(tmp_path) == said
    monkeypatch.delenv("LIB_OTHER_TRAINING")
    assert training(tmp_path, "def fit(): return 2").load() == 10
    began_with = checkpoints.read_record(tmp_path / "checkpoint.pt")["inputs"]
    assert began_with["source"] == "def fit(): return 1"
    other = training(tmp_path, "def fit(): return 3")
    assert other.load() == 0, "what was accepted was other code"
    other.make_room()
    assert checkpoints.kept(tmp_path) == {} and list(tmp_path.glob("before-*/checkpoint.kept.json"))


def test_keeping_what_the_code_can_no_longer_read_says_what_to_do(tmp_path, monkeypatch):
    Checkpoint(tmp_path / "c.pt", {"source": "1"}, {"n": torch.nn.Linear(2, 2)}).save(1)
    monkeypatch.setenv("LIB_OTHER_TRAINING", "keep")
    with pytest.raises(ValueError, match=r"(?s)c\.pt does not fit what the code .*without --keep-trained"):
        Checkpoint(tmp_path / "c.pt", {"source": "2"}, {"n": torch.nn.Linear(3, 2)}).load()
    monkeypatch.delenv("LIB_OTHER_TRAINING")
    assert Checkpoint(tmp_path / "c.pt", {"source": "2"}, {"n": torch.nn.Linear(3, 2)}).load() == 0


def test_anew_sets_aside_what_does_not_fit_and_keeps_what_does(tmp_path, monkeypatch):
    training(tmp_path, step=3)
    monkeypatch.setenv("LIB_OTHER_TRAINING", "anew")
    assert training(tmp_path).load() == 3, "it fits"
    again = training(tmp_path, seed=1)
    assert again.load() == 0
    again.make_room()
    again.save(2)
    assert len(list(tmp_path.glob("before-*/checkpoint.pt"))) == 1
    assert training(tmp_path, seed=1).load() == 2, "a job that is started again goes on"


def test_an_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv("LIB_OTHER_TRAINING", "kept")
    with pytest.raises(ValueError, match="LIB_OTHER_TRAINING='kept': there are"):
        checkpoints.other_training()


@pytest.mark.parametrize("step", [3, 10])
@pytest.mark.parametrize("mode", ["", "keep"])
def test_another_number_of_processes_is_refused_before_anything_is_lost(tmp_path, monkeypatch, step, mode):
    monkeypatch.setenv("LIB_OTHER_TRAINING", mode)
    training(tmp_path, step=step)
    with pytest.raises(ValueError, match=r"made by 1 process, .*set num_processes to 1, or delete the file"):
        training(tmp_path, processes=2).load()
    assert training(tmp_path).load() == step


def test_another_machine_keeps_a_finished_training_where_that_is_asked_for(tmp_path, monkeypatch):
    training(tmp_path, step=10, precision="bf16")
    assert training(tmp_path, precision="no").load() == 0
    monkeypatch.setenv("LIB_OTHER_TRAINING", "keep")
    assert training(tmp_path, precision="no").load() == 10


def test_time_is_counted_over_interruptions(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    saved = training(tmp_path)
    now[0] += 5
    saved.save(3)
    now[0] += 100  # between two calls
    again = training(tmp_path)
    now[0] += 1
    assert again.load() == 3
    now[0] += 2
    again.save(10)
    assert checkpoints.read_record(tmp_path / "checkpoint.pt")["seconds"] == 7


def test_a_run_tells_what_its_next_call_would_make_anew_without_reading_a_tensor(tmp_path, monkeypatch):
    code = ["lib.translators.networks:linear_decay"]
    inputs = {"steps": 10}
    for name, step in (("cyclegan/r0f0", 10), ("judge/r0f0", 5)):
        saved = Checkpoint(tmp_path / name / "checkpoint.pt", inputs, {}, code=code)
        saved.seconds = 50.0
        saved.save(step)
        saved.save(step)
    other = Checkpoint(tmp_path / "cyclediff/r0f0/checkpoint.pt", inputs | {"source": "older"}, {})
    other.code = code
    other.save(10)
    gone = Checkpoint(tmp_path / "cyclediff/r0f1/checkpoint.pt", inputs | {"source": "older"}, {})
    gone.code = ["lib.nowhere:nothing"]
    gone.save(10)
    (tmp_path / "cyclediff/r0f2").mkdir()
    (tmp_path / "cyclediff/r0f2/checkpoint.pt").write_bytes(b"torn")
    (tmp_path / "inputs.json").write_text(json.dumps({"source": "x", "code": code[0]}))
    (tmp_path / "manifest.json").write_text("{}")
    checkpoints.set_aside(tmp_path / "judge/r0f0", ["nothing"], {}, {})
    monkeypatch.setattr(torch, "load", None)
    table = checkpoints.trainings(tmp_path).set_index("path")
    assert table.state.to_dict() == {
        "cyclediff/r0f0/checkpoint.pt": "finished", "cyclediff/r0f1/checkpoint.pt": "finished",
        "cyclediff/r0f2/checkpoint.pt": "torn", "cyclegan/r0f0/checkpoint.pt": "finished",
        "judge/r0f0/checkpoint.pt": "half-done", "inputs.json": "finished",
    }  # fmt: skip
    assert list(table.index[table.fits]) == ["cyclegan/r0f0/checkpoint.pt", "judge/r0f0/checkpoint.pt"]
    assert table.seconds["judge/r0f0/checkpoint.pt"] == 50 and table.anew["judge/r0f0/checkpoint.pt"] == 100
    assert table.then["cyclediff/r0f0/checkpoint.pt"] == "older"
    assert table.now["cyclediff/r0f0/checkpoint.pt"] == table.now["cyclegan/r0f0/checkpoint.pt"]


@pytest.mark.parametrize("mode", ["", "keep"])
def test_a_generator_of_older_code_is_set_aside_or_kept(tmp_path, monkeypatch, mode):
    """All that its training left; what is kept gives the same weights, byte by byte."""
    fit("cyclegan", tmp_path)
    before = files_of(tmp_path)
    assert checkpoints.trainings(tmp_path).fits.all()
    monkeypatch.setattr(checkpoints, "source_hash", lambda *code: "later")
    monkeypatch.setenv("LIB_OTHER_TRAINING", mode)
    fit("cyclegan", tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == before["weights.safetensors"]
    if mode:
        assert list(checkpoints.kept(tmp_path)) == ["checkpoint"] and not list(tmp_path.glob("before-*"))
    else:
        (place,) = tmp_path.glob("before-*")
        assert files_of(place).items() > before.items()


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
        monkeypatch.setattr(torch, "save", lambda *arguments, s=seconds: slow(*arguments, s))
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
                monkeypatch.setattr(torch, "save", half_saved)
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
