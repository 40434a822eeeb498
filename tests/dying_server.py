"""A server that dies, or that something else befalls, once it has kept a round."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from server.kept_rounds import RoundFiles


class Killed(BaseException):
    """As sudden as a signal: nothing catches it."""


@contextmanager
def after_keeping(monkeypatch: pytest.MonkeyPatch, act: Callable[..., None]) -> Iterator[None]:
    """Within, ``act(index)`` is called each time that a round has been made durable."""
    keep = RoundFiles.keep

    def keep_and_act(self: Any, kept: Any) -> None:
        keep(self, kept)
        act(kept.index)

    with monkeypatch.context() as patch:
        patch.setattr(RoundFiles, "keep", keep_and_act)
        yield


@contextmanager
def killed_after(last: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is run in here dies once it has kept the round of this index."""

    def die(index: Any) -> None:
        if index == last:
            raise Killed

    with pytest.raises(Killed), after_keeping(monkeypatch, die):
        yield
