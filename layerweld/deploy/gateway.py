"""Serve the coordinator's gateway: ``python -P -m layerweld.deploy.gateway FOLDER``."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from layerweld import __version__
from layerweld.deploy.application import application_hash
from layerweld.deploy.callers import RegisteredOnly
from layerweld.deploy.connections import HEAD_SECONDS, IDLE_SECONDS, MOST, Connections, Listener
from layerweld.deploy.coordinator import open_coordinator
from layerweld.deploy.fleet_proxy import LARGEST_HEAD, App, FleetProxy

_LOOK = 1.0  # seconds between looks for connections past their deadline
_GOODBYE = 5.0  # seconds for the end of TLS


class _CountedProtocol(H11Protocol):
    """HTTP that says when a call begins and ends."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config, ServerState(), {})
        self._counted = connections

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._counted.begin_call(self._peer())

    def on_response_complete(self) -> None:
        self._counted.end_call(self._peer())
        super().on_response_complete()

    def _peer(self) -> Any:
        return self.transport.get_extra_info("peername")


async def serve(app: App, listener: Listener, connections: Connections, folder: Path) -> None:
    """Serve an application over TLS until cancelled.

    Args:
        app: ASGI.
        listener: is listening already.
        connections: those of the listener.
        folder: with ``server.crt`` and ``server.key``.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_level="error",
        server_header=False,
        timeout_keep_alive=int(IDLE_SECONDS),
        h11_max_incomplete_event_size=LARGEST_HEAD,
        ssl_certfile=str(folder / "server.crt"),
        ssl_keyfile=str(folder / "server.key"),
    )
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: _CountedProtocol(config, connections),
        sock=listener,
        backlog=MOST,
        ssl=config.ssl,
        ssl_handshake_timeout=HEAD_SECONDS,
        ssl_shutdown_timeout=_GOODBYE,
    )
    async with server:
        while True:
            await asyncio.sleep(_LOOK)
            connections.close_overdue()


async def _until_sigterm(serving: asyncio.Task[None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _main(folder: Path) -> None:
    coordinator = open_coordinator(folder)
    about = {
        "application": application_hash(),
        "layerweld": __version__,
        "flwr": version("flwr"),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    proxy = FleetProxy(f"https://{coordinator.superlink}", coordinator.inside_authority, about)
    connections = Connections()
    listener = Listener(coordinator.file.bind, coordinator.file.port, connections)
    app = RegisteredOnly(proxy, coordinator.sites)
    certificates = coordinator.folder / "certificates"
    await _until_sigterm(asyncio.create_task(serve(app, listener, connections, certificates)))


def main(folder: Path) -> None:
    """Serve until SIGTERM."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each call is two connections
    asyncio.run(_main(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
