"""Real SuperLinks and SuperNodes over TLS: as documented, killed, and under attack."""

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest
import tomli_w

from layerweld.deploy.application import application_hash
from layerweld.deploy.environment import flower_environment
from layerweld.launch import app_module
from tests.tiny_sites import make_sites

pytestmark = pytest.mark.deploy

_ROOT = Path(__file__).parents[1]
_BIN = Path(sys.executable).parent
_TRANSCRIPT = re.compile(r"^```bash transcript\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LONG = 1500  # seconds; two cores that others use, too, take that long


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content as `pip install` would lay it out, without this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=_ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site-packages")
    return folder / "site-packages"


def environment(path):
    return os.environ | {"PATH": f"{_BIN}:{os.environ['PATH']}", "PYTHONPATH": str(path)}


def manifest_in(output):
    return re.findall(r"^manifest +([0-9a-f]{64})$", output, re.MULTILINE)


def test_the_documented_transcript_works_as_typed_with_the_wheel(installed, tmp_path):
    transcript = "".join(_TRANSCRIPT.findall((_ROOT / "docs/deploy.md").read_text()))
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", transcript],
        cwd=tmp_path,
        env=environment(installed),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=_LONG)
        finally:
            with suppress(ProcessLookupError):  # nothing is left of a transcript that went well
                os.killpg(shell.pid, signal.SIGKILL)  # the supervisors in it take theirs along
    assert shell.returncode == 0, said
    deployed, in_process = manifest_in(said)
    assert deployed == in_process


def test_the_wheel_and_the_checkout_make_the_same_bundle(installed):
    script = "from layerweld.deploy.application import application_hash; print(application_hash())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(installed),
        cwd=installed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == application_hash()


@dataclass
class Federation:
    """A coordinator that is up, and three sites that have joined it."""

    folder: Path
    port: int
    environment: dict[str, str]
    manifest: str
    processes: dict[str, subprocess.Popen]

    def lw(self, *arguments, folder="fed", check=True):
        return subprocess.run(
            [_BIN / "layerweld", *arguments, "--folder", self.folder / folder],
            env=self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=_LONG,
        )

    def start(self, name, *arguments):
        log = (self.folder / f"{name}.log").open("w")
        command = [_BIN / "layerweld", *arguments, "--folder", self.folder / name]
        self.processes[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=subprocess.STDOUT
        )

    def run(self, name):
        command = ["coordinator", "run", "--name", name, "--folder", self.folder / "fed"]
        return subprocess.Popen(
            [_BIN / "layerweld", *command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def child_of(self, name, program):
        """Process that a supervisor has started last."""
        text = (self.folder / f"{name}.log").read_text()
        return int(re.findall(rf"^{program} started \(process (\d+),", text, re.MULTILINE)[-1])

    def digest(self, name):
        file = self.folder / "fed/runs" / name / "manifest.json"
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def wait_for_sites(self, count=3):
        wait_until(
            lambda: self.lw("coordinator", "status").stdout.count("  online  ") == count,
            f"{count} sites online",
        )


def wait_until(true, what, pause=3.0):
    until = monotonic() + 400
    while not true():
        assert monotonic() < until, f"not in time: {what}"
        sleep(pause)


def free_pair():
    """Two neighbouring ports: the door's and the SuperLink's."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@pytest.fixture(scope="module")
def federation(installed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    sites = make_sites(folder / "given", ["query", "value", "attention.output.dense"])
    settings = sites.settings()
    output = folder / "in-process"
    app_module("server.run").play(sites.grid(settings), settings, str(sites.base), output)
    manifest = hashlib.sha256((output / "manifest.json").read_bytes()).hexdigest()

    made = Federation(folder, free_pair(), environment(installed), manifest, {})
    type_in = {"cwd": folder, "env": made.environment, "check": True, "capture_output": True}
    lw = _BIN / "layerweld"
    where = ("--host", "localhost", "--bind", "127.0.0.1", "--port", str(made.port))
    base = ("--base", str(sites.base))
    subprocess.run([lw, "coordinator", "init", "fed", *where, *base], **type_in)
    run_file = folder / "fed/run.toml"
    small = {"min-sites": 3, "calibration": {"batch-size": 4, "max-length": 12, "threads": 1}}
    run_file.write_text(tomli_w.dumps(tomllib.loads(run_file.read_text()) | small))
    for node in sites.nodes:
        given = ("--model", str(sites.base), "--adapter", node["adapter"], "--data", node["data"])
        checked = ("--settings", str(run_file))
        subprocess.run([lw, "site", "init", node["name"], *given, *checked], **type_in)
        (folder / node["name"] / "ca.crt").write_bytes(
            (folder / "fed/certificates/ca.crt").read_bytes()
        )
    try:
        made.start("fed", "coordinator", "up")
        wait_until(
            lambda: made.lw("coordinator", "status", check=False).returncode == 0, "SuperLink"
        )
        for node in sites.nodes:
            name = node["name"]
            made.lw("coordinator", "add", name, str(folder / name / f"{name}.pub"))
            made.start(name, "site", "join", f"localhost:{made.port}")
        made.wait_for_sites()
        yield made
    finally:
        for process in made.processes.values():
            process.terminate()
        for process in made.processes.values():
            process.wait(60)


def kill_after_a_step(federation, run, supervisor, program):
    """SIGKILL a program once a run's first step of four is solved."""
    output = federation.folder / "fed/runs" / run
    wait_until(lambda: list(output.glob("journal/*/step-*.safetensors")), "the first step", 0.1)
    os.kill(federation.child_of(supervisor, program), signal.SIGKILL)
    assert not (output / "manifest.json").exists()


def test_a_run_survives_a_killed_superlink(federation):
    with federation.run("superlink-killed") as run:
        kill_after_a_step(federation, "superlink-killed", "fed", "superlink")
        said, _ = run.communicate(timeout=_LONG)
    assert run.returncode == 0, said
    assert federation.digest("superlink-killed") == federation.manifest


def test_a_killed_site_comes_back_as_itself_and_the_run_ends_in_the_same_bytes(federation):
    nodes = {file.stem: json.loads(file.read_text())["node"] for file in sites_of(federation)}
    with federation.run("site-killed") as run:
        kill_after_a_step(federation, "site-killed", "birch", "supernode")
        said, _ = run.communicate(timeout=_LONG)
    federation.wait_for_sites()
    assert {f.stem: json.loads(f.read_text())["node"] for f in sites_of(federation)} == nodes
    if run.returncode:  # a run that does not wait for a lost site fails in one line, and resumes
        assert "layerweld coordinator resume --name site-killed" in said
        federation.lw("coordinator", "resume", "--name", "site-killed")
    assert federation.digest("site-killed") == federation.manifest


def sites_of(federation):
    return sorted((federation.folder / "fed/sites").glob("*.json"))


def test_a_site_refuses_another_application_before_unpacking_it(federation, tmp_path):
    for name in ("layerweld", "client", "server", "strategies"):
        (tmp_path / "app" / name).mkdir(parents=True)
        for file in (_ROOT / name).glob("**/*.py"):
            copy = tmp_path / "app" / file.relative_to(_ROOT)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "app" / name).write_bytes((_ROOT / name).read_bytes())
    with (tmp_path / "app/client/app.py").open("a") as app:
        app.write(f"open({str(tmp_path / 'executed')!r}, 'w')\n")

    federation.lw("coordinator", "run", "--name", "foreign", "--print")  # writes its settings
    run_file = federation.folder / "fed/runs/foreign.toml"
    home = federation.folder / "fed/flower"
    subprocess.run(
        [_BIN / "flwr", "run", tmp_path / "app", "here", "--run-config", run_file],
        env=flower_environment(home),
        check=True,
        capture_output=True,
    )
    wait_until(
        lambda: "ForeignApplicationError" in federation.lw("coordinator", "status").stdout,
        "a refusal as the run's final state",
    )
    assert not (tmp_path / "executed").exists()
    pinned = application_hash()[:8]
    for site in ("ash", "birch", "cedar"):
        unpacked = (federation.folder / site / "flower/apps").glob("*")
        assert all(app.name.endswith(pinned) for app in unpacked)


def test_runs_cannot_be_started_through_the_door(federation, tmp_path):
    door = {
        "address": f"localhost:{federation.port}",
        "root-certificates": str(federation.folder / "fed/certificates/ca.crt"),
    }
    connections = {"superlink": {"default": "door", "door": door}}
    (tmp_path / "config.toml").write_text(tomli_w.dumps(connections))
    done = subprocess.run(
        [_BIN / "flwr", "list", "door"],
        env=flower_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "404" in done.stdout + done.stderr


def test_an_unregistered_key_does_not_get_in(federation):
    given = federation.folder / "given"
    subprocess.run(
        [
            *(_BIN / "layerweld", "site", "init", "stranger", "--model", given / "base"),
            *("--adapter", given / "ash", "--data", given / "ash.jsonl"),
        ],
        cwd=federation.folder,
        env=federation.environment,
        check=True,
        capture_output=True,
    )
    authority = federation.folder / "fed/certificates/ca.crt"
    (federation.folder / "stranger/ca.crt").write_bytes(authority.read_bytes())
    federation.start("stranger", "site", "join", f"localhost:{federation.port}")
    log = federation.folder / "stranger.log"
    wait_until(lambda: "it is not registered (yet)" in log.read_text(), "a refusal")
    federation.processes.pop("stranger").terminate()
    assert "stranger" not in federation.lw("coordinator", "status").stdout
