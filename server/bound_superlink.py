"""Flower's ``flower-superlink``, with each Fleet call bound to the node that makes it.

Run as a program, with Flower's own command line as its arguments. Flower verifies which node
calls, and then believes that node in everything else: who sent the message that it pushes and to
whom, and whose objects it pulls and deletes. So one site could instruct another in the
coordinator's name. Here a node pushes its own replies to its requests, pulls what belongs to its
requests, and deletes nothing else.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import HTTPException
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.linkstate import LinkState
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import is_valid_sha256_hash
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.supercore.state.schema.objectstore_models import ObjectChild
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.servicer.fleet import fleet_handlers
from sqlalchemy import select

_DEEPEST = 16  # objects inside objects; Flower nests message, record, array and chunk


def bind_calls() -> None:
    """Make the Fleet handlers of this process serve only what a node may ask.

    Raises:
        AttributeError: this version of Flower works in another way; nothing may run.
    """
    for name, require in _REQUIRED.items():
        setattr(fleet_handlers, name, _bound(getattr(fleet_handlers, name), require))


def _bound(handle: Callable[..., Any], require: Callable[[Any, Any], None]) -> Callable[..., Any]:
    def serve(request: Any, state: LinkState, **others: Any) -> Any:
        require(request, state)
        try:
            return handle(request=request, state=state, **others)
        except (FlowerError, HTTPException):
            raise
        except (ValueError, TypeError, NoObjectInStoreError) as error:
            raise HTTPException(400, f"not a call that a SuperNode makes: {error}") from None

    return serve


def _own_reply(request: Any, _state: Any) -> None:
    """One message from the caller to the SuperLink, in reply to one, with its objects.

    Flower checks that the message which it replies to was sent to the caller in the same run.
    """
    if (len(request.messages_list), len(request.message_object_trees)) != (1, 1):
        raise HTTPException(400, "a SuperNode pushes one message at a time")
    message = request.messages_list[0]
    about = message.metadata
    if message.HasField("content") == message.HasField("error") or message.content.ByteSize():
        raise HTTPException(400, "a message has an error, or content that comes as objects")
    if (about.src_node_id, about.dst_node_id) != (request.node.node_id, SUPERLINK_NODE_ID):
        raise HTTPException(403, "a SuperNode sends messages of its own to the SuperLink only")
    root = request.message_object_trees[0].object_id
    if not about.reply_to_message_id or about.message_id != root:
        raise HTTPException(403, "a SuperNode sends replies only, each with its own objects")
    if not all(map(math.isfinite, (about.ttl, about.created_at, *request.clientapp_runtime_list))):
        raise HTTPException(400, "a time that is not a number")


def _own_session(request: Any, _state: Any) -> None:
    """Objects of a reply that the caller has just announced.

    Flower gave the session's name, 122 random bits, to the caller alone. Without a name it would
    look for anyone who waits for such an object.
    """
    if not request.session_id:
        raise HTTPException(403, "an object comes with the session of its reply")
    _require_hash(request.object_id)


def _named_by_hash(request: Any, _state: Any) -> None:
    """A bundle; its name goes into the SuperLink's log as it is."""
    _require_hash(request.hash_str)


def _require_hash(name: str) -> None:
    if not is_valid_sha256_hash(name):
        raise HTTPException(400, "objects and bundles are named by their SHA-256")


def _asked_for(request: Any, state: Any) -> None:
    """An object of a message to the caller."""
    if not _belongs(state, request.object_id, request.node.node_id):
        raise HTTPException(403, "this object belongs to no message to this SuperNode")


def _received(request: Any, state: Any) -> None:
    """A message to the caller."""
    if not _sent_to(state, [request.message_object_id], request.node.node_id):
        raise HTTPException(403, "this message was not sent to this SuperNode")


def _belongs(state: Any, object_id: str, node: int) -> bool:
    """Whether an object is, or is inside of, a message to a node."""
    level = {object_id}
    for _ in range(_DEEPEST):
        if not level:
            return False
        if _sent_to(state, level, node):
            return True
        with state.object_store.session() as session:
            above = select(ObjectChild.parent_id).where(ObjectChild.child_id.in_(level))
            level = set(session.scalars(above))
    return False


def _sent_to(state: Any, messages: Iterable[str], node: int) -> bool:
    sent = select(MessageIns.message_id).where(
        MessageIns.message_id.in_(messages), MessageIns.dst_node_id == uint64_to_int64(node)
    )
    with state.session() as session:
        return session.scalars(sent).first() is not None


_REQUIRED: dict[str, Callable[[Any, Any], None]] = {
    "push_messages": _own_reply,
    "push_object": _own_session,
    "get_fab": _named_by_hash,
    "pull_object": _asked_for,
    "confirm_message_received": _received,
}


if __name__ == "__main__":
    del sys.argv[0]
    bind_calls()
    importlib.import_module("flwr.superlink.cli.flower_superlink").flower_superlink()
