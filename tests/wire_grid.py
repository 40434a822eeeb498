"""What a grid between processes looks like to the server: replies as objects, pulled one by one.

Flower's Runtime API, as far as :class:`layerweld.transport.receiving.Receiver` uses it, in front of
sites that answer in this process. A site may put anything in place of its reply's objects.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

from flwr.app import Message
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from layerweld.settings.run import RunSettings
from tests.faulty_grid import Clock, Faults, FaultyGrid


def as_it_is(_message: Message, objects: Any, root: str) -> tuple[Any, ...]:
    return objects, root


class WireGrid(FaultyGrid):
    """One site sends something else than its reply.

    Args:
        spoil: given what was asked, the objects of the site's reply and the id of the first of
            them, what it sends in their place; a content may be a function, called when pulled.
        site: whose.
    """

    node = Node(node_id=1)

    def __init__(
        self,
        app: Any,
        nodes: list[dict[str, str]],
        settings: RunSettings,
        faults: Faults,
        clock: Clock,
        spoil: Callable[..., Any] = as_it_is,
        site: str = "birch",
    ) -> None:
        super().__init__(app, nodes, settings, faults, clock)
        self._spoil, self._site = spoil, site
        self._objects: dict[str, dict[str, Any]] = {}
        self.confirmed: list[str] = []
        self.pulled = 0  # bytes
        self.most_pulled = 0  # bytes of one reply

    @property
    def _runtime_client(self) -> "WireGrid":
        return self

    def PullMessages(self, request: Any) -> SimpleNamespace:  # as Flower calls it
        named = []
        for message_id in request.message_ids:
            for reply in super().pull_messages([message_id])[:1]:  # Flower keeps one of each
                root = self._kept(message_id, reply)
                about = SimpleNamespace(message_id=root, reply_to_message_id=message_id)
                named.append(SimpleNamespace(metadata=about))
        return SimpleNamespace(messages_list=named)

    def PullObject(self, request: Any) -> SimpleNamespace:
        objects = next((o for o in self._objects.values() if request.object_id in o), {})
        if request.object_id not in objects:
            return SimpleNamespace(object_found=False)
        content = objects[request.object_id]
        content = content() if callable(content) else content
        self.pulled += len(content or b"")
        self.most_pulled = max(self.pulled, self.most_pulled)
        return SimpleNamespace(
            object_found=True, object_available=content is not None, object_content=content
        )

    def ConfirmMessageReceived(self, request: Any) -> None:
        self._objects.pop(request.message_object_id)
        self.confirmed.append(request.message_object_id)
        self.pulled = 0

    def pull_messages(self, message_ids: Any) -> NoReturn:
        raise AssertionError("Flower's own code must not put a reply together")

    def _kept(self, message_id: str, reply: Any) -> Any:
        root = reply.object_id
        objects = {key: part.deflate() for key, part in get_all_nested_objects(reply).items()}
        node = reply.metadata.src_node_id
        if node in self._contexts and self._contexts[node].node_config["name"] == self._site:
            objects, root = self._spoil(message_id, objects, root)
        self._objects[root] = objects
        return root
