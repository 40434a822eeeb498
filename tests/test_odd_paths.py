"""Whatever is typed where a path is meant, a command ends in order: told, and soon."""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from layerweld.deploy.coordinator import check_file
from layerweld.errors import ConfigError, DeployError, StorageError
from layerweld.model.base_model import tokenizer_fingerprint
from layerweld.runtime.incidents import Code, code_of
from layerweld.runtime.sealed import is_whole, seal
from layerweld.untrusted.files import last_lines
from layerweld.untrusted.paths import refused_path
from tests.odd_paths import make_odd_paths
from tests.test_exit_codes import commands, end_of
from tests.tiny_sites import TinySites
from tests.typed_commands import init_coordinator, init_site, lw

LONG = "LAYERWELD_FUZZ" in os.environ
JOINS = ("site join ca", "a file")  # tries to connect until it is told to end
LONGEST = 20.0  # seconds of one command
PATHS_AS_TEXT = {"model", "data", "adapter", "held_out", "head", "base"}
CAN_BE_MADE = {"leads nowhere", "nobody's home", "the home of no user"}  # as an output folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sites: TinySites) -> Path:
    """A folder with a coordinator, a site and a run's file, all whole, and the odd paths."""
    monkeypatch.chdir(tmp_path)
    init_coordinator()
    init_site(sites)
    tables = [f'[[sites]]\nname = "{n["name"]}"\nadapter = "{n["adapter"]}"\ndata = "{n["data"]}"'
              for n in sites.nodes]  # fmt: skip
    Path("run.toml").write_text("\n".join([f'base = "{sites.base}"', *tables]))
    return tmp_path


def is_path(parameter: Any) -> bool:
    return isinstance(parameter.type, click.Path) or parameter.name in PATHS_AS_TEXT


def usual(path: Any, sites: TinySites) -> dict[Any, Any]:
    """What a command is given where its other parameters are to be well."""
    node = sites.nodes[0]
    brings = f"ash={node['adapter']}:{node['data']}"
    return {
        "config": "run.toml", "one": "one", "other": "other", "base": sites.base, "output": "out",
        "site": brings if path == ("merge",) else "elm", "key": "hospital-a/hospital-a.pub",
        "model": sites.base, "data": node["data"], "adapter": node["adapter"], "name": "elm",
        "address": "localhost:1", "host": "localhost", "certificate": "c", "authority": "c",
        "folder": "hospital-a" if path[0] == "site" else "fed",
    }  # fmt: skip


def belongs(parameter: Any, path: Any) -> Any:
    """Whether a command means anything only with this parameter."""
    own = parameter.name in ("certificate", "key", "authority") and path[-1] in ("init", "renew")
    return parameter.required or own or parameter.name in ("adapter", "folder")


def places(sites: TinySites) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each command line with a path in it, as a function of that path, and what it is of."""
    for path, command in commands():
        for odd in filter(is_path, command.params):
            given = [p for p in command.params if p is not odd and belongs(p, path)]

            def typed(
                what: Any,
                path: Path = path,
                params: Any = command.params,
                odd: Any = odd,
                given: list[Any] = given,
            ) -> list[Any]:
                values = {p.name: str(usual(path, sites)[p.name]) for p in given} | {odd.name: what}
                line = [*path]  # type: ignore[misc]
                for parameter in params:
                    if parameter.name in values:
                        is_option = isinstance(parameter, click.Option)
                        line += [parameter.opts[0]] * is_option + [values[parameter.name]]
                return line

            yield " ".join([*path, odd.name]), typed


def ends_soon(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, ...]:
    started = time.process_time()
    code, cause, _ = end_of(line, monkeypatch, capsys)
    assert time.process_time() - started < LONGEST, line
    return code, cause


def test_an_odd_path_ends_every_command_with_a_code_of_the_document(
    here: Path,
    sites: TinySites,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd, tried = make_odd_paths(here), 0
    draw = random.Random(0)
    for name, typed in places(sites):
        for what in odd if LONG else draw.sample(list(odd), 2):
            if (name.endswith("output") and what in CAN_BE_MADE) or (name, what) == JOINS:
                continue
            code, cause = ends_soon(typed(odd[what]), monkeypatch, capsys)
            assert code not in (0, 1), (name, what, cause)
            tried += 1
    assert tried > 50


@pytest.mark.parametrize("found", [b"", b"ecdsa-sha2-nistp384", b"a !!! b", b"ecdsa AAAA x"])
def test_a_damaged_public_key_is_refused_by_its_name(found: bytes, here: Path) -> None:
    file = here / "hospital-a/hospital-a.pub"
    file.write_bytes(found)
    with pytest.raises(DeployError, match=r"hospital-a\.pub"):
        lw("site", "status", "--folder", "hospital-a")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DeployError, match="is not a file but a pipe"):
        lw("site", "status", "--folder", "hospital-a")


def test_of_a_long_log_only_its_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "supernode.log"
    with log.open("wb") as opened:
        opened.truncate(20 * 2**30)
        opened.seek(0, os.SEEK_END)
        opened.write(b"\none\ntwo\n")
    assert last_lines(log, 2, DeployError) == ["one", "two"]
    assert last_lines(tmp_path / "none.log", 2, DeployError) == []


@pytest.mark.parametrize(
    "record", ["[" * 100_000, '{"a":' * 50_000, "{}", "[]", "7", '{"a\\u0000b": "x"}', "\xff"]
)
def test_a_damaged_record_of_what_was_trained_means_that_it_is_lost(
    record: Any, tmp_path: Path
) -> None:
    (tmp_path / "adapter").write_text("x")
    seal(tmp_path)
    assert is_whole(tmp_path)
    (tmp_path / "hashes.json").write_text(record, encoding="latin-1")
    assert not is_whole(tmp_path)


def test_a_tokenizer_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as opened:
        opened.truncate(20 * 2**30)
    with pytest.raises(ConfigError, match="larger than 256 MiB"):
        tokenizer_fingerprint(tmp_path)


@pytest.mark.parametrize(
    "host", ["a" * 64, "a" * 5000, ".".join(["a" * 60] * 5), "a..b", "-a.b", "a-.b", ":::", "a b"]
)
@pytest.mark.parametrize("option", ["host", "bind"])
def test_a_coordinator_has_only_a_host_that_dns_allows(host: Any, option: Any) -> None:
    given = {"name": "fed", "host": "h", "port": 1, "superlink_port": 2} | {option: host}
    with pytest.raises(DeployError, match=f"{option} = "):
        check_file(**given)
    for good in ("a" * 63, "fl.example.org", "10.0.0.1", "::1"):
        assert getattr(check_file(**given | {option: good}), option) == good


@pytest.mark.parametrize(
    "what", ["300 characters", "5,000 characters", "a loop", "a null byte", "below a file"]
)
def test_a_site_says_of_a_refused_path_that_it_cannot_read_it(what: str, tmp_path: Path) -> None:
    with pytest.raises((OSError, RuntimeError, ValueError)) as raised:
        Path(make_odd_paths(tmp_path)[what]).resolve().read_bytes()
    assert code_of(raised.value) is Code.FILE
    assert isinstance(refused_path(raised.value), ConfigError)


def test_a_full_disk_is_no_wrong_path_and_a_mistake_of_ours_is_neither() -> None:
    assert isinstance(refused_path(OSError(errno.ENOSPC, "full", "x")), StorageError)
    assert refused_path(ValueError("a mistake of ours")) is None
