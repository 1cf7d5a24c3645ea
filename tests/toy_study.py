"""A study of two toy notebooks, as run_all.py runs it, for the tests that need one."""

import json

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import run_all

FIRST = [
    new_markdown_cell("# 01 · First\n\nWhat is $x_1$? See [the second](02_second.ipynb).\n\nReads nothing."),
    new_code_cell(
        'run_dir = "runs/quick"\nseed = 0  # any whole number = fine\nrate = 1e-4  # Adam\nsizes = [8, 16]\n'
        'radiographs_csv = ""  # empty: none',
        metadata={"tags": ["parameters"]},
    ),
    new_code_cell(
        "import os, sys\nfrom pathlib import Path\nimport matplotlib.pyplot as plt\n"
        "from lib.report.figures import save_figure\n"
        "from lib.run.folder import Run\nrun = Run(run_dir)"
    ),
    new_markdown_cell("$$\\frac{a}{b}$$\n\n\\begin{align}x &= \\sqrt{2}\\end{align}"),
    new_code_cell(
        'run.record("seen", seed=seed, rate=rate, sizes=sizes, python=sys.executable, folder=Path.cwd().name,\n'
        '           hash_seed=os.environ["PYTHONHASHSEED"])'
    ),
    new_code_cell("for i in range(3):\n    print(f'\\rstep {i}', end='', flush=True)"),
    new_code_cell('fig, ax = plt.subplots()\nsave_figure(fig, run, "empty", "Nothing in it.")'),
]
SECOND = [
    new_markdown_cell("# 02 · Second\n\nDoes it fail?"),
    new_code_cell('run_dir = "runs/quick"\nseed = 0\nhow = "no"', metadata={"tags": ["parameters"]}),
    new_code_cell(
        'import os, sys, time\nif how == "error":\n    raise ValueError("row 3 has no label")\nif how == "die":\n'
        '    os._exit(1)\nif how == "exit":\n    sys.exit(0)\nif how == "wait":\n    time.sleep(60)'
    ),
    new_code_cell(
        "from lib.run.files import write_text\nfrom lib.run.folder import Run\n"
        "write_text(Run(run_dir) / 'answers.md', f'# Answers\\n\\nRQ1: {seed}.')"
    ),
]


def write(folder, name, cells):
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")


def command(folder, *arguments):
    return run_all.main(list(arguments), folder / "notebooks", folder / "runs")


def again(folder, *arguments):
    return command(folder, "--profile", "small", "-p", "seed", "7", "--run", "a", *arguments)


def manifest(folder, run="a"):
    return json.loads((folder / f"runs/{run}/manifest.json").read_text())


def states(folder, run="a"):
    return {name: record["state"] for name, record in manifest(folder, run)["notebooks"].items()}


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.name != ".lock"}
