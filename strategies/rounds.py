"""A merge method as rounds: what each one asks of every site, and what its replies come to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from layerweld.errors import JournalError
from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge
from layerweld.merging.spectral import compressed
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from layerweld.transport.step_context import StepContext
from layerweld.updates.update import Update
from strategies.cohort import Cohort
from strategies.poll import Request

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """What a finished round came to: all that a resumed run needs of it.

    Attributes:
        tensors: by a name of the method's own.
        metrics: JSON values by name; Flower's ``Result`` shows those that are numbers.
    """

    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Round(Generic[T]):
    """One request to all sites, and what becomes of the replies.

    Attributes:
        request: its ``read`` checks a reply and gives the value that ``fold`` takes; it changes
            nothing.
        fold: takes every checked reply as it comes, and returns what is kept once all are there:
            None where a resumed run does the round again. Where it raises ``OutOfProportionError``
            the round is run again without the sites that the error names, if the run may go on
            without them.
    """

    request: Request[T]
    fold: Callable[[Iterator[tuple[str, T]]], Kept | None]


@dataclass(frozen=True)
class Outcome:
    """What all rounds of a method came to.

    Attributes:
        updates: the merged ``ΔW``, float32, by layer.
        other_params: what is added outside of the layers; empty for LoRA.
        metrics: what the method says about itself on this input, by a name for humans.
        groups: metrics of each layer group, as the fields of
            :class:`layerweld.report.results.GroupMetrics`; empty for methods without
            statistics.
        chain_digest: hash over everything merged; empty for methods without a chain.
    """

    updates: Mapping[str, Update]
    other_params: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    groups: Sequence[Mapping[str, Any]] = field(default=())
    chain_digest: str = ""


class Rounds(ABC):
    """One merge method on one cohort; the only thing that a new kind of method has to be.

    Attributes:
        count: rounds from the first to the last.
    """

    count: int

    @abstractmethod
    def round_at(self, index: int) -> Round[Any]:
        """The round of this index, from 0; those before it are over."""

    def advance(self, kept: Kept) -> None:
        """Go on behind a finished round, of this process or of an interrupted run.

        Called for each round of which something is kept, in order.

        Raises:
            JournalError: the method keeps nothing.
        """
        raise JournalError("the journal holds a round of a method that keeps none; remove it")

    @abstractmethod
    def outcome(self) -> Outcome:
        """What came out; of use once no round is left."""


@dataclass(eq=False)
class MethodRounds(Rounds):
    """The rounds of a merge method, the first of them next.

    Attributes:
        method: which.
        plan: the layers that are merged.
        cohort: the sites.
        settings: of the run.
        other_params: the mean of what fine-tuning changed outside of the layers; empty for LoRA.
    """

    method: Method
    plan: MergePlan
    cohort: Cohort
    settings: RunSettings
    other_params: Mapping[str, Tensor]

    @abstractmethod
    def __post_init__(self) -> None:
        """Make all that changes from round to round."""

    def context(self, step: int, chain_digest: str) -> StepContext:
        """A step of the method, as server and sites must agree on it."""
        return StepContext(
            run=self.cohort.run,
            method=self.method.name,
            step=step,
            layers=self.plan.layer_names,
            plan=self.plan.digest,
            chain_digest=chain_digest,
            averaged=bool(self.other_params),
        )

    def outcome_of(self, merge: Merge) -> Outcome:
        """A merge with every update cut to the run's rank, if it has one."""
        at_rank = compressed(merge, self.settings.merge.rank)
        return Outcome(at_rank.updates, self.other_params, at_rank.metrics)


@dataclass(frozen=True)
class KeptRound:
    """A finished round as the journal has it.

    Attributes:
        index: its place among the rounds that were kept, from 0.
        finished: how many rounds were over with it.
        kept: what it came to.
        bytes_up: of arrays that sites have sent, up to and with this round.
        bytes_down: likewise, that they were sent.
        lost: sites of the run that are not in this round.
    """

    index: int
    finished: int
    kept: Kept
    bytes_up: int
    bytes_down: int
    lost: tuple[str, ...]


class RoundJournal(Protocol):
    """Where rounds are kept, so that a killed server can go on."""

    def load(self) -> Sequence[KeptRound]:
        """Every round that was kept, in order."""

    def keep(self, round_: KeptRound) -> None:
        """Make one round durable before the next one is asked."""


class _NoJournal:
    """For a run that nobody resumes."""

    def load(self) -> Sequence[KeptRound]:
        """None."""
        return ()

    def keep(self, round_: KeptRound) -> None:
        """It is forgotten."""


NO_JOURNAL: RoundJournal = _NoJournal()
