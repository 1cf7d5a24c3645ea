"""Weights: networks and how they were made, in one safetensors file; and how large networks are."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib.run.files import from_root, shown, written


def save_weights(path: Path, networks: dict[str, nn.Module], metadata: dict) -> None:
    """Write networks into one file; the metadata stand inside it as JSON."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    with written(path) as part:
        save_file(tensors, part, metadata={"json": json.dumps(metadata)})


def load_weights(path: Path, networks: dict[str, nn.Module]) -> None:
    """Fill networks from what `save_weights` wrote; raise ValueError where it holds other networks or shapes."""
    tensors = load_file(path)
    for name, network in networks.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{shown(path)} does not fit the network {name!r}; train it again: {error}") from error


def read_weights(name: str, parameter: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file from elsewhere, which a parameter names.

    Raises ValueError where there is none, or it is of another kind, which may hold code.
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
    """Return how the networks of a file were built and trained.

    Raises ValueError where it is no file of this project, or not of `method`, where one is given.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["json"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{shown(path)} is no weights file of this project: {error}; train again") from error
    if method and metadata.get("method") != method:
        raise ValueError(f"{shown(path)} holds weights of {metadata.get('method', 'something else')}, not of {method}")
    return metadata


def count_parameters(*networks: nn.Module) -> int:
    """Count the numbers that networks learn."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


@torch.no_grad()
def count_multiply_adds(network: nn.Module, *inputs) -> int:
    """Count multiplications with an addition in one call of a network, which may live on the meta device."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2
