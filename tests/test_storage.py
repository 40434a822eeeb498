"""Kills, full disks, damaged files, second processes: the same bytes, or nothing half-written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from client import store
from layerweld.errors import InUseError, JournalError, OutputError, StorageError
from layerweld.report import output_folder
from layerweld.report.run import files as run_files
from layerweld.runtime import disk
from layerweld.runtime.disk import holding_lock, writing
from server import journal as server_journal
from server import kept_rounds
from server.in_process import InProcessGrid
from server.journal import RunJournal
from strategies.merge_strategy import MergeStrategy
from tests.stub_sites import NAMES, StubApp, digest_of, new_chain, settings
from tests.tiny_sites import TinySites

NODES = [{"name": name} for name in NAMES]
EVERY = int(os.environ.get("LAYERWELD_KILL_EVERY", "4"))  # of the points at which to kill


pytestmark = pytest.mark.usefixtures("one_thread")


def run_chain(folder: Path) -> MergeStrategy:
    journal = RunJournal(folder)
    chosen = settings()
    chain = new_chain(chosen, journal=journal.of_method("com"))
    chain.run(InProcessGrid(StubApp(), NODES, chosen))
    return chain


class Points:
    """Counts the moments before and after every change on the disk, and may end it all at one."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, act: Callable[..., None] = lambda _number: None
    ) -> None:
        self.count, self._act = 0, act
        for owner, name in (
            (disk, "_sync"), (Path, "replace"), (kept_rounds, "save_file"), (Path, "mkdir"),
            (run_files, "write_report"), (output_folder.shutil, "rmtree"),  # type: ignore[attr-defined]
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, function: Any) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._point()
            result = function(*args, **kwargs)
            self._point()
            return result

        return wrapped

    def _point(self) -> None:
        self.count += 1
        self._act(self.count)


def killed_at(point: int, work: Callable[..., Any]) -> bool:
    """Do the work in a child process that gets SIGKILL at a point; whether it was killed."""
    child = os.fork()
    if child == 0:
        patch = pytest.MonkeyPatch()
        Points(patch, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == point else None)
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def points_of(work: Callable[..., Any]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        points = Points(patch)
        work()
        return points.count


def test_a_server_killed_at_any_point_of_its_journal_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = digest_of(run_chain(tmp_path / "whole"))
    count = points_of(lambda: run_chain(tmp_path / "counted"))
    assert count > 40
    survived = 0
    for point in range(1, count + 1, EVERY):
        folder = tmp_path / f"killed-{point}"
        assert killed_at(point, lambda folder=folder: run_chain(folder))
        assert digest_of(run_chain(folder)) == whole, f"point {point} of {count}"
        survived += 1
    print(f"\n{survived} kills of the journal survived, of {count} points")


def test_a_run_killed_while_it_writes_its_products_ends_in_the_same_bytes(
    sites: TinySites, tmp_path: Path
) -> None:
    whole = sites.run(tmp_path / "whole", granularity="model")
    count = points_of(lambda: sites.run(tmp_path / "counted", granularity="model"))
    survived = 0
    for point in range(1, count + 1, EVERY):
        output = tmp_path / f"killed-{point}"
        assert killed_at(point, lambda output=output: sites.run(output, granularity="model"))
        if not (output / "journal").is_dir() and (output / "manifest.json").is_file():
            shutil.copytree(output, tmp_path / "finished", dirs_exist_ok=True)
        else:
            resumed = sites.run(output, granularity="model")
            assert resumed.manifest_hash == whole.manifest_hash, f"point {point} of {count}"
        assert (output / "manifest.json").read_bytes() == (
            tmp_path / "whole/manifest.json"
        ).read_bytes()
        survived += 1
    print(f"\n{survived} kills of whole runs survived, of {count} points")


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.9, -1])
def test_a_last_step_that_was_cut_short_is_solved_again(kept: float, tmp_path: Path) -> None:
    whole = digest_of(run_chain(tmp_path))
    file = tmp_path / "com/round-00003.safetensors"
    content = file.read_bytes()
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    file.write_bytes(content[:size])
    assert digest_of(run_chain(tmp_path)) == whole
    assert len(file.read_bytes()) > len(content) - 10  # not equal: more was sent to catch up


def test_an_earlier_step_that_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    run_chain(tmp_path)
    file = tmp_path / "com/round-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(JournalError, match=r"round-00001\.safetensors does not match its hash"):
        run_chain(tmp_path)
    file.unlink()
    with pytest.raises(JournalError, match="lacks round 1"):
        run_chain(tmp_path)


def test_who_was_lost_is_read_from_the_last_step_and_from_what_the_others_say_of_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_chain(tmp_path)
    steps, read = RunJournal(tmp_path).of_method("com"), []
    whole = kept_rounds._read
    for index, lost in ((1, ("birch",)), (3, ("birch", "cedar"))):
        steps.keep(replace(steps.load()[index], lost=lost))

    def reading(file: Path) -> Any:
        read.append(file.name)
        return whole(file)

    monkeypatch.setattr(kept_rounds, "_read", reading)
    assert steps.lost() == {"birch", "cedar"}
    assert read == ["round-00003.safetensors"]
    last = tmp_path / "com/round-00003.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert steps.lost() == {"birch"}  # the last one is solved again, perhaps with all sites


class FullDisk:
    """After so many bytes a write fails as it does on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
        self.left = writes
        monkeypatch.setattr(disk, "_sync", self._sync)

    def _sync(self, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("writes", [0, 1, 7, 15])
def test_a_disk_that_fills_up_keeps_the_steps_before_and_resumes(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = digest_of(run_chain(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        FullDisk(patch, writes)
        with pytest.raises(StorageError, match=r"round-0000\d.*No space left on device"):
            run_chain(tmp_path / "full")
    assert not [p for p in (tmp_path / "full").rglob("*") if "partial" in p.name]
    assert digest_of(run_chain(tmp_path / "full")) == whole


@pytest.mark.parametrize("writes", [0, 2])
def test_a_site_whose_disk_fills_up_resumes_with_the_run(
    writes: int, sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sites.run(tmp_path / "whole")
    shutil.rmtree(sites.folder / "cache/runs")
    left, save_file = [writes], store.save_file  # type: ignore[attr-defined]

    def save(tensors: Any, file: Path, metadata: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            Path(file).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, file, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", save)
        with pytest.raises(StorageError, match="No space left"):
            sites.run(tmp_path / "out")
    assert not list((sites.folder / "cache/runs").rglob("*.partial"))
    assert sites.run(tmp_path / "out").manifest_hash == whole.manifest_hash


def test_products_that_do_not_fit_leave_nothing_but_journal_and_state(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sites.run(tmp_path / "whole", granularity="model")

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_files, "write_report", full)
        with pytest.raises(StorageError, match="No space left"):
            sites.run(tmp_path / "out", granularity="model")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"journal", "state.json"}
    resumed = sites.run(tmp_path / "out", granularity="model")
    assert resumed.manifest_hash == whole.manifest_hash


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def write_half() -> None:
        with writing(file) as partial:
            partial.write_text("ne")
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match=r"file cannot be written .Input/output error"):
        write_half()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


HOLD = """
import sys, time
from filelock import FileLock
from safetensors import SafetensorError
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Callable[..., Popen[str]]]:
    """Another process that holds a lock until the test is over."""
    started = []

    def hold(lock: Any) -> Popen[str]:
        lock.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_in_the_same_output_folder_is_refused(
    sites: TinySites, tmp_path: Path, holding: Callable[..., Popen[str]]
) -> None:
    process = holding(tmp_path / ".out.lock")
    with pytest.raises(InUseError, match=r"another process is using .*out"):
        sites.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    process.kill()  # whoever dies lets go
    process.wait()
    sites.run(tmp_path / "out", granularity="model")
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_a_second_process_of_a_site_in_one_run_is_refused(
    sites: TinySites,
    tmp_path: Path,
    holding: Callable[..., Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_journal.secrets, "token_hex", lambda _n: "0" * 16)  # type: ignore[attr-defined]
    holding(sites.folder / f"cache/locks/birch-{'0' * 16}.lock")
    with pytest.raises(InUseError, match=r"another process is using .*cache, as birch"):
        sites.run(tmp_path / "out")


def test_sites_of_different_names_share_a_cache(
    sites: TinySites, holding: Callable[..., Popen[str]]
) -> None:
    holding(sites.folder / "cache/locks/elm.lock")
    with holding_lock(sites.folder / "cache/locks/ash.lock", "cache"):
        pass


def test_a_lock_is_gone_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with holding_lock(lock, "x"), pytest.raises(InUseError), holding_lock(lock, "x"):
        pass
    assert not list(tmp_path.iterdir())
    with FileLock(tmp_path / "x.lock", timeout=0):
        pass


def test_what_is_not_ours_beside_a_journal_is_left_alone(sites: TinySites, tmp_path: Path) -> None:
    (tmp_path / "out/journal").mkdir(parents=True)
    (tmp_path / "out/letter.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"not empty \(it holds 'letter\.txt'\)"):
        sites.run(tmp_path / "out")
    assert (tmp_path / "out/letter.txt").read_text() == "mine"


def test_a_finished_merge_in_the_way_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "out/adapter").mkdir(parents=True)
    says = r"is not empty \(it holds 'adapter'\); choose another output folder, or move"
    with pytest.raises(OutputError, match=says) as error:
        output_folder.check_output_folder(tmp_path / "out")
    assert error.value.exit_code == 11


def test_a_journal_of_another_version_is_refused_with_the_way_out(
    sites: TinySites, tmp_path: Path
) -> None:
    run_chain(tmp_path / "out/journal")
    for facts in ({}, {"format": 1}, {"format": "2"}):
        header = json.dumps({"run": "0a1b", "methods": ["com"], "sites": {}} | facts)
        (tmp_path / "out/journal/run.json").write_text(header)
        says = r"holds an interrupted run of another version .* remove .*journal to begin anew"
        with pytest.raises(JournalError, match=says):
            sites.run(tmp_path / "out")
    assert (tmp_path / "out/journal/com/round-00003.safetensors").is_file()


def test_a_damaged_header_of_a_journal_is_refused(sites: TinySites, tmp_path: Path) -> None:
    (tmp_path / "out/journal").mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"run": 3})[:-3]):
        (tmp_path / "out/journal/run.json").write_text(text)
        with pytest.raises(
            JournalError, match=r"run\.json (is damaged|cannot be read|does not hold a JSON)"
        ):
            sites.run(tmp_path / "out")
