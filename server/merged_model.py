"""What one method made, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter
from torch import Tensor

from layerweld.errors import UnusableMergeError
from layerweld.merging.method import Method
from layerweld.report.results import GroupMetrics, Score
from layerweld.updates.bounds import all_within_ranks, out_of_bounds
from layerweld.updates.update import Update
from strategies.merge_strategy import MergeStrategy

_GROUP = TypeAdapter(GroupMetrics)


@dataclass
class MergedModel:
    """What one method made, and what it cost.

    Attributes:
        method: which.
        updates: merged updates, by layer.
        other_params: what was added to norms, biases and embeddings; empty for LoRA.
        lost: sites that took part in the run and are not in all of this merge, each with the first
            round without it, counted from 1.
        groups: metrics per layer group; empty for methods without statistics.
        chain_digest: hash over everything merged; empty for methods without a chain.
        metrics: what the method says about itself on this input.
    """

    method: Method
    updates: Mapping[str, Update]
    other_params: Mapping[str, Tensor]
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    lost: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[GroupMetrics, ...] = ()
    chain_digest: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)


def merged_by(strategy: MergeStrategy, method: Method, started: float) -> MergedModel:
    """The model of a strategy that has no round left.

    Args:
        strategy: that has run.
        method: which.
        started: when it began, by ``time.perf_counter``.

    Raises:
        UnusableMergeError: numbers came out that no model can use.
    """
    outcome = strategy.rounds.outcome()
    updates = all_within_ranks(outcome.updates)
    layer = out_of_bounds(updates)
    if layer:
        raise UnusableMergeError(
            f"{method.label}: {layer} came out with numbers that are not finite or far too large, "
            f"and no model can use it"
        )
    return MergedModel(
        method=method,
        updates=updates,
        other_params=outcome.other_params,
        rounds=strategy.rounds.count,
        seconds=time.perf_counter() - started,
        bytes_up=strategy.bytes_up,
        bytes_down=strategy.bytes_down,
        lost=dict(sorted(strategy.lost.items())),
        groups=tuple(map(_GROUP.validate_python, outcome.groups)),
        chain_digest=outcome.chain_digest,
        metrics=outcome.metrics,
    )
