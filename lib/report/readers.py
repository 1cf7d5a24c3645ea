"""The reader study, reported: its tables for the thesis, and what became of it in a few sentences."""

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
        caption = "How often readers tell synthetic from real, first showings alone."
        readers = accuracy(answers, images.table)
        save_table(readers, study.run, "06_readers", caption)
        caption = "What readers take images for, by method."
        save_table(confusion(answers, images.table), study.run, "06_readers_by_method", caption)
        caption = "Agreement of readers with each other and with themselves (kappa)."
        agreed = agreement(answers, images.table).set_index(["who", "question"])
        save_table(agreed, study.run, "06_readers_agree", caption)
        said.append(f"{len(readers)} reader(s), {len(answers)} answers.")
    else:
        said.append("No reader has answered yet.")
    needed = [f"{share:.0%}: {images_needed(share)} images" for share in (0.6, 0.65, 0.7, 0.75)]
    said.append(f"To find that a reader is right in {'; '.join(needed)}.")
    return "\n".join(said)
