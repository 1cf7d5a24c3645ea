"""Broken radiographs and tables: `python benchmarks/fuzz_radiographs.py [INPUTS] [SEED]`, 6,000 by default.

Files of pydicom's own tests, pictures of Pillow's writers, and tables, with bytes flipped, cut, repeated, spliced, and
numbers blown up. Each must end in an image of finite values from 0 to 1, prepared in all ways, or in a ValueError whose
reason quotes no name. A crash, another exception, over 20 seconds or over 4 GB are faults: the exit status is 1, and
the file stays in `runs/fuzz`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file

from lib.radiographs.decoding import read_image
from lib.radiographs.preparing import Preparation, prepare
from lib.radiographs.table import read_radiographs
from lib.run.files import ROOT
from lib.run.progress import progress

SECONDS, MEMORY, SECRET = 20, 4 * 2**30, "Geheim"


def originals() -> list[tuple[str, bytes]]:
    """List (suffix, content) of good and odd files to start from."""
    dicom = sorted(Path(pydicom.__file__).with_name("data").glob("test_files/*.dcm"))
    found = [(".dcm", path.read_bytes()) for path in dicom if path.stat().st_size < 200_000]
    ramp = np.linspace(0, 65535, 40 * 50).reshape(40, 50)
    for suffix, dtype, options in (
        (".png", np.uint8, {}), (".png", np.uint16, {}), (".tif", np.uint16, {"compression": "tiff_lzw"}),
        (".tif", np.uint8, {"compression": "tiff_deflate"}), (".jpg", np.uint8, {}),
    ):  # fmt: skip
        buffer, pixels = io.BytesIO(), (ramp / (257 if dtype == np.uint8 else 1)).astype(dtype)
        Image.fromarray(pixels).save(buffer, {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}[suffix], **options)
        found += [(suffix, buffer.getvalue())] * 8
    table = (
        "path;patient_id;label;view;zone_top;zone_bottom;turn;region_top;region_left;region_bottom;region_right;exclude\r\n"
        'a.png;p1;AFF;AP;0.2;0,4;90;0;0;1;0,5;\r\n"b.png";p2;NFF;"two\nlines";;;;;;;;\r\n'
        f"c.png;p3;NFF;{SECRET};;;;;;;;blurred\r\n"
    )
    found += [(".csv", table.encode(encoding)) for encoding in ("utf-8-sig", "cp1252", "utf-16")] * 8
    return found + [(".dcm", named_dicom())] * 16


def named_dicom() -> bytes:
    """Make a good file that has the secret in every tag that takes text."""
    ds = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    for keyword in ("PatientName", "PatientID", "StudyDescription", "InstitutionName", "ViewPosition", "ImageComments",
                    "PatientOrientation", "AccessionNumber", "StationName", "BodyPartExamined"):  # fmt: skip
        setattr(ds, keyword, SECRET)
    file = io.BytesIO()
    ds.save_as(file)
    return file.getvalue()


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Make a few random changes, each of one of six kinds."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(max(min(len(data), 10 ** int(rng.integers(1, 6))), 1)))  # headers more often than pixels
        match rng.integers(6):
            case 0:
                data[at : at + 1] = rng.bytes(1)
            case 1:
                data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1])))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + int(rng.integers(1, 64))]
            case 4:
                data[at:at] = data[at : at + int(rng.integers(1, 256))]
            case 5:
                data[at : at + 64] = other[at : at + 64]
    return bytes(data)


def outcome(path: Path) -> str:
    """Read an input: "image" or "refused"; anything else is a fault."""
    try:
        if path.suffix == ".csv":
            pixels = read_radiographs(path, 32).images()
            good = np.isfinite(pixels).all() and abs(pixels).max() <= 1
        else:
            radiograph = read_image(path)
            steps, *_ = prepare(radiograph, 32, Preparation(True, None, True, None, True, True))
            images = [radiograph.image, steps["square"].image]
            good = all(i.ndim == 2 and np.isfinite(i).all() and i.min() >= 0 and i.max() <= 1 for i in images)
        return "image" if good else "garbage"
    except ValueError as error:
        told = str(error)
        good = told.strip() and not re.search(f"{path.parent}|{SECRET}", told)
        return "refused" if good else f"tells nothing, or too much: {told}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def work(pipe) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders written in C complain there
    while path := pipe.recv():
        pipe.send(outcome(path))


class Reader:
    """A process that reads one file after the other, and is replaced where it dies or hangs."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, path: Path) -> str:
        self.pipe.send(path)
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            found = "hang"
        except EOFError:
            self.process.join()
            found = f"crash (exit {self.process.exitcode})"
        self.process.kill()
        self.__init__()
        return found


def main(inputs: int = 6000, seed: int = 0) -> bool:
    rng, start, read, found = np.random.default_rng(seed), originals(), Reader(), Counter()
    faults = ROOT / "runs" / "fuzz"
    with tempfile.TemporaryDirectory() as folder, progress(inputs, desc="fuzz") as bar:
        for name in ("a.png", "b.png"):
            Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(Path(folder, name))
        for number in range(inputs):
            (suffix, data), (_, other) = (start[i] for i in rng.integers(len(start), size=2))
            path = Path(folder, f"input{suffix}")
            path.write_bytes(mutated(data, other, rng))
            result = read(path)
            found[suffix, result] += 1
            if result not in ("image", "refused"):
                faults.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, faults / f"{seed}-{number}{suffix}")
                print(f"{seed}-{number}{suffix}: {result}", flush=True)
            bar.update()
    for (suffix, result), count in sorted(found.items()):
        print(f"{suffix}  {result}: {count}")
    return all(result in ("image", "refused") for _, result in found)


if __name__ == "__main__":
    sys.exit(not main(*map(int, sys.argv[1:])))
