"""One question to all sites: asked, asked again, and answered at most once by each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from layerweld.errors import (
    LostSiteError,
    RefusedReplyError,
    StaleReplyError,
    UnreadableReplyError,
)
from layerweld.runtime.incidents import Code, parse_incident
from layerweld.transport.identity import Identity, encode_plain, identity_of, require_identity
from layerweld.transport.layout import Budget
from layerweld.transport.receiving import Receiver
from layerweld.transport.site_info import FINE_TUNING, SITE_INFO_BUDGET, decode_site_info
from layerweld.transport.untrusted import refusing_malformed
from strategies.cohort import Cohort
from strategies.failures import UNREACHABLE, why_it_failed
from strategies.greeting import Greeter
from strategies.notices import notice
from strategies.silence import Silence

T = TypeVar("T")

_POLL_SECONDS = 0.1
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds before a failed site is asked again, doubling
_STRIKES = 3  # refused answers after which asking again is pointless
_LONGEST_REASON = 500  # characters
_AGAIN = "fine-tuning again"


@dataclass
class _Asked:
    """Where one site stands.

    Attributes:
        message: id of the message that is out; empty while none is.
        until: when that message's time is over, or when to ask again.
        failures: in a row.
        strikes: refused answers.
        why: of the last failure, for humans.
    """

    message: str = ""
    until: float = 0.0
    failures: int = 0
    strikes: int = 0
    why: str = ""


class Inquiry(Generic[T]):
    """Puts one question to every site of a cohort and yields each one's first valid answer.

    A site that fails, dies, becomes unreachable or lets its message's time pass is asked again,
    after a pause that doubles from 1 to 60 seconds, with one message out at a time. What replies
    nobody waits for, or that answer another question, is dropped and counted. An answer that is
    refused, or cannot even be put together, is asked for again twice. What happens to a site that
    never answers well is the cohort's :class:`~strategies.cohort.Patience`.

    Args:
        grid: Flower's grid.
        cohort: the sites; who is lost or has moved is noted there.
        message_type: Flower's type of the message.
        what: the request, for humans; nothing is compared with it.
        content: what to send to a site; called each time it is asked.
        read: an answer from what a site sent. None: ask it again at once (``content`` knows more
            now). It raises ``StaleReplyError`` for an answer to something else, and
            ``RefusedReplyError`` for one that must not be used; so is one at which it raises
            anything that is no :class:`~layerweld.errors.LayerweldError`.
        budget: what a site's answer may take; it is weighed before it is decoded.
    """

    def __init__(
        self,
        grid: Grid,
        cohort: Cohort,
        message_type: str,
        what: str,
        content: Callable[[str], RecordDict],
        read: Callable[[str, RecordDict], T | None],
        budget: Callable[[str], Budget],
    ) -> None:
        self._grid = grid
        self._cohort = cohort
        self._message_type = message_type
        self._what = what
        self._content = content
        self._read = read
        self._budget = budget
        self._receiver = Receiver(grid)
        self._open: dict[str, _Asked] = {}
        self._asked: dict[str, Identity] = {}  # what each site's reply must be about
        self._sent: dict[str, tuple[str, int]] = {}  # site and node of every message ever sent
        self._trainings: set[str] = set()  # those of them that have a lost adapter trained again
        self._unanswered: list[str] = []  # those of them without a reply
        self._greeter = Greeter(grid, cohort, notice)

    def messages(self) -> list[Message]:
        """The first message for every site, in the order of their names, for Flower to send."""
        return [self._message(site, self._cohort.node_of(site)) for site in self._cohort.names]

    def answers(self, early: Iterable[Message] = ()) -> Iterator[tuple[str, T]]:
        """Each site and its answer, as they come.

        Args:
            early: replies that Flower's own loop has collected to :meth:`messages`; sites without
                a good one among them are asked by this one.

        Raises:
            LostSiteError: the policy ends the run; the message names the site.
            RefusedReplyError: a site's answer was refused three times.
        """
        self._open = {site: _Asked() for site in self._cohort.names}
        self._cohort.waiting = dict.fromkeys(self._open, "")
        for reply in early:
            site = self._cohort.site_at(reply.metadata.src_node_id)
            if site is not None and site in self._open and reply.has_content():
                answer = self._take(site, reply)
                if answer is not None:
                    yield site, answer
        until = time.monotonic() + self._cohort.patience.deadline
        silence = Silence(time.monotonic())
        while self._open:
            self._keep_asking()
            for found in self._arrivals():
                yield found
                silence.broken(time.monotonic())
            self._name_the_silent(silence.worth_a_word(time.monotonic()))
            if self._open and time.monotonic() > until:
                self._give_up(sorted(self._open))
            if self._open and all(asked.until > time.monotonic() for asked in self._open.values()):
                time.sleep(_POLL_SECONDS)

    def _name_the_silent(self, seconds: float) -> None:
        if not seconds or not self._open:
            return
        names = ", ".join(sorted(self._open))
        notice(f"waiting for {names} at the {self._what}: no answer for {seconds:.0f} s")

    def _arrivals(self) -> Iterator[tuple[str, T]]:
        """Pull message by message, so that no reply has to wait in memory for another."""
        for message_id in [*self._greeter.messages, *self._unanswered]:
            for reply in self._pull(message_id):
                found = self._sort(reply)
                if found is not None:
                    yield found

    def _pull(self, message_id: str) -> list[Message]:
        """The reply, if there is one; what cannot be put together is its site's refusal."""
        if message_id in self._greeter.messages:
            return self._greeter.pull(self._receiver, message_id)
        site = self._sent[message_id][0]
        try:
            trains = message_id in self._trainings
            return self._receiver.pull(
                message_id, SITE_INFO_BUDGET if trains else self._budget(site)
            )
        except UnreadableReplyError as error:
            if message_id in self._unanswered:
                self._unanswered.remove(message_id)
                self._strike(site, error)
            return []

    def _sort(self, reply: Message) -> tuple[str, T] | None:
        message_id = reply.metadata.reply_to_message_id
        if message_id in self._greeter.messages:
            if (back := self._greeter.meet(reply)) is not None:
                self._welcome(back)
            return None
        unwanted = self._unwanted(message_id, reply)
        if unwanted:
            self._cohort.ignored[unwanted] += 1
            return None
        site = self._sent[message_id][0]
        self._unanswered.remove(message_id)
        if not reply.has_error():
            answer = self._take(site, reply)
            return None if answer is None else (site, answer)
        # An earlier message's error says nothing about the one that is out now.
        if self._open[site].message == message_id:
            self._fail(site, reply.error)
        return None

    def _unwanted(self, message_id: str, reply: Message) -> str:
        """Why nobody waits for this reply; empty if somebody does."""
        if message_id not in self._sent:
            return "foreign"
        site, node = self._sent[message_id]
        if site not in self._open or message_id not in self._unanswered:
            return "duplicate"
        if not reply.has_error() and reply.metadata.src_node_id != node:
            return "foreign"
        return ""

    def _take(self, site: str, reply: Message) -> T | None:
        asked = self._open[site]
        trained = reply.metadata.reply_to_message_id in self._trainings
        try:
            with refusing_malformed():
                require_identity(reply.content, self._asked_of(site, reply, trained))
                answer = None if trained else self._read(site, reply.content)
                if trained:
                    self._trained_again(site, reply)
        except StaleReplyError as error:
            self._cohort.ignored["stale"] += 1
            self._ask_later(site, str(error))
            return None
        except RefusedReplyError as error:
            self._strike(site, error)
            return None
        if answer is None:
            asked.message, asked.until = "", 0.0
            return None
        self._close(site)
        return answer

    def _trained_again(self, site: str, reply: Message) -> None:
        """A site has its adapter again: it is asked what it could not answer."""
        info = decode_site_info(reply.content)
        self._cohort.trained_again(info, site, reply.metadata.src_node_id)

    def _strike(self, site: str, error: RefusedReplyError) -> None:
        """An answer of a site was refused; after a few the policy says what becomes of it."""
        self._cohort.ignored["refused"] += 1
        asked = self._open[site]
        asked.strikes += 1
        why = str(error)[:_LONGEST_REASON]
        self._ask_later(site, why)
        if asked.strikes >= _STRIKES:
            self._refuse(site, why, error)

    def _asked_of(self, site: str, reply: Message, trained: bool) -> Identity:
        """What a reply must be about: what its site was sent, whichever message brought it."""
        known = site if site in self._cohort.introductions else ""
        asked = identity_of(self._train_again()) if trained else self._asked[site]
        return replace(asked, node=str(reply.metadata.src_node_id), site=known)

    def _close(self, site: str) -> None:
        del self._open[site], self._cohort.waiting[site]
        for message_id in [m for m in self._unanswered if self._sent[m][0] == site]:
            self._unanswered.remove(message_id)
            self._receiver.forget(message_id)

    def _keep_asking(self) -> None:
        now = time.monotonic()
        if any(asked.failures for asked in self._open.values()):
            self._greeter.look_around(now)
        for site, asked in sorted(self._open.items()):
            if now < asked.until:
                continue
            if asked.message:
                timeout = self._cohort.patience.timeout
                self._pause(site, f"it did not answer within {timeout:.0f} s")
            else:
                self._ask(site)

    def _ask(self, site: str) -> None:
        asked, node = self._open[site], self._cohort.node_of(site)
        trains = node in self._cohort.untrained
        message = self._training(node) if trains else self._message(site, node)
        pushed = list(self._grid.push_messages([message]))
        if not pushed or not pushed[0]:
            self._pause(site, UNREACHABLE)
            return
        asked.message = pushed[0]
        asked.until = time.monotonic() + self._cohort.patience.timeout
        self._sent[asked.message] = (site, node)
        if trains:
            self._trainings.add(asked.message)
        self._unanswered.append(asked.message)

    def _message(self, site: str, node: int) -> Message:
        ttl = self._cohort.patience.timeout
        content = self._content(site)
        self._asked[site] = identity_of(content)
        return Message(content, node, self._message_type, ttl=ttl, group_id=self._what)

    def _training(self, node: int) -> Message:
        """For a site that has lost the adapter that it trained, before it is asked again."""
        ttl = self._cohort.patience.timeout
        return Message(self._train_again(), node, FINE_TUNING, ttl=ttl, group_id=_AGAIN)

    def _train_again(self) -> RecordDict:
        return encode_plain(FINE_TUNING, self._cohort.run, _AGAIN)

    def _fail(self, site: str, error: Error) -> None:
        if (incident := parse_incident(error.reason)) and incident.code is Code.ADAPTER_LOST:
            self._cohort.lost_adapter(site)
            self._ask_later(site, f"{incident.code.meaning} ({incident}): it trains it again")
            return
        why, is_lasting = why_it_failed(error)
        if self._cohort.patience.fails_fast and is_lasting:
            raise LostSiteError(f"{site} failed at the {self._what}: {why}")
        self._pause(site, why)

    def _pause(self, site: str, why: str) -> None:
        """A site failed: ask again after a while, unless the policy says that this is the end."""
        if self._cohort.patience.lost_site == "abort":
            raise LostSiteError(f"{site} failed at the {self._what}: {why}")
        self._ask_later(site, why)
        if self._cohort.move(site):
            self._open[site].until = 0.0

    def _ask_later(self, site: str, why: str) -> None:
        asked = self._open[site]
        wait = min(_FIRST_WAIT * 2 ** min(asked.failures, 10), _LONGEST_WAIT)
        asked.failures += 1
        asked.message, asked.until = "", time.monotonic() + wait
        if why != asked.why:
            self._cohort.waiting[site] = why
            notice(f"waiting for {site} at the {self._what}: {why}")
        asked.why = why

    def _welcome(self, site: str) -> None:
        """A site introduced itself at another node: ask it there, unless its old one may answer."""
        asked = self._open.get(site)
        if asked is None:
            return
        gone = self._cohort.node_of(site) not in set(self._grid.get_node_ids())
        if gone or (asked.failures and not asked.message):
            self._cohort.move(site)
            asked.message, asked.until = "", 0.0

    def _refuse(self, site: str, why: str, error: RefusedReplyError) -> None:
        if self._cohort.patience.lost_site != "continue":
            raise RefusedReplyError(f"{site}, asked {_STRIKES} times: {why}") from error
        self._lose(site, why)

    def _give_up(self, silent: list[str]) -> None:
        """The deadline is over."""
        if self._cohort.patience.lost_site == "continue":
            for site in silent:
                self._lose(site, self._open[site].why or "it never answered")
            return
        reasons = "; ".join(f"{s}: {self._open[s].why or 'it never answered'}" for s in silent)
        raise LostSiteError(
            f"no answer to the {self._what} within {self._cohort.patience.deadline:.0f} s from "
            f"{reasons}. Merging without a site would silently drop its task: start it again and "
            f"type the same command, and the run resumes here"
        )

    def _lose(self, site: str, why: str) -> None:
        self._cohort.lose(site, why)
        self._close(site)
        notice(f"going on without {site}: {why}")


def ask(
    grid: Grid,
    cohort: Cohort,
    message_type: str,
    what: str,
    content: RecordDict,
    read: Callable[[str, RecordDict], T | None],
    budget: Budget,
) -> Iterator[tuple[str, T]]:
    """The same content for every site, and each one's answer as it comes; see :class:`Inquiry`."""
    sent, allowed = (lambda _site: content), (lambda _site: budget)
    return Inquiry(grid, cohort, message_type, what, sent, read, allowed).answers()
