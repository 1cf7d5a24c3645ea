"""A result follows from meaning: which changes of the code make what stale, and which nothing."""

import re
import shutil
import time

import nbformat
import pytest

from lib.data.hashes import cohort_hash
from lib.run.files import ROOT
from lib.run.fingerprint import code_hash, name_of, source_hash
from lib.trials.trials import run_trial

STAGES = {
    "cyclegan": ["lib.translators.translator:Translator.fit", "lib.translators.cyclegan:CycleGAN"],
    "cyclediff": ["lib.translators.translator:Translator.fit", "lib.translators.cyclediff.model:CycleDiff"],
    "judge": ["lib.fidelity.judge:Judge.fit"],
    "cyclegan_images": ["lib.fidelity.synthesis:translate_test", "lib.translators.cyclegan:CycleGAN"],
    "cyclediff_images": ["lib.fidelity.synthesis:translate_test", "lib.translators.cyclediff.model:CycleDiff"],
    "synthesis": ["lib.fidelity.synthesis:synthesise"],
    "fidelity": ["lib.fidelity.measures:measure_fold"],
    "trials": ["lib.trials.trials:run_trial"],
    "cache": ["lib.radiographs.preparing:_prepared_or_error"],
}

# file, text, its replacement, and the stages and notebooks whose code it changes; what only follows from their results
# is stale by the hashes of those: notebooks 04 to 06 by that of a notebook before them, a set of images by its weights.
CHANGES = {
    "comment": ("translators/cyclegan.py", "# eq. 3", "# equation 3", ""),
    "docstring": ("fidelity/judge.py", '"""Judges the images of one fold."""', '"""Judge."""', ""),
    "annotation": ("translators/networks.py", "step: int, steps: int) -> float", "step: float, steps) -> object", ""),
    "blank lines": ("trials/classifier.py", "def learning_rate", "\n\n\ndef learning_rate", ""),
    "text of an error": ("translators/training.py", "is not finite. The last", "is infinite. The last", ""),
    "warning": ("trials/classifier.py", "WARNING: {source.url} could", "WARNING: {source.name} could", ""),
    "lock's message": ("run/locks.py", "has ended before its end; going on", "is dead", ""),
    "progress bar": ("run/progress.py", "mininterval=10", "mininterval=20", ""),
    "a bar's name": ("translators/training.py", "done, desc=model.name)", "done)", ""),
    "estimate of time": ("translators/translator.py", "float(np.median(took))", "float(np.mean(took))", ""),
    "unused function": (
        *("translators/networks.py", "def linear_decay"),
        *("def unused():\n    return 3\n\n\ndef linear_decay", ""),
    ),
    "checkpoints' rhythm": ("run/checkpoints.py", "EVERY = (120.0", "EVERY = (60.0", ""),
    "figure's colour": ("report/figures.py", "capsize=2, color=look", "capsize=3, color=look", "04"),
    "house style": ("report/figures.py", '"lines.linewidth": 1.2', '"lines.linewidth": 1.5', "01 02 03 04 05 06"),
    "λ of a loss": ("translators/cyclegan.py", "s.cycle * (cycle_X", "2 * s.cycle * (cycle_X", "cyclegan 02"),
    "λ of CycleDiff": (
        *("translators/cyclediff/losses.py", '"cycle": s.cycle,'),
        *('"cycle": 2 * s.cycle,', "cyclediff 03"),
    ),
    "padding": (
        *("translators/networks.py", 'mode="reflect")\n        return super'),
        *('mode="replicate")\n        return super', "cyclegan cyclediff cyclegan_images cyclediff_images 02 03"),
    ),
    "kernel size": (
        *("translators/networks.py", "ReflectConv2d(channels, width, 7)"),
        *("ReflectConv2d(channels, width, 5)", "cyclegan cyclediff cyclegan_images cyclediff_images 02 03"),
    ),
    "learning-rate decay": (
        *("translators/networks.py", "min(1.0, 2 * (steps"),
        *("min(1.0, 3 * (steps", "cyclegan cyclediff 02 03"),
    ),
    "EMA rule": (
        *("translators/training.py", "(self.updates + 9)"),
        *("(self.updates + 99)", "cyclegan cyclediff 02 03 04"),
    ),
    "imported function": (
        *("translators/cyclegan.py", "import l1_loss"),
        *("import mse_loss as l1_loss", "cyclegan 02"),
    ),
    "split rule": ("data/splits.py", "default_rng([seed, repeat])", "default_rng([repeat, seed])", "01 06"),
    "judge's failures": ("fidelity/judge.py", "rng.uniform(0.03, 0.05)", "rng.uniform(0.02, 0.05)", "judge 03 04"),
    "KID's formula": (
        *("statistics/kid.py", "/ X.shape[1] + 1) ** 3"),
        *("/ X.shape[1] + 1) ** 2", "fidelity 03 04 06"),
    ),
    "threshold rule": ("statistics/metrics.py", "best[len(best) // 2]", "best[0]", "trials 05 06"),
    "augmentation": ("trials/classifier.py", "math.radians(15)", "math.radians(20)", "trials 05"),
    "time grid": (
        *("translators/cyclediff/process.py", "np.linspace(first_t"),
        *("np.geomspace(first_t", "cyclediff_images 03"),
    ),
    "phantom's constant": (
        *("data/phantom.py", "= 0.0604, 0.0235"),
        *("= 0.0605, 0.0235", "judge synthesis fidelity 01 02 03 04 05 06"),
    ),
    "decoder": ("radiographs/decoding.py", "MAX_BYTES =", "MAX_BYTES = 2 *", "cache 01"),
    "round trip": ("translators/cyclegan.py", "cpu() + noise * n", "cpu() - noise * n", "02"),
}  # fmt: skip


def code_of(notebook) -> str:
    source = "\n\n".join(cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code")
    return re.sub(r"^(\s*)([%!])", r"\1pass  # \2", source, flags=re.MULTILINE)


NOTEBOOKS = {path.stem[:2]: code_of(path) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}


def marks(root) -> dict[str, list[str]]:
    found = {stage: [source_hash(*names, root=root)] for stage, names in STAGES.items()}
    return found | {name: [code_hash(code, root)] for name, code in NOTEBOOKS.items()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "lib", root / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    return root, marks(root)


@pytest.mark.parametrize("name", CHANGES)
def test_exactly_what_a_change_touches_is_stale(copy, name):
    root, before = copy
    file, old, new, stale = CHANGES[name]
    path = root / "lib" / file
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))
    now = marks(root)
    path.write_text(source)
    assert {stage for stage in now if now[stage] != before[stage]} == set(stale.split())


def test_a_notebook_takes_a_third_of_a_second(copy):
    root, _ = copy
    start = time.process_time()
    for code in NOTEBOOKS.values():
        code_hash(code, root)
    assert (time.process_time() - start) / len(NOTEBOOKS) < 0.3


def test_a_notebook_counts_as_its_reader_sees_it(copy):
    root, _ = copy
    code = NOTEBOOKS["02"]
    assert code_hash(code + "\n# a comment", root) == code_hash(code, root)
    assert code_hash(code + "\nprint('more')", root) != code_hash(code, root)
    with pytest.raises(SyntaxError):
        code_hash("def", root)


@pytest.fixture
def lib(tmp_path):
    """A function that writes modules of a small `lib`, and its root."""

    def write(**sources) -> None:
        for name, source in sources.items():
            path = tmp_path / "lib" / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)

    write(__init__="")
    return write, tmp_path


FORMS = (  # of reaching `def f` in module b from module a
    "from lib.b import f\ndef g(): return f()",
    "from lib import b\ndef g(): return b.f()",
    "import lib.b\ndef g(): return lib.b.f()",
    "import lib.b as other\ndef g(): return other.f()",
    "from .b import f as h\ndef g(): return h()",
    "def g():\n    from lib.b import f\n    return f()",
    "from lib.b import f\ndef g(): return map(lambda x: f(), [1])",
    "from lib.b import f\nTABLE = {'f': f}\ndef g(): return TABLE['f']()",
    "from lib.b import f\n@f\ndef g(): pass",
    "from lib.b import f\ndef g(x=f): pass",
    "from lib.c import f\ndef g(): return f()",
    "from lib import b\ndef g(name): return getattr(b, name)()",
    "from lib.b import C\ndef g(c: C): return c.m()",
    "from lib.b import C\ndef g(): return [c.m() for c in C.all()]",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_import_is_followed(lib, form):
    write, root = lib
    b = "def f(): return 1\nclass C:\n    def m(self): return f()\n    @classmethod\n    def all(cls): return [cls()]\n"
    write(a=form, b=b, c="from lib.b import f", d="def z(): return 1")
    before = source_hash("lib.a:g", root=root)
    write(b=b.replace("return 1", "return 22"))
    assert source_hash("lib.a:g", root=root) != before
    write(b=b, d="def z(): return 22")
    assert source_hash("lib.a:g", root=root) == before


def test_a_moved_function_is_the_same_function(lib):
    write, root = lib
    write(a="from lib.b import f\ndef g(): return f()", b="import math\ndef f(): return math.pi")
    before = source_hash("lib.a:g", root=root)
    write(a="from lib.c import f\ndef g(): return f()", b="", c="import math\ndef f(): return math.pi")
    assert source_hash("lib.a:g", root=root) == before


def test_another_meaning_of_the_same_text_counts(lib):
    """The same lines, whose names stand for something else."""
    write, root = lib
    write(a="from lib.b import f\ndef g(): return f()", b="def f(): return 1", c="def f(): return 2")
    before = source_hash("lib.a:g", root=root)
    write(a="from lib.c import f\ndef g(): return f()")
    assert source_hash("lib.a:g", root=root) != before
    write(a="from numpy import mean as f\ndef g(): return f()")
    mean = source_hash("lib.a:g", root=root)
    write(a="from numpy import median as f\ndef g(): return f()")
    assert source_hash("lib.a:g", root=root) != mean


def test_of_a_class_the_called_methods_count(lib):
    write, root = lib
    source = (
        "class C:\n    def fit(self): return self.step()\n    def step(self): return 1\n    def show(self): return 2\n"
    )
    write(a=source)
    before = source_hash("lib.a:C.fit", root=root)
    write(a=source.replace("return 2", "return 22"))
    assert source_hash("lib.a:C.fit", root=root) == before
    write(a=source.replace("return 1", "return 11"))
    assert source_hash("lib.a:C.fit", root=root) != before
    module = source.replace("class C", "import torch\nclass C(torch.nn.Module)")
    write(a=module)
    before = source_hash("lib.a:C.fit", root=root)
    write(a=module.replace("return 2", "return 22"))
    assert source_hash("lib.a:C.fit", root=root) != before, "PyTorch may call any method of its modules"


def test_what_an_object_holds_is_no_method_of_the_same_name(lib):
    write, root = lib
    source = "class C:\n    def path(self): return 1\n    def fit(self): return F('x').open()\n"
    source += "class F:\n    def __init__(self, path): self.path = path\n    def open(self): return self.path\n"
    write(a=source)
    before = source_hash("lib.a:C.fit", root=root)
    write(a=source.replace("return 1", "return 11"))
    assert source_hash("lib.a:C.fit", root=root) == before
    source = source.replace("return F('x').open()", "return F('x').open(), self.path()")
    write(a=source)
    before = source_hash("lib.a:C.fit", root=root)
    write(a=source.replace("return 1", "return 11"))
    assert source_hash("lib.a:C.fit", root=root) != before


def test_a_local_name_is_no_function_of_the_module(lib):
    write, root = lib
    source = "def kid(): return 1\ndef g(n):\n    kid = n\n    return [kid for n in range(n)]"
    write(a=source)
    before = source_hash("lib.a:g", root=root)
    write(a=source.replace("return 1", "return 11"))
    assert source_hash("lib.a:g", root=root) == before


def test_a_template_counts_where_it_is_named(lib):
    write, root = lib
    write(a="def g(): return read('page.html')")
    (root / "lib" / "templates").mkdir()
    before = source_hash("lib.a:g", root=root)
    (root / "lib" / "templates" / "page.html").write_text("1")
    assert source_hash("lib.a:g", root=root) != before


def test_an_unknown_function_is_refused(lib):
    with pytest.raises(ValueError, match=r"no lib\.a:nothing in"):
        source_hash("lib.a:nothing", root=lib[1])


def test_functions_are_named_as_text_names_them():
    assert name_of(run_trial) == STAGES["trials"][0]
    assert source_hash(run_trial) == source_hash(*STAGES["trials"])
    assert source_hash(cohort_hash) != source_hash(run_trial)
