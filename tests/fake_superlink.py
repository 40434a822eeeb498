"""A stand-in for the SuperLink behind a gateway, and the certificates that both serve with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerweld.deploy.certificates import make_authority, make_server


class SuperLink:
    """Stands in for Flower's: remembers what it was asked, and echoes backwards.

    Args:
        status: HTTP status of its responses.
    """

    def __init__(self, status: int = 200) -> None:
        self._status = status
        self.asked: list[tuple[str, bytes | None]] = []  # path and signature
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event["body"], event["more_body"]
        self.asked.append((scope["path"], dict(scope["headers"]).get(b"flwr-signature")))
        self.bodies.append(body)
        start = {"status": self._status, "headers": [(b"x-reply", b"yes")]}
        await send({"type": "http.response.start"} | start)
        await send({"type": "http.response.body", "body": body[::-1]})


def write_certificates(folder: Path, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
    """Write ``ca.crt``, and ``server.crt`` and ``server.key`` for these hosts."""
    authority = make_authority("fed")
    server = make_server(authority, hosts)
    (folder / "ca.crt").write_bytes(authority.certificate_pem)
    (folder / "server.crt").write_bytes(server.certificate_pem)
    (folder / "server.key").write_bytes(server.key_pem)
