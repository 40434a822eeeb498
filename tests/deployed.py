"""A federation of real processes over TLS: a coordinator, and sites that have joined it."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess, Popen
from time import monotonic, sleep
from typing import Any

import tomli_w

from tests.tiny_sites import TinySites

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LONG = 1500  # seconds; two cores that others use, too, take that long


def install_wheel(folder: Path) -> Path:
    """The wheel's content as `pip install` would lay it out, without this checkout."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site-packages")
    return folder / "site-packages"


def environment(path: Path) -> dict[Any, Any]:
    """For commands that use the layerweld found in a folder."""
    return os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(path)}


def wait_until(true: Callable[..., bool], what: str, pause: float = 3.0) -> None:
    until = monotonic() + 400
    while not true():
        assert monotonic() < until, f"not in time: {what}"
        sleep(pause)


def digest_in(output: Path) -> str:
    return hashlib.sha256((output / "manifest.json").read_bytes()).hexdigest()


def digest_in_process(sites: Any, output: Path) -> str:
    """Of the manifest that the same run makes within this process."""
    sites.run(output)
    return digest_in(output)


@dataclass(frozen=True)
class Gateway:
    """Where the coordinator is reached."""

    host: str
    bind: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def gateway_on_loopback() -> Gateway:
    """With two neighbouring ports that are free: the gateway's and the SuperLink's."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return Gateway("localhost", "127.0.0.1", port)


@dataclass
class Federation:
    """A coordinator in folder ``fed``, and sites in folders of their names.

    Attributes:
        folder: of all of them.
        sites: their models, adapters and samples.
        gateway: where the coordinator is reached.
        environment: of every command.
        inside: by folder, what to put before a command that belongs to it.
        processes: what was started and goes on, by folder.
    """

    folder: Path
    sites: TinySites
    gateway: Gateway
    environment: dict[str, str]
    inside: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def names(self) -> list[Any]:
        return [node["name"] for node in self.sites.nodes]

    def command(self, name: str, *arguments: Any) -> list[Any]:
        return [*self.inside.get(name, ()), BIN / "layerweld", *arguments]

    def lw(self, *arguments: str, folder: str = "fed", check: bool = True) -> CompletedProcess[str]:
        return subprocess.run(
            [*self.command(folder, *arguments), "--folder", self.folder / folder],
            env=self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=LONG,
        )

    def start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                [*self.command(name, *arguments), "--folder", self.folder / name],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def join(self, name: str) -> None:
        self.start(name, "site", "join", self.gateway.address)

    def run(self, name: Any, run: str = "run") -> Any:
        """``coordinator run`` or ``resume`` in the background."""
        command = ["coordinator", run, "--name", name, "--folder", self.folder / "fed"]
        return subprocess.Popen(
            self.command("fed", *command),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, run: Popen[str]) -> str:
        """What a run in the background said, once it has ended well."""
        said, _ = run.communicate(timeout=LONG)
        assert run.returncode == 0, said
        return said

    def output(self, run: str) -> Path:
        return self.folder / "fed/runs" / run

    def digest(self, run: str) -> str:
        return digest_in(self.output(run))

    def child_of(self, name: str, program: str) -> int:
        """Process that a supervisor has started last."""
        text = (self.folder / f"{name}.log").read_text()
        return int(re.findall(rf"^{program} started \(process (\d+),", text, re.MULTILINE)[-1])

    def wait_for_sites(self) -> None:
        count = len(self.names)
        wait_until(
            lambda: self.lw("coordinator", "status").stdout.count("  online  ") == count,
            f"{count} sites online",
        )

    def wait_for_steps(self, run: str, count: int = 1) -> None:
        """Until a run has solved so many steps."""
        steps = self.output(run) / "journal"
        wait_until(
            lambda: len(list(steps.glob("*/round-*.safetensors"))) >= count, f"step {count}", 0.1
        )
        assert not (self.output(run) / "manifest.json").exists()

    def registered(self) -> dict[Any, Any]:
        """Node ids by site."""
        files = (self.folder / "fed/sites").glob("*.json")
        return {file.stem: json.loads(file.read_text())["node"] for file in files}

    def init_site(self, name: str, *arguments: Any) -> None:
        subprocess.run(
            [BIN / "layerweld", "site", "init", name, *arguments],
            cwd=self.folder,
            env=self.environment,
            check=True,
            capture_output=True,
        )
        authority = self.folder / "fed/certificates/ca.crt"
        (self.folder / name / "ca.crt").write_bytes(authority.read_bytes())

    def _init_coordinator(self) -> None:
        where = (
            "--host",
            self.gateway.host,
            "--bind",
            self.gateway.bind,
            "--port",
            str(self.gateway.port),
        )
        subprocess.run(
            [BIN / "layerweld", "coordinator", "init", "fed", *where, "--base", self.sites.base],
            cwd=self.folder,
            env=self.environment,
            check=True,
            capture_output=True,
        )
        file = self.folder / "fed/run.toml"
        calibration = {"batch-size": 4, "max-length": 12, "threads": 1}
        small = {"min-sites": len(self.names), "calibration": calibration}
        file.write_text(tomli_w.dumps(tomllib.loads(file.read_text()) | small))

    def begin(self) -> None:
        """Make all folders, start everything, and wait until all sites are there."""
        self._init_coordinator()
        for node in self.sites.nodes:
            given = ("--model", self.sites.base, "--adapter", node["adapter"])
            data = ("--data", node["data"], "--settings", self.folder / "fed/run.toml")
            self.init_site(node["name"], *given, *data)
        self.start("fed", "coordinator", "up")
        wait_until(
            lambda: self.lw("coordinator", "status", check=False).returncode == 0, "SuperLink"
        )
        for name in self.names:
            self.lw("coordinator", "add", name, str(self.folder / name / f"{name}.pub"))
            self.join(name)
        self.wait_for_sites()

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            process.wait(60)


@contextmanager
def running(
    folder: Path,
    sites: TinySites,
    gateway: Gateway,
    path: Path,
    inside: dict[str, tuple[Any, ...]] | None = None,
) -> Iterator[Federation]:
    """A federation that is up; ``path`` is where its layerweld is found."""
    made = Federation(folder, sites, gateway, environment(path), inside or {})
    try:
        made.begin()
        yield made
    finally:
        made.end()
