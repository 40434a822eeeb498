"""How far a chain is: for whoever watches, and a line a group for who follows the run's log."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from statistics import fmean

from rich.filesize import decimal

from layerweld.model.schedule import Step
from layerweld.runtime.progress import report_progress
from strategies.chain_of_merges import SolvedStep
from strategies.notices import tell

_REMEMBERED = 8  # steps whose duration says how long the others will take


class StepProgress:
    """Say of each group who is in it, how it is conditioned, what was sent, and what is left.

    Args:
        label: of the method.
        steps: how many the chain has.
    """

    def __init__(self, label: str, steps: int) -> None:
        report_progress(label, 0, steps)
        self._label = label
        self._steps = steps
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._last = time.monotonic()

    def __call__(self, step: Step, solved: SolvedStep) -> None:
        """One step is solved, or was found in the journal."""
        report_progress(self._label, step.index + 1, self._steps)
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now
        left = timedelta(seconds=round((self._steps - step.index - 1) * fmean(self._seconds)))
        without = f" without {', '.join(solved.lost)}" if solved.lost else ""
        for group, solution in zip(step.groups, solved.solutions, strict=True):
            sent = decimal(sum(solved.bytes_up[group.name].values()))
            tell(
                f"solved {group.name}: {len(solution.tokens)} sites{without}, condition "
                f"{solution.condition:.1e}, {sent} up; step {step.index + 1} of {self._steps}, "
                f"about {left} left"
            )
