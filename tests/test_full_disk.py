"""Disks that are really full: tmpfs of a few MiB. Nothing half-written; the same call goes on."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from flwr.app import Message

from client.app import app as client_app
from client.guard import SiteApp
from layerweld.errors import LostSiteError, StorageError
from layerweld.settings.run import RunSettings
from server.in_process import InProcessGrid
from server.run import run as run_server
from strategies import notices, poll
from tests.faulty_grid import Clock
from tests.tiny_sites import TinySites

POINTS = int(os.environ.get("LAYERWELD_DISK_POINTS", "4"))  # at which the disk fills up
_SIZE = 16 * 2**20


class SmallDisk:
    """A file system of its own.

    Args:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def mount(self) -> CompletedProcess[str]:
        options = ("-t", "tmpfs", "-o", f"size={_SIZE}", "layerweld-test")
        command = ["mount", *options, str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def leave(self, free: int) -> None:
        """Take all space but so many bytes."""
        self._filler.write_bytes(bytes(self.free - free))

    def make_room(self) -> None:
        self._filler.unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = SmallDisk(folder)
    try:
        mounted = disk.mount()
    except FileNotFoundError:  # a container without the program has no small disk to fill
        pytest.skip("there is no `mount` here")
    if mounted.returncode:  # only root may mount, and not in every container
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield disk
    disk.unmount()


def run(sites: TinySites, output: Path) -> bytes:
    sites.run(output)
    return (output / "manifest.json").read_bytes()


def test_a_coordinators_full_disk_is_exit_code_12_and_the_same_call_goes_on(
    sites: TinySites, disk: SmallDisk, tmp_path: Path
) -> None:
    output = disk.folder / "out"
    empty = disk.free
    whole = run(sites, output)
    size = empty - disk.free
    for point in range(POINTS):
        shutil.rmtree(output)
        disk.leave(size * point // POINTS)
        with pytest.raises(StorageError, match="No space left") as caught:
            run(sites, output)
        assert caught.value.exit_code == 12
        left = {path.relative_to(output) for path in output.rglob("*")}
        assert {path.parts[0] for path in left} <= {"journal", "state.json"}, left
        assert not [path for path in left if ".partial" in path.name]
        disk.make_room()
        assert run(sites, output) == whole, f"{size * point // POINTS} bytes of {size} were free"


class DeployedGrid(InProcessGrid):
    """Its nodes hide their errors, as in processes of their own."""

    def __init__(
        self,
        app: SiteApp,
        nodes: list[dict[str, Any]],
        chosen: RunSettings,
        after_each: Callable[..., None],
    ) -> None:
        super().__init__(app, nodes, chosen)
        self._after_each = after_each

    def _answer(self, message: Message) -> Message:
        reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        self._after_each()
        return reply


class Birch:
    """One site of three, whose cache is on the small disk."""

    def __init__(self, sites: TinySites, disk: SmallDisk) -> None:
        self.sites, self.disk = sites, disk
        self.cache = disk.folder / "cache"
        self.most = 0
        own = {"base": str(sites.base), "cache": str(sites.folder / "cache"), "min-samples": 1}
        self.nodes = [
            node | own | ({"cache": str(self.cache)} if node["name"] == "birch" else {})
            for node in sites.nodes
        ]

    def run(self, output: Path, **entries: Any) -> bytes:
        """The manifest; afterwards ``most`` is what the site had on its disk at one time."""
        chosen = self.sites.settings().model_copy(update=entries)
        grid = DeployedGrid(client_app, self.nodes, chosen, self._measure)
        run_server(grid, chosen, str(self.sites.base), output)
        return (output / "manifest.json").read_bytes()

    def _measure(self) -> None:
        files = [path for path in self.cache.rglob("*") if path.is_file()]
        self.most = max(self.most, sum(file.stat().st_size for file in files))

    def half_written(self) -> list[Any]:
        files = [path for path in self.cache.rglob("*") if path.is_file()]
        return [file for file in files if ".partial" in file.name or not file.stat().st_size]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(poll, "time", clock)
    return clock


@pytest.fixture
def birch(sites: TinySites, disk: SmallDisk, clock: Clock) -> Birch:
    return Birch(sites, disk)


def test_a_sites_full_disk_is_e501_and_the_same_call_goes_on(
    birch: Birch, disk: SmallDisk, tmp_path: Path
) -> None:
    whole, needed = birch.run(tmp_path / "whole"), birch.most
    for point in range(POINTS):
        shutil.rmtree(birch.cache)
        disk.leave(needed * point // POINTS)
        output = tmp_path / f"out-{point}"
        with pytest.raises(LostSiteError, match=r"birch: its disk is full \(E501 incident"):
            birch.run(output, deadline=60.0)
        assert not birch.half_written()
        disk.make_room()
        assert birch.run(output) == whole


def test_a_run_waits_until_a_site_has_space_again(
    birch: Birch, disk: SmallDisk, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = birch.run(tmp_path / "whole")
    shutil.rmtree(birch.cache)
    disk.leave(0)
    said = []

    def hear(_level: Any, text: str) -> None:
        if not text.startswith("solved "):
            said.append(text)
            disk.make_room()

    monkeypatch.setattr(notices, "log", hear)
    assert birch.run(tmp_path / "out") == whole
    assert ["waiting for birch" in line and "its disk is full" in line for line in said] == [True]
