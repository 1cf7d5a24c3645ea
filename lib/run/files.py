"""Files: paths as messages show them, and writing that leaves the old file or the new one, whatever happens."""

import json
import os
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[2]  # the repository


def from_root(path: str | Path) -> Path:
    """Return a path as parameters give it: relative ones count from the repository."""
    return ROOT / Path(path).expanduser()


def shown(path: str | Path) -> str:
    """Return a path as messages show it: from the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def without_paths(text: str) -> str:
    """Return a text that tells nothing of this machine's folders, nor who works there."""
    folders = {ROOT: ".", Path(sys.prefix): "python", Path.home(): "~"}
    for folder, instead in sorted(folders.items(), key=lambda item: -len(item[0].parts)):  # the innermost first
        for written in {str(folder), json.dumps(str(folder))[1:-1]} if len(folder.parts) > 1 else ():
            text = re.sub(re.escape(written) + r"(?![\w-]|\.\w)", instead, text)
    return text


@contextmanager
def written(path: str | Path):
    """Give a path to write to, which becomes `path` when all is written: readers never see half a file.

    The file is on the disk before it takes its place, and its place before this returns: a power cut leaves the old
    file or the new one. Where writing fails (a full disk, no permission) the old file stays, and the error names it.
    """
    path = Path(path)
    part = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, which tells writers the format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _to_disk(part)
        os.replace(part, path)
        with suppress(OSError):  # Windows opens no folders, and some file systems sync none
            _to_disk(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written(path) as part:
        part.write_text(text, encoding="utf-8")


def write_together(folder: Path, texts: dict[str, str]) -> None:
    """Write text files of which none may be read beside an old one: all are removed first, in reverse order.

    Where the last is there, all are.
    """
    for name in reversed(texts):
        (folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def _to_disk(path: Path) -> None:
    """Wait until what was written to a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: Exception) -> OSError:
    """Return an error that names the file, the reason and what to do."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    message = f"cannot write {shown(path)}: {reason}; free space, change permissions or take another run"
    return OSError(message) if number is None else OSError(number, message)
