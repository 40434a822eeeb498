"""Replies in any order, any number of times, from any step or run: each site counts once."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from layerweld.settings.run import RunSettings
from layerweld.transport.statistics import StatisticsReply
from server import in_process
from server.in_process import InProcessGrid
from strategies import notices, poll
from strategies.merge_strategy import MergeStrategy
from tests.faulty_grid import Clock, handing_over, with_content
from tests.stub_sites import NAMES, RUN, RecordedApp, StubApp, digest_of, new_chain, settings

ORDERS = int(os.environ.get("LAYERWELD_ARRIVAL_ORDERS", "1000"))
OTHER_RUN = "fedcba9876543210"
NODES = [{"name": name} for name in NAMES]


class ShufflingGrid(InProcessGrid):
    """Every reply comes up to three times, among old ones of its site, each after a random time.

    Args:
        app: the sites.
        chosen: settings of the run.
        clock: what the replies travel by.
        seed: of the order.
        others: contents of replies to another run, by site, to be sent in between.
    """

    def __init__(
        self,
        app: "ElsewhereApp | RecordedApp",
        chosen: RunSettings,
        clock: Clock,
        seed: int,
        others: dict[Any, Any],
    ) -> None:
        super().__init__(app, NODES, chosen)
        self._clock = clock
        self._random = random.Random(seed)
        self._others = others
        self.past: dict[int, list[RecordDict]] = {}  # contents of good replies, by node
        self._coming: dict[
            str, list[tuple[float, Message]]
        ] = {}  # arrival time and reply, by message id
        self.arrived = 0

    def push_messages(self, messages: Any) -> list[str]:
        pushed = list(super().push_messages(messages))
        for message_id in pushed:
            reply = self._answer(self._pushed.pop(message_id))
            replies = [reply] * self._random.randint(1, 3) + self._old(reply)
            self._random.shuffle(replies)
            self._coming[message_id] = [
                (self._clock.now + self._random.expovariate(0.5), one) for one in replies
            ]
        return pushed

    def pull_messages(self, message_ids: Any) -> list[Any]:
        return [reply for i in list(message_ids) for reply in self._arrived(i)]

    def _arrived(self, message_id: str) -> list[Any]:
        coming = self._coming.get(message_id, [])
        due = [(time, reply) for time, reply in coming if time <= self._clock.now]
        self._coming[message_id] = [one for one in coming if one not in due]
        self.arrived += len(due)
        return [reply for _, reply in sorted(due, key=lambda one: one[0])]

    def _old(self, reply: Message) -> list[Any]:
        """Replays, as if they answered the same message."""
        node = reply.metadata.src_node_id
        mine = self.past.setdefault(node, [])
        choice = [*mine, *self._others.get(NAMES[node - 1], [])]
        mine.append(reply.content)
        often = self._random.randint(0, 3) if choice else 0
        return [with_content(reply, self._random.choice(choice)) for _ in range(often)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(poll, "time", clock)
    monkeypatch.setattr(notices, "log", lambda _level, _text: None)
    monkeypatch.setattr(in_process, "_through_the_wire", handing_over())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield clock
    torch.set_num_threads(before)


def run(
    grid: ShufflingGrid | InProcessGrid, chosen: RunSettings, method: str, run: str = RUN
) -> MergeStrategy:
    chain = new_chain(chosen, method)
    chain.cohort.run = run
    chain.run(grid)
    return chain


class ElsewhereApp(StubApp):
    """The same sites in another run, where they had one token more."""

    def reply(self, name: str, message: Message) -> StatisticsReply:
        reply = super().reply(name, message)
        more = (replace(one, num_tokens=one.num_tokens + 1) for one in reply.statistics)
        return replace(reply, statistics=tuple(more))


def replies_to_another_run(chosen: RunSettings, clock: Clock, method: str) -> dict[Any, Any]:
    grid = ShufflingGrid(ElsewhereApp(), chosen, clock, 0, {})
    run(grid, chosen, method, OTHER_RUN)
    return {name: grid.past[node] for node, name in enumerate(NAMES, start=1)}


@pytest.mark.parametrize("method", ["com", "regmean++"])
def test_no_order_of_arrival_changes_a_bit_and_every_surplus_reply_is_counted(
    method: str, clock: Clock
) -> None:
    chosen = settings()
    whole = digest_of(run(InProcessGrid(RecordedApp({}), NODES, chosen), chosen, method))
    others = replies_to_another_run(chosen, clock, method)
    recording: dict[Any, Any] = {}
    ignored: Counter[str] = Counter()
    arrived = 0
    for seed in range(ORDERS // 2):
        grid = ShufflingGrid(RecordedApp(recording), chosen, clock, seed, others)
        chain = run(grid, chosen, method)
        assert digest_of(chain) == whole, f"seed {seed}"
        used = len(chain.rounds.groups) * len(NAMES)  # type: ignore[attr-defined]
        assert chain.cohort.ignored.total() == grid.arrived - used, f"seed {seed}"
        ignored.update(chain.cohort.ignored)
        arrived += grid.arrived
    print(f"\n{ORDERS // 2} orders of {method}, {arrived} replies, ignored {dict(ignored)}")
    assert {"stale", "duplicate"} <= ignored.keys()
