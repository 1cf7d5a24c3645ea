"""Pages: a run's executed notebooks as HTML that a supervisor reads in a browser, without Jupyter and offline.

Everything lies in the file itself: images as data, equations as MathML, code folded away, no script at all. The first
page, `index.html`, holds the answers and all notebooks, so that it can be sent alone; each notebook is a page too.
"""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert as to_mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from lib.run.files import write_text
from lib.run.folder import Run

STYLE = """
:root { color-scheme: light dark; --text: #1d2125; --soft: #667078; --page: #fff; --box: #f5f6f7; --line: #dde1e4;
  --link: #0b62a8; --good: #1a7f4b; --bad: #b3261e; }
body { margin: 0 auto; padding: 2rem 1.25rem 5rem; max-width: 52rem; background: var(--page); color: var(--text);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1, h2, h3 { line-height: 1.25; margin: 2.2em 0 .6em; text-wrap: balance; }
h1 { font-size: 1.8rem; margin-top: .5em; }
h2, .notebook h4 { font-size: 1.3rem; border-bottom: 1px solid var(--line); padding-bottom: .2em; }
h3, .notebook h5 { font-size: 1.08rem; }
a { color: var(--link); }
nav, footer, .soft, figcaption { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
.output img, figure img { background: #fff; border-radius: 4px; padding: 4px; box-sizing: border-box; }
.output { margin: .8rem 0 1.4rem; overflow-x: auto; }
pre, code { font: .86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
:not(pre) > code { background: var(--box); padding: .1em .3em; border-radius: 3px; }
details.code { margin: .3rem 0; }
details.code > summary { cursor: pointer; color: var(--soft); font-size: .8rem; width: max-content; }
.highlight { background: var(--page); border: 1px solid var(--line); padding: .5rem .8rem; border-radius: 4px; }
.stderr pre { color: var(--soft); }
.error pre { color: var(--bad); background: var(--box); padding: .6rem .8rem; border-left: 3px solid var(--bad); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; border: 0; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; text-align: right; border: 0; }
th:first-child, td:first-child, tbody th { text-align: left; font-weight: normal; }
thead { border-top: 2px solid var(--text); border-bottom: 1px solid var(--text); }
tbody { border-bottom: 2px solid var(--text); }
table.facts, table.facts tbody { border: 0; }
table.facts th { font-weight: 600; vertical-align: top; }
table.facts td { text-align: left; overflow-wrap: anywhere; }
.notebook { border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; margin: .7rem 0; }
.notebook > summary { cursor: pointer; }
.notebook > summary > h3, div.notebook > h3 { display: inline; }
.notebook > summary > h3::after { content: "\\A"; white-space: pre; }
.notebook[open] > summary { border-bottom: 1px solid var(--line); padding-bottom: .8rem; }
.contents ol { columns: 16rem; padding-left: 1.4rem; margin: 1rem 0; }
table.pair td { width: 50%; padding: .2rem; vertical-align: top; } table.pair tbody { border: 0; }
.state { float: right; font-size: .85rem; color: var(--soft); }
.finished { color: var(--good); } .failed { color: var(--bad); }
@media (prefers-color-scheme: dark) { :root { --text: #dfe3e6; --soft: #98a2aa; --page: #15181b; --box: #1f2427;
  --line: #343b40; --link: #76b7f2; --good: #5fcf95; --bad: #ff8a80; } }
@media print { details.code, nav { display: none; } body { max-width: none; padding: 0; }
  figure, img, tr { break-inside: avoid; } h1, h2, h3, h4 { break-after: avoid; }
  .notebook::details-content { content-visibility: visible; height: auto; }
  .wide, .output { overflow: visible; } .wide table { font-size: .62rem; }
  .wide th, .wide td { padding: .1rem .25rem; } }
"""

OPENING = ("06_forest", "05_conditions", "04_translations_to_aff", "04_fidelity")  # the figures that show the answers
SIDE_BY_SIDE = (  # heading, table, what a value is of
    ("Metrics of test patients, means over cells and seeds", "trials/metrics.csv", ["condition", "metric"]),
    ("Fidelity, means over cells", "fidelity.csv", ["method", "direction", "features", "metric"]),
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

# nbconvert's classic template with its frame, prompts and widgets taken out and the code folded
TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{% block codecell %}{{ super() }}{% endblock %}
{% block input_group %}{% if cell.source.strip() %}
<details class="code"><summary>code</summary>{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{% endif %}{% endblock %}
{% block output_group %}<div class="output">{{ self.outputs() }}</div>{% endblock %}
{% block output_area_prompt %}{% endblock %}
{% block markdowncell scoped %}{{ cell.source | markdown2html }}{% endblock %}
{% block stream_stdout %}<pre>{{ output.text | ansi2html }}</pre>{% endblock %}
{% block stream_stderr %}<div class="stderr"><pre>{{ output.text | ansi2html }}</pre></div>{% endblock %}
{% block data_latex scoped %}{{ output.data['text/latex'] | markdown2html }}{% endblock %}
{% block error %}<div class="error"><pre>{{ output.traceback | join('\n') | ansi2html }}</pre></div>{% endblock %}
{% block footer %}{% endblock %}
"""


def render(notebook: Path) -> Path:
    """Write the page of an executed notebook beside it."""
    nb = nbformat.read(notebook, as_version=4)
    body, _ = _Exporter().from_notebook_node(nb)
    body = re.sub(r'src="data:image/png;base64,([^"]+)"', lambda found: _source(base64.b64decode(found[1])), body)
    body = _with_contents(body, prefix=notebook.stem)
    page = notebook.with_suffix(".html")
    heading = next((c.source for c in nb.cells if c.cell_type == "markdown" and c.source.startswith("# ")), page.stem)
    title = heading.splitlines()[0].lstrip("# ")
    _write(page, title, f'<nav><a href="index.html">All notebooks and answers</a></nav>\n<main>{body}</main>')
    return page


def _with_contents(body: str, prefix: str) -> str:
    """A notebook's page with its sections' headings made targets, and listed below the first paragraphs."""
    sections = []

    def target(heading: re.Match) -> str:
        sections.append(f'<li><a href="#{prefix}-{len(sections) + 1}">{heading[1]}</a></li>')
        return f'<h2 id="{prefix}-{len(sections)}">{heading[1]}</h2>'

    body = re.sub(r"<h2>(.*?)</h2>", target, body, flags=re.DOTALL)
    contents = f'<nav class="contents" aria-label="Contents of {prefix}"><ol>{"".join(sections)}</ol></nav>\n'
    begin = re.search('<details class="code"|<h2 |$', body).start()
    return f"{body[:begin]}{contents}{body[begin:]}" if sections else body


def index(run: Run) -> Path:
    """Write the run's first page: the answers, the notebooks, and what the run was made with."""
    manifest = run.manifest
    answers = run / "answers.md"
    if answers.exists():  # in short, what shows it, at length
        text = answers.read_text(encoding="utf-8")
        short, _, long = text.partition("\n## ")
        shown = [run / "figures" / f"{name}.png" for name in OPENING]
        figures = "\n".join(_figure(path) for path in shown if path.exists())
        opening = f"{markdown(short)}\n{figures}\n{markdown('## ' + long if long else '')}"
    else:
        opening = f"<h1>Run {run.folder.name}</h1>\n<p class='soft'>No answers yet: notebook 06 writes them.</p>"
    notebooks = sorted(manifest.get("notebooks", {}).items())
    entries = "\n".join(_entry(run, name, record) for name, record in notebooks)
    peaks = [record["memory_mb"] for _, record in notebooks if "memory_mb" in record]
    facts = {
        "run": f"{run.folder.name}, profile {manifest.get('profile')}",
        "started": min((record["started"] for _, record in notebooks), default="not yet"),
        "minutes": f"{sum(record.get('seconds', 0) for _, record in notebooks) / 60:.1f}",
        "peak memory": f"{max(peaks)} MB" if peaks else None,
        "commit": f"{manifest.get('commit') or 'outside git'}{' with changes' if manifest.get('dirty') else ''}",
        "device": manifest.get("device"),
        "processor": f"{manifest.get('cpu')}, {manifest.get('cores')} cores",
        **{f"weights: {name}": what for name, what in manifest.get("weights", {}).items()},
        "parameters": ", ".join(f"{name} = {value!r}" for name, value in manifest.get("parameters", {}).items()),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items()),
    }
    page = run.path("notebooks", "index.html")
    rendered = [name for name, _ in notebooks if (run / f"notebooks/{name}.html").exists()]
    alone = ", ".join(f'<a href="{name}.html">{name}</a>' for name in rendered) or "none yet"
    body = (
        f"<main>{opening}\n<h2>Notebooks</h2>\n{entries}\n"
        f'<p class="soft">In the run\'s folder, each is a page of its own too: {alone}.</p>\n'
        f"<h2>This run</h2>\n{_table(facts)}</main>"
    )
    _write(page, f"Answers of run {run.folder.name}", body)
    return page


def compare(a: Run, b: Run) -> Path:
    """Write `A-against-B.html` beside two runs: parameters that differ, metrics and fidelity, figures side by side."""
    differing = pd.DataFrame(a.differing(b), index=[a.folder.name, b.folder.name]).T.rename_axis("parameter")
    parts = [f"<h1>{html.escape(a.folder.name)} against {html.escape(b.folder.name)}</h1>", "<h2>Parameters</h2>"]
    parts.append(differing.map(repr).to_html(border=0) if len(differing) else "<p>None differs.</p>")
    for heading, file, keys in SIDE_BY_SIDE:
        if not all((run / file).exists() for run in (a, b)):
            continue
        means = {run.folder.name: pd.read_csv(run / file).groupby(keys, sort=False).value.mean() for run in (a, b)}
        both = pd.DataFrame(means)
        both["difference"] = both.iloc[:, 1] - both.iloc[:, 0]
        parts += [f"<h2>{heading}</h2>", both.to_html(border=0, float_format="{:.3f}".format, na_rep="–")]
    parts.append("<h2>Figures</h2>")
    names = [{path.name for path in (run / "figures").glob("[!.]*.png")} for run in (a, b)]
    for name in sorted(names[0] & names[1]):
        caption = _caption(a / "figures" / name)
        pictures = "".join(
            f'<td><span class="soft">{html.escape(run.folder.name)}</span>{_picture(run / "figures" / name)}</td>'
            for run in (a, b)
        )
        parts.append(
            f"<figure><table class='pair'><tr>{pictures}</tr></table><figcaption>{caption}</figcaption></figure>"
        )
    page = a.folder.parent / f"{a.folder.name}-against-{b.folder.name}.html"
    _write(page, f"{a.folder.name} against {b.folder.name}", "<main>" + "\n".join(parts) + "</main>")
    return page


def _figure(path: Path) -> str:
    return f"<figure>{_picture(path)}<figcaption>{_caption(path)}</figcaption></figure>"


def _caption(path: Path) -> str:
    """That of a figure of `lib.report.figures.save_figure`, as HTML."""
    return html.escape(path.with_suffix(".txt").read_text(encoding="utf-8").strip())


def _picture(path: Path) -> str:
    return f'<img alt="{_caption(path)}" {_source(path.read_bytes())}>'


def _source(picture: bytes) -> str:
    """A picture in the page itself, as wide as screens show it, with its size, so that nothing moves while it loads."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((1000, 4000))
        image.convert("RGB").save(file, "WEBP", quality=90)
        data = base64.b64encode(file.getvalue()).decode()
        return f'width="{image.width}" height="{image.height}" src="data:image/webp;base64,{data}"'


def markdown(source: str, attachments: dict | None = None) -> str:
    """Markdown with LaTeX to HTML with MathML."""
    return MarkdownWithMath(renderer=_Renderer(escape=False, attachments=attachments)).render(source)


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown, with equations drawn by the browser and links kept from notebook to notebook."""

    def __init__(self, **options):
        super().__init__(exclude_anchor_links=True, **options)

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
    """Executed notebook to the inside of a page."""

    def __init__(self):
        config = Config()
        config.CoalesceStreamsPreprocessor.enabled = True  # a progress bar's last line instead of all of them
        config.NbConvertBase.display_data_priority = [
            "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg", "text/plain",
        ]  # fmt: skip
        super().__init__(config=config, template_name="classic", raw_template=TEMPLATE)

    @jinja2.pass_context
    def markdown2html(self, context, source):
        return markdown(source, context.get("cell", {}).get("attachments"))


def _mathml(latex: str, display: str) -> str:
    """An equation as MathML; as LaTeX source where that is beyond the converter."""
    try:
        return to_mathml(latex.strip(), display=display)
    except Exception:
        return f"<code>{html.escape(latex)}</code>"


def _entry(run: Run, name: str, record: dict) -> str:
    """A notebook's question and state; behind them, where it was rendered, all of its page."""
    took = f", {record['seconds'] / 60:.1f} min" if "seconds" in record else ""
    took += f", {record['memory_mb']} MB" if "memory_mb" in record else ""
    state = f'<span class="state"><span class="{record["state"]}">{record["state"]}</span>{took}</span>'
    question = markdown(record["question"]).strip().removeprefix("<p>").removesuffix("</p>")
    summary = f"{state}<h3>{html.escape(record['title'])}</h3> {question}"
    page = run / f"notebooks/{name}.html"
    found = page.exists() and re.search("<main>(.*)</main>", page.read_text(encoding="utf-8"), re.DOTALL)
    if not found:  # not run yet, or rendered by an earlier version
        return f'<div class="notebook">{summary}</div>'
    inside = found[1]
    inside = re.sub(r"<h1>.*?</h1>\s*<p>.*?</p>", "", inside, count=1, flags=re.DOTALL)  # title and question again
    inside = re.sub(r"(</?h)(\d)", lambda tag: f"{tag[1]}{int(tag[2]) + 2}", inside)  # below this page's own headings
    inside = re.sub(r'href="(\d\d_\w+)\.html"', r'href="#\1"', inside)
    return f'<details class="notebook" id="{name}"><summary>{summary}</summary>\n{inside}</details>'


def _table(facts: dict) -> str:
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(fact))}</td></tr>" for name, fact in facts.items())
    return f"<table class='facts'>{''.join(rows)}</table>"


def _write(page: Path, title: str, body: str) -> None:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    style = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{STYLE}"
    # what keys must reach to scroll it on a phone, where it is not wrapped yet
    wide = r'(?<!tabindex="0">)(<table\b.*?</table>|<math display="block".*?</math>)'
    body = re.sub(wide, r'<div class="wide" tabindex="0">\1</div>', body, flags=re.DOTALL)
    write_text(page, PAGE.format(title=html.escape(title), style=style, body=body))
