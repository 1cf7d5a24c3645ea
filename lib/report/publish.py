"""Publish: a finished run's figures in a folder that git keeps, for README and thesis to show."""

import io
import os
import re
import shutil
from pathlib import Path

import jinja2
from PIL import Image

from lib.report.latex import captions
from lib.report.pages import facts
from lib.run.files import ROOT, shown, without_paths
from lib.run.folder import Run

README, ANSWERS = "README.md", "answers.md"
MADE = "<!-- Written by lib/report/publish.py: publish a run again instead of editing. -->\n"
LARGEST, ALTOGETHER = 500_000, 10_000_000  # bytes of a PNG, and of all of them


def publish(run: Path, to: Path = ROOT / "figures") -> Path:
    """Write a finished run's figures, their captions, its answers and a README.md into a folder, and return it.

    What an earlier publication wrote there goes, other files stay. Where anything fails, all stays as it was. A PNG
    that is too large for git gets 256 colours and, where that is not enough, fewer pixels; PDFs are copied. ValueError
    where the run is not finished, FileExistsError where a file that was not published would be overwritten.
    """
    texts = _captions_of_finished(run)
    new, before = (to.with_name(f".{to.name}.{kind}") for kind in ("new", "before"))
    if before.exists() and not to.exists():  # killed between the two renames below
        os.replace(before, to)
    for left in (new, before):
        shutil.rmtree(left, ignore_errors=True)
    figures = [ANSWERS, *(f"{name}.{kind}" for name in texts for kind in ("pdf", "png"))]
    try:
        _copy_others(to, new, figures)
        largest = min(LARGEST, ALTOGETHER // len(texts))
        for name in texts:
            shutil.copyfile(run / "figures" / f"{name}.pdf", new / f"{name}.pdf")
            (new / f"{name}.png").write_bytes(_shrunk(run / "figures" / f"{name}.png", largest))
        answers = (run / ANSWERS).read_text(encoding="utf-8")
        (new / ANSWERS).write_text(without_paths(answers), encoding="utf-8")
        (new / README).write_text(_readme(Run(run), texts), encoding="utf-8")
        if to.exists():
            os.replace(to, before)
        os.replace(new, to)
    finally:
        if before.exists() and not to.exists():
            os.replace(before, to)
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)
    return to


def _captions_of_finished(run: Path) -> dict[str, str]:
    """Return the captions of a run's figures by name; ValueError where the run is not finished."""
    notebooks = Run(run).manifest.get("notebooks", {}) if Path(run).is_dir() else {}
    missing = [name for name, record in notebooks.items() if record["state"] != "finished"]
    if not (notebooks and (run / ANSWERS).exists()):
        missing.append(ANSWERS)
    if missing:
        raise ValueError(f"{shown(run)} is not finished, {', '.join(missing)} missing: finish it with run_all.py first")
    return captions(Run(run))


def _copy_others(to: Path, new: Path, figures: list[str]) -> None:
    """Make the new folder with the files of the old one that no earlier publication wrote."""
    new.mkdir(parents=True)
    readme = (to / README).read_text(encoding="utf-8") if (to / README).exists() else ""
    own = {README, *re.findall(r"\]\(([^/)]+\.(?:pdf|png|md))\)", readme)} if readme.startswith(MADE) else set()
    others = [path for path in sorted(to.glob("*")) if path.name not in own]
    for path in others:
        if path.name in (README, *figures):
            raise FileExistsError(f"{shown(path)} was not written by a publication: move it elsewhere first")
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)


def _shrunk(picture: Path, most: int) -> bytes:
    """Return a PNG of at most so many bytes: as it is, else in 256 colours, else with ever fewer pixels."""
    data, share = picture.read_bytes(), 1.0
    with Image.open(picture) as image:
        while len(data) > most:
            smaller = image.convert("RGB").resize([max(round(share * side), 1) for side in image.size])
            file = io.BytesIO()
            smaller.quantize(256).save(file, "PNG", optimize=True)
            data = file.getvalue()
            share *= min(0.9, (most / len(data)) ** 0.5)
    return data


def _readme(run: Run, texts: dict[str, str]) -> str:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("lib.report"), trim_blocks=True)
    environment.filters["line"] = lambda text: " ".join(str(text).split()).replace("|", r"\|")
    return MADE + without_paths(
        environment.get_template("figures.md").render(
            name=run.folder.name,
            facts=facts(run),
            kept=run.manifest.get("kept", {}),
            own=run.manifest.get("parameters", {}).get("radiographs_csv"),
            captions=texts,
        )
    )
