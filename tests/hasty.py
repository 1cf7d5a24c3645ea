"""For jobs, which import it: a training that saves after every step, so that it can be cut short anywhere."""

from lib import translator
from lib.training import Checkpoint


def train(*arguments) -> None:
    Checkpoint.due = lambda self: True
    translator.train(*arguments)
