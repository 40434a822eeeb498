"""The same run in this process, in Flower's simulation, and over sockets: the same bytes."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from layerweld.runtime.app_path import app_folder
from tests.run_methods import run_methods
from tests.test_adamerging import with_heads
from tests.tiny_sites import TinySites, make_sites

pytestmark = pytest.mark.slow

_BIN = Path(sys.executable).parent
NO_INSTALLATION = "--disable-runtime-dependency-installation"
_DEADLINE = 300  # seconds; a loaded two-core machine needs about 90


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    return with_run_file(make_sites(tmp_path_factory.mktemp("sites"), ["query", "value"]))


def with_run_file(sites: TinySites) -> TinySites:
    tables = ["[[sites]]\n" + "".join(f'{k} = "{v}"\n' for k, v in n.items()) for n in sites.nodes]
    (sites.folder / "run.toml").write_text("\n".join(tables))
    return sites


@pytest.fixture(scope="module")
def in_process_manifest(sites: TinySites) -> str:
    output = sites.folder / "in-process"
    sites.run(output)
    return digest(output)


def digest(output: Path) -> str:
    return hashlib.sha256((output / "manifest.json").read_bytes()).hexdigest()


def free_port() -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[tuple[Callable[..., Popen[bytes]], Callable[..., str]]]:
    """Starts processes of Flower with a home of their own, and ends all of them afterwards."""
    started: list[Popen[bytes]] = []
    environment = os.environ | {
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }

    def start(*command: Any) -> Popen[bytes]:
        process = subprocess.Popen(
            [str(_BIN / command[0]), *command[1:]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / f"{len(started)}.log").open("w"),
            start_new_session=True,
        )
        started.append(process)
        return process

    def ask(*command: Any) -> str:
        return subprocess.run(
            [str(_BIN / "flwr"), *command, "--format", "json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout

    (tmp_path / "flwr").mkdir()
    yield start, ask
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)


def run(
    ask: Callable[..., Any],
    superlink: str,
    sites: TinySites,
    output: Path,
    *options: str,
    **entries: Any,
) -> None:
    """Run the app and wait for a final state: `flwr run` itself exits 0 whatever becomes of it."""
    settings = {
        "sites": f"'{sites.folder / 'run.toml'}'",
        "base": f"'{sites.base}'",
        "cache": f"'{output}-cache'",
        "output": f"'{output}'",
        "methods": "'chain'",
        "min-sites": 3,
        "merge.covariate-shift": "'off'",
        "merge.influence": "true",
        "calibration.samples": 0,
        "calibration.max-length": 12,
        "calibration.batch-size": 4,
        "calibration.threads": 1,
    } | entries
    config = " ".join(f"{key}={value}" for key, value in settings.items())
    ask("run", str(app_folder()), superlink, "--run-config", config, *options)
    until = time.monotonic() + _DEADLINE
    while time.monotonic() < until:
        status = json.loads(ask("list", superlink))["runs"][0]["status"]
        if status.startswith("finished"):
            assert status == "finished:completed"
            return
        time.sleep(2)
    pytest.fail(f"the run did not finish within {_DEADLINE} s")


def superlink(start: Callable[..., Any], tmp_path: Path, *options: str) -> Any:
    port = free_port()
    start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port), *options)
    (tmp_path / "flwr/config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.2)
    pytest.fail("the SuperLink does not listen")


def test_flowers_simulation_gives_the_same_manifest(
    flower: tuple[Callable[..., Popen[bytes]], Callable[..., str]],
    sites: TinySites,
    in_process_manifest: str,
    tmp_path: Path,
) -> None:
    start, ask = flower
    superlink(start, tmp_path, "--simulation", NO_INSTALLATION)
    federation = "num-supernodes=3 client-resources-num-cpus=2"
    run(ask, "here", sites, tmp_path / "out", "--federation-config", federation)
    assert digest(tmp_path / "out") == in_process_manifest


def supernodes(start: Callable[..., Any], port: int, sites: TinySites) -> None:
    for node in sites.on_their_own(sites.folder / "caches").nodes:
        node_config = " ".join(f"{key}={json.dumps(value)}" for key, value in node.items())
        own = ("--port", str(free_port()), "--node-config", node_config)
        start("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", *own)


def test_supernodes_on_loopback_give_the_same_manifest(
    flower: tuple[Callable[..., Popen[bytes]], Callable[..., str]],
    sites: TinySites,
    in_process_manifest: str,
    tmp_path: Path,
) -> None:
    start, ask = flower
    supernodes(start, superlink(start, tmp_path, NO_INSTALLATION), sites)
    run(ask, "here", sites, tmp_path / "out")
    assert digest(tmp_path / "out") == in_process_manifest


def test_coefficients_are_learnt_to_the_bit_with_a_process_per_message(
    flower: tuple[Callable[..., Popen[bytes]], Callable[..., str]], tmp_path: Path
) -> None:
    sites = with_run_file(with_heads(make_sites(tmp_path / "sites", ["query"])))
    learning = {"adamerging.rounds": 2, "prodistill.steps": 1}
    here = tmp_path / "here"
    run_methods(sites, here, "prodistill,adamerging", **learning)
    start, ask = flower
    supernodes(start, superlink(start, tmp_path, NO_INSTALLATION), sites)
    methods = {"methods": "'prodistill,adamerging'"}
    run(ask, "here", sites, tmp_path / "there", **methods, **learning)
    assert digest(tmp_path / "there") == digest(here)
    assert metrics(tmp_path / "there") == metrics(here)


def metrics(output: Path) -> list[Any]:
    return [m["metrics"] for m in json.loads((output / "results.json").read_text())["methods"]]
