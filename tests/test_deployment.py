"""Real SuperLinks and SuperNodes over TLS: as documented, killed, and under attack."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from layerweld.deploy.application import application_hash
from layerweld.deploy.environment import flower_environment
from layerweld.errors import RunFailedError
from tests.deployed import (
    BIN,
    LONG,
    ROOT,
    Federation,
    digest_in_process,
    environment,
    gateway_on_loopback,
    install_wheel,
    running,
    wait_until,
)
from tests.tiny_sites import make_sites

pytestmark = pytest.mark.deploy

_TRANSCRIPT = re.compile(r"^```bash transcript\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SAID = re.compile(r"^```text said\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_wheel(tmp_path_factory.mktemp("wheel"))


def manifest_in(output: str) -> list[Any]:
    return re.findall(r"^manifest +([0-9a-f]{64})$", output, re.MULTILINE)


def test_the_documented_transcript_works_as_typed_with_the_wheel(
    installed: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    transcript = "".join(_TRANSCRIPT.findall(page))
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
            said, _ = shell.communicate(timeout=LONG)
        finally:
            with suppress(ProcessLookupError):  # nothing is left of a transcript that went well
                os.killpg(shell.pid, signal.SIGKILL)  # the supervisors in it take theirs along
    assert shell.returncode == 0, said
    deployed, in_process = manifest_in(said)
    assert deployed == in_process
    assert all(shown in said for shown in _SAID.findall(page))


def test_the_wheel_and_the_checkout_make_the_same_bundle(installed: Path) -> None:
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


@pytest.fixture(scope="module")
def federation(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    sites = make_sites(folder / "given", ["query", "value", "attention.output.dense"])
    with running(folder, sites, gateway_on_loopback(), installed) as made:
        yield made


@pytest.fixture(scope="module")
def manifest(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same run within one process."""
    return digest_in_process(federation.sites, tmp_path_factory.mktemp("in-process") / "output")


def kill_after_a_step(federation: Federation, run: str, supervisor: str, program: str) -> None:
    """SIGKILL a program once a run's first step of four is solved."""
    federation.wait_for_steps(run)
    os.kill(federation.child_of(supervisor, program), signal.SIGKILL)


def test_a_run_survives_a_killed_superlink(federation: Federation, manifest: str) -> None:
    with federation.run("superlink-killed") as run:
        kill_after_a_step(federation, "superlink-killed", "fed", "superlink")
        federation.finish(run)
    assert federation.digest("superlink-killed") == manifest


def test_a_run_whose_server_is_killed_fails_with_the_next_command_which_ends_in_the_same_bytes(
    federation: Federation, manifest: str
) -> None:
    with federation.run("server-killed") as run:
        federation.wait_for_steps("server-killed")
        os.killpg(federation.child_of("fed", "superexec"), signal.SIGKILL)
        said, _ = run.communicate(timeout=LONG)
    assert run.returncode == RunFailedError.exit_code, said
    assert "layerweld coordinator resume --name server-killed" in said
    federation.lw("coordinator", "resume", "--name", "server-killed")
    assert federation.digest("server-killed") == manifest


def test_a_killed_site_comes_back_as_itself_and_the_run_ends_in_the_same_bytes(
    federation: Federation, manifest: str
) -> None:
    nodes = federation.registered()
    with federation.run("site-killed") as run:
        kill_after_a_step(federation, "site-killed", "birch", "supernode")
        said, _ = run.communicate(timeout=LONG)
    federation.wait_for_sites()
    assert federation.registered() == nodes
    if run.returncode:  # a run that does not wait for a lost site fails in one line, and resumes
        assert "layerweld coordinator resume --name site-killed" in said
        federation.lw("coordinator", "resume", "--name", "site-killed")
    assert federation.digest("site-killed") == manifest


def test_a_site_refuses_another_application_before_unpacking_it(
    federation: Federation, tmp_path: Path
) -> None:
    for name in ("layerweld", "client", "server", "strategies"):
        (tmp_path / "app" / name).mkdir(parents=True)
        for file in (ROOT / name).glob("**/*.py"):
            copy = tmp_path / "app" / file.relative_to(ROOT)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "app" / name).write_bytes((ROOT / name).read_bytes())
    with (tmp_path / "app/client/app.py").open("a") as app:
        app.write(f"open({str(tmp_path / 'executed')!r}, 'w')\n")

    federation.lw("coordinator", "run", "--name", "foreign", "--print")  # writes its settings
    run_file = federation.folder / "fed/runs/foreign.toml"
    home = federation.folder / "fed/flower"
    subprocess.run(
        [BIN / "flwr", "run", tmp_path / "app", "here", "--run-config", run_file],
        env=flower_environment(home),
        check=True,
        capture_output=True,
    )
    wait_until(
        lambda: "has another one installed" in federation.lw("coordinator", "status").stdout,
        "a refusal as the run's final state",
    )
    assert not (tmp_path / "executed").exists()
    for site in ("ash", "birch", "cedar"):
        assert "it stays unopened" in (federation.folder / site / "logs/supernode.log").read_text()


def test_one_site_cannot_instruct_another_through_the_door(federation: Federation) -> None:
    node = federation.sites.nodes[0]
    given = ("--model", federation.sites.base, "--adapter", node["adapter"], "--data", node["data"])
    federation.init_site("mallory", *given)
    folder = federation.folder / "mallory"
    federation.lw("coordinator", "add", "mallory", str(folder / "mallory.pub"))
    nodes = federation.registered()
    try:
        for victim in ("ash", "birch", "cedar"):
            forged = push_in_the_coordinators_name(int(nodes["mallory"]), int(nodes[victim]))
            key = load_ssh_private_key((folder / "mallory").read_bytes(), None)
            assert isinstance(key, EllipticCurvePrivateKey)
            with FleetHttpClient.from_server_address(
                federation.gateway.address,
                insecure=False,
                root_certificates=(folder / "ca.crt").read_bytes(),
                interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
            ) as gateway:
                with pytest.raises(httpx.HTTPStatusError, match="403"):
                    gateway.PushMessages(forged)
                with pytest.raises(httpx.HTTPStatusError, match="401"):
                    gateway.PullMessages(PullMessagesRequest(node=Node(node_id=int(nodes[victim]))))
    finally:
        federation.lw("coordinator", "remove", "mallory")


def push_in_the_coordinators_name(caller: int, victim: int) -> PushMessagesRequest:
    """A call of one node's with an instruction for another."""
    request = PushMessagesRequest(node=Node(node_id=caller))
    message = request.messages_list.add()
    message.content.SetInParent()
    about = message.metadata
    about.src_node_id, about.dst_node_id, about.message_id = 1, victim, "0" * 64
    request.message_object_trees.add(object_id="0" * 64)
    return request


def test_runs_cannot_be_started_through_the_door(federation: Federation, tmp_path: Path) -> None:
    gateway = {
        "address": federation.gateway.address,
        "root-certificates": str(federation.folder / "fed/certificates/ca.crt"),
    }
    connections = {"superlink": {"default": "gateway", "gateway": gateway}}
    (tmp_path / "config.toml").write_text(tomli_w.dumps(connections))
    done = subprocess.run(
        [BIN / "flwr", "list", "gateway"],
        env=flower_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "404" in done.stdout + done.stderr


def test_an_unregistered_key_does_not_get_in(federation: Federation) -> None:
    node = federation.sites.nodes[0]
    given = ("--model", federation.sites.base, "--adapter", node["adapter"], "--data", node["data"])
    federation.init_site("stranger", *given)
    federation.join("stranger")
    log = federation.folder / "stranger.log"
    wait_until(lambda: "it is not registered (yet)" in log.read_text(), "a refusal")
    federation.processes.pop("stranger").terminate()
    assert "stranger" not in federation.lw("coordinator", "status").stdout


@pytest.mark.skipif(not shutil.which("faketime"), reason="there is no `faketime` here")
@pytest.mark.parametrize("skew", ["+400s", "-400s"])
def test_a_site_whose_clock_is_off_does_not_join_and_says_why(
    federation: Federation, skew: Any
) -> None:
    federation.inside["cedar"] = ("faketime", "-f", skew)
    try:
        join = ("site", "join", federation.gateway.address)
        done = federation.lw(*join, folder="cedar", check=False)
    finally:
        del federation.inside["cedar"]
    assert done.returncode == 14
    assert re.search(r"clock is \d{3}\.\d s .* `timedatectl set-ntp 1`", done.stderr)
