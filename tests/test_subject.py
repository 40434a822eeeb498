"""What a reply is about: one that answers something else is refused, whatever it says."""

from collections import Counter
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from layerweld.errors import LostSiteError
from layerweld.transport.introduction import BUDGET
from layerweld.transport.run import encode_run
from server.replies import read_introduction
from strategies.cohort import Cohort, Patience
from strategies.inquiry import ask
from tests.faulty_grid import Clock, Faults, FaultyGrid
from tests.stub_sites import NAMES, NODES, RUN, StubApp, new_chain, reply_with, settings

pytestmark = pytest.mark.usefixtures("one_thread")


def shake_hands(faults: Faults, clock: Clock) -> dict[Any, Any]:
    chosen = settings()
    nodes = Cohort({"node 1": 1, "node 2": 2}, {}, RUN, Patience.of_handshake(chosen))
    grid = FaultyGrid(StubApp(), NODES[:2], chosen, faults, clock)
    about = encode_run(RUN)
    return dict(ask(grid, nodes, "query.handshake", "handshake", about, read_introduction, BUDGET))


@pytest.mark.parametrize(("code", "says"), [(1, "another one installed"), (7, "refused the app")])
def test_a_site_that_must_be_mended_ends_the_handshake_at_once(
    code: int, says: str, clock: Clock
) -> None:
    with pytest.raises(LostSiteError, match=rf"node 1 failed at the handshake: .*{says}"):
        shake_hands(Faults(0, 1.0, most=1, kinds=(f"error {code}",)), clock)
    assert clock.now < 1


def test_a_site_that_dies_in_the_handshake_is_asked_again(clock: Clock) -> None:
    came = shake_hands(Faults(0, 1.0, most=1, kinds=("error 8",)), clock)
    assert came.keys() == {"node 1", "node 2"}


@pytest.mark.parametrize("seed", range(20))
def test_another_nodes_reply_in_the_handshake_is_asked_for_again(seed: int, clock: Clock) -> None:
    came = shake_hands(Faults(seed, 0.7, most=5, kinds=("another's", "replay", "twice")), clock)
    assert {node: introduction.site for node, introduction in came.items()} == {
        "node 1": "ash",
        "node 2": "birch",
    }


class EchoApp:
    """Its sites measure models: what they find is in the model's name."""

    def __call__(self, message: Message, context: Any) -> Message:
        found = message.content["about"]["model"]
        return reply_with(RecordDict({"score": ConfigRecord({"is": found})}), message, context)


@pytest.mark.parametrize("kind", ["evaluate.model", "query.shift", "train.remainder"])
def test_a_reply_about_an_earlier_model_is_refused_and_counted(kind: str, clock: Clock) -> None:
    """Scores carry nothing else that would tell them from those of another model."""
    ignored = Counter()
    for seed in range(20):
        chosen = settings()
        cohort = new_chain(chosen).cohort
        faults = Faults(seed, 0.5, kinds=("another's", "replay", "foreign", "late", "twice"))
        grid = FaultyGrid(EchoApp(), NODES, chosen, faults, clock)
        for number in range(4):
            content = RecordDict({"about": ConfigRecord({"run": RUN, "model": number})})
            answers = dict(
                ask(grid, cohort, kind, f"model {number}", content, _what_was_found, BUDGET)
            )
            assert answers == dict.fromkeys(NAMES, number), f"seed {seed}: {faults.met}"
        ignored.update(cohort.ignored)
    assert {"stale", "foreign", "duplicate"} <= ignored.keys()


def _what_was_found(_site: Any, content: RecordDict) -> Any:
    return content["score"]["is"]
