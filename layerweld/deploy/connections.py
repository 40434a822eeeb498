"""The gateway's connections: how many there may be, how many from one place, and for how long.

They are counted where they are accepted, before TLS: a peer that never speaks counts, too. Each
has a deadline for its next step: to finish TLS and the head of its first call, to finish a call, to
begin another. When all places are taken, a newcomer gets the place of the connection that has
waited longest without a call. Calls under way are never ended for others.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MOST = 1024
MOST_FROM_ONE_PLACE = 128  # of an IPv4 address, or an IPv6 network of 64 bits; a SuperNode has six
HEAD_SECONDS = 10.0  # from connecting to the end of a call's head, TLS included
CALL_SECONDS = 600.0  # from the head of a call to the end of its response
IDLE_SECONDS = 30.0  # from a response to the head of the next call


@dataclass
class _Connection:
    socket: socket.socket
    place: str
    since: float
    deadline: float
    is_in_call: bool = False


class Connections:
    """All connections of a gateway, by their peer's address and port."""

    def __init__(self) -> None:
        self._open: dict[Any, _Connection] = {}

    def __len__(self) -> int:
        """How many are open."""
        self._forget_closed()
        return len(self._open)

    def admit(self, connection: socket.socket, peer: Any) -> bool:
        """Count a new connection; False if there is no place for it."""
        self._forget_closed()
        place, now = _place(peer[0]), time.monotonic()
        near = [one for one in self._open.values() if one.place == place]
        if len(near) >= MOST_FROM_ONE_PLACE and not self._make_room(near):
            return False
        if len(self._open) >= MOST and not self._make_room(self._open.values()):
            return False
        self._open[peer] = _Connection(connection, place, now, now + HEAD_SECONDS)
        return True

    def begin_call(self, peer: Any) -> None:
        """Note that the head of a call has arrived."""
        if (one := self._open.get(peer)) is not None and not one.is_in_call:
            one.is_in_call, one.deadline = True, time.monotonic() + CALL_SECONDS

    def end_call(self, peer: Any) -> None:
        """Note that a call has had its response; the connection waits for the next."""
        if (one := self._open.get(peer)) is not None:
            one.since = time.monotonic()
            one.is_in_call, one.deadline = False, one.since + IDLE_SECONDS

    def close_overdue(self) -> None:
        """Hang up on every peer that is past its deadline."""
        now = time.monotonic()
        for peer, one in list(self._open.items()):
            if one.deadline < now:
                self._hang_up(peer)

    def _make_room(self, among: Iterable[_Connection]) -> bool:
        waiting = {id(one) for one in among if not one.is_in_call}
        peers = [peer for peer, one in self._open.items() if id(one) in waiting]
        if peers:
            self._hang_up(min(peers, key=lambda peer: self._open[peer].since))
        return bool(peers)

    def _hang_up(self, peer: Any) -> None:
        """End the stream; the event loop sees that, and closes what belongs to it."""
        try:
            self._open.pop(peer).socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster

    def _forget_closed(self) -> None:
        for peer, one in list(self._open.items()):
            if one.socket.fileno() == -1:
                del self._open[peer]


class Listener(socket.socket):
    """A listening socket whose connections are counted."""

    def __init__(self, host: str, port: int, connections: Connections) -> None:
        super().__init__(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._connections = connections
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bind((host, port))
        self.listen(MOST)
        self.setblocking(False)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that there is a place for; hang up on the others."""
        while True:
            connection, peer = super().accept()
            if self._connections.admit(connection, peer):
                return connection, peer
            connection.close()


def _place(address: str) -> str:
    """What counts as one peer: anyone with an IPv6 address has a whole network of them."""
    plain = ipaddress.ip_address(address.partition("%")[0])
    if plain.version == 4:
        return str(plain)
    return str(plain.ipv4_mapped or ipaddress.ip_network((int(plain), 64), strict=False))
