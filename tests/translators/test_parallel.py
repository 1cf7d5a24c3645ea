"""Two processes train what one trains. Run as a script, this file is one of those processes.

Compared in float64: Adam divides small gradients by their own size, and those that are zero but for rounding (biases in
front of a norm) would move weights by whole learning rates in directions that float32 leaves to chance.
"""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import test_cyclediff
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from lib.data.cohort import Cohort
from lib.run import hardware, randomness
from lib.run.files import ROOT
from lib.run.hardware import LAUNCHED
from lib.run.randomness import torch_generator
from lib.run.rank import Rank
from lib.translators import cyclegan, training
from lib.translators.cyclediff import train
from lib.translators.cyclediff.autoencoders import Autoencoders
from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclegan import CycleGAN
from lib.translators.networks import diffaugment

COHORT = toys.line_cohort(15, size=32)  # 5 AFF
GAN = replace(toys.TOY, batch=4, steps=4, log_every=1)  # with noise, DiffAugment, pool, identity, skips
DIFFUSION = replace(
    test_cyclediff.TOY, batch=4, autoencoder="kl", autoencoder_width=4, autoencoder_steps=3,
    autoencoder_adversarial_from=2, warmup_steps=2, joint_steps=3, dropout=0.0, diffaugment=True,
)  # fmt: skip
TOYS = {
    "cyclegan": GAN,
    "cyclegan without identity": replace(GAN, identity=0.0, pool=0, diffaugment=False),
    "cyclediff": DIFFUSION,
    "cyclediff, only eq. 6": replace(
        DIFFUSION, joint="diffusion_only", shared_unet=True, shared_autoencoder=True, residual=True, t_max=0.5
    ),
    "cyclediff, frozen": replace(DIFFUSION, joint="frozen", identity=0.0, diffusion_weights="plain"),
}

NONDETERMINISTIC = {  # on CUDA, of floating-point numbers; the classifier's and the judge's are not translators'
    "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward", "bincount", "cumsum",
    "embedding_dense_backward", "gather", "grid_sampler_2d_backward", "histc", "index_add", "index_copy",
    "max_unpool2d", "median", "nll_loss_backward", "nll_loss2d_backward", "put", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "replication_pad2d_backward", "scatter", "scatter_add", "scatter_reduce",
    "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward",
}  # fmt: skip


# A process -----------------------------------------------------------------------------------------------------------


@contextmanager
def float64():
    """Everything that trains, in float64: images, weights, losses, and what the code calls float."""
    flipped, encode, images_of = randomness.flipped, Autoencoders.encode, Cohort.images
    torch.set_default_dtype(torch.float64)
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(Cohort, "images", lambda self: images_of(self).astype("float64")),
        mock.patch.object(training, "flipped", lambda images, *key: flipped(images.double(), *key)),
        mock.patch.object(Autoencoders, "encode", lambda self, images, *rest: encode(self, images.double(), *rest)),
    ):
        yield
    torch.set_default_dtype(torch.float32)


def made(settings) -> CycleGAN | CycleDiff:
    if isinstance(settings, cyclegan.Settings):
        return CycleGAN(settings)
    return CycleDiff(settings, test_cyclediff.SAMPLER)


def trained(settings, folder: Path, **options) -> dict:
    """What a training leaves: history, the gradients that each optimiser goes down, weights, metadata, files."""
    model, gradients = made(settings), []

    def keep(optimiser, *_):
        used = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        gradients.append(torch.cat([gradient.flatten() for gradient in used]))

    hook = register_optimizer_step_pre_hook(keep)
    history = model.fit(COHORT, folder, seed=0, **options)
    hook.remove()
    networks = vars(model.networks).values()
    return {
        "history": {name: column.dropna().tolist() for name, column in history.items()},
        "gradients": gradients,
        "weights": torch.cat([v.flatten() for network in networks for v in network.state_dict().values()]),
        "metadata": model.metadata,
        "files": sorted(path.name for path in folder.rglob("*") if path.is_file()),
    }


def error_of(kind: type[Exception], settings, folder: Path) -> str:
    with pytest.raises(kind) as caught:
        made(settings).fit(COHORT, folder, seed=0)
    return str(caught.value)


def of_any_number(folder: Path) -> dict:
    """What one process and several do alike. Processes have folders of their own, to see who writes."""
    with float64():
        return {name: trained(s, folder / name, preview=COHORT.take([0, 1])) for name, s in TOYS.items()}


def of_two(folder: Path, shared: Path, rank: int) -> dict:
    """What only several processes can do."""
    results = {}
    for name, settings, stop in (("cyclegan", GAN, 2), ("cyclediff", replace(DIFFUSION, dropout=0.1), 6)):
        results[f"{name}, whole"] = trained(settings, shared / f"{name} whole")

        def watch(history, folder, at=stop):
            return rank == 1 and history.rows[-1]["step"] == at

        results[f"{name}, stopped"] = trained(settings, shared / name, watch=watch)
        results[f"{name}, resumed"] = trained(settings, shared / name)
    results["indivisible"] = error_of(ValueError, replace(GAN, batch=3), shared / "indivisible")
    results["indivisible, cyclediff"] = error_of(ValueError, replace(DIFFUSION, batch=1), shared / "no")
    results["other settings"] = error_of(ValueError, replace(GAN, cycle=float(rank)), shared / "other")
    seen = shared if rank == 0 else folder / "elsewhere"
    results["other folder"] = error_of(ValueError, GAN, seen / "cyclegan")
    bad = (lambda C, back: (back - back).sum().sqrt()) if rank == 1 else train.cycle_loss
    with mock.patch.object(train, "cycle_loss", bad):  # a loss of 0 with an infinite gradient
        results["gradient"] = error_of(FloatingPointError, DIFFUSION, shared / "gradient")
    return results


def breaks_in_the_second_process(shared: Path) -> None:
    machine, good, calls = hardware.accelerator(), cyclegan.l1_loss, []

    def l1_loss(a, b):
        calls.append(machine.process_index)
        return good(a, b) * (float("nan") if calls == [1] * 9 else 1)  # cycle_X of the third step

    with mock.patch.object(cyclegan, "l1_loss", l1_loss):
        CycleGAN(GAN).fit(COHORT, shared, seed=0)


def run(out: Path, breaking: bool) -> None:
    os.environ["LIB_PROGRESS"] = "text"
    torch.set_num_threads(1)
    torch.cpu._is_amx_tile_supported = lambda: False  # bf16 would differ where one row more or less is computed
    if breaking:
        breaks_in_the_second_process(out / "shared")
        return
    machine = hardware.accelerator()
    folder = out / f"{machine.num_processes}-{machine.process_index}"
    folder.mkdir()
    results = {"device": str(machine.device), "bar": os.environ["LIB_PROGRESS"]} | of_any_number(folder)
    if machine.num_processes > 1:
        results |= of_two(folder, out / "shared", machine.process_index)
    torch.save(results, folder / "results.pt")


# The tests -----------------------------------------------------------------------------------------------------------


def environment(**values) -> dict[str, str]:
    """Of a process: this one's, without what a launcher may have left, and with these."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | values


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of one process, whose environment has leftovers of a launcher, and of the two of torchrun."""
    out, me = tmp_path_factory.mktemp("parallel"), [str(Path(__file__)), "train"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    leftovers = environment(LOCAL_RANK="1", WORLD_SIZE="2")
    subprocess.run([sys.executable, *me, str(out)], env=leftovers, cwd=ROOT, check=True, timeout=300)
    subprocess.run([*launcher, *me, str(out)], env=environment(), cwd=ROOT, check=True, timeout=300)
    return [torch.load(out / name / "results.pt") for name in ("1-0", "2-0", "2-1")]


def agree(a: torch.Tensor, b: torch.Tensor, share: float) -> bool:
    """Whether the norm of the difference is at most a share of the norm."""
    return a.dtype == b.dtype == torch.float64 and ((a - b).norm() <= share * b.norm()).item()


@pytest.mark.parametrize("name", TOYS)
def test_two_processes_learn_what_one_learns_from_the_same_batches(results, name):
    """Sums in another order differ by 10⁻¹⁶; later steps by what Adam and normalised patches make of that, 5·10⁻¹⁰."""
    one, *two = (result[name] for result in results)
    for own in two:
        assert agree(own["gradients"][0], one["gradients"][0], 1e-13)
        assert all(agree(*pair, 1e-8) for pair in zip(own["gradients"], one["gradients"], strict=True))
        assert own["history"].keys() == one["history"].keys()
        for term, values in one["history"].items():
            if term == "stage":
                assert own["history"][term] == values
            else:
                assert own["history"][term] == pytest.approx(values, rel=1e-9, abs=1e-12), term
        assert agree(own["weights"], one["weights"], 1e-9)
    assert torch.equal(two[0]["weights"], two[1]["weights"]) and two[0]["history"] == two[1]["history"]


def test_metadata_count_the_processes_where_there_are_several(results):
    one, *two = (result["cyclegan"]["metadata"] for result in results)
    assert "processes" not in one and all(own == one | {"processes": 2} for own in two)


def test_the_first_process_alone_writes_and_shows_a_bar(results):
    one, first, second = results
    for name in TOYS:
        assert first[name]["files"] == one[name]["files"] != [] and second[name]["files"] == []
    assert (one["bar"], first["bar"], second["bar"]) == ("text", "text", "none")


@pytest.mark.parametrize(("name", "at"), [("cyclegan", 2), ("cyclediff", 6)])
def test_a_training_that_one_process_stops_goes_on_to_the_same_weights(results, name, at):
    for result in results[1:]:
        whole, stopped, resumed = (result[f"{name}, {which}"] for which in ("whole", "stopped", "resumed"))
        assert stopped["metadata"]["stopped_at"] == at and "stopped_at" not in resumed["metadata"]
        assert torch.equal(resumed["weights"], whole["weights"]) and resumed["history"] == whole["history"]
        assert not torch.equal(stopped["weights"], whole["weights"])


def test_what_several_processes_cannot_do_is_refused_by_all(results):
    for result in results[1:]:
        assert "batch of 3 cannot be divided among 2 processes: set batch to 4 or 2, or" in result["indivisible"]
        assert "batch of 1 cannot be divided among 2 processes: set batch to 2, or" in result["indivisible, cyclediff"]
        assert "the processes differ in settings: give all of them the same" in result["other settings"]
        assert "the processes differ in steps done: give all" in result["other folder"]


def test_a_gradient_that_is_not_finite_in_one_process_stops_all(results):
    for result in results[1:]:
        assert "step 6: gradient of T is not finite" in result["gradient"]


def test_a_loss_that_is_not_finite_in_one_process_ends_both_without_a_launcher(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, str(Path(__file__)), "break", str(tmp_path)]
    processes = [
        subprocess.Popen(
            command, env=environment(**master, RANK=rank, LOCAL_RANK=rank), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 1 and "FloatingPointError: step 3: cycle_X is not finite" in error


@given(per=st.integers(1, 4), processes=st.integers(1, 4), copies=st.integers(1, 3))
def test_shares_are_parts_of_the_whole_in_order(per, processes, copies):
    batch = per * processes
    whole = torch.arange(copies * batch * 2).reshape(-1, 2)
    own = [Rank(batch, processes, index).of(whole).reshape(copies, per, 2) for index in range(processes)]
    assert torch.equal(torch.cat(own, dim=1).reshape(-1, 2), whole)


def test_shares_of_an_augmented_batch_are_the_augmented_shares():
    real, fake = (torch.rand(4, 1, 16, 16, generator=torch_generator(i)) for i in range(2))
    whole = diffaugment(torch.cat([real, fake]), torch_generator(2))
    for rank in (Rank(4, 2, 0), Rank(4, 2, 1), Rank(4, 4, 3)):
        own = diffaugment(torch.cat([rank.of(real), rank.of(fake)]), torch_generator(2), rank)
        assert torch.equal(own, rank.of(whole))


class Operations(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_what_can_differ_between_two_runs_is_named(tmp_path, monkeypatch):
    """All that the translators' trainings run of what `torch.use_deterministic_algorithms` lists is in the list."""
    with Operations() as used:
        made(GAN).fit(COHORT, tmp_path / "cyclegan", seed=0)
        made(replace(TOYS["cyclediff, only eq. 6"], autoencoder_steps=2, warmup_steps=1, joint_steps=1)).fit(
            COHORT, tmp_path / "cyclediff", seed=0
        )
    assert {name for name in used.names if name.rstrip("_") in NONDETERMINISTIC} == {"reflection_pad2d_backward"}
    assert any("scaled_dot_product" in name and name.endswith("backward") for name in used.names)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.not_deterministic() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    named = " ".join(hardware.not_deterministic())
    assert "reflection padding" in named and "scaled_dot_product_attention" in named


if __name__ == "__main__":
    run(Path(sys.argv[2]), breaking=sys.argv[1] == "break")
