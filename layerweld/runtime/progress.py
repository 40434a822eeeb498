"""Where long work reports its progress; the listener decides how to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from layerweld.untrusted.text import shown

Listener = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in total."""


_LONGEST = 2000  # characters: a warning may name many sites


_listener: ContextVar[Listener] = ContextVar(
    "layerweld_progress", default=lambda _what, _done, _total: None
)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send progress reported in this context to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def also_listening(listener: Listener) -> Iterator[None]:
    """Send progress reported in this context to ``listener``, and then to the current listener."""
    now = _listener.get()

    def both(what: str, done: int, total: int) -> None:
        listener(what, done, total)
        now(what, done, total)

    with listening(both):
        yield


def report_progress(what: str, done: int, total: int) -> None:
    """Tell the current listener. In a process without one nothing happens.

    Sites and Flower contribute to ``what``, so it is passed on as one line of bounded length.
    """
    _listener.get()(shown(what, _LONGEST), done, total)
