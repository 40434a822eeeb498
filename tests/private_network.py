"""Machines on a private network: namespaces joined by a bridge, whose links can be cut and slowed.

A link is cut at the bridge: packets vanish, and neither side is told. The kernel's own emulator
(netem) is often not built in, so a slow link is a program that carries frames, :mod:`slow_link`.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SLOW_LINK = Path(__file__).with_name("slow_link.py")
_FORWARDING, _DISABLED = "3", "0"  # states of a port of a bridge


class PrivateNetwork:
    """One namespace for each name, with an address each; ``hub`` holds the bridge.

    Args:
        names: of the machines; at most six letters.
    """

    def __init__(self, names: list[Any]) -> None:
        self._prefix = f"lw{os.getpid()}"
        self._carriers: dict[Any, Any] = {}
        self.addresses = {name: f"10.77.0.{i}" for i, name in enumerate(names, start=1)}

    def build(self) -> None:
        self._add_namespace("hub")
        self._hub("ip link add dev bridge0 type bridge")
        self._hub("ip link set dev bridge0 up")
        for name, address in self.addresses.items():
            self._add_namespace(name)
            self._hub(f"ip link add dev to-{name} type veth peer name eth0 netns {self._ns(name)}")
            self._hub(f"ip link set dev to-{name} master bridge0 up")
            self._on(name, f"ip addr add {address}/24 dev eth0")
            self._on(name, "ip link set dev eth0 up")

    def inside(self, name: str) -> tuple[Any, ...]:
        """What to put before a command line, so that it runs on that machine."""
        return ("ip", "netns", "exec", self._ns(name))

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Let no packet of a machine pass."""
        self._hub(f"bridge link set dev to-{name} state {_DISABLED}")
        try:
            yield
        finally:
            self._hub(f"bridge link set dev to-{name} state {_FORWARDING}")

    @contextmanager
    def slow(self, name: str, delay: float, loss: float, rate: int) -> Iterator[None]:
        """Carry a machine's packets late by so many seconds, and lose this share of them.

        Each way so many bytes a second pass.
        """
        self._hub(f"ip link add dev mid-{name} type veth peer name far-{name}")
        self._hub(f"ip link set dev mid-{name} up")
        self._hub(f"ip link set dev far-{name} master bridge0 up")
        self._hub(f"ip link set dev to-{name} nomaster")
        command = [*self.inside("hub"), sys.executable, _SLOW_LINK, f"to-{name}", f"mid-{name}"]
        command += [str(delay), str(loss), str(rate)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as carrier:
            try:
                assert carrier.stdout
                assert carrier.stdout.readline() == b"carrying\n"
                yield
            finally:
                carrier.kill()
                self._hub(f"ip link set dev to-{name} master bridge0")
                self._hub(f"ip link del mid-{name}")

    def remove(self) -> None:
        """Delete the namespaces, and end what still runs in them."""
        for name in ("hub", *self.addresses):
            with suppress(OSError):  # one that was never made
                for pid in _do(f"ip netns pids {self._ns(name)}".split()).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _do(f"ip netns del {self._ns(name)}".split())

    def _ns(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _add_namespace(self, name: str) -> None:
        _do(f"ip netns add {self._ns(name)}".split())
        self._on(name, "ip link set lo up")

    def _hub(self, command: str) -> None:
        self._on("hub", command)

    def _on(self, name: str, command: str) -> None:
        _do([*self.inside(name), *command.split()])


def _do(command: list[Any]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def private_network(names: list[Any]) -> Iterator[PrivateNetwork]:
    """A network that is gone afterwards.

    Raises:
        OSError: there is no `ip`, or namespaces are not permitted.
    """
    network = PrivateNetwork(names)
    try:
        network.build()
        yield network
    finally:
        network.remove()
