"""What `run_all.py --list` shows: notebooks, parameters, and what the next call would make anew."""

from collections.abc import Mapping
from pathlib import Path

from lib.run.finished import Request, Step
from lib.run.progress import duration
from lib.run.settings import prefixes, same, settings_of


def show(request: Request, makes: Mapping[str, str]) -> None:
    """Print of each notebook title, question, state, seconds and peak memory, what the next call does, parameters.

    `makes` says what each makes, by name.
    """
    for step in request.steps():
        record, notebook = step.record, step.notebook
        took = f", {record['seconds']:.0f} s" if "seconds" in record else ""
        took += f", {record['memory_mb']} MB" if "memory_mb" in record else ""
        print(f"{notebook.name}  {record.get('state', 'not run')}{took}\n  {notebook.title}\n  {notebook.question}")
        if notebook.name in makes:
            print(f"  makes {makes[notebook.name]}")
        if record:
            print(f"  next: {what_next(step)}")
        for name, (default, meaning) in notebook.parameters.items():
            value, prefix = step.parameters.get(name, default), prefixes({name: default}).get(name)
            show_parameter(name, default, meaning, value if prefix is None else default)
            for field, (usual, said) in settings_of(prefix).items() if prefix else ():
                if field in value:  # the others are parameters themselves
                    show_parameter(prefix + field, usual, said, value[field])
        print()
    show_trainings(request.folder)


def what_next(step: Step) -> str:
    """Say what the next call does with a notebook that has run before, and how long that took."""
    reasons = "; ".join(step.reasons)
    if not step.wanted:
        return f"not asked for{f', though {reasons}' if reasons else ''}"
    if not reasons:
        return "unchanged, skipped"
    took = f"; it took {duration(step.record['seconds'])}" if "seconds" in step.record else ""
    return f"runs, since {reasons}{took}"


def show_parameter(name: str, default: object, meaning: str, value: object) -> None:
    """Print a parameter: default, the value chosen where it is another, meaning."""
    chosen = "" if same(default, value) else f" → {value!r}"
    print(f"    {name} = {default!r}{chosen}" + (f"  # {meaning}" if meaning else ""))


def show_trainings(folder: Path) -> None:
    """Print the trainings of a run that no longer fit the code, and those that were kept."""
    if not folder.exists():
        return
    from lib.run import checkpoints  # loads pandas

    found = checkpoints.trainings(folder)
    other, kept = found[~found.fits.astype(bool)], checkpoints.kept(folder)
    if len(other):
        print("Made by other code: set aside and made anew, unless --keep-trained is given.")
    for row in other.itertuples():
        took = f"; making it anew takes {duration(row.anew)}" if row.anew > 0 else ""
        print(f"    {row.path}  {row.state}{took}")
    if kept:
        print("Kept, though other code made it:")
    for path, differs in kept.items():
        print(f"    {path}  {differs}")
