"""Disks that are really full: tmpfs of a few MiB. Nothing half-written; the same call goes on."""

import os
import shutil
import subprocess

import pytest

from client.app import app as client_app
from layerweld.errors import LostSiteError, StorageError
from server.run import run as run_server
from strategies import notices, poll
from tests.faulty_grid import Clock, InProcessGrid
from tests.tiny_sites import make_sites

POINTS = int(os.environ.get("LAYERWELD_DISK_POINTS", "4"))  # at which the disk fills up
_SIZE = 16 * 2**20


class SmallDisk:
    """A file system of its own.

    Args:
        folder: where it is mounted.
    """

    def __init__(self, folder):
        self.folder = folder
        self._filler = folder / "filler"

    def mount(self):
        options = ("-t", "tmpfs", "-o", f"size={_SIZE}", "layerweld-test")
        command = ["mount", *options, str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @property
    def free(self):
        return shutil.disk_usage(self.folder).free

    def leave(self, free):
        """Take all space but so many bytes."""
        self._filler.write_bytes(bytes(self.free - free))

    def make_room(self):
        self._filler.unlink()

    def unmount(self):
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = SmallDisk(folder)
    # Only root may mount; a machine without that has no small disk to fill.
    try:
        mounted = disk.mount()
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield disk
    disk.unmount()


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("bert"), ["query", "value"])


def play(sites, output):
    chosen = sites.settings()
    run_server(sites.grid(chosen), chosen, str(sites.base), output)
    return (output / "manifest.json").read_bytes()


def test_a_coordinators_full_disk_is_exit_code_12_and_the_same_call_goes_on(sites, disk, tmp_path):
    output = disk.folder / "out"
    empty = disk.free
    whole = play(sites, output)
    size = empty - disk.free
    for point in range(POINTS):
        shutil.rmtree(output)
        disk.leave(size * point // POINTS)
        with pytest.raises(StorageError, match="No space left") as caught:
            play(sites, output)
        assert caught.value.exit_code == 12
        left = {path.relative_to(output) for path in output.rglob("*")}
        assert {path.parts[0] for path in left} <= {"journal", "state.json"}, left
        assert not [path for path in left if ".partial" in path.name]
        disk.make_room()
        assert play(sites, output) == whole, f"{size * point // POINTS} bytes of {size} were free"


class DeployedGrid(InProcessGrid):
    """Its nodes hide their errors, as in processes of their own."""

    def __init__(self, app, nodes, chosen, after_each):
        super().__init__(app, nodes, chosen)
        self._after_each = after_each

    def _answer(self, message):
        reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        self._after_each()
        return reply


class Birch:
    """One site of three, whose cache is on the small disk."""

    def __init__(self, sites, disk):
        self.sites, self.disk = sites, disk
        self.cache = disk.folder / "cache"
        self.most = 0
        own = {"base": str(sites.base), "cache": str(sites.folder / "cache"), "min-rows": 1}
        self.nodes = [
            node | own | ({"cache": str(self.cache)} if node["name"] == "birch" else {})
            for node in sites.nodes
        ]

    def play(self, output, **entries):
        """The manifest; afterwards ``most`` is what the site had on its disk at one time."""
        chosen = self.sites.settings().model_copy(update=entries)
        grid = DeployedGrid(client_app, self.nodes, chosen, self._measure)
        run_server(grid, chosen, str(self.sites.base), output)
        return (output / "manifest.json").read_bytes()

    def _measure(self):
        files = [path for path in self.cache.rglob("*") if path.is_file()]
        self.most = max(self.most, sum(file.stat().st_size for file in files))

    def half_written(self):
        files = [path for path in self.cache.rglob("*") if path.is_file()]
        return [file for file in files if ".partial" in file.name or not file.stat().st_size]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(poll, "time", clock)
    return clock


@pytest.fixture
def birch(sites, disk, clock):
    return Birch(sites, disk)


def test_a_sites_full_disk_is_e501_and_the_same_call_goes_on(birch, disk, tmp_path):
    whole, needed = birch.play(tmp_path / "whole"), birch.most
    for point in range(POINTS):
        shutil.rmtree(birch.cache)
        disk.leave(needed * point // POINTS)
        output = tmp_path / f"out-{point}"
        with pytest.raises(LostSiteError, match=r"birch: its disk is full \(E501 incident"):
            birch.play(output, deadline=60.0)
        assert not birch.half_written()
        disk.make_room()
        assert birch.play(output) == whole


def test_a_run_waits_until_a_site_has_space_again(birch, disk, clock, tmp_path, monkeypatch):
    whole = birch.play(tmp_path / "whole")
    shutil.rmtree(birch.cache)
    disk.leave(0)
    said = []

    def hear(_level, text):
        if not text.startswith("solved "):
            said.append(text)
            disk.make_room()

    monkeypatch.setattr(notices, "log", hear)
    assert birch.play(tmp_path / "out") == whole
    assert ["waiting for birch" in line and "its disk is full" in line for line in said] == [True]
