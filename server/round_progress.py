"""How far a method is: for whoever watches, and a line a group for who follows the run's log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from statistics import fmean
from typing import Any

from rich.filesize import decimal

from layerweld.runtime.progress import report_progress
from strategies.notices import tell

_REMEMBERED = 8  # rounds whose duration says how long the others will take


class RoundProgress:
    """Say of each solved group who is in it, its condition, what was sent, and what is left.

    Args:
        label: of the method.
        rounds: how many it has.
    """

    def __init__(self, label: str, rounds: int) -> None:
        report_progress(label, 0, rounds)
        self._label = label
        self._rounds = rounds
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._last = time.monotonic()

    def __call__(self, finished: int, metrics: Mapping[str, Any]) -> None:
        """One round is over, or was found in the journal."""
        report_progress(self._label, finished, self._rounds)
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now
        left = timedelta(seconds=round((self._rounds - finished) * fmean(self._seconds)))
        for group in metrics.get("groups", ()):
            without = f" without {', '.join(group['lost'])}" if group["lost"] else ""
            sent = decimal(sum(group["bytes_up"].values()))
            tell(
                f"solved {group['name']}: {len(group['tokens'])} sites{without}, condition "
                f"{group['condition']:.1e}, {sent} up; step {finished} of {self._rounds}, "
                f"about {left} left"
            )
