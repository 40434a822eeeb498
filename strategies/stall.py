"""How long a round has stood still, so that somebody who watches learns for whom it waits."""

from __future__ import annotations

_FIRST = 15.0  # seconds without a reply before that is reported; then doubling


class Stall:
    """The time since a round's last reply. Knows no clock: it is told the time.

    Args:
        now: when the round began, in seconds.
    """

    def __init__(self, now: float) -> None:
        self.end(now)

    def end(self, now: float) -> None:
        """A reply came."""
        self._since = now
        self._next = _FIRST

    def to_report(self, now: float) -> float:
        """How many seconds it has lasted, where that should be reported now; otherwise 0."""
        lasted = now - self._since
        if lasted < self._next:
            return 0.0
        self._next = 2 * lasted
        return lasted
