"""Rank: which part of every batch a process trains on, where several train together."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate.utils import gather, gather_object, reduce


@dataclass(frozen=True)
class Rank:
    """One process's part of every batch, where several train the same networks.

    Every process draws all random numbers of the whole batch and keeps those of its own rows. Gradients are averaged
    before they are clipped or used. So all hold the weights that one process learns from the whole batch, up to the
    order of sums. Collective methods must be called by all processes in the same order; where one ends alone (of a full
    disk), the launcher ends the others, which wait. With one process everything is given back unchanged.

    Raises ValueError where the processes do not divide the batch.
    """

    batch: int = 1  # images of a domain in a step, of all processes together
    processes: int = 1
    index: int = 0  # which of them this is

    def __post_init__(self):
        if self.batch % self.processes:
            below = self.batch - self.batch % self.processes
            raise ValueError(
                f"a batch of {self.batch} cannot be divided among {self.processes} processes: set batch to "
                f"{below + self.processes}{f' or {below}' if below else ''}, or start another number of processes"
            )

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this process's rows of k whole batches (real, then fake): (k·batch, …) → (k·batch / processes, …)."""
        if self.processes == 1:
            return whole
        return whole.unflatten(0, (-1, self.processes, self.batch // self.processes))[:, self.index].flatten(0, 1)

    def all(self, own: torch.Tensor) -> torch.Tensor:
        """Gather (batch / processes, …) of each process into (batch, …), without gradient. Collective."""
        return own if self.processes == 1 else gather(own.detach())

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their means over all processes, in one message. Collective."""
        if self.processes == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return means of losses over all processes: not finite where any of them is not. Collective."""
        if self.processes == 1:
            return terms
        means = reduce(torch.stack([term.detach().float() for term in terms.values()]), "mean")
        return dict(zip(terms, means, strict=True))

    def any(self, wish: bool) -> bool:
        """Return whether any process wants it. Collective."""
        return any(gather_object([wish]))

    def check_same(self, facts: dict) -> None:
        """Raise ValueError, on all processes, where they do not train the same from the same step. Collective."""
        differing = {name for other in gather_object([facts]) for name in facts if other.get(name) != facts[name]}
        if differing:
            raise ValueError(
                f"the processes differ in {', '.join(sorted(differing))}: give all of them the same settings, images "
                "and code, and a folder that all of them see"
            )


ALONE = Rank()
