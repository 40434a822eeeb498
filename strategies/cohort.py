"""The sites of a run as the server reaches them: one question to all, answers as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from layerweld.errors import CohortError

_POLL_SECONDS = 0.1


def stream_replies(
    grid: Grid, messages: Iterable[Message], timeout: float | None
) -> Iterator[Message]:
    """Push messages and yield each reply when it is there, so that none has to wait in memory.

    Flower's own ``send_and_receive`` hands all replies over at once and polls every 3 seconds.

    Args:
        grid: Flower's grid.
        messages: one per site; pushed one by one, for the same reason.
        timeout: seconds after which the rest is given up; None waits for ever.
    """
    waiting = [message_id for message in messages for message_id in grid.push_messages([message])]
    deadline = None if timeout is None else time.monotonic() + timeout
    while waiting and (deadline is None or time.monotonic() < deadline):
        arrived = []
        for message_id in waiting:
            for reply in grid.pull_messages([message_id]):
                arrived.append(message_id)
                yield reply
        waiting = [message_id for message_id in waiting if message_id not in arrived]
        if waiting and not arrived:
            time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class Cohort:
    """The sites being merged: fixed, since a chain cannot change its links.

    Attributes:
        sites: name of the site at each Flower node id.
        timeout: seconds to wait for the sites in one round.
    """

    sites: Mapping[int, str]
    timeout: float

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names, sorted."""
        return tuple(sorted(self.sites.values()))

    def messages(self, content: RecordDict, message_type: str, group_id: str) -> list[Message]:
        """The same content for every site, in the order of their names."""
        return [
            Message(content, node, message_type, ttl=self.timeout, group_id=group_id)
            for node, _ in sorted(self.sites.items(), key=lambda item: item[1])
        ]

    def ask(
        self, grid: Grid, content: RecordDict, message_type: str
    ) -> Iterator[tuple[str, RecordDict]]:
        """Ask all sites and yield each one's name and reply.

        Raises:
            CohortError: a site failed, or did not answer in time.
        """
        messages = self.messages(content, message_type, message_type)
        replies = stream_replies(grid, messages, self.timeout)
        for site, reply in self.checked(replies, message_type):
            yield site, reply.content

    def checked(self, replies: Iterable[Message], what: str) -> Iterator[tuple[str, Message]]:
        """Yield good replies by site; raise for a failed one, and for silent sites at the end.

        Raises:
            CohortError: as said, naming the sites.
        """
        answered: set[str] = set()
        for reply in replies:
            site = self.sites.get(reply.metadata.src_node_id)
            if reply.has_error():
                reason = reply.error.reason
                raise CohortError(f"{site or 'a site'} failed at {what!r}: {reason}")
            if site is None or site in answered:
                continue  # a foreign node, or a duplicate: nothing of it is used
            answered.add(site)
            yield site, reply
        silent = sorted(set(self.names) - answered)
        if silent:
            raise CohortError(
                f"no answer to {what!r} from {', '.join(silent)} within {self.timeout:.0f} s; "
                f"merging without them would silently drop their tasks. Start the site again, or "
                f"raise `timeout`; the run resumes where it stopped"
            )
