"""A site's SuperNode opens no foreign bundle, and obeys nobody but the SuperLink it calls."""

import gzip
import hashlib
import importlib
import io
import random
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, Reconnect
from flwr.supercore.run import RunNotRunningException
from httpx._models import Response

from client.pinned_supernode import (
    LARGEST_ANSWER,
    BoundedClient,
    accept_only,
    is_instruction,
    is_plain,
)

NODE = 7
_LOOP = "flwr.supernode.start_client_internal"
_CONNECTION = "flwr.supernode.fleet_http_connection"
_COMMAND = "flwr.supernode.cli.flower_supernode"
_REPLACED = (
    (_LOOP, "http_request_response"),
    (_LOOP, "get_fused_config_from_fab"),
    (_CONNECTION, "FleetHttpClient"),
    (_COMMAND, "start_client_internal"),
)


@pytest.fixture(autouse=True)
def flowers(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Flower's own modules, which are as they were afterwards."""
    modules = {name: importlib.import_module(name) for name, _ in _REPLACED}
    for module, name in _REPLACED:
        monkeypatch.setattr(modules[module], name, getattr(modules[module], name))
    return modules


def message(**changed: Any) -> Any:
    about: dict[str, Any] = {
        "run_id": 3,
        "message_id": "a" * 64,
        "src_node_id": 1,
        "dst_node_id": NODE,
        "reply_to_message_id": "",
        "group_id": "statistics of encoder.layer.0.attention (step 1 of 24)",
        "created_at": time.time(),
        "ttl": 60.0,
        "message_type": "query.statistics",
    }
    return Message(RecordDict(), metadata=Metadata(**(about | changed)))  # type: ignore[call-overload]


def run(**changed: Any) -> SimpleNamespace:
    known = {
        "run_id": 3,
        "fab_id": "us/app",
        "fab_version": "1.0.0",
        "fab_hash": "0" * 64,
        "primary_task_type": "flwr-serverapp",
    }
    return SimpleNamespace(**(known | changed))


def test_an_instruction_of_the_superlink_to_this_node_is_taken() -> None:
    assert is_instruction(message(), NODE)
    assert is_instruction(message(group_id=""), NODE)


def not_instructions(draw: Random) -> dict[str, int] | dict[str, str] | dict[str, float]:
    text = draw.choice(("\x1b[2J", "a\nb", "a\r", "\u202e", "\x00", "x" * 2001, "\u2028"))
    return draw.choice(
        (
            {"src_node_id": draw.choice((0, 2, NODE, 2**64 - 1))},
            {"dst_node_id": draw.choice((0, 1, 8, 2**64 - 1))},
            {"reply_to_message_id": draw.choice(("x", "a" * 64))},
            {"message_id": draw.choice(("", text, "../a"))},
            {"group_id": "step " + text},
            {"ttl": draw.choice((float("nan"), float("inf")))},
        )
    )


def test_whatever_else_arrives_is_dropped() -> None:
    draw = random.Random(0)
    for _ in range(300):
        changed = not_instructions(draw)
        assert not is_instruction(message(**changed), NODE), changed


def test_a_run_is_a_servers_and_its_names_are_names() -> None:
    assert is_plain(run())
    for name in ("fab_id", "fab_version", "fab_hash"):
        for value in ("", "a\nb", "\x1b[2J", "a b", "x" * 201, "..\\x", "a\x00"):
            assert not is_plain(run(**{name: value}))
    for kind in ("", "flwr-agentapp", "flwr-simulation", "flwr-model", "x"):
        assert not is_plain(run(primary_task_type=kind))


@contextmanager
def connected(
    flowers: dict[str, ModuleType], received: tuple[Any, ...], asked: SimpleNamespace
) -> Iterator[Any]:
    """The connection that a SuperNode's loop gets, to a SuperLink that says this."""

    @contextmanager
    def connect(*_arguments: Any) -> Iterator[tuple[Any, ...]]:
        yield NODE, lambda: received, None, lambda _: asked, None, None, None, None

    flowers[_LOOP].http_request_response = connect  # type: ignore[attr-defined]
    accept_only("0" * 64)
    with flowers[_LOOP]._init_connection("localhost:1", True) as connection:
        yield connection


def test_the_loop_gets_instructions_only(flowers: dict[str, ModuleType]) -> None:
    good, forged = (message(), None), (message(src_node_id=8), None)
    with connected(flowers, good, run()) as (_, receive, _, get_run, *_):
        assert receive() == good
        assert get_run(3).fab_id == "us/app"
        with pytest.raises(RunNotRunningException):
            get_run(4)
    with connected(flowers, forged, run(primary_task_type="flwr-agentapp")) as connection:
        assert connection[1]() is None
        with pytest.raises(RunNotRunningException):
            connection[3](3)


def test_a_foreign_bundle_stays_closed(
    flowers: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("pyproject.toml", bytes(2**26))
    opened = []

    def opens(bundle: bytes, _: Any) -> dict[str, int]:
        opened.append(bundle)
        return {"a": 1}

    flowers[_LOOP].get_fused_config_from_fab = opens  # type: ignore[attr-defined]
    accept_only(hashlib.sha256(b"ours").hexdigest())
    assert flowers[_LOOP].get_fused_config_from_fab(bomb.getvalue(), None) == {}
    assert flowers[_LOOP].get_fused_config_from_fab(b"ours", None) == {"a": 1}
    assert opened == [b"ours"]


def test_nothing_is_installed_whatever_the_command_line_says(
    flowers: dict[str, ModuleType],
) -> None:
    started = []
    flowers[_COMMAND].start_client_internal = lambda **options: started.append(options)  # type: ignore[attr-defined]
    accept_only("0" * 64)
    flowers[_COMMAND].start_client_internal(runtime_dependency_install=True, host="here")
    assert started == [{"runtime_dependency_install": False, "host": "here"}]


@pytest.mark.parametrize(
    ("module", "user", "replaced"),
    [
        (_LOOP, "_init_connection", "http_request_response"),
        (_LOOP, "_pull_and_store_message", "get_fused_config_from_fab"),
        (_CONNECTION, "http_request_response", "FleetHttpClient"),
        (_COMMAND, "flower_supernode", "start_client_internal"),
    ],
)
def test_a_flower_that_works_otherwise_is_not_started(
    flowers: dict[str, ModuleType],
    module: Any,
    user: str,
    replaced: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flowers[module], user, lambda: None)
    with pytest.raises(AttributeError, match=f"does not call {replaced}"):
        accept_only("0" * 64)


class Zeros(httpx.SyncByteStream):
    """A body without an end."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.read += 2**20
            yield bytes(2**20)


def pull(response: Response) -> tuple[list[str], bool]:
    """Pull messages from a SuperLink that answers so; the URLs that were asked."""
    asked = []

    def handle(request: Any) -> Response:
        asked.append(str(request.url))
        return response

    client = BoundedClient("https://coordinator")
    client._client._transport = httpx.MockTransport(handle)
    client._client._mounts = {}
    try:
        client.PullMessages(PullMessagesRequest())
    except httpx.HTTPError:
        return asked, False
    return asked, True


def test_a_response_of_a_superlink_is_read() -> None:
    some = PullMessagesResponse(reconnect=Reconnect(reconnect=5)).SerializeToString()
    assert pull(httpx.Response(200, content=some))[1]
    assert pull(httpx.Response(200, headers={"content-length": "0"}, content=b""))[1]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["https://inside.example/", "http://127.0.0.1:1/", "/v1/control/x"])
def test_no_redirect_leads_a_site_elsewhere(status: int, to: str) -> None:
    asked, is_read = pull(httpx.Response(status, headers={"location": to}, content=b""))
    assert (len(asked), is_read) == (1, False)


def test_a_response_without_an_end_or_with_a_wrapping_is_not_read() -> None:
    packed = gzip.compress(bytes(2**20))
    zeros = Zeros()
    for headers, content in (
        ({}, zeros),
        ({"content-length": str(LARGEST_ANSWER + 1)}, zeros),
        ({"content-length": "9" * 5000}, zeros),
        ({"content-length": "-1"}, zeros),
        ({"content-length": "1e3"}, zeros),
        ([(b"content-length", "\u00b2".encode("latin-1"))], zeros),
        ([(b"content-length", "\u0663".encode())], zeros),
        ({"content-length": str(len(packed)), "content-encoding": "gzip"}, packed),
        ({"content-length": str(len(packed)), "content-encoding": "x"}, packed),
    ):
        stream = {"stream": content} if content is zeros else {"content": content}
        assert not pull(httpx.Response(200, headers=headers, **stream))[1], headers
    assert zeros.read == 0
