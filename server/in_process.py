"""Flower's Grid inside one process: the same apps and messages, without sockets and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from layerweld.runtime.incidents import raising_here
from layerweld.settings.run import RunSettings, Scalar
from layerweld.transport.layout import Budget
from layerweld.transport.objects import assembled

_ANY_SIZE = Budget(2**62, 2**31)  # it is in this process's memory already


class InProcessGrid(Grid):
    """Runs every node of a federation with one ClientApp, one message at a time.

    Messages and replies go through Flower's own serialisation, so what would break on the wire
    breaks here, too. A node runs when its reply is pulled, not when its message is pushed: only one
    reply is in memory at a time. Errors of the ClientApp are raised as they are, with a note that
    names the node, since there is nobody to hide them from.

    Args:
        client_app: the site's app.
        nodes: one node configuration per site.
        settings: of the run.
    """

    def __init__(
        self, client_app: ClientApp, nodes: Sequence[Mapping[str, Scalar]], settings: RunSettings
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self._app = client_app
        self._contexts = {
            number: Context(
                run_id=1,
                node_id=number,
                node_config=dict(node),
                state=RecordDict(),
                run_config=dict(settings.flat()),
            )
            for number, node in enumerate(nodes, start=1)
        }
        self._pushed: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    @property
    def run(self) -> Run:
        """A run that was never submitted anywhere."""
        return Run.create_empty(run_id=1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Flower's older way to build a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """1 for the first node configuration, and so on."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are asked for."""
        ids = []
        for message in messages:
            sent = _through_the_wire(message)
            self._pushed[sent.metadata.message_id] = sent
            ids.append(sent.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the nodes these messages were for, and hand their replies over."""
        return [self._answer(self._pushed.pop(i)) for i in list(message_ids) if i in self._pushed]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull: nothing here can be late."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            return _through_the_wire(Message(Error(5, "no such node"), reply_to=message))
        try:
            with raising_here():
                reply = self._app(message, self._contexts[node])
        except Exception as error:
            error.add_note(f"at {self._called(node)}, in the {message.metadata.group_id}")
            raise
        return _through_the_wire(reply)

    def _called(self, node: int) -> str:
        name = self._contexts[node].node_config.get("name")
        return f"site {name}" if name else f"node {node}"


def _through_the_wire(message: Message) -> Message:
    """What the other side would receive: serialised object by object, and put together again.

    Raises:
        UnreadableReplyError: it is not a message that could be sent.
    """
    object_id = message.object_id
    contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    received = assembled(object_id, _ANY_SIZE, lambda key: contents.pop(key, None))
    assert received is not None, "every object of it is here"
    return received
