"""Which groups each round solves, and behind which merged layers: CoM and its ablations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerweld.plan import LayerGroup, MergePlan
from layerweld.settings.merge import MergeSettings


@dataclass(frozen=True)
class Step:
    """One round.

    Attributes:
        index: 0 for the first round.
        groups: the groups that the round solves.
        inside: whose updates, norms and biases are in place in the step's own groups while their
            inputs are measured: each site's ``own``, or what is ``merged`` already. Everything
            before the step's first group is merged in either case.
        restarts: whether the step solves its groups anew, from the model's first block on.
    """

    index: int
    groups: tuple[LayerGroup, ...]
    inside: Literal["own", "merged"]
    restarts: bool = False

    @property
    def needs(self) -> range:
        """The earlier steps whose updates are in place when this one is measured."""
        return range(self.index - 1 if self.restarts and self.index else 0, self.index)


def schedule(plan: MergePlan, settings: MergeSettings) -> tuple[Step, ...]:
    """The rounds of a run.

    ``group`` is the Chain of Merges: each group behind everything merged before it. ``block`` is
    RegMean++: each site's own block behind the merged blocks. ``model`` is RegMean: each site's
    own model, no chain. ``jacobi`` is RegMean followed by rounds that measure every group behind
    the model merged last and solve all of them again; as many rounds as there are groups give the
    chain.
    """
    if settings.granularity == "group":
        return tuple(Step(i, (group,), "merged") for i, group in enumerate(plan.groups))
    if settings.granularity == "block":
        return block_steps(plan)
    first = Step(0, plan.groups, "own", restarts=True)
    if settings.granularity == "model":
        return (first,)
    later = [Step(k, plan.groups, "merged", restarts=True) for k in range(1, settings.rounds)]
    return (first, *later)


def block_steps(plan: MergePlan) -> tuple[Step, ...]:
    """One step for each block that has layers to merge."""
    blocks = [plan.groups_of_block(b) for b in range(len(plan.blocks))]
    return tuple(Step(i, groups, "own") for i, groups in enumerate(b for b in blocks if b))
