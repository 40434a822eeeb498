"""What a message is about: said in a request, sent back in its reply, compared in one place."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace

from flwr.app import ConfigRecord, RecordDict

from layerweld.errors import RefusedReplyError, StaleReplyError
from layerweld.transport.layout import Entries, Layout, Text, check_record
from layerweld.transport.untrusted import packed, refusing_malformed, unpacked
from layerweld.untrusted.names import SITE_NAME
from layerweld.untrusted.text import quoted

ABOUT = "about"
"""The record that says what a message is about."""

_IDENTITY = "identity"
_OTHER_VERSION = "is the same version of layerweld installed at all sites and at the coordinator?"


@dataclass(frozen=True)
class Identity:
    """What a reply is about, as the site understood it. No reply to anything else has the same.

    A request has no ``node`` and no ``site`` yet.

    Attributes:
        run: identifies the run.
        request: SHA-256 over the type of the message and all else that the reply depends on,
            :func:`request_id`.
        plan: digest of the merge plan; empty before there is one.
        chain_digest: hash over all that is merged so far; empty where nothing is.
        node: Flower's id of the node that replies, in digits: records hold no number as large.
        site: who replies.
    """

    run: str
    request: str
    plan: str = ""
    chain_digest: str = ""
    node: str = ""
    site: str = ""


IN_REQUEST: Entries = dict.fromkeys(("run", "request", "plan", "chain_digest"), Text())
"""What the record :data:`ABOUT` of every request holds; some hold more."""

_IN_REPLY: Entries = {**IN_REQUEST, "node": Text(20), "site": Text()}


def request_id(message_type: str, *decides: object) -> str:
    """An id that no other request has.

    Args:
        message_type: Flower's.
        decides: all that the reply depends on, but for what an :class:`Identity` says itself.
    """
    return hashlib.sha256(repr((message_type, *decides)).encode()).hexdigest()


def request_record(identity: Identity, **entries: str | int | bool | list[str]) -> ConfigRecord:
    """The record :data:`ABOUT` of a request, with more entries."""
    return ConfigRecord({**packed(identity, IN_REQUEST), **entries})


def encode_plain(message_type: str, run: str, *decides: object) -> RecordDict:
    """A request that says no more than what it is about."""
    return RecordDict({ABOUT: request_record(Identity(run, request_id(message_type, *decides)))})


def identity_of(request: RecordDict) -> Identity:
    """What a request is about.

    Raises:
        RefusedReplyError: it does not say so, or its run cannot name a folder.
    """
    with refusing_malformed():
        record = request.config_records[ABOUT]
        if not IN_REQUEST.keys() <= record.keys():
            raise RefusedReplyError(f"a request without its id; {_OTHER_VERSION}")
        for name, kind in IN_REQUEST.items():
            kind.check(record[name])
        identity = Identity(**unpacked(record, IN_REQUEST))
    if not re.fullmatch(SITE_NAME, identity.run):
        raise RefusedReplyError(
            f"a run cannot be called {quoted(identity.run)}: its name is a folder's"
        )
    return identity


def require_sent_identity(request: RecordDict, identity: Identity) -> None:
    """Refuse a request that is not what its own identity says.

    Args:
        request: as it arrived.
        identity: computed from what was decoded.

    Raises:
        RefusedReplyError: they differ.
    """
    if identity_of(request) != identity:
        raise RefusedReplyError("a request came with other contents than its id stands for")


def with_identity(content: RecordDict, identity: Identity) -> RecordDict:
    """A reply's content, and what it is about."""
    return RecordDict({**content, _IDENTITY: ConfigRecord(asdict(identity))})


def reply_layout(layout: Layout) -> Layout:
    """The same message as a reply, which says what it is about."""
    return replace(layout, entries={**layout.entries, _IDENTITY: _IN_REPLY})


def require_identity(content: RecordDict, asked: Identity) -> None:
    """Refuse a reply to anything but what was asked, before anything else of it is read.

    Args:
        content: of the reply.
        asked: what it must be about; in the handshake no site is known yet, and ``site`` is empty.

    Raises:
        RefusedReplyError: it does not say what it is about.
        StaleReplyError: it is about something else.
    """
    if _IDENTITY not in content:
        raise RefusedReplyError(f"it does not say what it is about; {_OTHER_VERSION}")
    with refusing_malformed():
        record = content[_IDENTITY]
        check_record(_IDENTITY, record, _IN_REPLY)
        sent = Identity(**unpacked(record, _IN_REPLY))
    wanted = asked if asked.site else replace(asked, site=sent.site)
    differing = [k for k, value in vars(wanted).items() if value != getattr(sent, k)]
    if differing:
        fields = " and ".join(differing).replace("_", " ")
        raise StaleReplyError(f"it replied to another {fields}")
