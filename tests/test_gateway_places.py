"""Places at the gateway: how many connections there may be, and who keeps theirs."""

import random
from typing import Any

import pytest

from layerweld.deploy import connections
from layerweld.deploy.connections import Connections


class Idle:
    """Stands in for a socket."""

    def __init__(self) -> None:
        self.ended = False

    def shutdown(self, _how: Any) -> None:
        self.ended = True

    def fileno(self) -> int:
        return -1 if self.ended else 1


def idle() -> Any:
    return Idle()


def test_places_are_bounded_and_a_call_under_way_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MOST", 40)
    monkeypatch.setattr(connections, "MOST_FROM_ONE_PLACE", 10)
    draw = random.Random(0)
    counted, busy = Connections(), {}
    for number in range(2000):
        address = draw.choice(
            (f"10.0.0.{draw.randrange(6)}", f"::ffff:10.0.0.{draw.randrange(6)}",
             f"2001:db8::{draw.randrange(2**16):x}", f"2001:db8:0:{draw.randrange(4)}::1")
        )  # fmt: skip
        peer, connection = (address, number), idle()
        if counted.admit(connection, peer) and draw.random() < 0.02:
            counted.begin_call(peer)
            busy[peer] = connection
        assert len(counted) <= 40
    assert busy
    assert not any(connection.ended for connection in busy.values())


def test_who_finds_only_calls_under_way_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 3)
    counted = Connections()
    for number in range(3):
        assert counted.admit(idle(), ("10.0.0.1", number))
        counted.begin_call(("10.0.0.1", number))
    assert not counted.admit(idle(), ("10.0.0.2", 1))
    counted.end_call(("10.0.0.1", 0))
    assert counted.admit(idle(), ("10.0.0.2", 1))
