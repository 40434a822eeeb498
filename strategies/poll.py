"""One request to all sites: sent, sent again, and replied to at most once by each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from layerweld.errors import RefusedReplyError, StaleReplyError, UnreadableReplyError
from layerweld.transport.identity import Identity, encode_plain, identity_of, require_identity
from layerweld.transport.layout import Budget
from layerweld.transport.receiving import Receiver
from layerweld.transport.site_info import FINE_TUNING, SITE_INFO_BUDGET, decode_site_info
from layerweld.transport.untrusted import refusing_malformed
from strategies.cohort import Cohort
from strategies.failures import UNREACHABLE, Asked, Failures
from strategies.notices import notice
from strategies.unknown_nodes import UnknownNodes

T = TypeVar("T")

_POLL_SECONDS = 0.1
_FIRST_STALL = 15.0  # seconds without a reply before that is reported; then doubling
_AGAIN = "fine-tuning again"


@dataclass(frozen=True)
class Request(Generic[T]):
    """What every site is asked, and how its reply is read.

    Attributes:
        message_type: Flower's type of the message.
        what: the request, for humans; nothing is compared with it.
        content: what to send to a site; called each time it is asked.
        read: a checked value from what a site sent. None: ask it again at once (``content`` knows
            more now). It raises ``StaleReplyError`` for a reply to something else, and
            ``RefusedReplyError`` for one that must not be used. Anything else that it raises, and
            is not a :class:`~layerweld.errors.LayerweldError`, means the same.
        budget: what a site's reply may take; it is measured before it is decoded.
    """

    message_type: str
    what: str
    content: Callable[[str], RecordDict]
    read: Callable[[str, RecordDict], T | None]
    budget: Callable[[str], Budget]


@dataclass(frozen=True)
class _Sent:
    """A message: to whom, and whether it has a lost adapter trained again."""

    site: str
    node: int
    trains: bool


class _Stall:
    """The time since a poll's last reply, so that people learn which sites it waits for.

    Args:
        now: when the poll began, in seconds.
    """

    def __init__(self, now: float) -> None:
        self.end(now)

    def end(self, now: float) -> None:
        """A reply came."""
        self._since = now
        self._next = _FIRST_STALL

    def to_report(self, now: float) -> float:
        """How many seconds it has lasted, if that should be reported now; otherwise 0."""
        lasted = now - self._since
        if lasted < self._next:
            return 0.0
        self._next = 2 * lasted
        return lasted


class Poll(Generic[T]):
    """Sends one request to every site of a cohort and yields each one's first valid reply.

    A site that fails, dies, becomes unreachable or lets its message's time pass is asked again,
    after a pause that doubles from 1 to 60 seconds, with one message out at a time. Replies that
    nobody waits for, or to another request, are dropped and counted. A reply that is refused, or
    cannot even be put together, is requested again twice. The cohort's
    :class:`~strategies.cohort.Patience` says what happens to a site that never sends a good one.

    Args:
        grid: Flower's grid.
        cohort: the sites; which are lost or have moved is noted there.
        request: what they are asked.
    """

    def __init__(self, grid: Grid, cohort: Cohort, request: Request[T]) -> None:
        self._grid = grid
        self._cohort = cohort
        self._request = request
        self._receiver = Receiver(grid)
        self._open: dict[str, Asked] = {}
        self._identities: dict[str, Identity] = {}  # what each site's reply must be about
        self._sent: dict[str, _Sent] = {}  # every message ever sent, by its id
        self._unanswered: list[str] = []  # those of them without a reply
        self._unknown: UnknownNodes | None = None  # looked for once a site has failed

    def messages(self) -> list[Message]:
        """The first message for every site, in the order of their names, for Flower to send."""
        return [self._message(site, self._cohort.node_of(site)) for site in self._cohort.names]

    def replies(self, early: Iterable[Message] = ()) -> Iterator[tuple[str, T]]:
        """Each site and what was read from its reply, as they come.

        Args:
            early: replies that Flower's own loop has collected to :meth:`messages`; sites without
                a good one among them are asked by this one.

        Raises:
            LostSiteError: the policy ends the run; the message names the site.
            RefusedReplyError: a site's reply was refused three times.
        """
        self._open = {site: Asked() for site in self._cohort.names}
        self._cohort.waiting.clear()
        self._cohort.waiting |= dict.fromkeys(self._open, "")
        for reply in early:
            site = self._cohort.site_at(reply.metadata.src_node_id)
            if site is not None and site in self._open and reply.has_content():
                yield from self._take(site, reply)
        until = time.monotonic() + self._cohort.patience.deadline
        stall = _Stall(time.monotonic())
        while self._open:
            self._keep_asking()
            for arrival in self._arrivals():
                yield arrival
                stall.end(time.monotonic())
            if self._open and (seconds := stall.to_report(time.monotonic())):
                names = ", ".join(sorted(self._open))
                what = self._request.what
                notice(f"waiting for {names} at the {what}: no reply for {seconds:.0f} s")
            if self._open and time.monotonic() > until:
                self._failures.give_up()
            if self._open and all(asked.until > time.monotonic() for asked in self._open.values()):
                time.sleep(_POLL_SECONDS)

    @property
    def _failures(self) -> Failures:
        what, now = self._request.what, time.monotonic()
        return Failures(self._cohort, what, self._open, self._close, now)

    def _arrivals(self) -> Iterator[tuple[str, T]]:
        """Pull message by message, so that no reply has to wait in memory for another."""
        for site in self._unknown.returned(self._receiver) if self._unknown else ():
            self._welcome(site)
        for message_id in [*self._unanswered]:
            for reply in self._pull(message_id):
                yield from self._sort(reply)

    def _pull(self, message_id: str) -> list[Message]:
        """The reply, if there is one; a reply that cannot be put together is refused."""
        sent = self._sent[message_id]
        try:
            return self._receiver.pull(
                message_id,
                lambda: SITE_INFO_BUDGET if sent.trains else self._request.budget(sent.site),
            )
        except UnreadableReplyError as error:
            if message_id in self._unanswered:
                self._unanswered.remove(message_id)
                self._failures.refused(sent.site, error)
            return []

    def _sort(self, reply: Message) -> Iterator[tuple[str, T]]:
        message_id = reply.metadata.reply_to_message_id
        unwanted = self._unwanted(message_id, reply)
        if unwanted:
            self._cohort.ignored[unwanted] += 1
            return
        site = self._sent[message_id].site
        self._unanswered.remove(message_id)
        if not reply.has_error():
            yield from self._take(site, reply)
        # An earlier message's error says nothing about the one that is out now.
        elif self._open[site].message == message_id:
            self._failures.failed(site, reply.error)

    def _unwanted(self, message_id: str, reply: Message) -> str:
        """Why nobody waits for this reply; empty if somebody does."""
        if message_id not in self._sent:
            return "foreign"
        sent = self._sent[message_id]
        if sent.site not in self._open or message_id not in self._unanswered:
            return "duplicate"
        if not reply.has_error() and reply.metadata.src_node_id != sent.node:
            return "foreign"
        return ""

    def _take(self, site: str, reply: Message) -> Iterator[tuple[str, T]]:
        """The site's reply, if it is to this request and may be used."""
        asked, node = self._open[site], reply.metadata.src_node_id
        sent = self._sent.get(reply.metadata.reply_to_message_id)
        trains = sent is not None and sent.trains
        try:
            with refusing_malformed():
                require_identity(reply.content, self._identity(site, node, trains))
                if trains:  # it has its adapter again, and is asked what it could not reply to
                    self._cohort.trained_again(decode_site_info(reply.content), site, node)
                value = None if trains else self._request.read(site, reply.content)
        except StaleReplyError as error:
            self._cohort.ignored["stale"] += 1
            self._failures.ask_later(site, str(error))
        except RefusedReplyError as error:
            self._failures.refused(site, error)
        else:
            if value is None:
                asked.message, asked.until = "", 0.0
            else:
                self._close(site)
                yield site, value

    def _identity(self, site: str, node: int, trains: bool) -> Identity:
        """What a reply must be about: what its site was sent, whichever message brought it."""
        known = site if site in self._cohort.site_infos else ""
        asked = identity_of(self._train_again()) if trains else self._identities[site]
        return replace(asked, node=str(node), site=known)

    def _close(self, site: str) -> None:
        del self._open[site], self._cohort.waiting[site]
        for message_id in [m for m in self._unanswered if self._sent[m].site == site]:
            self._unanswered.remove(message_id)
            self._receiver.forget(message_id)

    def _keep_asking(self) -> None:
        now = time.monotonic()
        if any(asked.failures for asked in self._open.values()):
            self._unknown = self._unknown or UnknownNodes(self._grid, self._cohort)
            self._unknown.look_around(now)
        for site, asked in sorted(self._open.items()):
            if now < asked.until:
                continue
            if asked.message:
                timeout = self._cohort.patience.timeout
                self._failures.pause(site, f"it did not reply within {timeout:.0f} s")
            else:
                self._ask(site)

    def _ask(self, site: str) -> None:
        asked, node = self._open[site], self._cohort.node_of(site)
        trains = node in self._cohort.untrained
        message = self._training(node) if trains else self._message(site, node)
        pushed = list(self._grid.push_messages([message]))
        if not pushed or not pushed[0]:
            self._failures.pause(site, UNREACHABLE)
            return
        asked.message = pushed[0]
        asked.until = time.monotonic() + self._cohort.patience.timeout
        self._sent[asked.message] = _Sent(site, node, trains)
        self._unanswered.append(asked.message)

    def _message(self, site: str, node: int) -> Message:
        request, ttl = self._request, self._cohort.patience.timeout
        content = request.content(site)
        self._identities[site] = identity_of(content)
        return Message(content, node, request.message_type, ttl=ttl, group_id=request.what)

    def _training(self, node: int) -> Message:
        """For a site that has lost the adapter that it trained, before it is asked again."""
        ttl = self._cohort.patience.timeout
        return Message(self._train_again(), node, FINE_TUNING, ttl=ttl, group_id=_AGAIN)

    def _train_again(self) -> RecordDict:
        return encode_plain(FINE_TUNING, self._cohort.run, _AGAIN)

    def _welcome(self, site: str) -> None:
        """A site is back at another node: ask it there, unless its old node may still reply."""
        asked = self._open.get(site)
        if asked is None:
            return
        gone = self._cohort.node_of(site) not in set(self._grid.get_node_ids())
        if gone or (asked.failures and not asked.message):
            self._cohort.move(site)
            asked.message, asked.until = "", 0.0


def poll(
    grid: Grid,
    cohort: Cohort,
    message_type: str,
    what: str,
    content: RecordDict,
    read: Callable[[str, RecordDict], T | None],
    budget: Budget,
) -> Iterator[tuple[str, T]]:
    """The same content for every site, and each one's reply as it comes; see :class:`Poll`."""
    request = Request(message_type, what, lambda _site: content, read, lambda _site: budget)
    return Poll(grid, cohort, request).replies()
