"""How long a round has stood still, so that somebody who watches learns for whom it waits."""

from __future__ import annotations

_FIRST = 15.0  # seconds without an answer before that is said; then doubling


class Silence:
    """The time since a round's last answer. Knows no clock: it is told the time.

    Args:
        now: when the round began, in seconds.
    """

    def __init__(self, now: float) -> None:
        self.broken(now)

    def broken(self, now: float) -> None:
        """Somebody answered."""
        self._since = now
        self._next = _FIRST

    def worth_a_word(self, now: float) -> float:
        """How many seconds it has lasted, where that should be said now; otherwise 0."""
        lasted = now - self._since
        if lasted < self._next:
            return 0.0
        self._next = 2 * lasted
        return lasted
