"""Pages: a run's executed notebooks as HTML that a supervisor reads in a browser, without Jupyter and offline.

Everything lies in the file itself: images as data, equations as MathML, code folded away, no script at all. The first
page, `index.html`, holds the answers and all notebooks, so that it can be sent alone; each notebook is a page too.
Templates and style are files in `templates/`.
"""

import base64
import html
import io
import re
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert as to_mathml
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from lib.run.files import write_text
from lib.run.folder import Run

TEMPLATES = Path(__file__).parent / "templates"
OPENING = ("06_forest", "05_conditions", "04_translations_to_aff", "04_fidelity")  # the figures that show the answers
SIDE_BY_SIDE = (  # heading, table, what a value is of
    ("Metrics of test patients, means over folds and seeds", "trials/metrics.csv", ["condition", "metric"]),
    ("Fidelity, means over folds", "fidelity.csv", ["method", "direction", "features", "metric"]),
)


def render(notebook: Path) -> Path:
    """Write the page of an executed notebook beside it."""
    nb = nbformat.read(notebook, as_version=4)
    body, _ = _Exporter().from_notebook_node(nb)
    body = re.sub(r'src="data:image/png;base64,([^"]+)"', lambda found: _source(base64.b64decode(found[1])), body)
    sections = re.findall("<h2>(.*?)</h2>", body, re.DOTALL)
    for number in range(1, len(sections) + 1):  # targets of the list of sections below the first paragraphs
        body = body.replace("<h2>", f'<h2 id="{notebook.stem}-{number}">', 1)
    begin = re.search('<details class="code"|<h2 |$', body).start()
    heading = next((c.source for c in nb.cells if c.cell_type == "markdown" and c.source.startswith("# ")), "")
    return _write(
        notebook.with_suffix(".html"),
        "notebook.html",
        title=heading.partition("\n")[0].lstrip("# ") or notebook.stem,
        name=notebook.stem,
        sections=[Markup(section) for section in sections],
        before=Markup(body[:begin]),
        after=Markup(body[begin:]),
    )


def index(run: Run) -> Path:
    """Write the run's first page: the answers, the notebooks, and what the run was made with."""
    manifest, answers = run.manifest, run / "answers.md"
    text = answers.read_text(encoding="utf-8") if answers.exists() else ""
    short, _, long = text.partition("\n## ")  # in short, what shows it, at length
    pictures = [run / "figures" / f"{name}.png" for name in OPENING if text]
    records = dict(sorted(manifest.get("notebooks", {}).items()))
    return _write(
        run.path("notebooks", "index.html"),
        "index.html",
        title=f"Answers of run {run.folder.name}",
        run=run,
        answers=short,
        kept=manifest.get("kept", {}),
        pictures=[path for path in pictures if path.exists()],
        at_length=f"## {long}" if long else "",
        notebooks=[(name, record, _inside(run / f"notebooks/{name}.html")) for name, record in records.items()],
        facts=facts(run),
    )


def facts(run: Run) -> dict[str, str | None]:
    """Return what a run was made with, from its manifest: what it is → in words."""
    manifest = run.manifest
    records = manifest.get("notebooks", {}).values()
    peaks = [record["memory_mb"] for record in records if "memory_mb" in record]
    return {
        "run": f"{run.folder.name}, profile {manifest.get('profile')}",
        "started": min((record["started"] for record in records), default="not yet"),
        "minutes": f"{sum(record.get('seconds', 0) for record in records) / 60:.1f}",
        "peak memory": f"{max(peaks)} MB" if peaks else None,
        "commit": f"{manifest.get('commit') or 'outside git'}{' with changes' if manifest.get('dirty') else ''}",
        "device": manifest.get("device"),
        "processor": f"{manifest.get('cpu')}, {manifest.get('cores')} cores",
        **{f"weights: {name}": what for name, what in manifest.get("weights", {}).items()},
        "parameters": ", ".join(f"{name} = {value!r}" for name, value in manifest.get("parameters", {}).items()),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items()),
    }


def _inside(page: Path) -> Markup:
    """Return what stands in a notebook's page, without title and question, for a place on the first page."""
    found = page.exists() and re.search("<main>(.*)</main>", page.read_text(encoding="utf-8"), re.DOTALL)
    if not found:  # not run yet, or rendered by an earlier version
        return Markup("")
    inside = re.sub(r"<h1>.*?</h1>\s*<p>.*?</p>", "", found[1], count=1, flags=re.DOTALL)
    inside = re.sub(r"(</?h)(\d)", lambda tag: f"{tag[1]}{int(tag[2]) + 2}", inside)  # below this page's own headings
    return Markup(re.sub(r'href="(\d\d_\w+)\.html"', r'href="#\1"', inside))


def compare(a: Run, b: Run) -> Path:
    """Write `A-against-B.html` beside two runs: parameters that differ, metrics and fidelity, figures side by side."""
    names = [run.folder.name for run in (a, b)]
    differing = pd.DataFrame(a.differing(b), index=names).T.rename_axis("parameter")
    tables = {}
    for heading, file, keys in SIDE_BY_SIDE:
        if all((run / file).exists() for run in (a, b)):
            means = [pd.read_csv(run / file).groupby(keys, sort=False).value.mean() for run in (a, b)]
            both = pd.concat(means, axis=1, keys=names)
            both["difference"] = both[names[1]] - both[names[0]]
            tables[heading] = Markup(both.to_html(border=0, float_format="{:.3f}".format, na_rep="–"))
    pictures = [{path.name: path for path in sorted((run / "figures").glob("[!.]*.png"))} for run in (a, b)]
    title = " against ".join(names)
    return _write(
        a.folder.parent / f"{title.replace(' ', '-')}.html",
        "compare.html",
        title=title,
        differing=Markup(differing.map(repr).to_html(border=0)) if len(differing) else "",
        tables=tables,
        pairs=[(path, pictures[1][name]) for name, path in pictures[0].items() if name in pictures[1]],
    )


def _caption(path: Path) -> str:
    """Return the caption of a figure that `lib.report.figures.save_figure` wrote."""
    return path.with_suffix(".txt").read_text(encoding="utf-8").strip()


def _picture(path: Path) -> Markup:
    return Markup(f'<img alt="{html.escape(_caption(path))}" {_source(path.read_bytes())}>')


def _source(picture: bytes) -> str:
    """Return a picture as data, as wide as screens show it, with its size, so that nothing moves while it loads."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((1000, 4000))
        image.convert("RGB").save(file, "WEBP", quality=90)
        data = base64.b64encode(file.getvalue()).decode()
        return f'width="{image.width}" height="{image.height}" src="data:image/webp;base64,{data}"'


def markdown(source: str, attachments: dict | None = None) -> Markup:
    """Return Markdown with LaTeX as HTML with MathML."""
    renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments)
    return Markup(MarkdownWithMath(renderer=renderer).render(source))


class _Renderer(IPythonRenderer):
    """Render Markdown as nbconvert does, but equations as MathML, and links from notebook to notebook."""

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if url.startswith("../"):  # a file of the repository, which readers of the page do not have
            return text
        return super().link(text, re.sub(r"^(\d\d_\w+)\.ipynb", r"\1.html", url), title)


class _Exporter(HTMLExporter):
    """Turn an executed notebook into the inside of a page."""

    def __init__(self):
        config = Config()
        config.CoalesceStreamsPreprocessor.enabled = True  # a progress bar's last line instead of all of them
        config.NbConvertBase.display_data_priority = [
            "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg", "text/plain",
        ]  # fmt: skip
        super().__init__(config=config, template_name="classic", template_file=str(TEMPLATES / "cells.html"))

    @jinja2.pass_context
    def markdown2html(self, context, source):
        return markdown(source, context.get("cell", {}).get("attachments"))


def _mathml(latex: str, display: str) -> str:
    """Return an equation as MathML; as LaTeX source where that is beyond the converter."""
    try:
        return to_mathml(latex.strip(), display=display)
    except Exception:
        return f"<code>{html.escape(latex)}</code>"


def _write(page: Path, template: str, **values) -> Path:
    """Write a page from its template; what may be wider than a phone is scrolled, by keys too."""
    wide = r'(?<!tabindex="0">)(<table\b.*?</table>|<math display="block".*?</math>)'
    text = PAGES.get_template(template).render(values)
    write_text(page, re.sub(wide, r'<div class="wide" tabindex="0">\1</div>', text, flags=re.DOTALL))
    return page


PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
PAGES.filters |= {
    "caption": _caption,
    "markdown": markdown,
    "paragraph": lambda source: Markup(source.strip().removeprefix("<p>").removesuffix("</p>")),
    "picture": _picture,
}
PAGES.globals["code_style"] = lambda style: Markup(HtmlFormatter(style=style).get_style_defs(".highlight"))
