"""A SuperLink takes from each node what is that node's to say, and nothing in another's name."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.error_pb2 import Error
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.main import create_app
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from httpx2._models import Response

from server import bound_superlink

_LONG = 1800.0  # seconds for which a node counts as online without a word


class SuperLink:
    """Flower's own in this process, with two registered sites and a run that has begun."""

    def __init__(self, folder: Path) -> None:
        config: Any = SimpleNamespace(
            simulation=False,
            database=str(folder / "state.db"),
            superexec_auth_secret=None,
            artifact_provider=None,
            fleet_api_type="",
            authn_plugin=None,
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_supernode_auth=True,
        )
        lifespan = SimpleNamespace(startup=lambda: None, shutdown=lambda: None)
        app = create_app(config, lambda *_: lifespan)  # type: ignore[arg-type]
        self.client = TestClient(app, raise_server_exceptions=False)
        self.state = app.state.linkstate_factory.state()
        self.signs = dict(self._register() for _ in range(2))
        self.ash, self.birch = self.signs
        self.run = self.state.create_run(
            *("layerweld/layerweld", "1", "0" * 64, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID),
            primary_task_type=TaskType.SERVER_APP,
        )
        task = self.state.get_run_info(run_ids=[self.run])[0].primary_task_id
        self.state.claim_task(task)
        self.state.activate_task(task)

    def _register(self) -> tuple[Any, ...]:
        key = ec.generate_private_key(ec.SECP384R1())
        public = public_key_to_bytes(key.public_key())
        node = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public, _LONG)
        self.state.activate_node(node, _LONG)
        return node, NodeAuthHttpInterceptor(key, key.public_key())

    def call(self, node: Any, path: str, request: Any) -> Response:
        """What is answered to a call that a node has signed."""
        sent = httpx.Request("POST", f"http://testserver/v1/fleet/{path}")
        context = ProtobufRequestContext("", request, sent)
        self.signs[node].intercept(context, lambda _: None)
        headers = dict(sent.headers) | {"content-type": "application/protobuf"}
        body = request if isinstance(request, bytes) else request.SerializeToString()
        return self.client.post(sent.url.path, content=body, headers=headers)

    def instruct(self, node: Any) -> tuple[Message, set[str]]:
        """The ServerApp sends a message; the message and its objects."""
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = self.run, 1, 1
        content = RecordDict({"x": ArrayRecord([np.full(3, float(node))])})
        message = Message(content, node, "query.statistics", group_id="step 1")
        message.metadata.__dict__["_run_id"] = self.run
        message.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        message.metadata.__dict__["_message_id"] = message.object_id
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
        session = self.state.start_session(self.run)
        bare = remove_content_from_message(message)
        bare.metadata.__dict__["_message_id"] = message.object_id
        stored, missing = self.state.store_message_and_object_tree(bare, tree, session)
        assert stored
        for name in missing:
            assert self.state.store_object(self.run, session, name, objects[name].deflate())
        return message, set(objects)

    def pulled(self, node: Any) -> Any:
        response = self.call(
            node, "pull-messages", fleet_pb2.PullMessagesRequest(node=Node(node_id=node))
        )
        return fleet_pb2.PullMessagesResponse.FromString(response.content).messages_list

    def push(
        self, caller: Any, metadata: Any, tree: ObjectTree | None = None, **changed: Any
    ) -> Response:
        message = message_pb2.Message(metadata=metadata)
        message.content.SetInParent()
        for name, value in changed.items():
            setattr(message.metadata, name, value)
        request = fleet_pb2.PushMessagesRequest(
            node=Node(node_id=caller),
            messages_list=[message],
            message_object_trees=[tree or message_pb2.ObjectTree(object_id=metadata.message_id)],
        )
        return self.call(caller, "push-messages", request)


def test_flowers_own_replies_come_without_their_content(superlink: SuperLink) -> None:
    message, _ = superlink.instruct(superlink.ash)
    reply = Message(RecordDict({"y": ArrayRecord([np.ones(2)])}), reply_to=message)
    sent = message_to_proto(remove_content_from_message(reply))
    assert sent.HasField("content")
    assert not sent.content.ByteSize()


def reply_to(
    message: Message, caller: Any
) -> tuple[message_pb2.Metadata, ObjectTree, dict[str, InflatableObject]]:
    """A reply as the SuperNode of ``caller`` sends it: its metadata, tree and objects."""
    reply = Message(RecordDict({"y": ArrayRecord([np.ones(2)])}), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = caller
    reply.metadata.__dict__["_message_id"] = reply.object_id
    metadata = message_to_proto(remove_content_from_message(reply)).metadata
    metadata.message_id = reply.object_id
    return metadata, get_object_tree(reply), get_all_nested_objects(reply)


@pytest.fixture
def superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    for name in bound_superlink._REQUIRED:
        monkeypatch.setattr(fleet_handlers, name, getattr(fleet_handlers, name))
    bound_superlink.bind_calls()
    return SuperLink(tmp_path)


def test_a_site_pulls_what_it_was_asked_and_pushes_its_reply(superlink: SuperLink) -> None:
    message, objects = superlink.instruct(superlink.ash)
    assert [one.metadata.message_id for one in superlink.pulled(superlink.ash)] == [
        message.object_id
    ]
    node = Node(node_id=superlink.ash)
    for name in objects:
        pull = message_pb2.PullObjectRequest(node=node, run_id=superlink.run, object_id=name)
        response = superlink.call(superlink.ash, "pull-object", pull)
        assert message_pb2.PullObjectResponse.FromString(response.content).object_available
    metadata, tree, own = reply_to(message, superlink.ash)
    response = superlink.push(superlink.ash, metadata, tree)
    pushed = fleet_pb2.PushMessagesResponse.FromString(response.content)
    assert set(pushed.objects_to_push) == set(own)
    for name, held in own.items():
        push = message_pb2.PushObjectRequest(
            node=node, run_id=superlink.run, object_id=name, object_content=held.deflate(),
            session_id=pushed.session_id,
        )  # fmt: skip
        response = superlink.call(superlink.ash, "push-object", push)
        assert message_pb2.PushObjectResponse.FromString(response.content).stored
    received = message_pb2.ConfirmMessageReceivedRequest(
        node=node, run_id=superlink.run, message_object_id=message.object_id
    )
    assert superlink.call(superlink.ash, "confirm-message-received", received).status_code == 200
    assert superlink.state.get_message_res({message.object_id}, superlink.run)


def test_flower_alone_would_pass_on_an_instruction_in_the_coordinators_name(tmp_path: Path) -> None:
    superlink = SuperLink(tmp_path)
    message, _ = superlink.instruct(superlink.ash)
    metadata, _, _ = reply_to(message, superlink.ash)
    forged = {"src_node_id": 1, "dst_node_id": superlink.birch, "reply_to_message_id": ""}
    superlink.push(superlink.ash, metadata, **forged)
    assert superlink.pulled(superlink.birch), "then binding calls is not needed any more"


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_site_speaks_in_anothers_name(superlink: SuperLink, count: int) -> None:
    message, _ = superlink.instruct(superlink.ash)
    _other, _ = superlink.instruct(superlink.birch)
    draw = random.Random(0)
    metadata, tree, _ = reply_to(message, superlink.ash)
    ids = (0, SUPERLINK_NODE_ID, superlink.ash, superlink.birch, 2**64 - 1)
    replied = ("", message.object_id, _other.object_id, "0" * 64, "nothing")
    tried = 0
    while tried < count:
        changed = {
            "src_node_id": draw.choice(ids),
            "dst_node_id": draw.choice(ids),
            "reply_to_message_id": draw.choice(replied),
            "message_id": draw.choice((metadata.message_id, _other.object_id, "f" * 64)),
        }
        honest = (superlink.ash, SUPERLINK_NODE_ID, message.object_id, tree.object_id)
        if tuple(changed.values()) == honest:
            continue
        tried += 1
        response = superlink.push(superlink.ash, metadata, tree, **changed)
        pushed = fleet_pb2.PushMessagesResponse.FromString(
            response.content if response.status_code == 200 else b""
        )
        assert response.status_code < 500, changed
        assert not pushed.objects_to_push, changed
    assert [one.metadata.message_id for one in superlink.pulled(superlink.birch)] == [
        _other.object_id
    ]
    assert not superlink.state.get_message_res({_other.object_id}, superlink.run)


def test_a_site_neither_pulls_nor_deletes_what_is_anothers(superlink: SuperLink) -> None:
    other, objects = superlink.instruct(superlink.birch)
    node = Node(node_id=superlink.ash)
    for name in (*objects, "0" * 64, "", "../state.db"):
        pull = message_pb2.PullObjectRequest(node=node, run_id=superlink.run, object_id=name)
        assert superlink.call(superlink.ash, "pull-object", pull).status_code == 403
        gone = message_pb2.ConfirmMessageReceivedRequest(
            node=node, run_id=superlink.run, message_object_id=name
        )
        assert superlink.call(superlink.ash, "confirm-message-received", gone).status_code == 403
    assert superlink.state.object_store.get(other.object_id)


def test_an_object_without_the_session_of_its_reply_is_refused(superlink: SuperLink) -> None:
    message, _ = superlink.instruct(superlink.birch)
    metadata, tree, own = reply_to(message, superlink.birch)
    superlink.push(superlink.birch, metadata, tree)
    for name, held in own.items():
        push = message_pb2.PushObjectRequest(
            node=Node(node_id=superlink.ash), run_id=superlink.run, object_id=name,
            object_content=held.deflate(),
        )  # fmt: skip
        assert superlink.call(superlink.ash, "push-object", push).status_code == 403
        push.session_id = "00000000-0000-4000-8000-000000000000"
        response = superlink.call(superlink.ash, "push-object", push)
        assert not message_pb2.PushObjectResponse.FromString(response.content).stored


def test_a_name_that_is_no_hash_reaches_no_log(
    superlink: SuperLink, caplog: pytest.LogCaptureFixture
) -> None:
    node, odd = Node(node_id=superlink.ash), "line\nFaked [INFO] line \x1b[2J"
    calls = {
        "get-fab": GetFabRequest(node=node, run_id=superlink.run, hash_str=odd),
        "push-object": message_pb2.PushObjectRequest(node=node, object_id=odd, session_id="x"),
        "pull-object": message_pb2.PullObjectRequest(node=node, object_id=odd),
    }
    for path, request in calls.items():
        assert superlink.call(superlink.ash, path, request).status_code in {400, 403}
    assert "Faked" not in caplog.text


def test_a_message_without_content_or_with_content_of_its_own_is_the_callers_fault(
    superlink: SuperLink,
) -> None:
    message, _ = superlink.instruct(superlink.ash)
    metadata, tree, _ = reply_to(message, superlink.ash)
    node = Node(node_id=superlink.ash)
    for wrong in range(4):
        request = fleet_pb2.PushMessagesRequest(node=node, message_object_trees=[tree])
        pushed = request.messages_list.add(metadata=metadata)
        if wrong in {1, 2}:
            pushed.content.items.add(key="x").config_record.SetInParent()
        if wrong in {2, 3}:
            pushed.error.code = 1
        if wrong == 3:
            pushed.content.SetInParent()
        assert superlink.call(superlink.ash, "push-messages", request).status_code == 400


def test_objects_that_are_not_what_they_are_called_are_the_callers_fault(
    superlink: SuperLink,
) -> None:
    message, _ = superlink.instruct(superlink.ash)
    metadata, tree, own = reply_to(message, superlink.ash)
    twice = message_pb2.ObjectTree(object_id=tree.object_id, children=[tree.children[0]] * 2)
    unnamed = message_pb2.ObjectTree(
        object_id=tree.object_id, children=[message_pb2.ObjectTree(object_id="nothing")]
    )
    for wrong in (twice, unnamed):
        assert superlink.push(superlink.ash, metadata, wrong).status_code == 400
    response = superlink.push(superlink.ash, metadata, tree)
    session = fleet_pb2.PushMessagesResponse.FromString(response.content).session_id
    for name, held in own.items():
        for content in (b"", b"x", held.deflate() + b"x"):
            push = message_pb2.PushObjectRequest(
                node=Node(node_id=superlink.ash), run_id=superlink.run, object_id=name,
                object_content=content, session_id=session,
            )  # fmt: skip
            response = superlink.call(superlink.ash, "push-object", push)
            assert not message_pb2.PushObjectResponse.FromString(response.content).stored


def test_another_nodes_number_is_refused_by_the_key(superlink: SuperLink) -> None:
    superlink.instruct(superlink.birch)
    ask = fleet_pb2.PullMessagesRequest(node=Node(node_id=superlink.birch))
    assert superlink.call(superlink.ash, "pull-messages", ask).status_code == 401


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_body_of_a_registered_site_is_an_error_of_the_superlink(
    superlink: SuperLink, count: int
) -> None:
    message, _ = superlink.instruct(superlink.ash)
    metadata, tree, _ = reply_to(message, superlink.ash)
    node = Node(node_id=superlink.ash)
    whole = {
        "push-messages": fleet_pb2.PushMessagesRequest(
            node=node, messages_list=[message_pb2.Message(metadata=metadata, error=Error(code=1))],
            message_object_trees=[tree],
        ),
        "push-object": message_pb2.PushObjectRequest(
            node=node, run_id=superlink.run, object_id=tree.object_id, object_content=b"x",
            session_id="s",
        ),
        "pull-object": message_pb2.PullObjectRequest(
            node=node, run_id=superlink.run, object_id=tree.object_id
        ),
        "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest(
            node=node, run_id=superlink.run, message_object_id=tree.object_id
        ),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30.0),
        "activate-node": fleet_pb2.ActivateNodeRequest(
            public_key=superlink.signs[superlink.ash]._public_key_bytes, heartbeat_interval=30.0
        ),
        "deactivate-node": fleet_pb2.DeactivateNodeRequest(node_id=superlink.ash),
        "pull-messages": fleet_pb2.PullMessagesRequest(node=node),
        "get-run": GetRunRequest(node=node, run_id=superlink.run),
        "get-fab": GetFabRequest(node=node, run_id=superlink.run, hash_str="0" * 64),
    }  # fmt: skip
    draw = random.Random(0)
    for _ in range(count):
        path, request = draw.choice(list(whole.items()))
        body = bytearray(request.SerializeToString())  # type: ignore[attr-defined]
        for _ in range(draw.randrange(4)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        response = superlink.call(superlink.ash, path, bytes(body[: draw.randint(1, len(body))]))
        assert response.status_code < 500, (path, bytes(body), response.text)
