"""run.tasks"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd

from lib.run.files import shown
from lib.run.local import through_processes
from lib.run.progress import progress
from lib.run.slurm import cancel_jobs, through_cluster
from lib.run.tasklist import SHORT, Machines, Task, TaskList, TasksFailed


def run_tasks(
    pieces: dict[str, Task], folder: Path, machines: Machines, data_parallel: bool = False, watch=None
) -> pd.DataFrame:
    """Do all pieces and return `state, attempts, seconds, memory_mb` of each, the short form of `TaskList.table`.

    Parameters
    ----------
    pieces : by name; for other processes they are pickled
    folder : of the list; jobs that an earlier call has sent to the cluster are waited for, not sent again
    data_parallel : whether `num_processes` do each piece together, or as many pieces at a time
    watch : what pieces that are done in this process get as their argument of this name

    Raises
    ------
    TasksFailed
        Where pieces failed in other processes, after all others were done. In this process an error ends the work.
    """
    work = TaskList(folder, pieces, machines)
    if machines.executor == "local":
        cancel_jobs(work)
    if machines.here:
        with progress(len(pieces), desc=work.name) as bar:
            for name in pieces:
                bar.set_postfix_str(name)
                work.do(name, **({"watch": watch} if watch else {}))
                bar.update()
        return work.table()[SHORT]

    work.give_out()
    if machines.executor == "slurm":
        through_cluster(work, machines, data_parallel)
    elif data_parallel:
        for name in work.unfinished():
            through_processes(work, machines, name)
    elif work.unfinished():
        through_processes(work, machines)
    table = work.table()
    failed = table[table.state != "done"]
    if len(failed):
        raise TasksFailed(
            f"{len(failed)} of {len(pieces)} pieces of {shown(work.folder)} failed, all others are done; the same "
            "again goes on with what is not:\n" + "\n".join(f"{row.Index}: {said(row)}" for row in failed.itertuples())
        )
    for left in ("tasks.pkl", "jobs.json"):
        (work.folder / left).unlink(missing_ok=True)
    for line in warnings_of(work.folder / "logs"):
        print(line)
    shutil.rmtree(work.folder / "logs", ignore_errors=True)
    return table[SHORT]


def said(row) -> str:
    """Of a row of the table, why the piece is not done."""
    return f"{row.error} (log: {row.log})" if row.state == "failed" else "another process is doing it"


def warnings_of(logs: Path) -> list[str]:
    """What the pieces' logs warn of, each line once."""
    texts = [
        file.read_text(encoding="utf-8", errors="replace") for file in sorted(logs.glob("*")) if file.suffix != ".pkl"
    ]
    lines = [line.strip() for text in texts for line in re.split(r"[\r\n]", text)]
    return list(dict.fromkeys(line for line in lines if line.startswith("WARNING")))
