"""Replies pulled from Flower's grid one by one, each within its budget.

Flower's own :meth:`~flwr.serverapp.Grid.pull_messages` pulls and decodes all that a site has sent,
waits for what it has not, and raises whatever that leads to; the reply that did it is gone then.
Between processes :class:`Receiver` therefore asks Flower's Runtime API itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.proto.message_pb2 import (  # pylint: disable=no-name-in-module
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from httpx import HTTPStatusError

from layerweld.errors import UnreadableReplyError
from layerweld.transport.layout import Budget
from layerweld.transport.objects import assembled

if TYPE_CHECKING:
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid.http_grid import HttpGrid

_LOST = 4  # Flower's code of a reply whose objects never came
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 60.0  # seconds, doubling
_ITS_FAULT = (413, 500)  # statuses of a reply that the SuperLink itself cannot hand over


@dataclass
class _Announced:
    """A reply that Flower has named, and when to look for its objects."""

    reply_id: str
    next_look: float = 0.0
    pause: float = _FIRST_PAUSE


class Receiver:
    """The replies of one grid.

    A site's objects may come after the message that names them, the message's own one last. While
    one is missing nothing is kept, and nobody waits for one site while others have replied.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._announced: dict[str, _Announced] = {}  # by the id of what was asked

    def pull(self, message_id: str, budget: Callable[[], Budget]) -> list[Message]:
        """The reply to one message, if all of it is there.

        Args:
            message_id: of the request.
            budget: gives what the reply may take; called once there is one.

        Raises:
            UnreadableReplyError: the reply cannot be taken. It is gone then.
        """
        if not hasattr(type(self._grid), "_runtime_client"):  # one process: it is here already
            return list(self._grid.pull_messages([message_id]))
        announced = self._announced.get(message_id) or self._look_for(message_id)
        if announced is None or time.monotonic() < announced.next_look:
            return []
        try:
            reply = self._reply(announced, budget())
        except _NeverComesError:
            reply = _lost(message_id)
        except UnreadableReplyError:
            self.forget(message_id)
            raise
        if reply is None:
            return []
        self.forget(message_id)
        if reply.metadata.reply_to_message_id != message_id:
            raise UnreadableReplyError("inside, it says that it replies to something else")
        return [reply]

    def forget(self, message_id: str) -> None:
        """Nobody waits for this reply any more: let the SuperLink forget it, too."""
        announced = self._announced.pop(message_id, None)
        if announced is not None:
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._http.node,
                    run_id=self._grid.run.run_id,
                    message_object_id=announced.reply_id,
                )
            )

    def _look_for(self, message_id: str) -> _Announced | None:
        """Whether there is a reply by now; Flower names it once."""
        try:
            named = self._client.PullMessages(PullAppMessagesRequest(message_ids=[message_id]))
        except HTTPStatusError as error:
            if error.response.status_code not in _ITS_FAULT:
                raise
            raise UnreadableReplyError("the SuperLink cannot hand its reply over") from error
        for message in named.messages_list:  # Flower also hands over what was not requested
            if message.metadata.reply_to_message_id == message_id:
                self._announced[message_id] = _Announced(message.metadata.message_id)
        return self._announced.get(message_id)

    def _reply(self, announced: _Announced, budget: Budget) -> Message | None:
        if self._object(announced.reply_id) is None:
            return None  # the last one that is sent: nothing is wrong yet
        reply = assembled(announced.reply_id, budget, self._object)
        if reply is None:
            announced.next_look = time.monotonic() + announced.pause
            announced.pause = min(2 * announced.pause, _LONGEST_PAUSE)
        return reply

    def _object(self, object_id: str) -> bytes | None:
        pulled = self._client.PullObject(
            PullObjectRequest(
                node=self._http.node, run_id=self._grid.run.run_id, object_id=object_id
            )
        )
        if not pulled.object_found:
            raise _NeverComesError(object_id)
        return pulled.object_content if pulled.object_available else None

    @property
    def _http(self) -> HttpGrid:
        return cast("HttpGrid", self._grid)

    @property
    def _client(self) -> RuntimeHttpClient:
        return self._http._runtime_client


class _NeverComesError(Exception):
    """An object was never sent, and the SuperLink has given it up."""


def _lost(message_id: str) -> Message:
    """As Flower says it, in its own name."""
    metadata = Metadata(
        run_id=0, message_id="", src_node_id=1, dst_node_id=1, message_type=SYSTEM_MESSAGE_TYPE,
        group_id="", ttl=0, reply_to_message_id=message_id, created_at=0.0,
    )  # fmt: skip
    return make_message(metadata, error=Error(_LOST, "its objects never came"))
