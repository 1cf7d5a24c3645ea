"""Tasks: done here, by processes of this machine, and by the jobs of a real Slurm cluster of one node."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import hanging
import pandas as pd
import psutil
import pytest
import torch
from slurm import cluster, why_not
from toys import TINY, TOY, blob_cohort, line_cohort

from lib.data.splits import make_splits
from lib.run.checkpoints import read_whole
from lib.run.files import ROOT
from lib.run.folder import Run
from lib.run.locks import Busy, sole_writer
from lib.run.slurm import queue
from lib.run.tasks import CHOSEN, COLUMNS, Machines, Task, TaskList, TasksFailed, run_tasks
from lib.run.weights import weights_metadata
from lib.study import Study
from lib.translators.cyclegan import CycleGAN
from lib.translators.translator import train
from lib.trials.trials import run_trials

HERE, TWO = Machines(), Machines(num_processes=2)
SLURM = Machines("slurm", minutes=5, gpus=0)


def once(folder: Path, names) -> dict:
    """Tasks that cannot be done twice: a folder is made that must not be there."""
    return {name: Task(partial(os.mkdir, folder / name), folder / name) for name in names}


def trained(folder: Path, by=train, **changes) -> Task:
    cohort = line_cohort()
    do = partial(by, partial(CycleGAN, replace(TOY, **changes)), cohort, folder, 0, cohort.first(4))
    return Task(do, folder / "weights.safetensors")


def weights(folder: Path) -> dict:
    networks = vars(CycleGAN.load(folder).networks)
    return {f"{name}.{k}": v for name, network in networks.items() for k, v in network.state_dict().items()}


def same_weights(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return all(torch.equal(one[name], other[name]) for name in one)


# In this process


def test_here_tasks_are_done_in_order_and_get_the_watch(tmp_path):
    seen = []
    tasks = {name: Task(partial(seen_by, seen, name), tmp_path) for name in "ba"}
    table = run_tasks(tasks, tmp_path / "stage" / "tasks", HERE, watch="w")
    assert seen == [("b", "w"), ("a", "w")]
    assert list(table.index) == ["b", "a"]
    assert set(table.state) == {"done"} and (table.memory_mb > 50).all() and (table.seconds >= 0).all()
    written = pd.read_csv(tmp_path / "stage" / "tasks.csv", index_col="task")
    assert list(written.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(written[list(table)], table)


def seen_by(seen: list, name: str, watch=None) -> None:
    seen.append((name, watch))


def test_here_an_error_ends_the_work_and_stands_in_the_list(tmp_path):
    tasks = {"a": Task(partial(int, "no number"), tmp_path)} | once(tmp_path, "b")
    with pytest.raises(ValueError, match="no number"):
        run_tasks(tasks, tmp_path / "tasks", HERE)
    todo = TaskList(tmp_path / "tasks", tasks, HERE)
    assert todo.read("a")["state"] == "failed" and "no number" in todo.read("a")["error"]
    assert todo.read("b") == {"state": "waiting", "attempts": 0} and not (tmp_path / "b").exists()


def test_a_task_that_somebody_does_is_left_alone(tmp_path):
    tasks = once(tmp_path, "a")
    todo = TaskList(tmp_path / "tasks", tasks, HERE)
    with sole_writer(tmp_path / "tasks" / "locks" / "a", "by hand"), pytest.raises(Busy):
        todo.do("a")
    todo.do("a")
    assert (tmp_path / "a").exists()


def test_what_a_task_is_given_decides_whether_it_is_known_and_so_does_its_result(tmp_path):
    def state(name: str, machines=HERE) -> str:
        return TaskList(tmp_path / "tasks", {"a": once(tmp_path, name)[name]}, machines).read("a")["state"]

    TaskList(tmp_path / "tasks", once(tmp_path, "a"), HERE).do("a")
    assert (state("a"), state("b")) == ("done", "waiting")
    assert (state("a", replace(SLURM, gpus=0)), state("a", replace(SLURM, gpus=1))) == ("done", "waiting")
    (tmp_path / "a").rmdir()
    assert state("a") == "waiting"


def test_where_a_file_changes_that_a_task_needs_it_is_done_again(tmp_path):
    weights = tmp_path / "weights"
    weights.write_text("one")
    tasks = {"a": Task(partial(os.mkdir, tmp_path / "a"), tmp_path / "a", (weights,))}
    TaskList(tmp_path / "tasks", tasks, HERE).do("a")
    assert TaskList(tmp_path / "tasks", tasks, HERE).read("a")["state"] == "done"
    weights.write_text("two")
    assert TaskList(tmp_path / "tasks", tasks, HERE).read("a")["state"] == "waiting"


def test_what_was_stopped_by_hand_is_not_done(tmp_path):
    tasks = {"r0f0": trained(tmp_path / "gan", log_every=1)}
    stop = [True, False, False, False, False, False]
    table = run_tasks(tasks, tmp_path / "tasks", HERE, watch=lambda *_: stop.pop(0))
    assert list(table.state) == ["waiting"] and (tmp_path / "gan" / "weights.safetensors").exists()
    assert list(run_tasks(tasks, tmp_path / "tasks", HERE).state) == ["done"]


@pytest.mark.parametrize("values", [{"executor": "sge"}, {"num_processes": 0}])
def test_machines_that_do_not_exist_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Machines(**values)


def test_machines_are_those_that_the_command_chose_else_this_one(monkeypatch):
    monkeypatch.delenv(CHOSEN, raising=False)
    assert Machines.chosen() == HERE and Machines.chosen(2) == TWO
    monkeypatch.setenv(CHOSEN, '{"executor": "slurm", "partition": "gpu", "account": "", "minutes": 5, "gpus": 0}')
    assert Machines.chosen(2) == replace(SLURM, num_processes=2, partition="gpu")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("slurm", "LIB_MACHINES='slurm' is no JSON .*: unset it, and choose with run_all.py --executor"),
        ('["slurm"]', "LIB_MACHINES='.*must be a mapping"),
        ('{"queue": "gpu"}', "LIB_MACHINES='.*unexpected keyword argument 'queue'"),
        ('{"executor": "sge"}', "executor='sge': choose 'local' or 'slurm' .*--executor"),
    ],
)
def test_a_choice_that_makes_no_sense_says_what_to_do(text, named, monkeypatch):
    monkeypatch.setenv(CHOSEN, text)
    with pytest.raises(ValueError, match=named):
        Machines.chosen()


# By processes of this machine


def test_two_processes_do_each_task_once_and_report_the_failed(tmp_path):
    tasks = once(tmp_path, "abcd") | {"wrong": Task(partial(int, "no number"), tmp_path)}
    with pytest.raises(TasksFailed, match=r"1 of 5 tasks .*\nwrong: ValueError: .*no number.*\.log\)") as failure:
        run_tasks(tasks, tmp_path / "tasks", TWO)
    table = pd.read_csv(tmp_path / "tasks.csv").set_index("task")
    assert table.state.to_dict() == dict.fromkeys("abcd", "done") | {"wrong": "failed"}
    assert all((tmp_path / name).exists() for name in "abcd")
    log = Path(str(failure.value).split("log: ")[1].rstrip(")"))
    assert "ValueError" in (ROOT / log).read_text()

    tasks["wrong"] = once(tmp_path, ["right"])["right"]  # whoever is done is not asked again
    assert set(run_tasks(tasks, tmp_path / "tasks", TWO).state) == {"done"}
    assert (tmp_path / "right").exists()
    assert not (tmp_path / "tasks" / "logs").exists() and not (tmp_path / "tasks" / "tasks.pkl").exists()


def test_a_process_that_dies_leaves_its_task_failed_and_the_rest_to_the_others(tmp_path):
    tasks = {"dies": Task(os.abort, tmp_path)} | once(tmp_path, "abc")
    with pytest.raises(
        TasksFailed, match=r"1 of 4 tasks .*\ndies: its process ended before it was done \(exit status .*-6"
    ):
        run_tasks(tasks, tmp_path / "tasks", TWO)
    assert all((tmp_path / name).exists() for name in "abc")


def test_two_processes_train_one_translator_together(tmp_path):
    trained(tmp_path / "one").do()
    run_tasks({"r0f0": trained(tmp_path / "two")}, tmp_path / "tasks", TWO, data_parallel=True)
    assert weights_metadata(tmp_path / "two" / "weights.safetensors")["processes"] == 2
    histories = [pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "two")]
    pd.testing.assert_frame_equal(*histories, rtol=1e-3)
    previews = [sorted(file.name for file in (tmp_path / name / "previews").iterdir()) for name in ("one", "two")]
    assert previews[0] == previews[1]


def test_a_killed_command_takes_its_processes_along_and_the_same_goes_on(tmp_path):
    call = (
        "from pathlib import Path; from functools import partial; from lib.run.tasks import *; "
        "folder = Path({folder!r}); "
        "two = Machines(num_processes=2); "
        "run_tasks({{name: Task(partial(time.sleep, 60), folder) for name in 'ab'}}, folder / 'tasks', two)"
    )
    command = [sys.executable, "-c", call.format(folder=str(tmp_path))]
    caller = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    todo = TaskList(tmp_path / "tasks", {name: Task(partial(time.sleep, 60), tmp_path) for name in "ab"}, TWO)
    wait_until(lambda: [todo.read(name)["state"] for name in "ab"] == ["running"] * 2)
    workers = psutil.Process(caller.pid).children(recursive=True)
    assert len(workers) == 2
    caller.kill()
    caller.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    todo.give_out()
    assert [todo.read(name) | {"key": ""} for name in "ab"] == [{"key": "", "state": "waiting", "attempts": 1}] * 2
    with todo.lock("a"), sole_writer(tmp_path / "tasks" / "locks" / "b", "b"):
        todo.note("a", {"state": "running", "attempts": 1})
        todo.give_out()
        todo.give_up("a", error="nobody there")
    assert todo.read("a")["state"] == "running", "somebody is doing it"


def wait_until(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


# By the jobs of a cluster


def test_a_cluster_that_is_silent_for_a_while_is_asked_again(tmp_path, monkeypatch, capsys):
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\ncd {tmp_path}; echo >> asked; [ $(wc -l < asked) -gt 2 ] && echo "7_0 7_1"')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("lib.run.slurm.time.sleep", lambda _: None)
    with pytest.raises(RuntimeError, match="nobody knows which jobs run"):
        queue(tries=2)
    assert queue() == {"7_0", "7_1"} and capsys.readouterr().out.count("Slurm does not answer") == 2


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm") / "node") as configuration, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        yield


def trials(folder: Path, machines: Machines):
    cohort = blob_cohort(36)
    study = Study(Run(folder), cohort, make_splits(cohort.patients, 1, 1, 0, 0.3, 0.3))
    return run_trials(study, ["real", "oversampling"], [0], TINY, machines)


def results(folder: Path) -> dict:
    found = {file.name: json.loads(file.read_text()) for file in (folder / "trials" / "r0f0").glob("*.json")}
    for result in found.values():
        del result["seconds"], result["metrics"]["seconds"]
    return found


def test_slurm_gives_the_tables_of_this_machine_bit_for_bit(tmp_path, slurm):
    predictions, metrics = trials(tmp_path / "here", HERE)
    sent_predictions, sent_metrics = trials(tmp_path / "slurm", SLURM)
    pd.testing.assert_frame_equal(sent_predictions, predictions, check_exact=True)
    timeless = [table[table.metric != "seconds"] for table in (sent_metrics, metrics)]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)
    assert results(tmp_path / "slurm") == results(tmp_path / "here")
    table = pd.read_csv(tmp_path / "slurm" / "trials" / "tasks.csv")
    assert table.job.str.fullmatch(r"\d+_\d").all() and table.job.str.split("_").str[0].nunique() == 1, "one array"


def test_preempted_trainings_go_on_from_their_checkpoint_and_failed_ones_are_reported(tmp_path, slurm, monkeypatch):
    """Once the cluster takes a job away without asking, once it sends the signal first on which the job makes room."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    trained(tmp_path / "whole").do()
    asking = ["timeout", "1", "scancel", "--signal=USR2"]  # which would ask again and again, also what comes back
    ways = {"taken": ["scontrol", "requeue"], "asked": asking}
    tasks = {name: trained(tmp_path / name, by=hanging.train) for name in ways} | once(tmp_path, "a")
    tasks["wrong"] = trained(tmp_path / "wrong", learning_rate=1e30)
    preempted, todo = {}, TaskList(tmp_path / "tasks", tasks, HERE)

    def preempt():
        for name, way in ways.items():
            if name not in preempted and (tmp_path / name / "hanging").exists():
                subprocess.run([*way, todo.read(name)["job"]], stderr=subprocess.DEVNULL)
                preempted[name] = read_whole(tmp_path / name / "checkpoint.pt")["step"]

    monkeypatch.setattr("lib.run.tasks.time.sleep", lambda seconds, sleep=time.sleep: (preempt(), sleep(0.5)))
    with pytest.raises(TasksFailed, match=r"1 of 4 tasks .*\nwrong: FloatingPointError: step .*_0_log\.err\)"):
        run_tasks(tasks, tmp_path / "tasks", SLURM, data_parallel=True)
    assert preempted == {"taken": 3, "asked": 3} and (tmp_path / "a").exists()
    for name in ways:
        assert todo.read(name)["attempts"] > 1 and same_weights(tmp_path / "whole", tmp_path / name)


def interrupted_when_running(todo: TaskList, *_, **__) -> None:
    wait_until(lambda: todo.read("long")["state"] == "running")
    raise KeyboardInterrupt


def test_jobs_are_waited_for_not_sent_again_and_dead_ones_are_told(tmp_path, slurm, monkeypatch):
    ends = {"long": partial(time.sleep, 3), "dies": partial(os.kill, 0, signal.SIGKILL)}
    tasks = {name: Task(do, tmp_path) for name, do in ends.items()}
    monkeypatch.setattr("lib.run.slurm.UNSEEN", 3)
    with monkeypatch.context() as patch:
        patch.setattr("lib.run.tasks.TaskList.show_progress", interrupted_when_running)
        with pytest.raises(KeyboardInterrupt):
            run_tasks(tasks, tmp_path / "tasks", SLURM)
    sent = json.loads((tmp_path / "tasks" / "jobs.json").read_text())
    with pytest.raises(TasksFailed, match=rf"dies: job {sent['dies'][0]} ended before it was done: JobState=FAILED"):
        run_tasks(tasks, tmp_path / "tasks", SLURM)
    assert TaskList(tmp_path / "tasks", tasks, HERE).read("long")["attempts"] == 1


def test_a_job_that_is_no_longer_wanted_is_cancelled(tmp_path, slurm, monkeypatch, capsys):
    tasks = {"long": Task(partial(time.sleep, 300), tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr("lib.run.tasks.TaskList.show_progress", interrupted_when_running)
        with pytest.raises(KeyboardInterrupt):
            run_tasks(tasks, tmp_path / "tasks", SLURM)
    job, _ = json.loads((tmp_path / "tasks" / "jobs.json").read_text())["long"]
    assert job in queue()
    table = run_tasks({"long": Task(partial(time.sleep, 0), tmp_path)}, tmp_path / "tasks", HERE)
    assert job not in queue() and list(table.state) == ["done"]
    assert f"Jobs {job} of an earlier call" in capsys.readouterr().out


def test_two_tasks_of_a_job_train_together_as_two_processes_here(tmp_path, slurm):
    run_tasks({"r0f0": trained(tmp_path / "here")}, tmp_path / "here" / "tasks", TWO, data_parallel=True)
    two = replace(SLURM, num_processes=2)
    run_tasks({"r0f0": trained(tmp_path / "slurm")}, tmp_path / "slurm" / "tasks", two, data_parallel=True)
    assert same_weights(tmp_path / "here", tmp_path / "slurm")
