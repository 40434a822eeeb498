"""The gateway as it listens: who gets in, how many, and for how long."""

import asyncio
import base64
import datetime
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from layerweld.deploy import callers, connections
from layerweld.deploy.callers import RegisteredOnly
from layerweld.deploy.connections import Connections, Listener
from layerweld.deploy.fleet_proxy import FLEET_CALLS, FleetProxy
from layerweld.deploy.gateway import serve
from layerweld.deploy.keys import make_key
from layerweld.deploy.ports import free_port
from tests.fake_superlink import SuperLink, write_certificates

_ORDER = int(  # of P-384's group
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gateway")
    write_certificates(folder)
    (folder / "sites").mkdir()
    for name in ("ash", "stranger"):
        make_key(folder / name)
    (folder / "sites/ash.pub").write_bytes((folder / "ash.pub").read_bytes())
    return folder


def signed(folder: Path, name: str = "ash", seconds: float = 0.0, **changed: Any) -> dict[Any, Any]:
    """Headers as a SuperNode makes them."""
    key = load_ssh_private_key((folder / name).read_bytes(), None)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    stamp = now.isoformat()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(stamp.encode(), ec.ECDSA(SHA256()))
    headers = {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode(),
    }
    return headers | changed


@contextmanager
def listening(app: SuperLink | RegisteredOnly, folder: Path) -> Iterator[tuple[Any, ...]]:
    """The port of an application that is served as the gateway is."""
    counted = Connections()
    listener = Listener("127.0.0.1", 0, counted)
    loop = asyncio.new_event_loop()
    serving = loop.create_task(serve(app, listener, counted, folder))
    errors = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([serving])))
    thread.start()
    try:
        yield listener.getsockname()[1], counted
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()
        loop.close()
    assert not errors


@pytest.fixture(scope="module")
def superlink(folder: Path) -> Iterator[tuple[Any, ...]]:
    behind = SuperLink()
    with listening(behind, folder) as (port, _):
        yield behind, port


@pytest.fixture
def gateway(folder: Path, superlink: Any) -> Iterator[tuple[Any, ...]]:
    proxy = FleetProxy(
        f"https://127.0.0.1:{superlink[1]}", folder / "ca.crt", {"application": "abc"}
    )
    with listening(RegisteredOnly(proxy, folder / "sites"), folder) as (port, counted):
        yield port, counted


def ask(
    folder: Path,
    port: int,
    headers: dict[Any, Any],
    path: str = PULL,
    body: bytes = b"asked",
    method: str = "POST",
) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_registered_site_gets_through(
    folder: Path, superlink: Any, gateway: tuple[Any, ...]
) -> None:
    assert ask(folder, gateway[0], signed(folder)) == (200, b"deksa")
    assert superlink[0].bodies[-1] == b"asked"


def test_a_signature_is_good_for_one_call(
    folder: Path, superlink: Any, gateway: tuple[Any, ...]
) -> None:
    headers = signed(folder)
    assert ask(folder, gateway[0], headers)[0] == 200
    before = len(superlink[0].bodies)
    r, s = decode_dss_signature(base64.b64decode(headers["flwr-signature"]))
    turned = base64.b64encode(encode_dss_signature(r, _ORDER - s)).decode()
    for replayed in (headers, headers | {"flwr-signature": turned}):
        for path in FLEET_CALLS:
            assert ask(folder, gateway[0], replayed, path)[0] == 401
    assert len(superlink[0].bodies) == before


def test_a_key_that_is_not_registered_gets_nothing_through(
    folder: Path, superlink: Any, gateway: tuple[Any, ...]
) -> None:
    before = len(superlink[0].bodies)
    for path in FLEET_CALLS:
        expected = 412 if path.endswith("/activate-node") else 401
        for headers in (signed(folder, "stranger"), {}):
            assert ask(folder, gateway[0], headers, path)[0] == expected
    assert len(superlink[0].bodies) == before


def test_a_site_that_was_removed_gets_nothing_through(
    folder: Path, gateway: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "_LOOK", 0.0)
    file = folder / "sites/ash.pub"
    content = file.read_bytes()
    assert ask(folder, gateway[0], signed(folder))[0] == 200
    file.unlink()
    time.sleep(1.1)
    assert ask(folder, gateway[0], signed(folder))[0] == 401
    file.write_bytes(content)
    assert ask(folder, gateway[0], signed(folder))[0] == 200


def wrong_headers(folder: Path, draw: random.Random) -> dict[Any, Any]:
    """Headers of a registered site with something wrong."""
    good, other = signed(folder), signed(folder, "stranger")
    name = draw.choice(list(good))
    value = bytearray(good[name].encode())
    value[draw.randrange(len(value))] ^= 1 << draw.randrange(7)
    letters = value.decode("latin-1").translate({10: 65, 13: 65})
    return draw.choice(
        (
            good | {name: letters.strip()},
            good | {name: other[name]},
            good | {name: ""},
            {key: value for key, value in good.items() if key != name},
            signed(folder, seconds=draw.choice((-306, 6, -1e6, 1e9))),
            good
            | {"flwr-timestamp": draw.choice(("0001-01-01", "9999-12-31T23:59:59+00:00", "1"))},
            good | {"flwr-timestamp": "2026-01-01T00:00:00"},
            good | {name: "A" * draw.choice((1025, 9000))},
        )
    )


def test_no_wrong_header_gets_through(
    folder: Path, superlink: Any, gateway: tuple[Any, ...]
) -> None:
    draw = random.Random(0)
    before = len(superlink[0].bodies)
    for _ in range(150):
        headers = wrong_headers(folder, draw)
        status, _ = ask(folder, gateway[0], headers)
        assert status in (400, 401), headers
    assert len(superlink[0].bodies) == before


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: " + "9" * 5000,
        "Content-Length: " + "9" * 20000,
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: \u00b2",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: x",
        "Expect: 200-ok\r\nContent-Length: 67108865",
        "Upgrade: websocket\r\nConnection: Upgrade",
        "X: " + "x" * 17000,
        "\r\n".join(f"X{i}: x" for i in range(3000)),
    ],
)
def test_no_head_is_an_error_of_the_gateway(
    folder: Path,
    superlink: Any,
    gateway: tuple[Any, ...],
    head: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = len(superlink[0].bodies)
    own = "\r\n".join(f"{name}: {value}" for name, value in signed(folder).items())
    asked = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n{own}\r\n{head}\r\n\r\n5\r\nasked\r\n0\r\n\r\n"
    with connected(folder, gateway[0]) as connection:
        connection.sendall(asked.encode("latin-1"))
        said = connection.recv(4096)
    assert said[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 431"}, said
    assert len(superlink[0].bodies) == before
    assert "Traceback" not in capsys.readouterr().err


@contextmanager
def connected(folder: Path, port: int) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        yield connection


def half_open(folder: Path, port: int, draw: random.Random) -> socket.socket:
    """A connection that goes no further than this."""
    plain = socket.create_connection(("127.0.0.1", port), 20)
    plain.settimeout(20)
    kind = draw.randrange(4)
    if kind == 0:
        return plain
    if kind == 1:
        plain.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS that has begun
        return plain
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    secure = context.wrap_socket(plain, server_hostname="127.0.0.1")
    if kind == 2:
        secure.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    return secure


def takes(connection: ssl.SSLSocket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except (ConnectionError, ssl.SSLError):
        return False
    return True


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True
    except TimeoutError:
        return False


def test_three_hundred_half_open_calls_keep_nobody_out_and_are_ended(
    folder: Path, gateway: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 4.0)
    draw = random.Random(0)
    held = []
    for number in range(300):
        held.append(half_open(folder, gateway[0], draw))
        assert len(gateway[1]) <= connections.MOST_FROM_ONE_PLACE
        if number % 50 == 49:
            began = time.monotonic()
            assert ask(folder, gateway[0], signed(folder))[0] == 200
            assert time.monotonic() - began < 3
    last = time.monotonic()
    assert all(map(is_closed, held))
    assert time.monotonic() - last < 4.0 + 4.0
    assert ask(folder, gateway[0], signed(folder))[0] == 200
    for connection in held:
        connection.close()


def test_one_byte_at_a_time_is_ended_at_the_deadline(
    folder: Path, gateway: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)
    monkeypatch.setattr(connections, "CALL_SECONDS", 2.0)
    whole = "\r\n".join(f"{name}: {value}" for name, value in signed(folder).items())
    head = f"POST {PULL} HTTP/1.1\r\nHost: x\r\n{whole}\r\nContent-Length: 100000\r\n\r\n"
    for begin in (head[:10], head):
        with connected(folder, gateway[0]) as connection:
            connection.sendall(begin.encode())
            began = time.monotonic()
            while time.monotonic() - began < 10 and takes(connection, b"x"):
                time.sleep(0.05)
            assert time.monotonic() - began < 6


def test_a_connection_that_asks_nothing_more_is_ended(
    folder: Path, gateway: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 1.0)
    with connected(folder, gateway[0]) as connection:
        connection.sendall(b"GET /layerweld HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        connection.sendall(b"GET /layer")
        connection.settimeout(10)
        while not is_closed(connection):
            pass
        assert time.monotonic() - began < 5


def odd_scope(folder: Path, draw: random.Random) -> dict[Any, Any]:
    """A request as no SuperNode would make it."""
    names = [b"flwr-public-key", b"flwr-timestamp", b"flwr-signature", b"content-length", b"x",
             b"transfer-encoding", b"content-type", b"Content-Length", b"\xff"]  # fmt: skip
    good = [(name.encode(), value.encode()) for name, value in signed(folder).items()]
    odd = [
        (draw.choice(names), draw.randbytes(draw.randrange(40))) for _ in range(draw.randrange(9))
    ]
    if draw.random() < 0.5:
        odd.append((b"content-length", b"9" * draw.randrange(6000)))
    return {
        "type": draw.choice(("http",) * 8 + ("websocket", "lifespan", "x")),
        "method": draw.choice(("POST",) * 6 + ("GET", "", "\u00ff", "post")),
        "path": draw.choice(
            (*FLEET_CALLS, "/layerweld", "/", "", "/v1/control/start-run", "\ufffd")
        ),
        "headers": draw.sample(good, draw.randrange(4))
        + odd
        + (good if draw.random() < 0.3 else []),
    }


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 3000), pytest.param(1, 20_000, marks=pytest.mark.slow)]
)
def test_no_request_is_an_error_of_the_application(folder: Path, seed: int, count: int) -> None:
    draw = random.Random(seed)
    proxy = FleetProxy(
        f"https://127.0.0.1:{free_port()}", folder / "ca.crt", {"application": "abc"}
    )
    app = RegisteredOnly(proxy, folder / "sites")

    async def run(scope: dict[Any, Any]) -> Any:
        said = []

        async def receive() -> dict[Any, Any]:
            if draw.random() < 0.2:
                return {"type": "http.disconnect"}
            return {
                "type": "http.request",
                "body": b"x" * draw.randrange(9),
                "more_body": draw.random() < 0.5,
            }

        async def send(event: Any) -> None:
            said.append(event.get("status"))

        await app(scope, receive, send)
        return said[0] if said else None

    async def main() -> set[Any]:
        return {await run(odd_scope(folder, draw)) for _ in range(count)}

    statuses = asyncio.run(main())
    assert statuses <= {None, 200, 401, 404, 412, 413, 431, 503}
    assert {200, 401, 404, 413} <= statuses
