"""run.fingerprint"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from lib.run.files import ROOT


def source_hash(module: str) -> str:
    """Hash of the source of a module of `lib` and of every module of `lib` that it imports."""
    files = code_files(f"import {module}")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def code_files(source: str, root: Path = ROOT) -> list[Path]:
    """The files of `lib` that some Python source imports, and those that they import in turn, sorted.

    Two runs of a notebook can differ where one of these differs, so they are part of its fingerprint.
    """
    found, queue = set(), [(source, root)]
    while queue:
        source, folder = queue.pop()
        for name in _imported(source, folder.relative_to(root).parts):
            stem = root.joinpath(*name.split("."))
            for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                if file.is_file() and file not in found:
                    found.add(file)
                    queue.append((file.read_text(encoding="utf-8"), file.parent))
    return sorted(found)


def _imported(source: str, package: tuple[str, ...]):
    """Dotted names below `lib` that source, lying in a package, imports; some may be no modules but what they hold."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for parts in (name.split(".") for name in names):
            if parts[0] == "lib":
                yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
