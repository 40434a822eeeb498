"""Flower's task loop asks often in a run, and seldom between runs."""

from typing import Any

import pytest
from flwr.supercore.superexec import run_superexec

from client.superexec import Pace, keep_pace


class Clock:
    """Pauses take no time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: Any) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Flower's module as it is, put back afterwards."""
    handled = []
    monkeypatch.setattr(run_superexec, "_handle_launch_result", lambda *task: handled.append(task))
    monkeypatch.setattr(run_superexec, "time", run_superexec.time)  # type: ignore[attr-defined]
    return handled


def test_it_asks_seldom_until_there_is_a_task_and_often_for_two_minutes_then(
    flower: list[Any],
) -> None:
    clock = Clock()
    keep_pace(Pace(lambda: clock.now, clock.sleep))
    for _ in range(3):
        run_superexec.time.sleep(0.01)  # type: ignore[attr-defined]
    assert clock.pauses == [2.0] * 3
    run_superexec._handle_launch_result("accepted", "task")  # type: ignore[arg-type]
    assert flower == [("accepted", "task")]
    begun = clock.now
    while clock.now < begun + 130:
        run_superexec.time.sleep(0.01)  # type: ignore[attr-defined]
    assert clock.pauses[3:600] == [0.2] * 597
    assert clock.pauses[-4:] == [2.0] * 4


@pytest.mark.parametrize("moved", ["_handle_launch_result", "time"])
def test_with_a_flower_that_works_otherwise_nothing_runs(
    flower: list[Any], monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    monkeypatch.delattr(run_superexec, moved)
    with pytest.raises(AttributeError, match=moved):
        keep_pace(Pace())


def test_flowers_loop_pauses_and_launches_by_these_names(
    flower: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a change of Flower's does not leave the pace without effect and without a word."""
    import inspect

    loop = inspect.getsource(run_superexec.run_superexec)
    assert "time.sleep(task_poll_interval)" in loop
    assert "_handle_launch_result(launch_result, combined_res.task)" in loop
