"""What a run says: how far it is, and why it waits."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from statistics import fmean
from typing import Any

from flwr.supercore import log
from rich.filesize import decimal

from layerweld.runtime.progress import report_progress
from layerweld.untrusted.text import shown

_LONGEST = 2000  # characters; part of the text is from sites and Flower
_REMEMBERED = 8  # rounds that the remaining time is estimated from


def notice(text: str) -> None:
    """Say it to the progress listener and to Flower's log, which is all that a deployment has."""
    report_progress(text, 0, 0)
    log(logging.WARNING, shown(text, _LONGEST))


def tell(text: str) -> None:
    """Say it to Flower's log alone: progress shows how far the run is."""
    log(logging.INFO, shown(text, _LONGEST))


class RoundProgress:
    """Say for each solved group its sites, its condition, what was sent, and the time left.

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
