"""Choices: parameters that a notebook would refuse after hours of training, refused beforehand."""

import shutil

from lib.run.files import from_root
from lib.run.notebooks import Mistake
from lib.run.settings import flat, nearest


def check_choices(parameters: dict[str, object], executor: str = "local") -> None:
    """Raise Mistake where an executor, processes, settings, conditions, methods or run folders cannot work."""
    if executor == "slurm" and not shutil.which("sbatch"):
        raise Mistake("--executor slurm: there is no sbatch here; start this on a machine of the Slurm cluster")
    values = flat(parameters)
    n = values.get("num_processes", 1)
    if n < 1:
        raise Mistake(f"parameter num_processes: {n}; at least one process must work")
    if n == 1 and not {"conditions", "methods", "learning_curve", "cyclediff_settings"} & {*values, *parameters}:
        return
    from lib.fidelity.synthesis import known_methods  # these load torch
    from lib.translators.cyclediff import ablations
    from lib.translators.methods import METHODS
    from lib.trials import classifier
    from lib.trials.conditions import condition

    for name in (f"{method}_batch" for method in METHODS):
        if values.get(name, n) % n:
            raise Mistake(f"parameter num_processes: {n} processes cannot share {name} = {values[name]} evenly")
    try:
        chosen = {name: method.translator.settings_from(parameters) for name, method in METHODS.items()}
        classifier.Settings.from_parameters(parameters, "classifier_")
        for name in map(str, values.get("cyclediff_ablations", ())):
            ablations.ablated(chosen["cyclediff"][0], name)
    except ValueError as error:
        raise Mistake(f"settings: {error}") from error
    for name in map(str, values.get("conditions", ())):
        try:
            condition(name)
        except ValueError as error:
            raise Mistake(f"parameter conditions: {error}") from error
    known = known_methods()
    for name in values.get("methods", ()):
        if name not in known:
            raise Mistake(f"parameter methods: unknown {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    for folder in map(str, values.get("learning_curve", ())):
        if not (from_root(folder) / "trials" / "metrics.csv").is_file():
            raise Mistake(f"parameter learning_curve: {folder} is no run with trials (trials/metrics.csv)")
