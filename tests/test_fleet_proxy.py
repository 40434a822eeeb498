"""The coordinator's gateway: Fleet calls pass unchanged, and nothing else reaches the SuperLink."""

import asyncio
import http.client
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner
from uvicorn.server import Server

from layerweld.cli import main as cli
from layerweld.deploy import checks, fleet_proxy
from layerweld.deploy.checks import check_coordinator
from layerweld.deploy.fleet_proxy import LARGEST_CALL, FleetProxy
from layerweld.deploy.ports import free_port
from layerweld.deploy.processes import Supervisor
from layerweld.deploy.site import create
from layerweld.errors import DeployError
from layerweld.settings.sites import SiteEntry
from tests.fake_superlink import SuperLink, write_certificates


def serve(app: SuperLink | FleetProxy, folder: Path, port: int) -> tuple[Server, Thread]:
    config = uvicorn.Config(
        app,
        port=port,
        lifespan="off",
        ws="none",
        log_level="error",
        ssl_certfile=folder / "server.crt",
        ssl_keyfile=folder / "server.key",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive()
    return server, thread


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[tuple[SuperLink, int]]:
    superlink, inside, outside = SuperLink(207), free_port(), free_port()
    proxy = FleetProxy(f"https://127.0.0.1:{inside}", folder / "ca.crt", {"application": "abc"})
    started = [serve(superlink, folder, inside), serve(proxy, folder, outside)]
    yield superlink, outside
    for server, thread in started:
        server.should_exit = server.force_exit = True
        thread.join()


@pytest.fixture
def ask(folder: Path, gateway: tuple[SuperLink, int]) -> Callable[..., Any]:
    def ask(
        method: Any, path: Any, body: bytes = b"", port: int = gateway[1], **headers: Any
    ) -> tuple[HTTPResponse, bytes]:
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    return ask


def test_a_fleet_call_passes_with_its_signature_body_and_status(
    gateway: tuple[SuperLink, int], ask: Callable[..., Any]
) -> None:
    body = bytes(range(256)) * 20_000  # 5 MB, a piece of a tensor
    response, content = ask("POST", "/v1/fleet/push-object", body, **{"flwr-signature": "s"})
    assert (response.status, response.headers["x-reply"]) == (207, "yes")
    assert content == body[::-1]
    assert gateway[0].asked[-1] == ("/v1/fleet/push-object", b"s")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "//v1/fleet/pull-messages"),
        ("GET", "/v1/fleet/pull-messages"),
        ("GET", "/docs"),
        ("GET", "/"),
    ],
)
def test_nothing_else_reaches_the_superlink(
    gateway: tuple[SuperLink, int], ask: Callable[..., Any], method: str, path: str
) -> None:
    before = list(gateway[0].asked)
    assert ask(method, path)[0].status == 404
    assert gateway[0].asked == before


def test_a_call_larger_than_any_of_flowers_is_refused_unread(
    gateway: tuple[SuperLink, int], ask: Callable[..., Any]
) -> None:
    before = list(gateway[0].asked)
    headers = {"Content-Length": str(LARGEST_CALL + 1)}
    assert ask("POST", "/v1/fleet/push-object", **headers)[0].status == 413
    assert ask("POST", "/v1/fleet/push-object", iter([b"x"]))[0].status == 413
    assert gateway[0].asked == before


def test_anybody_may_know_versions_and_time(ask: Callable[..., Any]) -> None:
    response, content = ask("GET", "/layerweld")
    assert response.status == 200
    assert json.loads(content).keys() == {"application", "time"}


@contextmanager
def lone_door(folder: Path, about: dict[str, str] | tuple[Any, ...] = ()) -> Iterator[int]:
    """The port of a gateway without a SuperLink."""
    port = free_port()
    proxy = FleetProxy(f"https://127.0.0.1:{free_port()}", folder / "ca.crt", dict(about))
    server, thread = serve(proxy, folder, port)
    try:
        yield port
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def test_a_superlink_that_is_away_is_tried_again(folder: Path, ask: Callable[..., Any]) -> None:
    with lone_door(folder) as port:
        assert ask("POST", "/v1/fleet/pull-messages", port=port)[0].status == 503


@contextmanager
def door_whose_clock_is_off(
    folder: Path, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    clock = SimpleNamespace(time=lambda: time.time() + seconds)
    monkeypatch.setattr(fleet_proxy, "time", clock)
    about = {name: version(name) for name in ("layerweld", "flwr", "torch", "transformers")}
    with lone_door(folder, about | {"application": "abc"}) as port:
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(-8, r"[78]\.\d s ahead of the coord"), (400, r"400\.\d s behind"), (200, "")],
)
def test_a_skewed_clock_is_named_with_its_remedy(
    folder: Path, seconds: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with door_whose_clock_is_off(folder, seconds, monkeypatch) as address:
        found = {one.name: one for one in check_coordinator(address, folder / "ca.crt")}
    assert bool(found["clock"].remedy) is bool(says)
    assert re.match(says, found["clock"].found)
    assert not says or "timedatectl set-ntp 1" in found["clock"].remedy


@pytest.mark.parametrize(("seconds", "says"), [(400, "clock is 400"), (0, "")])
def test_a_clock_that_goes_wrong_later_is_named_when_the_supernode_ends(
    folder: Path, seconds: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, _ = create(tmp_path / "ash", SiteEntry(name="ash", data="data.jsonl"), b"")
    with door_whose_clock_is_off(folder, seconds, monkeypatch) as address:
        supernode = site.supernode(address, folder / "ca.crt", free_port())
        explained = supernode.explain("SuperNode terminated gracefully.")
    assert bool(explained) is bool(says)
    assert says in explained


@pytest.mark.parametrize("seconds", [-8, 400])
def test_a_site_does_not_join_with_a_skewed_clock(
    folder: Path, seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "ash", SiteEntry(name="ash", data="data.jsonl"), b"")
    monkeypatch.setattr(Supervisor, "run", lambda _self: pytest.fail("a SuperNode was started"))
    with door_whose_clock_is_off(folder, seconds, monkeypatch) as address:
        command = ["site", "join", address, "--folder", str(tmp_path / "ash")]
        authority = ["--ca", str(folder / "ca.crt")]
        with pytest.raises(DeployError, match=r"clock is .* the coordinator's; .*timedatectl"):
            CliRunner().invoke(cli.app, [*command, *authority], catch_exceptions=False)
    assert not list((tmp_path / "ash/logs").iterdir())


def test_no_response_of_a_gateway_is_an_error_of_the_check() -> None:
    good = {name: version(name) for name in ("layerweld", "flwr", "torch", "transformers")}
    good |= {"application": "abc", "time": time.time()}  # type: ignore[dict-item]
    odd = (
        "1'; curl x | sh; '",
        "\x1b[2J",
        "a\nb",
        "",
        "9" * 81,
        -1,
        None,
        ["1"],
        {"a": 1},
        1e999,
        -1e999,
    )
    bodies = [json.dumps(good | {name: value}) for name in good for value in odd]
    bodies += ["", "[]", "[" * 5000, "null", '{"time": 1}', '"' + "x" * 2**17, "{}", "\xff"]
    for body in bodies:
        about, theirs = checks._read_about(body.encode())
        assert about == {}, body
        assert abs(theirs - time.time()) < 60
    assert checks._read_about(json.dumps(good).encode())[0]


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n" + b"a" * 70000])
def test_a_port_that_speaks_something_else_is_named(folder: Path, said: Any) -> None:
    async def talk(_reader: Any, writer: Any) -> None:
        writer.write(said)
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(talk, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = server.sockets[0].getsockname()[1]
        found = check_coordinator(f"127.0.0.1:{port}", folder / "ca.crt")
        assert any(one.remedy for one in found)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()
