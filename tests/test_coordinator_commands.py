"""What a coordinator types: a folder that keeps its secrets, programs that are started once."""

import json
import socket
import tomllib
from pathlib import Path

import pytest

from layerweld.deploy.coordinator import open_coordinator
from layerweld.deploy.keys import make_key
from layerweld.deploy.members import add_member
from layerweld.deploy.ports import free_port
from layerweld.deploy.processes import Supervisor
from layerweld.deploy.run_account import account
from layerweld.deploy.runs import notices_in
from layerweld.errors import (
    DeployError,
    InUseError,
    LostSiteError,
)
from layerweld.runtime.run_state import recording
from tests.test_certificate_clocks import organisation
from tests.tiny_sites import TinySites
from tests.typed_commands import init_coordinator, is_private, lw


def test_a_coordinators_folder_keeps_its_secrets_to_itself(here: Path) -> None:
    assert init_coordinator().exit_code == 0
    assert is_private(here / "fed")
    secrets = {"ca.key", "server.key", "inside-ca.key", "inside.key"}
    assert all(is_private(here / "fed/certificates" / name) for name in secrets)
    assert is_private(here / "fed/superexec.secret")
    assert not list(here.glob("*.partial"))


def test_a_coordinator_that_has_no_place_for_its_folder_says_so(here: Path) -> None:
    (here / "fed.partial").symlink_to(here / "nowhere")  # no folder can have this name
    with pytest.raises(DeployError, match=r"fed cannot be created: .*File exists"):
        init_coordinator()
    (here / "fed.partial").unlink()
    init_coordinator()
    with pytest.raises(DeployError, match="fed exists already; choose another name"):
        init_coordinator()


def test_a_coordinators_programs_are_the_layout_that_survives(here: Path) -> None:
    init_coordinator()
    superlink, superexec, gateway = open_coordinator(here / "fed").programs()
    text = " ".join(superlink.command)
    assert "--isolation process" in text
    assert "--host 127.0.0.1 --port 18444" in text
    for needed in ("--enable-supernode-auth", "--database", "--superexec-auth-secret-file"):
        assert needed in text
    assert "--insecure" not in text + " ".join(superexec.command)
    assert superlink.environment["FLWR_HOME"] == str(here / "fed/flower")
    assert superlink.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert gateway.command[-1] == str(here / "fed")


def test_up_prints_flowers_commands(here: Path) -> None:
    init_coordinator()
    printed = lw("coordinator", "up", "--folder", "fed", "--print").output.splitlines()
    assert printed[0].startswith("export ")
    assert "flower-superlink --host 127.0.0.1" in printed[1]
    assert "superexec.py --runtime-api-address 127.0.0.1:18444" in printed[2]


@pytest.mark.parametrize("taken", [0, 1])
def test_a_coordinator_that_is_up_is_not_started_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    ports = free_port(), free_port()
    options = ("--port", ports[0], "--superlink-port", ports[1])
    lw("coordinator", "init", "fed", "--host", "localhost", *options)
    monkeypatch.setattr(Supervisor, "run", lambda _: pytest.fail("started again"))
    says = rf"cannot listen on .*:{ports[taken]} .*; is another program using it"
    first = socket.create_server(("127.0.0.1", ports[taken]))  # what the first `up` listens on
    with first, pytest.raises(DeployError, match=says):
        lw("coordinator", "up", "--folder", "fed")
    assert not (here / "fed/logs").exists()


def test_a_coordinator_that_is_not_up_says_how_to_bring_it_up(here: Path) -> None:
    init_coordinator()
    with pytest.raises(DeployError, match="is `layerweld coordinator up` running"):
        lw("coordinator", "status", "--folder", "fed")


def test_of_two_that_bring_a_coordinator_up_at_once_one_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_coordinator()
    monkeypatch.setattr(Supervisor, "run", lambda _: lw("coordinator", "up", "--folder", "fed"))
    with pytest.raises(InUseError, match=r"another process is using .*/fed "):
        lw("coordinator", "up", "--folder", "fed")


def test_a_node_that_a_run_cannot_name_yet_gets_the_name_of_its_key(here: Path) -> None:
    init_coordinator()
    for name, node in (("hospital-a", "12"), ("hospital-b", "123")):
        member = json.dumps({"name": name, "key": "SHA256:x", "node": node})
        (here / f"fed/sites/{name}.json").write_text(member)
    output = here / "fed/runs/first"
    output.mkdir()
    with pytest.raises(LostSiteError), recording(output):
        raise LostSiteError("node 12 failed at the handshake, and node 9 never came")
    said = "\n".join(account(open_coordinator(here / "fed")))
    assert "cause: node 12 (hospital-a) failed at the handshake, and node 9 never came" in said


def test_renewed_certificates_verify_with_the_same_authority(here: Path) -> None:
    init_coordinator()
    certificates = here / "fed/certificates"
    authority, server = (certificates / "ca.crt").read_bytes(), certificates / "server.crt"
    old = server.read_bytes()
    assert lw("coordinator", "renew", "--folder", "fed").exit_code == 0
    assert (certificates / "ca.crt").read_bytes() == authority
    assert server.read_bytes() != old


def test_an_organisations_own_certificate_is_taken(here: Path) -> None:
    assert init_coordinator(*organisation(here)).exit_code == 0
    key = here / "fed/certificates/server.key"
    assert key.read_bytes() == (here / "org.key").read_bytes()
    assert not (here / "fed/certificates/ca.key").exists()


def test_what_is_no_certificate_is_refused_and_no_folder_is_made(here: Path) -> None:
    for name in ("s.crt", "s.key", "chain.crt"):
        (here / name).write_text(name)
    own = ("--certificate", "s.crt", "--key", "s.key", "--authority", "chain.crt")
    with pytest.raises(DeployError, match="are not a certificate and its unencrypted private key"):
        init_coordinator(*own)
    assert not (here / "fed").exists()


def test_a_run_named_by_hand_is_written_out_for_flower(here: Path, sites: TinySites) -> None:
    init_coordinator("--base", sites.base)
    printed = lw("coordinator", "run", "--folder", "fed", "--name", "two", "--print").output
    assert "flwr run" in printed
    given = tomllib.loads((here / "fed/runs/two.toml").read_text())
    assert given["output"] == str(here / "fed/runs/two")
    assert given["base"] == str(sites.base)
    assert given["merge"]["granularity"] == "group"


def test_a_site_is_added_only_once(here: Path) -> None:
    init_coordinator()
    make_key(here / "ash")
    (here / "fed/sites/ash.json").write_text(json.dumps({"name": "ash", "key": "K", "node": "1"}))
    with pytest.raises(DeployError, match=r"registered already.*coordinator remove ash"):
        add_member(open_coordinator(here / "fed"), "ash", here / "ash.pub")


def test_a_runs_log_tells_for_whom_it_waits() -> None:
    log = (
        "\x1b[93mWARNING \x1b[0m:   waiting for birch at the handshake: its process died\n"
        "\x1b[92mINFO \x1b[0m:      Starting logstream\n"
        "going on without birch: it never replied\x1b[0m\n"
    )
    assert notices_in(log) == [
        "waiting for birch at the handshake: its process died",
        "going on without birch: it never replied",
    ]
