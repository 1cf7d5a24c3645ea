"""What every training loop needs: device, processes, batches, random streams, averages, history, checkpoints, weights.

The loops themselves are written out where they belong (`lib.cyclegan`, `lib.cyclediff`, `lib.judge`, `lib.classifier`).
All randomness of a step is a pure function of (seed, step), so a training that was interrupted and goes on from its
checkpoint draws the same batches, flips, noise and times as one that was not, without any random state being stored.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object, patch_environment, reduce
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib.cohort import Cohort, to_images
from lib.files import from_root, shown, written
from lib.pixels import OnDisk, blocks
from lib.runs import code_files

EVERY = (120.0, 285.0)  # seconds between two checkpoints, at least and at most
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets for each process


def accelerator() -> Accelerator:
    """The device to train on, with bf16 autocast where that is faster, else in float32.

    On a CPU that is one with AMX: the bf16 instructions of AVX-512 alone were slower than float32 (one Xeon measured).
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
    """What the last bits of a result depend on besides its inputs: device and precision, on a CPU also threads."""
    precision = "bf16" if _bf16() else "float32"
    return f"cuda {precision}" if torch.cuda.is_available() else f"cpu {precision}, {torch.get_num_threads()} threads"


def _bf16() -> bool:
    """Whether bf16 is faster than float32 here."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def not_deterministic() -> list[str]:
    """What can differ between two runs of the same training on this device, besides the order of processes' sums.

    These operations' gradients are documented as nondeterministic on CUDA (`torch.use_deterministic_algorithms`, and
    `torch.nn.functional.scaled_dot_product_attention`); empty on other devices.
    """
    if not torch.cuda.is_available():
        return []
    return [
        "reflection padding: generators, translators (lib.networks.ReflectConv2d) and lib.networks.diffaugment",
        "scaled_dot_product_attention: U-Nets and KL autoencoders of CycleDiff (lib.cyclediff.unet.SelfAttention)",
        "adaptive average pooling: the classifier's ResNet (lib.classifier)",
        "negative log-likelihood: the judge's cross-entropy (lib.judge)",
    ]


# Processes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """One process's part of every batch, where several train the same networks.

    All random numbers are drawn for the whole batch by every process, which then keeps those of its own rows; gradients
    are averaged before they are clipped or used. So every process holds the same weights, and they are those that one
    process learns from the whole batch, up to the order of sums. Collective methods must be called by all processes in
    the same order; where one ends alone (of a full disk), it is the launcher that ends the others, which wait. With one
    process everything is given back unchanged.

    Parameters
    ----------
    batch : images of a domain in a step, of all processes together
    processes, index : how many there are, and which of them this is

    Raises
    ------
    ValueError
        Where the processes do not divide the batch.
    """

    batch: int = 1
    processes: int = 1
    index: int = 0

    def __post_init__(self):
        if self.batch % self.processes:
            below = self.batch - self.batch % self.processes
            raise ValueError(
                f"a batch of {self.batch} cannot be divided among {self.processes} processes: set batch to "
                f"{below + self.processes}{f' or {below}' if below else ''}, or start another number of processes"
            )

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's rows of the whole batch, or of each of several that follow one another: real, then fake.

        (k·batch, …) → (k·batch / processes, …)
        """
        if self.processes == 1:
            return whole
        return whole.unflatten(0, (-1, self.processes, self.batch // self.processes))[:, self.index].flatten(0, 1)

    def all(self, own: torch.Tensor) -> torch.Tensor:
        """(batch / processes, …) of each process → (batch, …), without gradient. Collective."""
        return own if self.processes == 1 else gather(own.detach())

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their means over all processes, in one message. Collective."""
        if self.processes == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Means of losses over all processes, without gradient: not finite where any of them is not. Collective."""
        if self.processes == 1:
            return terms
        means = reduce(torch.stack([term.detach().float() for term in terms.values()]), "mean")
        return dict(zip(terms, means, strict=True))

    def any(self, wish: bool) -> bool:
        """Whether any process wants it. Collective."""
        return any(gather_object([wish]))

    def check_same(self, facts: dict) -> None:
        """Raise ValueError, on all processes, where they do not train the same from the same step. Collective."""
        differing = {name for other in gather_object([facts]) for name in facts if other.get(name) != facts[name]}
        if differing:
            raise ValueError(
                f"the processes differ in {', '.join(sorted(differing))}: give all of them the same settings, images "
                "and code, and a folder that all of them see"
            )


ALONE = Share()


# Random streams ------------------------------------------------------------------------------------------------------


def generator(*key: int) -> np.random.Generator:
    """A random stream that is a pure function of its key, such as (seed, step)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def torch_generator(*key: int) -> torch.Generator:
    """The same for torch, on the CPU: noise is drawn there and moved, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def batch_rows(n: int, batch: int, step: int, *key: int) -> np.ndarray:
    """(batch,) row numbers of a step: each epoch is a new random permutation of all n rows, with nothing dropped."""
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = {epoch: generator(*key, int(epoch)).permutation(n) for epoch in np.unique(positions // n)}
    return np.array([epochs[position // n][position % n] for position in positions])


def flipped(images: torch.Tensor, *key: int) -> torch.Tensor:
    """Each image of (B, C, H, W) mirrored left to right with probability ½: a left femur is a mirrored right one."""
    mirror = torch.rand(len(images), generator=torch_generator(*key)) < 0.5
    return torch.where(mirror.to(images.device)[:, None, None, None], images.flip(-1), images)


class Images:
    """Images to train on, in the integers they are stored in; those that are indexed become (B, 1, H, W) float32 in
    [-1, 1], so that not all of them are at once.

    Parameters
    ----------
    pixels : (N, H, W) integers, in memory or on disk
    """

    def __init__(self, pixels: np.ndarray | OnDisk):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 1, *self.pixels.shape[1:]

    def __getitem__(self, rows) -> torch.Tensor:
        return torch.from_numpy(to_images(self.pixels[rows]))

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """All images in order, at most `size` at a time; where there are none, none once, as of a tensor."""
        return (self[start : start + size] for start in range(0, max(len(self), 1), size))


# Averages and history ------------------------------------------------------------------------------------------------


class EMA:
    """Exponential moving average of a network's weights: the copy that is sampled from.

    The decay grows from 0.1 to its value over the first steps, so the average forgets the random initial weights.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network, self.decay, self.updates = network, decay, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        for averaged, current in zip(self.average.parameters(), self.network.parameters(), strict=True):
            averaged.lerp_(current, 1 - decay)
        for averaged, current in zip(self.average.buffers(), self.network.buffers(), strict=True):
            averaged.copy_(current)

    def state_dict(self) -> dict:
        return {"average": self.average.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.average.load_state_dict(state["average"])
        self.updates = state["updates"]


def check_finite(step: int, terms: dict[str, torch.Tensor | float]) -> None:
    """Raise FloatingPointError, naming the step and the terms, where a term is not finite.

    Called with every step's losses before they change a weight, so that no checkpoint holds what would have followed.
    """
    values = torch.stack([torch.as_tensor(term).detach().float() for term in terms.values()])
    if not values.isfinite().all():
        bad = [name for name, value in zip(terms, values.tolist(), strict=True) if not np.isfinite(value)]
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} is not finite. The last checkpoint is kept; lower the learning rate "
            "and start again."
        )


class History:
    """Losses by step: one row each time something is recorded."""

    def __init__(self):
        self.rows: list[dict] = []
        self.collected: dict[str, list[torch.Tensor]] = {}

    def collect(self, **terms: torch.Tensor) -> None:
        """Keep tensors of one number, of which `means` is asked later; a checkpoint holds them."""
        for name, value in terms.items():
            self.collected.setdefault(name, []).append(value.detach())

    def means(self) -> dict[str, torch.Tensor]:
        """The mean of what was collected since the last call, by name."""
        means = {name: torch.stack([v.cpu() for v in values]).mean() for name, values in self.collected.items()}
        self.collected = {}
        return means

    def record(self, step: int, **facts) -> None:
        """Add a row; `facts` are numbers, tensors of one number, or text."""
        facts = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in facts.items()}
        self.rows.append({"step": step, **facts})

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict:
        return {"rows": self.rows, "collected": self.collected}

    def load_state_dict(self, state: dict) -> None:
        self.rows, self.collected = state["rows"], state["collected"]


# Checkpoints and weights ---------------------------------------------------------------------------------------------


def cohort_hash(cohort: Cohort) -> str:
    """Sixteen hexadecimal digits that change with any image or label of the cohort."""
    digest = hashlib.sha256(cohort.table[["image_id", "patient_id", "label"]].to_csv(index=False).encode())
    for rows in blocks(len(cohort)):
        digest.update(np.ascontiguousarray(cohort.pixels[rows]))
    return digest.hexdigest()[:16]


def cohort_hashes(cohort: Cohort) -> list[str]:
    """`cohort_hash`, and another that changes with anything else that the table says."""
    return [cohort_hash(cohort), hashlib.sha256(cohort.table.to_csv(index=False).encode()).hexdigest()[:16]]


def patients_hash(cohort: Cohort) -> str:
    """Sixteen hexadecimal digits for the set of patients: says which patients weights have seen, not who they are."""
    return hashlib.sha256("\n".join(sorted(cohort.patients.index)).encode()).hexdigest()[:16]


def source_hash(module: str) -> str:
    """Hash of the source of a module of `lib` and of every module of `lib` that it imports."""
    files = code_files(f"import lib.{module}")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Checkpoint:
    """Everything a training needs to go on, in a file that is replaced in a single step; the one before is kept.

    A file that was torn, by a failing disk for example, is known by the checksums of its records (`torch.save` writes
    a zip file, with a CRC-32 of each); then the one before is used.

    Parameters
    ----------
    path : the file; the one before has `.before` in its name
    inputs : what the training's result depends on: settings, seed, data hash, source hash. A checkpoint made from other
        inputs is not continued.
    objects : by name, whatever has `state_dict` and `load_state_dict` (networks, optimisers, EMA, history)
    """

    def __init__(self, path: Path, inputs: dict, objects: dict):
        self.path, self.inputs, self.objects = Path(path), json.dumps(inputs), objects
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.step, self.saved_at, self.every = 0, time.monotonic(), EVERY[0]

    @staticmethod
    def files(path: Path) -> tuple[Path, Path]:
        """Of a checkpoint the file, and the one before."""
        return path, path.with_name(f"{path.stem}.before{path.suffix}")

    @classmethod
    def remove(cls, path: Path) -> None:
        for file in cls.files(path):
            file.unlink(missing_ok=True)

    def load(self) -> int:
        """Restore the objects and return the number of steps done: 0 where there is nothing to continue.

        Raises
        ------
        ValueError
            Where there is a checkpoint of the same training by another number of processes.
        """
        for path in filter(Path.exists, self.files(self.path)):
            try:
                state = read_whole(path)
            except ValueError as error:
                print(f"WARNING: {error}; the checkpoint before is used, where there is one.")
                continue
            if state["inputs"] != self.inputs:
                self._refuse_or_tell(path, json.loads(state["inputs"]), json.loads(self.inputs), state["step"])
                return 0  # and the one before is older than what those inputs have left here
            for name, thing in self.objects.items():
                thing.load_state_dict(state["objects"][name])
            self.step = state["step"]
            if state["threads"] != torch.get_num_threads() and not torch.cuda.is_available():
                print(
                    f"WARNING: {shown(path)} was made by {state['threads']} threads, and goes on with "
                    f"{torch.get_num_threads()}: sums will differ in their last bits from an uninterrupted "
                    f"training's. OMP_NUM_THREADS={state['threads']} keeps them the same."
                )
            break
        return self.step

    @staticmethod
    def _refuse_or_tell(path: Path, past: dict, now: dict, step: int) -> None:
        unlike = sorted(name for name in past.keys() | now.keys() if past.get(name) != now.get(name))
        if unlike == ["processes"]:
            n = past.get("processes", 1)
            raise ValueError(
                f"{shown(path)} was made by {n} process{'es' if n > 1 else ''}, and this would be another training, "
                f"from its first step: set num_processes to {n}, or delete the file"
            )
        print(f"{shown(path)} (step {step:,}) is of another training ({', '.join(unlike)}): this one starts anew.")

    def due(self) -> bool:
        """Whether it is time to save: after two minutes, or later where saving takes more than a sixtieth of that."""
        return time.monotonic() - self.saved_at > self.every

    def save(self, step: int) -> None:
        """Write the state after `step` steps.

        Raises
        ------
        OSError
            Where it cannot be written: the message says which step is kept.
        """
        start, (path, before) = time.monotonic(), self.files(self.path)
        state = {name: thing.state_dict() for name, thing in self.objects.items()}
        try:
            with written(path) as part:
                torch.save(
                    {"step": step, "inputs": self.inputs, "objects": state, "threads": torch.get_num_threads()}, part
                )
                if path.exists():
                    os.replace(path, before)
        except OSError as error:
            kept = f"step {self.step:,} is kept, and the same again goes on from there"
            raise OSError(f"{error}; {kept}") from error
        self.step, self.saved_at = step, time.monotonic()
        self.every = min(max(60 * (self.saved_at - start), EVERY[0]), EVERY[1])


def read_whole(path: Path) -> dict:
    """What `torch.save` wrote; a ValueError where a byte of it is missing or has changed."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as records:
                torn = records.testzip()
            file.seek(0)
            if not torn:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # nearly any, where what is read is not what was written
            torn = error
    raise ValueError(f"{shown(path)} is torn ({torn})")


def save_weights(path: Path, networks: dict[str, nn.Module], metadata: dict) -> None:
    """Write networks into one safetensors file; the metadata travels inside it as JSON."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    with written(path) as part:
        save_file(tensors, part, metadata={"json": json.dumps(metadata)})


def load_weights(path: Path, networks: dict[str, nn.Module]) -> None:
    """Fill networks from a file that `save_weights` wrote; a ValueError where it holds other networks or shapes."""
    tensors = load_file(path)
    for name, network in networks.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{shown(path)} does not fit the network {name!r}; train it again: {error}") from error


def read_weights(name: str, parameter: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file that a parameter names, from elsewhere; other kinds may hold code, and are
    refused.

    Raises
    ------
    ValueError
        Where there is no such file, or it is of another kind, with what to do.
    """
    path = from_root(name)
    if not path.is_file():
        raise ValueError(f"{parameter} {name!r}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{parameter} {name!r} is no safetensors file; pickles (.pth, .pt) can run any code and are not opened. "
            "Convert what you trust: safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)"
        ) from error


def weights_metadata(path: Path, method: str | None = None) -> dict:
    """The metadata of a weights file: how the networks were built and trained.

    Raises
    ------
    ValueError
        Where the file is no safetensors file of this project, or was not made by `method`, where one is given.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["json"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{shown(path)} is no weights file of this project: {error}; train again") from error
    if method and metadata.get("method") != method:
        raise ValueError(f"{shown(path)} holds weights of {metadata.get('method', 'something else')}, not of {method}")
    return metadata


def known(kind: type, values: dict, path: Path):
    """The settings of a weights file; a ValueError where this version of the code does not know them all."""
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{shown(path)} was made by another version of the code ({error}): train again") from error


def count_parameters(*networks: nn.Module) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


@torch.no_grad()
def count_multiply_adds(network: nn.Module, *inputs) -> int:
    """Multiplications with an addition in one call of the network, which may live on the meta device."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2
