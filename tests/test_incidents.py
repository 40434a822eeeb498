"""What a site tells of its failures, and what ends a message that hangs."""

import errno
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from safetensors import SafetensorError

from client import guard
from client.app import app as client_app
from client.handlers import site_info as site_infos
from layerweld import errors
from layerweld.runtime.disk import raising_storage_error
from layerweld.runtime.incidents import Code, Incident, code_of, parse_incident, raising_here
from layerweld.transport.identity import encode_plain
from layerweld.transport.untrusted import refusing_malformed
from tests.stub_sites import incident_of
from tests.tiny_sites import TinySites

CANARY = "patient Jane Doe, MRN 123456"


def context_of(sites: TinySites, **node: Any) -> Context:
    settings = sites.settings()
    own = {"base": str(sites.base), "cache": str(sites.folder / "cache")}
    node_config = sites.nodes[0] | own | node
    return Context(1, 1, node_config, RecordDict(), dict(settings.flat()))


def handshake() -> Message:
    message = Message(encode_plain("query.handshake", "0" * 16), 1, "query.handshake")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def bytes_of(message: Message) -> bytes:
    return b"".join(part.deflate() for part in get_all_nested_objects(message).values())


CANARIES = [
    ValueError(CANARY),
    KeyError(CANARY),
    errors.DataError(CANARY),
    errors.DataError("Gr\udcf6\udcdfe " + CANARY),  # as a column of another encoding is read
    UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
    OSError(errno.EIO, CANARY, CANARY),
    MemoryError(CANARY),
    type(CANARY, (Exception,), {})(CANARY),
]


@pytest.mark.parametrize("error", CANARIES, ids=lambda error: type(error).__mro__[1].__name__)
def test_the_text_of_an_error_is_in_no_byte_that_leaves(
    error: Any, sites: TinySites, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_state: Any) -> None:
        raise error

    monkeypatch.setattr(site_infos, "site_info", fail)
    reply = client_app(handshake(), context_of(sites))
    sent = bytes_of(reply)
    assert not any(word.encode() in sent for word in ("Jane", "Doe", "123456", "Error"))
    incident = incident_of(reply)
    assert reply.error.code == incident.code == code_of(error)
    log = sites.folder / f"cache/logs/{incident.number}.log"
    assert CANARY in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    assert "Jane" not in "".join(capfd.readouterr())


def test_an_error_in_the_configuration_does_not_leave_either(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reply = client_app(handshake(), context_of(sites, jane="doe"))
    assert incident_of(reply).code is Code.CONFIGURATION
    assert b"jane" not in bytes_of(reply)
    incident = incident_of(reply)
    assert "jane" in (tmp_path / f"layerweld/logs/{incident.number}.log").read_text()


def test_a_site_with_a_cache_of_its_own_needs_no_home(
    sites: TinySites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may run as a user that has none, and pathlib raises then."""

    def homeless() -> Path:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(Path, "home", homeless)
    assert client_app(handshake(), context_of(sites)).has_content()


def test_fewer_samples_than_the_site_itself_allows_are_never_measured(sites: TinySites) -> None:
    reply = client_app(handshake(), context_of(sites, **{"min-samples": 19}))
    assert incident_of(reply).code is Code.COHORT
    reply = client_app(handshake(), context_of(sites, **{"min-samples": 18}))
    assert reply.has_content()


@pytest.mark.parametrize("run", ["../../x", "/tmp/x", "", "a/b", ".."])
def test_a_run_whose_name_would_leave_the_cache_is_refused(run: str, sites: TinySites) -> None:
    message = Message(encode_plain("query.handshake", run), 1, "query.handshake")
    reply = client_app(message, context_of(sites))
    assert incident_of(reply).code is Code.REQUEST


def test_an_unknown_message_is_an_incident_too(sites: TinySites) -> None:
    message = handshake()
    message.metadata.message_type = "query.secrets"
    reply = client_app(message, context_of(sites))
    assert incident_of(reply).code is Code.UNFORESEEN


def test_a_log_that_cannot_be_written_goes_to_the_sites_own_standard_error(
    sites: TinySites,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    context = context_of(sites, cache=str(tmp_path / "file"))
    reply = client_app(handshake(), context)
    assert incident_of(reply).code is Code.FILE
    assert "StorageError" in capfd.readouterr().err


def test_in_the_process_of_who_started_the_run_errors_are_raised(
    sites: TinySites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_state: Any) -> None:
        raise errors.DataError(CANARY)

    monkeypatch.setattr(site_infos, "site_info", fail)
    with raising_here(), pytest.raises(errors.DataError, match="Jane"):
        client_app(handshake(), context_of(sites))


def test_a_site_keeps_what_it_was_asked_and_what_it_sent(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(sites, cache=str(tmp_path))
    asked = handshake()
    asked.metadata.group_id = "a step\n2026-01-01  forged: sent 0 bytes in 0.0 s"
    client_app(asked, context)
    with monkeypatch.context() as patch:
        patch.setattr(site_infos, "site_info", lambda _state: CANARY / 0)  # type: ignore[operator]
        reply = client_app(handshake(), context)
    sent, failed = (tmp_path / "logs/replies.log").read_text().splitlines()
    assert re.search(r"a step 2026-01-01 forged: .*: sent \d+ bytes in \d+\.\d s$", sent)
    assert f"query.handshake: failed, {reply.error.reason} in " in failed


def test_memory_that_the_processor_lacks_is_no_riddle_and_the_next_message_is_answered(
    sites: TinySites, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(site_infos, "site_info", lambda _state: torch.empty(2**50))
        reply = client_app(handshake(), context_of(sites))
    assert incident_of(reply).code is Code.MEMORY
    assert client_app(handshake(), context_of(sites)).has_content()


def test_memory_that_the_coordinator_lacks_is_not_put_down_to_a_site() -> None:
    lacking = pytest.raises(errors.MemoryShortageError, match="DefaultCPUAllocator")
    with lacking, refusing_malformed():
        torch.empty(2**50)
    refused = pytest.raises(errors.RefusedReplyError, match="cannot be read: a kernel")
    with refused, refusing_malformed():
        raise RuntimeError("a kernel fails")


def full_disk() -> None:
    with raising_storage_error(Path("x")):
        raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_rust() -> None:
    with raising_storage_error(Path("x")):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [full_disk, full_disk_in_rust])
def test_a_full_disk_has_a_code_of_its_own(fail: Any) -> None:
    with pytest.raises(errors.StorageError, match="No space left") as caught:
        fail()
    assert code_of(caught.value) is Code.DISK_FULL


def test_every_error_and_every_code_is_mapped() -> None:
    assert code_of(torch.OutOfMemoryError("4 GiB")) is Code.MEMORY
    assert code_of(ConnectionResetError()) is Code.NETWORK
    assert code_of(ZeroDivisionError()) is Code.UNFORESEEN
    assert all(code.meaning for code in Code)


@pytest.mark.parametrize(
    "text",
    [None, "", CANARY, "E201", "E999 incident 0123456789abcdef", "E201 incident 0123456789ABCDEF",
     "E201 incident 0123456789abcdef\n", f"{Incident(Code.DATA, 'a' * 16)} {CANARY}"],
)  # fmt: skip
def test_nothing_but_a_code_and_a_number_is_taken_for_an_incident(text: Any) -> None:
    assert parse_incident(text) is None


def test_an_incident_is_read_back_as_it_was_written() -> None:
    incident = Incident(Code.DATA, "a" * 16)
    assert parse_incident(str(incident)) == incident


HANG = """
    import sys, time
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from client.guard import watchdog
    with watchdog(1.0, Path({folder!r})):
        {body}
    print("done")
"""


def run_watched(folder: Path, body: str) -> tuple[CompletedProcess[str], float]:
    root = str(Path(__file__).parents[1])
    script = textwrap.dedent(HANG.format(root=root, folder=str(folder), body=body))
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    return process, time.monotonic() - started


def test_a_watchdog_ends_a_hung_process_and_says_where_it_hung(tmp_path: Path) -> None:
    process, _ = run_watched(tmp_path, "time.sleep(50)")
    assert process.returncode == 1
    assert "done" not in process.stdout
    assert re.search(r"Timeout.*\n.*most recent call first", (tmp_path / "hung.log").read_text())


def test_a_watchdog_leaves_a_process_alone_that_is_in_time(tmp_path: Path) -> None:
    process, _ = run_watched(tmp_path, "time.sleep(0.01)")
    assert process.returncode == 0
    assert "done" in process.stdout


@pytest.mark.parametrize(("in_process", "active"), [(True, False), (False, True)])
def test_the_watchdog_is_set_by_the_node_and_never_in_process(
    in_process: bool, active: bool, sites: TinySites, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(
        guard.faulthandler,  # type: ignore[attr-defined]
        "dump_traceback_later",
        lambda s, **_: started.append(s),
    )
    monkeypatch.setattr(guard, "raises_here", lambda: in_process)
    message = handshake()
    client_app(message, context_of(sites, watchdog=True))
    assert started == ([message.metadata.ttl] if active else [])
