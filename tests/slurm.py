"""A Slurm cluster of one node, this machine, on the loopback interface: all that it needs lies in one folder."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=2
ReturnToService=2
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=closed Nodes={host} MaxTime=INFINITE State=DOWN
"""


def why_not() -> str:
    """What keeps this machine from being a cluster; empty where nothing does."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun")
    if missing := [program for program in programs if not shutil.which(program)]:
        return f"no {', '.join(missing)}: install slurm-wlm and munge"
    return "" if os.geteuid() == 0 else "only root may start a cluster's programs"


def free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for found in (one, other):
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in (one, other)]


@contextmanager
def cluster(folder: Path):
    """The cluster while it runs; yields the path of its configuration, for SLURM_CONF."""
    folder.mkdir(mode=0o755, parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, ports=free_ports(), folder=folder, cpus=os.cpu_count())
    configuration.write_text(text)
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    of_munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
    munged = ["munged", "--force", f"--seed-file={folder}/munge.seed"]
    try:
        for command in (
            [*munged, *(f"--{option}={folder}/{name}" for option, name in of_munge.items())],
            ["slurmctld", "-c"],
            ["slurmd", "-c"],
        ):
            subprocess.run(command, env=environment, check=True, capture_output=True)
        ask = ["sinfo", "--noheader", "--partition=short", "--format=%T"]
        for _ in range(60):
            state = subprocess.run(ask, env=environment, capture_output=True, text=True).stdout.strip()
            if state == "idle":
                break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"the node is {state!r}; {(folder / 'slurmctld.log').read_text()[-2000:]}")
        yield configuration
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), 15)
