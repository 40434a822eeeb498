"""What both sides type wrong, what their machines may lack, and the way out of it."""

import configparser
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layerweld.cli import main as cli
from layerweld.deploy.checks import Check, check_coordinator, clock, versions
from layerweld.deploy.ports import free_port
from layerweld.errors import LayerweldError
from tests.tiny_sites import TinySites
from tests.typed_commands import init_coordinator, init_site, lw


def test_units_start_at_boot_and_for_ever(here: Path, sites: TinySites) -> None:
    init_coordinator()
    init_site(sites)
    assert lw("site", "join", "fl.example.org:8443", "--folder", "hospital-a", "--service")
    units = [
        here / "fed/layerweld-coordinator-fed.service",
        here / "hospital-a/layerweld-site-hospital-a.service",
    ]
    for file in units:
        read = configparser.ConfigParser(strict=False, interpolation=None)
        read.optionxform = str  # type: ignore[assignment]
        read.read(file)
        assert read["Service"]["Restart"] == "always"
        assert read["Unit"]["StartLimitIntervalSec"] == "0"
        assert read["Install"]["WantedBy"] == "multi-user.target"
        assert read["Service"]["ExecStart"].startswith(f"{sys.executable} -m layerweld ")
        assert "Environment=FLWR_TELEMETRY_ENABLED=0\n" in file.read_text()
    assert "site join fl.example.org:8443 --folder" in units[1].read_text()


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
    "no address": (("site", "join", "h", "--folder", "hospital-a"), "not HOST:PORT"),
    "no authority": (("site", "join", "h:1", "--folder", "hospital-a", "--ca", "x"), "ca.crt"),
    "no such key": (("coordinator", "add", "a", "a.pub", "--folder", "fed"), "cannot be read"),
    "no such site": (("coordinator", "remove", "a", "--folder", "fed"), "no site a"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_work_is_one_line_with_the_way_out(
    here: Path, sites: TinySites, arguments: Any, says: Any
) -> None:
    init_coordinator()
    init_site(sites)
    before = sorted(path.name for path in here.rglob("*"))
    with pytest.raises(LayerweldError) as caught:
        lw(*arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in here.rglob("*")) == before


def test_a_coordinator_that_is_not_up_is_named() -> None:
    found = check_coordinator(f"127.0.0.1:{free_port()}", None)
    assert [one.name for one in found] == ["connection"]
    assert "firewall" in found[0].remedy


@pytest.mark.parametrize(("ahead", "fine"), [(0, True), (-200, True), (6, False), (-400, False)])
def test_the_clock_may_be_behind_but_not_ahead(ahead: int, fine: bool) -> None:
    assert (clock(ahead).remedy == "") is fine


def test_another_minor_version_has_a_remedy() -> None:
    from importlib.metadata import version

    about = {name: version(name) for name in ("flwr", "torch", "transformers")}
    assert all(isinstance(one, Check) and not one.remedy for one in versions(about))
    assert versions(about | {"torch": "1.0.1"})[1].remedy == "pip install 'torch==1.0.*'"


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from layerweld import cli; "
        "print([m for m in ('torch', 'flwr', 'cryptography', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("group", ["coordinator", "site"])
def test_every_command_has_an_example(group: str) -> None:
    typed = next(one.typer_instance for one in cli.app.registered_groups if one.name == group)
    assert typed
    for command in typed.registered_commands:
        assert command.callback
        assert "Example: `layerweld" in (command.callback.__doc__ or ""), command.callback
