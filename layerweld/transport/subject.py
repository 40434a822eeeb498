"""What a reply is about, inside of every reply: compared before anything else of it is read."""

from __future__ import annotations

from dataclasses import asdict, replace

from flwr.app import ConfigRecord, RecordDict

from layerweld.errors import StaleReplyError
from layerweld.transport.layout import Layout, Text, check_record
from layerweld.transport.messages import Subject
from layerweld.transport.untrusted import read, refusing_malformed

_SUBJECT = "subject"
_FIELDS = {"run": Text(), "kind": Text(), "question": Text(), "node": Text(20), "site": Text()}


def with_subject(content: RecordDict, subject: Subject) -> RecordDict:
    """The same content, and what it is about."""
    return RecordDict({**content, _SUBJECT: ConfigRecord(asdict(subject))})


def reply_layout(layout: Layout) -> Layout:
    """The same message as a reply, which says what it is about."""
    return replace(layout, entries={**layout.entries, _SUBJECT: _FIELDS})


def require_subject(content: RecordDict, asked: Subject) -> None:
    """Refuse a reply to anything but what was asked.

    Args:
        content: of the reply.
        asked: what it must be about; in the handshake no site is known yet, and ``site`` is empty.

    Raises:
        RefusedReplyError: it does not say what it is about.
        StaleReplyError: it is about something else.
    """
    with refusing_malformed():
        record = content[_SUBJECT]
        check_record(_SUBJECT, record, _FIELDS)
        found = Subject(**{field: read(record, field, str) for field in _FIELDS})
    wanted = asked if asked.site else replace(asked, site=found.site)
    differing = [k for k, value in vars(wanted).items() if value != getattr(found, k)]
    if differing:
        raise StaleReplyError(f"it answered for another {' and '.join(differing)}")
