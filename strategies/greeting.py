"""Nodes that nobody knows are greeted: a site that failed may be back as one of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from layerweld.errors import RefusedReplyError, StaleReplyError, UnreadableReplyError
from layerweld.transport.identity import encode_plain, identity_of, require_identity
from layerweld.transport.receiving import Receiver
from layerweld.transport.site_info import HANDSHAKE, SITE_INFO_BUDGET, decode_site_info
from strategies.cohort import Cohort

_EVERY = 2.0  # seconds between two looks at which nodes are there


class Greeter:
    """Shakes hands with unknown nodes for one inquiry. Knows no clock: it is told the time.

    Args:
        grid: Flower's grid.
        cohort: the sites; who is at which node is noted there.
        say: told what people should know.
    """

    def __init__(self, grid: Grid, cohort: Cohort, say: Callable[[str], None]) -> None:
        self._grid = grid
        self._cohort = cohort
        self._say = say
        self._request = encode_plain(HANDSHAKE, cohort.run)
        self._greeted: dict[str, tuple[int, float]] = {}  # node and end of handshakes that are out
        self._next_look = 0.0

    @property
    def messages(self) -> Collection[str]:
        """Ids of the handshakes that are out."""
        return self._greeted.keys()

    def look_around(self, now: float) -> None:
        """Greet whoever is new, if the last look was some time ago."""
        if now < self._next_look:
            return
        self._next_look = now + _EVERY
        self._greeted = {m: (node, end) for m, (node, end) in self._greeted.items() if now < end}
        if not self._cohort.introductions:
            return
        greeted = {node for node, _ in self._greeted.values()}
        unknown = self._cohort.unknown_among(set(self._grid.get_node_ids()))
        for node in sorted(unknown - greeted):
            self._greet(node, now)

    def pull(self, receiver: Receiver, message_id: str) -> list[Message]:
        """The reply to a handshake, if there is one; who sends what is none is turned away."""
        try:
            return receiver.pull(message_id, SITE_INFO_BUDGET)
        except UnreadableReplyError as error:
            self._turn_away(self._greeted.pop(message_id)[0], error)
            return []

    def meet(self, reply: Message) -> str | None:
        """The site whose node this handshake's reply is from, noted as such; None for nobody's."""
        node = self._greeted.pop(reply.metadata.reply_to_message_id)[0]
        if reply.has_error():
            return None  # greeted again at the next look
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
        self._say(f"node {node} is turned away: {error}")

    def _greet(self, node: int, now: float) -> None:
        timeout = self._cohort.patience.timeout
        message = Message(self._request, node, HANDSHAKE, ttl=timeout, group_id="handshake")
        for message_id in self._grid.push_messages([message]):
            if message_id:
                self._greeted[message_id] = (node, now + timeout)
