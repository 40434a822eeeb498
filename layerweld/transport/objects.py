"""A Flower message put together from its objects, one after another, within a budget.

Flower sends a message as a tree of objects: the message, its records, arrays and pieces of arrays,
each a short head (kind, children, length) before its body. Flower's own code pulls and inflates
whatever a tree names; a few bytes that name a piece a million times become terabytes. Here every
object is weighed and its head compared with the place where it stands before Flower inflates any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import sha256

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from layerweld.errors import RefusedReplyError, UnreadableReplyError
from layerweld.transport.layout import Budget
from layerweld.transport.untrusted import refusing_malformed

_HEAD = re.compile(rb"([A-Za-z]{1,16}) ((?:[0-9a-f]{64}(?:,[0-9a-f]{64})*)?) ([0-9]{1,12})")
_INSIDE = {
    "Message": ("RecordDict",),
    "RecordDict": ("ArrayRecord", "ConfigRecord", "MetricRecord"),
    "ArrayRecord": ("Array",),
    "Array": ("ArrayChunk",),
    "ConfigRecord": (),
    "MetricRecord": (),
    "ArrayChunk": (),
}
"""What may stand in what: nothing is deeper than five objects."""

Fetch = Callable[[str], bytes | None]
"""The content of an object by its id; None while its sender has not sent it yet."""


def assembled(object_id: str, budget: Budget, fetch: Fetch) -> Message | None:
    """A message out of its objects; None while one of them is still missing.

    Args:
        object_id: of the message.
        budget: what it may take; fetching stops as soon as that would be exceeded.
        fetch: gives an object's content.

    Raises:
        UnreadableReplyError: it exceeds its budget, an object is no object or stands where it may
            not, or Flower cannot make a message of them.
    """
    objects = _Objects(object_id, budget)
    try:
        with refusing_malformed():
            return objects.inflated() if objects.are_fetched(fetch) else None
    except RefusedReplyError as error:
        raise UnreadableReplyError(str(error)) from error


class _Objects:
    """The objects of one message: those that are here, and those still to be fetched."""

    def __init__(self, object_id: str, budget: Budget) -> None:
        self._root = object_id
        self._budget = budget
        self._contents: dict[str, bytes] = {}
        self._lengths: dict[str, int] = {}  # of the pieces of arrays
        self._taken = 0
        self._open: list[tuple[str, tuple[str, ...]]] = [(object_id, ("Message",))]

    def are_fetched(self, fetch: Fetch) -> bool:
        """Fetch all of them, each weighed before the next one; False if one is missing."""
        while self._open:
            object_id, kinds = self._open.pop()
            if object_id in self._contents:  # arrays of equal numbers are one object
                continue
            content = fetch(object_id)
            if content is None:
                return False
            self._take(object_id, kinds, content)
        return True

    def _take(self, object_id: str, kinds: tuple[str, ...], content: bytes) -> None:
        self._taken += len(content)
        if self._taken > self._budget.num_bytes:
            raise ValueError(
                f"it is larger than the {self._budget.num_bytes} bytes that a reply to this "
                f"request can have"
            )
        if sha256(content).hexdigest() != object_id:
            raise ValueError("an object is another one than its id says")
        kind, children = _head_of(content, kinds)
        self._contents[object_id] = content
        if kind == "ArrayChunk":
            self._lengths[object_id] = len(content) - content.index(b"\0") - 1
        self._open += [(child, _INSIDE[kind]) for child in reversed(children)]
        if len(self._contents) + len(self._open) > self._budget.objects:
            raise ValueError(f"it has more than the {self._budget.objects} objects it can have")

    def inflated(self) -> Message:
        """The message, by Flower's own code."""
        for object_id, content in self._contents.items():
            if content.startswith(b"Array "):
                self._weigh_array(object_id, content)
        message = inflate_object_from_contents(self._root, self._contents)
        if not isinstance(message, Message):
            raise TypeError(f"a {type(message).__name__} came in place of a message")
        message.metadata.__dict__["_message_id"] = self._root
        return message

    def _weigh_array(self, object_id: str, content: bytes) -> None:
        """An array may name its pieces more than once, and each time costs memory."""
        _, children = _head_of(content, ("Array",))
        named = json.loads(content[content.index(b"\0") + 1 :])["arraychunk_ids"]
        self._taken += sum(self._lengths[children[index]] for index in named)
        self._taken -= sum(self._lengths[child] for child in children)
        if self._taken > self._budget.num_bytes:
            raise ValueError(f"array {object_id[:12]} repeats its pieces beyond all bounds")


def _head_of(content: bytes, kinds: tuple[str, ...]) -> tuple[str, list[str]]:
    """An object's kind and the ids of its children.

    Raises:
        ValueError: it has no head, another kind than may stand here, or another length.
    """
    end = content.find(b"\0")
    head = _HEAD.fullmatch(content, 0, end) if end > 0 else None
    if head is None:
        raise ValueError("an object has no head")
    kind, children = head[1].decode(), head[2].decode()
    if kind not in kinds:
        raise ValueError(f"an object is of kind {kind!r} where {' or '.join(kinds)} may stand")
    if int(head[3]) != len(content) - end - 1:
        raise ValueError("an object's length is not what its head says")
    return kind, children.split(",") if children else []
