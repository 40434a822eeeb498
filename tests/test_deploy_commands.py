"""What coordinators and sites type: folders that are whole or absent, and one line when wrong."""

import configparser
import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.site import site_of_node
from layerweld import cli
from layerweld.config import RunSettings
from layerweld.deploy.checks import Check, check_coordinator, clock, versions
from layerweld.deploy.coordinator import open_coordinator
from layerweld.deploy.keys import make_key
from layerweld.deploy.members import add_member
from layerweld.deploy.ports import free_port
from layerweld.deploy.processes import Supervisor
from layerweld.deploy.run_account import account
from layerweld.deploy.runs import notices_in
from layerweld.deploy.site import explain_end, is_joined, joined, node_config, open_site
from layerweld.errors import (
    CohortError,
    DataError,
    DeployError,
    InUseError,
    LayerweldError,
    LostSiteError,
)
from layerweld.run_state import recording
from tests.tiny_sites import make_sites

runner = CliRunner()


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("sites"), ["query", "value"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lw(*arguments):
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def init_coordinator(*options):
    return lw("coordinator", "init", "fed", "--host", "localhost", "--port", 18443, *options)


def things_of(sites):
    node = sites.nodes[0]
    return ("--model", sites.base, "--adapter", node["adapter"], "--data", node["data"])


def init_site(sites, *options):
    return lw("site", "init", "hospital-a", *(options or things_of(sites)))


def is_private(file):
    return file.stat().st_mode & 0o077 == 0


def test_a_coordinators_folder_keeps_its_secrets_to_itself(here):
    assert init_coordinator().exit_code == 0
    assert is_private(here / "fed")
    secrets = {"ca.key", "server.key", "inside-ca.key", "inside.key"}
    assert all(is_private(here / "fed/certificates" / name) for name in secrets)
    assert is_private(here / "fed/superexec.secret")
    assert not list(here.glob("*.partial"))


def test_a_coordinators_programs_are_the_layout_that_survives(here):
    init_coordinator()
    superlink, superexec, door = open_coordinator(here / "fed").programs()
    text = " ".join(superlink.command)
    assert "--isolation process" in text
    assert "--host 127.0.0.1 --port 18444" in text
    for needed in ("--enable-supernode-auth", "--database", "--superexec-auth-secret-file"):
        assert needed in text
    assert "--insecure" not in text + " ".join(superexec.command)
    assert superlink.environment["FLWR_HOME"] == str(here / "fed/flower")
    assert superlink.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert door.command[-1] == str(here / "fed")


def test_up_prints_flowers_commands(here):
    init_coordinator()
    printed = lw("coordinator", "up", "--folder", "fed", "--print").output.splitlines()
    assert printed[0].startswith("export ")
    assert "flower-superlink --host 127.0.0.1" in printed[1]
    assert "flower-superexec --runtime-api-address 127.0.0.1:18444" in printed[2]


@pytest.mark.parametrize("taken", [0, 1])
def test_a_coordinator_that_is_up_is_not_started_again(here, monkeypatch, taken):
    ports = free_port(), free_port()
    options = ("--port", ports[0], "--superlink-port", ports[1])
    lw("coordinator", "init", "fed", "--host", "localhost", *options)
    monkeypatch.setattr(Supervisor, "run", lambda _: pytest.fail("started again"))
    says = rf":{ports[taken]} cannot be listened on .*; is another one running"
    first = socket.create_server(("127.0.0.1", ports[taken]))  # what the first `up` listens on
    with first, pytest.raises(DeployError, match=says):
        lw("coordinator", "up", "--folder", "fed")
    assert not (here / "fed/logs").exists()


def test_a_coordinator_that_is_not_up_says_how_to_bring_it_up(here):
    init_coordinator()
    with pytest.raises(DeployError, match="is `layerweld coordinator up` running"):
        lw("coordinator", "status", "--folder", "fed")


def test_of_two_that_bring_a_coordinator_up_at_once_one_is_refused(here, monkeypatch):
    init_coordinator()
    monkeypatch.setattr(Supervisor, "run", lambda _: lw("coordinator", "up", "--folder", "fed"))
    with pytest.raises(InUseError, match=r"another process works in .*/fed "):
        lw("coordinator", "up", "--folder", "fed")


def test_a_node_that_a_run_cannot_name_yet_gets_the_name_of_its_key(here):
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


def test_renewed_certificates_verify_with_the_same_authority(here):
    init_coordinator()
    certificates = here / "fed/certificates"
    authority, server = (certificates / "ca.crt").read_bytes(), certificates / "server.crt"
    old = server.read_bytes()
    assert lw("coordinator", "renew", "--folder", "fed").exit_code == 0
    assert (certificates / "ca.crt").read_bytes() == authority
    assert server.read_bytes() != old


def test_an_organisations_own_certificate_is_taken(here):
    for name in ("s.crt", "s.key", "chain.crt"):
        (here / name).write_text(name)
    own = ("--certificate", "s.crt", "--key", "s.key", "--authority", "chain.crt")
    assert init_coordinator(*own).exit_code == 0
    assert (here / "fed/certificates/server.key").read_text() == "s.key"
    assert not (here / "fed/certificates/ca.key").exists()
    with pytest.raises(DeployError, match=r"replace server\.crt"):
        lw("coordinator", "renew", "--folder", "fed")


def test_a_site_says_what_it_would_send(here, sites):
    result = init_site(sites)
    assert result.exit_code == 0, result.output
    assert "LoRA, rank 2, 4 layers" in result.output
    assert "18 rows, " in result.output
    # d_in 16: two groups of 16 * 17 / 2 floats; two layers each of rank 2 with 16 + 16 values.
    assert "2 layer groups, 1.0 KiB the largest, 2.1 KiB a merge" in result.output
    assert is_private(here / "hospital-a/hospital-a")
    assert (here / "hospital-a/hospital-a.pub").is_file()


def test_a_site_has_its_own_say_on_how_few_rows_are_measured(here, sites):
    with pytest.raises(CohortError, match=r"18 rows would be measured, .* min-rows is 19"):
        init_site(sites, *things_of(sites), "--min-rows", "19")
    assert not (here / "hospital-a").exists()
    init_site(sites)
    assert open_site(here / "hospital-a").entry.min_rows == 10


def test_a_site_calls_its_columns_what_it_likes(here, sites):
    from flwr.common.config import parse_config_args

    rows = [json.loads(line) for line in Path(sites.nodes[0]["data"]).read_text().splitlines()]
    renamed = "\n".join(json.dumps({"note of the day": row["text"]}) for row in rows)
    (here / "notes.jsonl").write_text(renamed)
    things = (*things_of(sites)[:4], "--data", "notes.jsonl")
    with pytest.raises(DataError, match="or the site's own `text-column`"):
        init_site(sites, *things)
    made = init_site(sites, *things, "--text-column", "note of the day")
    assert "18 rows, " in made.output
    parsed = parse_config_args([node_config(open_site(here / "hospital-a").entry)])
    assert site_of_node(parsed, RunSettings()).text_column == "note of the day"


def test_a_sites_paths_are_absolute_and_flower_hands_them_on(here, sites):
    from flwr.common.config import parse_config_args

    init_site(sites)
    site = open_site(here / "hospital-a")
    parsed = parse_config_args([node_config(site.entry)])
    assert site_of_node(parsed, RunSettings()) == site.entry.model_copy(update={"watchdog": True})
    assert all(parsed[key].startswith("/") for key in ("data", "adapter", "base", "cache"))


def test_a_pinned_site_runs_one_application_and_no_other_kind_of_task(here, sites):
    init_site(sites)
    site = open_site(here / "hospital-a")
    site.pin("0" * 64)
    runner = (site.folder / "bin/flwr-clientapp").read_text()
    assert "pinned.py" in runner
    assert "0" * 64 in runner
    for name in ("flwr-serverapp", "flwr-agentapp", "flwr-simulation"):
        assert subprocess.run([site.folder / "bin" / name], check=False).returncode == 1
    environment = site.supernode("localhost:1", None, 2).environment
    assert environment["PATH"].startswith(f"{site.folder}/bin:")


def test_another_application_is_refused_before_it_is_unpacked(monkeypatch):
    from flwr.supernode.runtime import run_clientapp

    from client.pinned import ForeignApplicationError, refuse_others

    unpacked = []
    monkeypatch.setattr(
        run_clientapp, "install_from_fab", lambda bundle, **_: unpacked.append(bundle)
    )
    refuse_others("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    run_clientapp.install_from_fab(b"abc", skip_prompt=True)
    with pytest.raises(ForeignApplicationError, match="install the same layerweld"):
        run_clientapp.install_from_fab(b"abcd", skip_prompt=True)
    assert unpacked == [b"abc"]


def test_one_process_per_site(here, sites):
    init_site(sites)
    site = open_site(here / "hospital-a")
    assert not is_joined(site)
    with joined(site):
        assert is_joined(site)
        with pytest.raises(DeployError, match="joined already"):
            lw("site", "purge", "--folder", "hospital-a")


def test_purge_deletes_runs_and_keeps_trained_adapters(here, sites):
    init_site(sites)
    cache = here / "hospital-a/cache"
    for folder in ("runs/1", "adapters/a"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "x").write_bytes(bytes(2**20))
    assert "freed 1.0 MiB" in lw("site", "purge", "--folder", "hospital-a").output
    assert [path.name for path in cache.iterdir()] == ["adapters"]
    lw("site", "purge", "--folder", "hospital-a", "--adapters")
    assert not list(cache.iterdir())


def test_units_start_at_boot_and_for_ever(here, sites):
    init_coordinator()
    init_site(sites)
    assert lw("site", "join", "fl.example.org:8443", "--folder", "hospital-a", "--service")
    units = [
        here / "fed/layerweld-coordinator-fed.service",
        here / "hospital-a/layerweld-site-hospital-a.service",
    ]
    for file in units:
        read = configparser.ConfigParser(strict=False, interpolation=None)
        read.optionxform = str
        read.read(file)
        assert read["Service"]["Restart"] == "always"
        assert read["Unit"]["StartLimitIntervalSec"] == "0"
        assert read["Install"]["WantedBy"] == "multi-user.target"
        assert read["Service"]["ExecStart"].startswith(f"{sys.executable} -m layerweld ")
        assert "Environment=FLWR_TELEMETRY_ENABLED=0\n" in file.read_text()
    assert "site join fl.example.org:8443 --folder" in units[1].read_text()


def test_a_run_named_by_hand_is_written_out_for_flower(here, sites):
    init_coordinator("--base", sites.base)
    printed = lw("coordinator", "run", "--folder", "fed", "--name", "two", "--print").output
    assert "flwr run" in printed
    given = tomllib.loads((here / "fed/runs/two.toml").read_text())
    assert given["output"] == str(here / "fed/runs/two")
    assert given["base"] == str(sites.base)
    assert given["merge"]["granularity"] == "group"


WRONG = {
    "the folder exists": (("coordinator", "init", "fed", "--host", "h"), "exists already"),
    "a bad name": (("coordinator", "init", "../x", "--host", "h"), "name = '../x'"),
    "a host with a port": (("coordinator", "init", "x", "--host", "h:1g"), "host = 'h:1g'"),
    "one port for two": (
        ("coordinator", "init", "x", "--host", "h", "--port", "9", "--superlink-port", "9"),
        "choose two",
    ),
    "a bad port": (("coordinator", "init", "x", "--host", "h", "--port", "0"), "port = 0"),
    "no coordinator here": (("coordinator", "run", "--folder", "nowhere"), "--folder"),
    "no base model": (("coordinator", "run", "--folder", "fed"), "set `base`"),
    "a bad run name": (("coordinator", "run", "--folder", "fed", "--name", "a/b"), "cannot name"),
    "no report": (("coordinator", "report", "--folder", "fed"), "set `base`"),
    "a bad site name": (
        ("site", "init", "a/b", "--model", "fed", "--fine-tune", "--data", "fed"),
        "name = 'a/b'",
    ),
    "no site here": (("site", "join", "h:1", "--folder", "fed"), "layerweld site init"),
    "no address": (("site", "join", "h", "--folder", "hospital-a"), "no HOST:PORT"),
    "no authority": (("site", "join", "h:1", "--folder", "hospital-a", "--ca", "x"), "ca.crt"),
    "no such key": (("coordinator", "add", "a", "a.pub", "--folder", "fed"), "cannot be read"),
    "no such site": (("coordinator", "remove", "a", "--folder", "fed"), "no site a"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_work_is_one_line_with_the_way_out(here, sites, arguments, says):
    init_coordinator()
    init_site(sites)
    before = sorted(path.name for path in here.rglob("*"))
    with pytest.raises(LayerweldError) as caught:
        lw(*arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in here.rglob("*")) == before


@pytest.mark.parametrize("missing", ["--model", "--adapter", "--data"])
def test_a_site_with_a_wrong_path_leaves_nothing_behind(here, sites, missing):
    node = sites.nodes[0]
    options = {"--model": sites.base, "--adapter": node["adapter"], "--data": node["data"]}
    options[missing] = "nowhere"
    with pytest.raises(DeployError, match="nowhere does not exist"):
        init_site(sites, *(part for pair in options.items() for part in pair))
    assert not list(here.iterdir())


def test_a_path_that_flower_cannot_quote_is_refused(here, sites):
    rows = here / 'a"b.jsonl'
    rows.write_text('{"text": "a"}\n')
    with pytest.raises(DeployError, match="rename it"):
        init_site(sites, "--model", sites.base, "--fine-tune", "--data", rows)


def test_adapter_and_fine_tuning_exclude_each_other(here, sites):
    node = sites.nodes[0]
    both = ("--model", sites.base, "--data", node["data"], "--adapter", "x", "--fine-tune")
    assert init_site(sites, *both).exit_code == 2


def test_a_site_is_added_only_once(here):
    init_coordinator()
    make_key(here / "ash")
    (here / "fed/sites/ash.json").write_text(json.dumps({"name": "ash", "key": "K", "node": "1"}))
    with pytest.raises(DeployError, match=r"registered already.*coordinator remove ash"):
        add_member(open_coordinator(here / "fed"), "ash", here / "ash.pub")


def test_a_coordinator_that_is_not_up_is_named():
    found = check_coordinator(f"127.0.0.1:{free_port()}", None)
    assert [one.name for one in found] == ["connection"]
    assert "firewall" in found[0].remedy


@pytest.mark.parametrize(("ahead", "fine"), [(0, True), (-200, True), (6, False), (-400, False)])
def test_the_clock_may_be_behind_but_not_ahead(ahead, fine):
    assert (clock(ahead).remedy == "") is fine


def test_another_minor_version_has_a_remedy():
    from importlib.metadata import version

    about = {name: version(name) for name in ("flwr", "torch", "transformers")}
    assert all(isinstance(one, Check) and not one.remedy for one in versions(about))
    assert versions(about | {"torch": "1.0.1"})[1].remedy == "pip install 'torch==1.0.*'"


def test_what_flower_prints_when_a_key_is_refused_is_explained():
    assert "not registered" in explain_end("[code: 2004] Failed to activate SuperNode.")
    assert explain_end("nothing to see") == ""


def test_a_runs_log_tells_for_whom_it_waits():
    log = (
        "\x1b[93mWARNING \x1b[0m:   waiting for birch at the handshake: its process died\n"
        "\x1b[92mINFO \x1b[0m:      Starting logstream\n"
        "going on without birch: it never answered\x1b[0m\n"
    )
    assert notices_in(log) == [
        "waiting for birch at the handshake: its process died",
        "going on without birch: it never answered",
    ]


def test_help_is_fast_because_nothing_heavy_is_imported():
    script = (
        "import sys; from layerweld import cli; "
        "print([m for m in ('torch', 'flwr', 'cryptography', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("group", ["coordinator", "site"])
def test_every_command_has_an_example(group):
    typed = next(one.typer_instance for one in cli.app.registered_groups if one.name == group)
    for command in typed.registered_commands:
        assert "Example: `layerweld" in command.callback.__doc__, command.callback
