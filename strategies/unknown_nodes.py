"""Unknown nodes: a site that failed may return as one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from layerweld.errors import RefusedReplyError, StaleReplyError, UnreadableReplyError
from layerweld.transport.identity import encode_plain, identity_of, require_identity
from layerweld.transport.receiving import Receiver
from layerweld.transport.site_info import HANDSHAKE, SITE_INFO_BUDGET, decode_site_info
from strategies.cohort import Cohort
from strategies.notices import notice

_EVERY = 2.0  # seconds between two looks at the connected nodes


class UnknownNodes:
    """Shakes hands with unknown nodes for one poll. It has no clock: it is told the time.

    Args:
        grid: Flower's grid.
        cohort: the sites; which node each is at is noted there.
    """

    def __init__(self, grid: Grid, cohort: Cohort) -> None:
        self._grid = grid
        self._cohort = cohort
        self._asked: dict[str, tuple[int, float]] = {}  # node and end of handshakes that are out
        self._next_look = 0.0
        self._request = encode_plain(HANDSHAKE, cohort.run)

    def look_around(self, now: float) -> None:
        """Ask new nodes who they are, if the last look was some time ago."""
        if now < self._next_look:
            return
        self._next_look = now + _EVERY
        self._asked = {m: (node, end) for m, (node, end) in self._asked.items() if now < end}
        if not self._cohort.site_infos:
            return
        asked = {node for node, _ in self._asked.values()}
        unknown = self._cohort.unknown_among(set(self._grid.get_node_ids()))
        for node in sorted(unknown - asked):
            self._ask(node, now)

    def returned(self, receiver: Receiver) -> Iterator[str]:
        """Sites that have returned at another node since the last call."""
        for message_id in [*self._asked]:
            for reply in self._pull(receiver, message_id):
                site = self._site_of(reply)
                if site is not None:
                    yield site

    def _pull(self, receiver: Receiver, message_id: str) -> list[Message]:
        try:
            return receiver.pull(message_id, lambda: SITE_INFO_BUDGET)
        except UnreadableReplyError as error:
            self._turn_away(self._asked.pop(message_id)[0], error)
            return []

    def _site_of(self, reply: Message) -> str | None:
        """The site that a handshake's reply is from, noted at its node; None if it is no site's."""
        node, _ = self._asked.pop(reply.metadata.reply_to_message_id, (None, 0.0))
        if node is None:
            self._cohort.ignored["foreign"] += 1
            return None
        if reply.has_error():
            return None  # asked again at the next look
        try:
            require_identity(reply.content, replace(identity_of(self._request), node=str(node)))
            info = decode_site_info(reply.content)
            site = self._cohort.recognise(info)
        except StaleReplyError:
            self._cohort.ignored["stale"] += 1
            return None  # likewise
        except RefusedReplyError as error:
            self._turn_away(node, error)
            return None
        self._cohort.note(info, node)
        return site

    def _turn_away(self, node: int, error: RefusedReplyError) -> None:
        self._cohort.turn_away(node)
        notice(f"node {node} is turned away: {error}")

    def _ask(self, node: int, now: float) -> None:
        timeout = self._cohort.patience.timeout
        message = Message(self._request, node, HANDSHAKE, ttl=timeout, group_id="handshake")
        for message_id in self._grid.push_messages([message]):
            if message_id:
                self._asked[message_id] = (node, now + timeout)
