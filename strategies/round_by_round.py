"""The Flower strategy of every method that asks all sites something, one round after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from layerweld.merging.one_round import Merge
from layerweld.transport.arrays import num_bytes, numpy_arrays
from layerweld.transport.layout import Budget
from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.proportion import OutOfProportionError
from strategies.cohort import Cohort
from strategies.inquiry import Inquiry
from strategies.kept_rounds import Traffic

T = TypeVar("T")


@dataclass(frozen=True)
class Round(Generic[T]):
    """One question to all sites, and what becomes of the answers.

    Attributes:
        message_type, what, content, read, budget: as :class:`strategies.inquiry.Inquiry` takes
            them.
        fold: takes every answer as it comes; when it returns the round is over. Where it raises
            ``OutOfProportionError`` nothing has changed, and the same round is asked again without
            the sites that it names, if the run goes on without them.
    """

    message_type: str
    what: str
    content: Callable[[str], RecordDict]
    read: Callable[[str, RecordDict], T | None]
    budget: Callable[[str], Budget]
    fold: Callable[[Iterator[tuple[str, T]]], None]


class Rounds(Protocol):
    """A method as what it asks, round after round, and what it makes of the answers.

    Attributes:
        count: rounds from the first to the last.
        played: rounds that are over, those before an interruption included.
    """

    count: int
    played: int

    def next_round(self) -> Round[Any]:
        """The next one; called once the one before is over, while there are any left."""

    @property
    def traffic(self) -> Traffic:
        """Bytes so far; whoever sends and receives counts them here."""

    @property
    def merged(self) -> Merge:
        """What came out; of use once no round is left."""

    @property
    def remainder(self) -> Mapping[str, Tensor]:
        """What is added outside of the layers; empty for LoRA."""


class RoundByRound(Strategy):
    """Ask the sites what the method's next round asks, hand it the answers, and so on to its end.

    Args:
        cohort: the sites.
        rounds: the method.
        on_round: called after every round.

    Attributes:
        lost: sites that are not in all rounds, each with the first round, from 1, that is known to
            lack it.
    """

    def __init__(
        self, cohort: Cohort, rounds: Rounds, on_round: Callable[[], None] = lambda: None
    ) -> None:
        self.cohort = cohort
        self.rounds = rounds
        self.on_round = on_round
        self.lost = dict.fromkeys(sorted(cohort.lost), max(1, rounds.played))
        self._asked: tuple[Grid, Round[Any], Inquiry[Any]] | None = None

    def play(self, grid: Grid) -> None:
        """All rounds that are left, replies streaming in."""
        while self.rounds.played < self.rounds.count:
            asked = self.rounds.next_round()
            self._finish(grid, asked, self._inquiry(grid, asked).answers())

    def start(self, grid: Grid, *args: object, **kwargs: object) -> Result:
        """Flower's own loop, over the rounds that are left."""
        kwargs["num_rounds"] = self.rounds.count - self.rounds.played
        return super().start(grid, *args, **kwargs)  # type: ignore[arg-type]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask what the method's next round asks."""
        asked = self.rounds.next_round()
        inquiry = self._inquiry(grid, asked)
        self._asked = grid, asked, inquiry
        return inquiry.messages()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Hand the replies over, and ask again where one is bad or missing."""
        assert self._asked is not None
        grid, asked, inquiry = self._asked
        self._finish(grid, asked, inquiry.answers(replies))
        updates = self.rounds.merged.updates
        return numpy_arrays(update_tensors(updates)), MetricRecord({"layers": len(updates)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: the server evaluates finished models itself."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Nothing to add to the run's own progress."""

    def _finish(self, grid: Grid, asked: Round[Any], answers: Iterator[tuple[str, Any]]) -> None:
        try:
            asked.fold(answers)
        except OutOfProportionError as error:
            self.cohort.part_with(error)
            asked = self.rounds.next_round()
            return self._finish(grid, asked, self._inquiry(grid, asked).answers())
        for site in sorted(self.cohort.lost):
            self.lost.setdefault(site, self.rounds.played)
        self.on_round()

    def _inquiry(self, grid: Grid, asked: Round[Any]) -> Inquiry[Any]:
        """The round's question, with all that travels counted."""
        traffic = self.rounds.traffic

        def content(site: str) -> RecordDict:
            sent = asked.content(site)
            traffic.down += num_bytes(sent)
            return sent

        def read(site: str, received: RecordDict) -> Any:
            answer = asked.read(site, received)
            if answer is not None:
                traffic.up += num_bytes(received)
            return answer

        kind, what = asked.message_type, asked.what
        return Inquiry(grid, self.cohort, kind, what, content, read, asked.budget)
