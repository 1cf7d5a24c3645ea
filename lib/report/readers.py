"""The reader study, reported: its tables for the thesis, and what became of it in a few sentences."""

from __future__ import annotations

from lib.data.cohort import Cohort
from lib.fidelity.reader_study import outdated, read_answers
from lib.report.figures import save_table
from lib.statistics.readers import accuracy, agreement, confusion, images_needed
from lib.study import Study


def reader_study(study: Study) -> str:
    """Save the tables of the answers so far, and return what there is to say, a sentence a line."""
    home, said = study.run / "reader_study", []
    answers = read_answers(home / "answers.csv")
    if len(answers):
        images = Cohort.load(home)
        folders = (study.run / "synthetic").glob(f"*/{study.folds[0].name}/test")
        for method in outdated(images, {folder.parent.parent.name: Cohort.load(folder) for folder in folders}):
            said.append(f"{method} was trained again since: the answers are about its earlier images.")
        tables = {
            "readers": accuracy(answers, images.table),
            "readers_by_method": confusion(answers, images.table),
            "readers_agree": agreement(answers, images.table).set_index(["who", "question"]),
        }
        captions = (
            "How often readers tell synthetic from real, first showings alone.",
            "What readers take images for, by method.",
            "Agreement of readers with each other and with themselves (kappa).",
        )
        for (name, table), caption in zip(tables.items(), captions, strict=True):
            save_table(table, study.run, f"06_{name}", caption)
        said.append(f"{len(tables['readers'])} reader(s), {len(answers)} answers.")
    else:
        said.append("No reader has answered yet.")
    needed = [f"{share:.0%}: {images_needed(share)} images" for share in (0.6, 0.65, 0.7, 0.75)]
    said.append(f"To find that a reader is right in {'; '.join(needed)}.")
    return "\n".join(said)
