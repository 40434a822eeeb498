"""Tell the sites that a run has ended, so that they forget it."""

from __future__ import annotations

import time

from flwr.app import Message
from flwr.serverapp import Grid

from layerweld.errors import UnreadableReplyError
from layerweld.transport.identity import encode_plain
from layerweld.transport.layout import Budget
from layerweld.transport.receiving import Receiver
from strategies.cohort import Cohort

END_OF_RUN = "query.finished"
"""Flower's type of the message; its request says no more than what it is about."""

END_OF_RUN_BUDGET = Budget(2**16, 8)
"""What the reply may take; nothing reads it."""

_SECONDS = 30.0
_POLL_SECONDS = 0.2


def end_run(grid: Grid, cohort: Cohort) -> None:
    """Tell every site, without a long wait: a site that is away keeps its files until purged."""
    waiting = {
        message_id
        for site in cohort.names
        for message_id in grid.push_messages([_message(cohort, site)])
        if message_id
    }
    receiver, until = Receiver(grid), time.monotonic() + _SECONDS
    while waiting and time.monotonic() < until:
        for message_id in tuple(waiting):
            if _has_replied(receiver, message_id):
                waiting.remove(message_id)
        if waiting:
            time.sleep(_POLL_SECONDS)


def _has_replied(receiver: Receiver, message_id: str) -> bool:
    try:
        return bool(receiver.pull(message_id, lambda: END_OF_RUN_BUDGET))
    except UnreadableReplyError:  # the run is over, and nothing needs the reply
        return True


def _message(cohort: Cohort, site: str) -> Message:
    request, node = encode_plain(END_OF_RUN, cohort.run), cohort.node_of(site)
    return Message(request, node, END_OF_RUN, ttl=_SECONDS, group_id="finished")
