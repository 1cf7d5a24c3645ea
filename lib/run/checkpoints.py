"""run.checkpoints"""

from __future__ import annotations

import json
import os
import time
import zipfile
from pathlib import Path

import torch

from lib.run.files import shown, written

EVERY = (120.0, 285.0)  # seconds between two checkpoints, at least and at most


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
