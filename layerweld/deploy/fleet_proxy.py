"""The coordinator's gateway: forwards the calls of SuperNodes, and nothing else.

Flower serves three interfaces on one port: Fleet (for SuperNodes, which sign each call with their
key), Control (starts runs and registers keys; open to anyone who reaches it) and Runtime. So the
SuperLink listens on loopback only, and the gateway forwards the Fleet calls of registered
SuperNodes by name. Every other path gets a 404, and never reaches the SuperLink.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import httpx

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

ABOUT = "/layerweld"
FLEET_CALLS = frozenset(f"/v1/fleet/{call}" for call in (
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages",
    "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
))  # fmt: skip
LARGEST_CALL = 8 * 2**20  # bytes; Flower cuts tensors into pieces of 5 MiB
LARGEST_HEAD = 16 * 2**10  # bytes of all headers; a SuperNode's have one

_HOP_BY_HOP = frozenset({b"connection", b"host", b"keep-alive", b"transfer-encoding", b"upgrade"})
_TO_THE_SUPERLINK = (b"flwr-", b"content-type", b"content-length", b"accept", b"user-agent")


class FleetProxy:
    """The ASGI application.

    Args:
        upstream: URL of the SuperLink.
        authority: certificate file to verify the SuperLink with.
        about: what anybody may know: versions, and the hash of the application.
    """

    def __init__(self, upstream: str, authority: Path, about: dict[str, str]) -> None:
        self._about = about
        self._client = httpx.AsyncClient(
            base_url=upstream,
            verify=ssl.create_default_context(cafile=str(authority)),
            timeout=httpx.Timeout(120.0, connect=5.0),
            limits=httpx.Limits(max_connections=None),  # the gateway's own connections are counted
            trust_env=False,  # a proxy for the outside world has no business on loopback
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        asked = (scope["method"], scope["path"])
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEAD:
            await respond(send, 431, b"larger than any head of a SuperNode")
        elif asked == ("GET", ABOUT):
            body = json.dumps(self._about | {"time": time.time()}).encode()
            await respond(send, 200, body, b"application/json")
        elif asked[0] != "POST" or asked[1] not in FLEET_CALLS:
            await respond(send, 404, b"only SuperNodes are served here")
        elif (announced := _announced(scope["headers"])) > LARGEST_CALL:
            await respond(send, 413, b"larger than any call of a SuperNode")
        else:
            await self._forward(scope, announced, receive, send)

    async def _forward(self, scope: Scope, announced: int, receive: Receive, send: Send) -> None:
        headers = [(k, v) for k, v in scope["headers"] if k.lower().startswith(_TO_THE_SUPERLINK)]
        request = self._client.build_request(
            "POST", scope["path"], headers=headers, content=_body(receive, announced)
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError:
            # SuperNodes try again on 503 for as long as it takes.
            await respond(send, 503, b"the SuperLink does not respond")
            return
        try:
            kept = [(k, v) for k, v in response.headers.raw if k.lower() not in _HOP_BY_HOP]
            await send(
                {"type": "http.response.start", "status": response.status_code, "headers": kept}
            )
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except httpx.TransportError:
            return  # half a response: the server hangs up, and the SuperNode asks again
        finally:
            await response.aclose()


def _announced(headers: Headers) -> int:
    """The body's length by its header; a body without one counts as too long."""
    names = [name.lower() for name, _ in headers]
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    told = len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) < 10
    return int(lengths[0]) if told and b"transfer-encoding" not in names else LARGEST_CALL + 1


async def _body(receive: Receive, announced: int) -> AsyncIterator[bytes]:
    more, left = True, announced
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise httpx.ReadError("the SuperNode hung up")
        piece = event.get("body", b"")
        left -= len(piece)
        more = event.get("more_body", False)
        if left < 0 or (left > 0 and not more):
            raise httpx.ReadError("not the length that the SuperNode announced")
        yield piece


async def respond(send: Send, status: int, body: bytes, kind: bytes = b"text/plain") -> None:
    """Answer a request in one piece. If it was refused, do not wait for its body."""
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if status >= 400:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
