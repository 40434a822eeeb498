"""What sites lack of what was merged before a step, and what of it to send them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from flwr.app import RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.model.schedule import Step

_MOST = 3  # times that a site is sent what it lacks at one step; honest ones need at most two


class CatchUp:
    """One request about one step, with more merged updates for sites that are behind.

    Args:
        step: the step of the request.
        encode: the request with the updates of these earlier steps, and with the other parameters
            if so.
        usual: the first of the earlier steps to send to a site that has not said what it lacks.
    """

    def __init__(self, step: Step, encode: Callable[[range, bool], RecordDict], usual: int) -> None:
        self._step = step
        self._encode = encode
        self._usual = encode(range(max(0, usual), step.index), usual < 0)
        self._behind: dict[str, int] = {}  # first step that a site lacks, by site
        self._times: Counter[str] = Counter()  # that each one was sent it

    def content(self, site: str) -> RecordDict:
        """The usual content, or everything from the step that the site has named."""
        if site not in self._behind:
            return self._usual
        first = self._behind[site]
        return self._encode(range(max(first, self._step.needs.start), self._step.index), first < 0)

    def note(self, site: str, first: int) -> None:
        """A site lacks the updates of this step and later ones (-1: the other parameters too).

        Raises:
            RefusedReplyError: it was sent these before, or was sent too often what it lacked.
        """
        if self._behind.get(site, self._step.index) <= first:
            raise RefusedReplyError(
                f"it still lacks merged updates after it was sent all from step {first + 1}; is "
                f"its cache folder writable, and its disk not full?"
            )
        if self._times[site] == _MOST:
            raise RefusedReplyError(
                f"it lacks more each time that it is sent what it lacks, {_MOST} times by now; is "
                f"its cache folder its own, and its disk in order?"
            )
        self._times[site] += 1
        self._behind[site] = first
