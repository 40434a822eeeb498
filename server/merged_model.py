"""What one method made, and what its steps say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from layerweld.merging.method import Method
from layerweld.model.schedule import Step
from layerweld.report.results import GroupMetrics, Score
from layerweld.updates.update import Update
from strategies.chain_of_merges import ChainOfMerges, SolvedStep


@dataclass
class MergedModel:
    """What one method made, and what it cost.

    Attributes:
        method: which.
        updates: merged updates, by layer.
        remainder: what was added to norms, biases and embeddings; empty for LoRA.
        lost: sites that took part in the run and are not in all of this merge, each with the first
            round without it, counted from 1.
        groups: figures per layer group; empty for methods without statistics.
        prefix: hash over everything merged; empty for methods without a chain.
        figures: what the method says about itself on this input.
    """

    method: Method
    updates: Mapping[str, Update]
    remainder: Mapping[str, Tensor]
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    lost: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[GroupMetrics, ...] = ()
    prefix: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)


def made_by_chain(
    strategy: ChainOfMerges, method: Method, remainder: Mapping[str, Tensor], seconds: float
) -> MergedModel:
    """The model of a chain whose last step is solved."""
    solved = strategy.solved
    groups = _figures(strategy.steps, solved)
    largest = max((group.compression_error for group in groups), default=0.0)
    is_cut = strategy.settings.merge.rank > 0
    return MergedModel(
        method=method,
        updates=strategy.merged,
        remainder=remainder,
        rounds=len(strategy.steps),
        seconds=seconds,
        bytes_up=sum(_bytes_up(step) for step in solved),
        bytes_down=sum(step.bytes_down for step in solved),
        lost=_lost(solved),
        groups=groups,
        prefix=strategy.final_prefix,
        figures={"largest compression error of a group": largest} if is_cut else {},
    )


def _bytes_up(solved: SolvedStep) -> int:
    return sum(count for sites in solved.bytes_up.values() for count in sites.values())


def _lost(solved: Sequence[SolvedStep]) -> dict[str, int]:
    rounds: dict[str, int] = {}
    for step in solved:
        for site in step.lost:
            rounds.setdefault(site, step.index + 1)
    return dict(sorted(rounds.items()))


def _figures(steps: Sequence[Step], solved: Sequence[SolvedStep]) -> tuple[GroupMetrics, ...]:
    """One entry per group; of Jacobi rounds the last one's."""
    by_group: dict[str, GroupMetrics] = {}
    for step, done in zip(steps, solved, strict=True):
        for group, solution in zip(step.groups, done.solutions, strict=True):
            by_group[group.name] = GroupMetrics(
                name=group.name,
                step=step.index,
                layers=tuple(shape.name for shape in group.layers),
                d_in=group.d_in,
                tokens=solution.tokens,
                importance=solution.importance,
                condition=solution.condition,
                ridge=solution.ridge,
                residual=solution.residual,
                compression_error=solution.compression_error,
                bytes_up=dict(sorted(done.bytes_up[group.name].items())),
                influence=solution.influence,
                agreement=solution.agreement,
                capped=solution.capped,
                lost=done.lost,
            )
    return tuple(by_group.values())
