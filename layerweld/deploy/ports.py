"""TCP ports of this machine."""

from __future__ import annotations

import socket

from layerweld.errors import DeployError


def require_free(host: str, port: int) -> None:
    """Refuse a port that another program listens on.

    Raises:
        DeployError: it is taken, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeployError(
                f"cannot listen on {host}:{port} ({error.strerror}); is another program using it? "
                f"`ss -ltnp` shows which"
            ) from None


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
