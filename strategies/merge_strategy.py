"""The Flower strategy: it runs the rounds of any merge method, and resumes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from layerweld.transport.arrays import num_bytes, numpy_arrays
from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.proportion import OutOfProportionError
from strategies.cohort import Cohort
from strategies.poll import Poll, Request
from strategies.rounds import NO_JOURNAL, KeptRound, Round, RoundJournal, Rounds


class MergeStrategy(Strategy):
    """Run a method's rounds: ask all sites, fold their replies, keep what came out, go on.

    Rounds that the journal holds are over when this returns. :meth:`run` runs the others with
    replies folded as they arrive; Flower's own ``start`` does the same with replies that Flower
    has collected.

    Args:
        cohort: the sites.
        rounds: the method.
        journal: where finished rounds are kept.
        on_round: called after every round, also those of the journal, with the number of rounds
            that are over and the metrics of what was kept.

    Attributes:
        finished: rounds that are over.
        bytes_up: of arrays that sites have sent.
        bytes_down: of arrays that sites were sent.
        lost: sites that are not in all rounds, each with the first round without it, from 1.
    """

    def __init__(
        self,
        cohort: Cohort,
        rounds: Rounds,
        journal: RoundJournal = NO_JOURNAL,
        on_round: Callable[[int, Mapping[str, Any]], None] = lambda _finished, _metrics: None,
    ) -> None:
        self.cohort = cohort
        self.rounds = rounds
        self.finished = self.bytes_up = self.bytes_down = 0
        self.lost: dict[str, int] = {}
        self._journal = journal
        self._on_round = on_round
        self._kept = 0  # rounds in the journal
        self._asked: tuple[Grid, Round[Any], Poll[Any]] | None = None
        for kept in journal.load():
            self._resume(kept)

    def run(self, grid: Grid) -> None:
        """All rounds that are left."""
        while self.finished < self.rounds.count:
            round_, poll = self._next(grid)
            self._finish(grid, round_, poll.replies())

    def start(self, grid: Grid, *args: object, **kwargs: object) -> Result:
        """Flower's own loop, over the rounds that are left."""
        kwargs["num_rounds"] = self.rounds.count - self.finished
        return super().start(grid, *args, **kwargs)  # type: ignore[arg-type]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What the next round asks of each site."""
        round_, poll = self._next(grid)
        self._asked = grid, round_, poll
        return poll.messages()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord]:
        """Fold the replies, and ask again where one is bad or missing.

        The arrays are those of the whole merge, after the last round; before that, None.
        """
        assert self._asked is not None
        grid, round_, poll = self._asked
        metrics = self._finish(grid, round_, poll.replies(replies))
        numbers: dict[str, int | float | list[int] | list[float]] = {
            name: value for name, value in metrics.items() if isinstance(value, int | float)
        }
        numbers |= {"sites": len(self.cohort.names), "bytes-up": self.bytes_up}
        return self._arrays(), MetricRecord(numbers | {"bytes-down": self.bytes_down})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: half a merged model says little. The server evaluates finished models."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Flower prints this before the first round; the run's own progress says it better."""

    def _next(self, grid: Grid) -> tuple[Round[Any], Poll[Any]]:
        round_ = self.rounds.round_at(self.finished)
        return round_, Poll(grid, self.cohort, self._counted(round_.request))

    def _finish(
        self, grid: Grid, round_: Round[Any], replies: Iterator[tuple[str, Any]]
    ) -> Mapping[str, Any]:
        """Fold, keep, advance; the round's metrics."""
        try:
            kept = round_.fold(replies)
        except OutOfProportionError as error:
            self.cohort.part_with(error)
            again, poll = self._next(grid)
            return self._finish(grid, again, poll.replies())
        self.finished += 1
        if kept is not None:
            lost = tuple(sorted(self.cohort.lost))
            traffic = self.bytes_up, self.bytes_down
            self._journal.keep(KeptRound(self._kept, self.finished, kept, *traffic, lost))
            self._kept += 1
            self.rounds.advance(kept)
        return self._note({} if kept is None else kept.metrics)

    def _resume(self, round_: KeptRound) -> None:
        """As if the round had just been finished."""
        for site in sorted(set(round_.lost) - self.cohort.lost.keys()):
            self.cohort.lose(site, "lost before the run was interrupted")
        self.finished, self._kept = round_.finished, round_.index + 1
        self.bytes_up, self.bytes_down = round_.bytes_up, round_.bytes_down
        self.rounds.advance(round_.kept)
        self._note(round_.kept.metrics, round_.lost)

    def _note(
        self, metrics: Mapping[str, Any], lost: Iterable[str] | None = None
    ) -> Mapping[str, Any]:
        for site in sorted(self.cohort.lost if lost is None else lost):
            self.lost.setdefault(site, self.finished)
        self._on_round(self.finished, metrics)
        return metrics

    def _arrays(self) -> ArrayRecord | None:
        if self.finished < self.rounds.count:
            return None
        outcome = self.rounds.outcome()
        return numpy_arrays(update_tensors(outcome.updates) | dict(outcome.other_params))

    def _counted(self, request: Request[Any]) -> Request[Any]:
        """The request, with all that travels counted."""

        def content(site: str) -> RecordDict:
            sent = request.content(site)
            self.bytes_down += num_bytes(sent)
            return sent

        def read(site: str, received: RecordDict) -> Any:
            reply = request.read(site, received)
            if reply is not None:
                self.bytes_up += num_bytes(received)
            return reply

        return Request(request.message_type, request.what, content, read, request.budget)
