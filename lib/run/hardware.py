"""The machine: the device to train on, and what a run's results may owe to it."""

import os
import platform
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment

from lib.run.files import ROOT

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets for each process


def accelerator() -> Accelerator:
    """Return the device to train on, with bf16 autocast where that is faster, else in float32.

    Where a launcher (torchrun, `accelerate launch` on GPUs, submitit) has started several processes, this waits for all
    of them; each has a GPU, and on CPUs they talk through gloo. Where one of `LAUNCHED` is missing, there is one.
    """
    if torch.cuda.is_available():
        # cuDNN may otherwise choose, by timing, algorithms that add up in another order in the next run.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    several = all(os.environ.get(name) for name in LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1
    with patch_environment(**({} if several else {"LOCAL_RANK": -1})):  # the one that Accelerate goes by
        machine = Accelerator(
            mixed_precision="bf16" if _bf16() else "no", cpu=several and not torch.cuda.is_available()
        )
    if not machine.is_main_process:
        os.environ["LIB_PROGRESS"] = "none"  # one bar for all
    return machine


def arithmetic() -> str:
    """Return what the last bits of a result depend on besides inputs: device, precision, on a CPU also threads."""
    precision = "bf16" if _bf16() else "float32"
    return f"cuda {precision}" if torch.cuda.is_available() else f"cpu {precision}, {torch.get_num_threads()} threads"


def _bf16() -> bool:
    """Return whether bf16 is faster than float32 here: on a CPU with AMX; AVX-512's was slower (one Xeon measured)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def not_deterministic() -> list[str]:
    """Return the operations whose gradients PyTorch documents as nondeterministic on CUDA; none on other devices."""
    if not torch.cuda.is_available():
        return []
    return [
        "reflection padding: generators, translators, diffaugment",
        "scaled_dot_product_attention: U-Nets and KL autoencoders",
        "adaptive average pooling: the classifier's ResNet",
        "negative log-likelihood: the judge's cross-entropy",
    ]


def environment() -> dict:
    """Return what a run records of its machine: versions, commit, device and processor.

    Finding the device may claim the GPU, so `run_all.py` asks for this in a process of its own.
    """
    mps = "mps" if torch.backends.mps.is_available() else "cpu"
    commit, dirty = _commit()
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit,
        "dirty": dirty,
        "device": f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else mps,
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "not_deterministic": not_deterministic(),
    }


def _versions() -> dict[str, str]:
    """Return the installed versions of the dependencies that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {}
    for name in (re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _commit() -> tuple[str | None, bool | None]:
    """Return the repository's commit and whether files differ from it; (None, None) outside git."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        return (commit, bool(git("status", "--porcelain"))) if Path(top).resolve() == ROOT else (None, None)
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _processor() -> str:
    """Return the processor's model, as Linux names it, or as Python does elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (model := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        return model[1]
    return platform.processor() or platform.machine()
