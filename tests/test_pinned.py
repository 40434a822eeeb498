"""A pinned site runs the bundle whose content has the right hash, and no file that lay around."""

import hashlib
import io
import os
import random
import resource
import stat
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from zipfile import ZipInfo

import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import get_project_dir
from flwr.supercore.fab import Fab
from flwr.supernode.runtime import run_clientapp

from client.pinned import LARGEST_BUNDLE, ForeignApplicationError, refuse_others, unpack
from layerweld.runtime.app_path import app_folder

_CODE = """
from pathlib import Path
from flwr.clientapp import ClientApp
with Path({log!r}).open("a") as log:
    log.write({who!r} + "\\n")
app = ClientApp()
"""


def project(module: str) -> str:
    """A ``pyproject.toml`` that Flower takes for an application's."""
    return (
        '[project]\nname = "app"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "us"\n[tool.flwr.app.components]\n'
        f'serverapp = "{module}:app"\nclientapp = "{module}:app"\n'
    )


def bundle_of(files: dict[Any, Any]) -> bytes:
    """A bundle as `flwr build` lays it out."""
    content = "\n".join(
        f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in files.items()
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (files | {".info/CONTENT": content.encode()}).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return packed.getvalue()


class Site:
    """Flower's own ClientApp runner in this process, with a SuperNode that says what it is told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.log = folder / "executed"
        self.home = folder / "flower"
        self.home.mkdir(mode=0o700)
        monkeypatch.setenv("FLWR_HOME", str(self.home))
        self.flowers = {
            name: getattr(run_clientapp, name)
            for name in run_clientapp.run_clientapp.__code__.co_names
            if hasattr(run_clientapp, name)
        }
        supernode = SimpleNamespace(
            event=lambda _: None,
            register_signal_handlers=lambda **_: None,
            RuntimeHttpClient=SimpleNamespace(from_server_address=lambda **_: None),
            HeartbeatSender=lambda _: SimpleNamespace(start=lambda: None),
            make_task_heartbeat_fn_http=lambda _: None,
            flwr_exit=lambda **_: None,
        )
        self.flowers |= vars(supernode)

    def pin(self, bundle: bytes | None) -> None:
        """As a new process of this site does; nothing is pinned without a bundle."""
        for name, value in self.flowers.items():
            self.patch.setattr(run_clientapp, name, value)
        if bundle:
            refuse_others(hashlib.sha256(bundle).hexdigest())

    def code(self, who: str) -> bytes:
        return _CODE.format(log=str(self.log), who=who).encode()

    def bundle(self, module: str) -> bytes:
        return bundle_of(
            {"pyproject.toml": project(module).encode(), f"{module}.py": self.code("us")}
        )

    def plant(self, place: Path, module: str) -> None:
        """An application of somebody else's, of the same names, where Flower would look for it."""
        place.mkdir(parents=True, exist_ok=True)
        (place / "pyproject.toml").write_text(project(module))
        (place / f"{module}.py").write_bytes(self.code("planted"))

    def execute(
        self,
        bundle: bytes,
        fab_id: str = "us/app",
        version: str = "1.0.0",
        fab_hash: str = "",
        **options: Any,
    ) -> list[str] | list[Any]:
        """What Flower's runner executes when it is sent this, named so."""
        said = fab_hash or hashlib.sha256(bundle).hexdigest()
        run = SimpleNamespace(fab_id=fab_id, fab_version=version, run_id=1)
        context = Context(1, 1, {}, RecordDict(), {})
        given = (None, context, run, Fab(said, bundle, {}))
        self.patch.setattr(run_clientapp, "pull_task_input", lambda _: given)
        self.log.unlink(missing_ok=True)
        path = list(sys.path)
        run_clientapp.run_clientapp("127.0.0.1:1", "token", True, **options)
        sys.path[:] = path
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return Site(tmp_path, monkeypatch)


def named_places(site: Site, draw: Random, shorthash: str) -> tuple[Any, ...]:
    """Names that a SuperLink may give an application, some of which lead Flower elsewhere."""
    elsewhere = site.folder / f"planted{draw.randrange(9)}"
    up = "../" * draw.randrange(1, 3)
    version = draw.choice(
        (
            "1.0.0",
            "1.0.1",
            "",
            "..",
            "9",
            f"/../{up}{elsewhere.name}/x",
            f"/{elsewhere}",
            "a\x00b",
            "x/../y",
        )
    )
    publisher = draw.choice(("us", "us", "us", "them", "", "..", ".", "~"))
    name = draw.choice(("app", "app", "app", "other", "..", "app.1.0.0", ""))
    hashes = (shorthash + "0" * 56, shorthash, shorthash[:4], "", "../" + shorthash)
    return f"{publisher}/{name}", version, draw.choice(hashes)


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_a_superlink_calls_it_a_site_executes_its_own_bundle_or_nothing(
    site: Site, count: int
) -> None:
    draw = random.Random(0)
    executed: list[str] = []
    unpinned: list[str] = []
    for number in range(count):
        bundle = site.bundle(f"pinned_app_{number}")
        fab_id, version, said = named_places(site, draw, hashlib.sha256(bundle).hexdigest()[:8])
        place = get_project_dir(fab_id, version, said)
        if not Path(os.path.normpath(place)).is_relative_to(site.folder) or "\x00" in version:
            continue  # a place that is not the test's
        site.plant(place, f"pinned_app_{number}")
        site.pin(bundle)
        executed += site.execute(bundle, fab_id, version, said)
        if number % 10 == 0:
            site.pin(None)
            sys.modules.pop(f"pinned_app_{number}", None)
            unpinned += site.execute(bundle, fab_id, version, said)
    assert "planted" not in executed
    assert "us" in executed
    assert "planted" in unpinned, "none of these names leads Flower astray"


def test_flower_alone_would_execute_what_was_planted(site: Site) -> None:
    bundle = site.bundle("pinned_app_flower")
    said = hashlib.sha256(bundle).hexdigest()
    site.plant(get_project_dir("us/app", "1.0.1", said), "pinned_app_flower")
    site.pin(None)
    assert site.execute(bundle, version="1.0.1") == ["planted"], (
        "then the pin is not needed any more"
    )


def test_the_pinned_bundle_is_executed_and_nothing_that_lies_in_its_place(site: Site) -> None:
    bundle = site.bundle("pinned_app_own")
    pinned = hashlib.sha256(bundle).hexdigest()
    site.plant(get_project_dir("us/app", "1.0.0", pinned), "pinned_app_own")
    site.plant(site.home / "running", "pinned_app_own")
    (site.home / "running").chmod(0o700)
    site.pin(bundle)
    assert site.execute(bundle) == ["us"]
    assert not list((site.home / "running").rglob("*.pyc"))


def test_another_bundle_is_refused_unread(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pin(site.bundle("pinned_app_a"))
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it was opened"))
    draw = random.Random(0)
    whole = bytearray(b"PK" + draw.randbytes(1000))
    for _ in range(200):
        whole[draw.randrange(len(whole))] = draw.randrange(256)
        with pytest.raises(ForeignApplicationError, match="install the same layerweld"):
            run_clientapp.install_from_fab(bytes(whole), skip_prompt=True)  # type: ignore[attr-defined]


def test_no_run_installs_packages_at_a_site(site: Site) -> None:
    bundle = site.bundle("pinned_app_packages")
    site.pin(bundle)
    assert site.execute(bundle, runtime_dependency_install=True) == []


def test_a_flower_that_runs_applications_otherwise_runs_none(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_clientapp, "run_clientapp", lambda: None)
    with pytest.raises(AttributeError, match="does not call install_from_fab"):
        refuse_others("0" * 64)


def places_that_others_may_write(folder: Path) -> Iterator[Path]:
    """Folders for applications, each with something wrong on the way to it."""
    for mode in (0o720, 0o702, 0o777, 0o1777, 0o2770):
        own = folder / f"own{mode:o}"
        own.mkdir()
        own.chmod(mode)
        yield own
    for mode in (0o770, 0o707, 0o777):
        above = folder / f"above{mode:o}"
        (above / "a/b").mkdir(parents=True)
        above.chmod(mode)
        yield above / "a/b"
        (folder / f"link{mode:o}").symlink_to(above / "a")
        yield folder / f"link{mode:o}" / "b"
        yield folder / f"link{mode:o}" / "new"
    if os.geteuid() == 0:
        (folder / "theirs/a").mkdir(parents=True)
        os.chown(folder / "theirs", 12345, 12345)
        yield folder / "theirs/a"


def test_nothing_is_unpacked_where_others_may_write(tmp_path: Path) -> None:
    for place in places_that_others_may_write(tmp_path):
        with pytest.raises(ForeignApplicationError, match="others may write into"):
            unpack(bundle_of({"a.py": b"1"}), place)
        assert not list(place.rglob("*.py"))


def test_a_sticky_folder_above_is_well(tmp_path: Path) -> None:
    (tmp_path / "sticky/own").mkdir(parents=True, mode=0o700)
    (tmp_path / "sticky").chmod(0o1777)
    (tmp_path / "sticky/own").chmod(0o700)
    folder = unpack(bundle_of({"client/a.py": b"1"}), tmp_path / "sticky/own")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "client/a.py").read_bytes() == b"1"


def archive_of(*members: tuple[Any, ...]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return packed.getvalue()


def linked(name: str, kind: int = stat.S_IFLNK) -> ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "archive",
    [
        archive_of(("../evil.py", b"1")),
        archive_of(("a/../../evil.py", b"1")),
        archive_of(("/tmp/evil.py", b"1")),
        archive_of((linked("client"), b"/tmp")),
        archive_of((linked("a.py", stat.S_IFIFO), b"")),
        archive_of((linked("a.py", stat.S_IFCHR), b"")),
        archive_of(("zeros", bytes(65 * 2**20))),
        archive_of(*((f"zeros{i}", bytes(2**20)) for i in range(65))),
    ],
)
def test_only_files_that_stay_inside_are_unpacked(archive: Any, tmp_path: Path) -> None:
    with pytest.raises(ForeignApplicationError):
        unpack(archive, tmp_path / "running")
    assert not list(tmp_path.rglob("*.py"))


def test_every_process_has_its_own_folder_and_those_of_dead_ones_go(tmp_path: Path) -> None:
    dead, alive = tmp_path / "999999999-x", tmp_path / f"{os.getppid()}-x"
    dead.mkdir()
    alive.mkdir()
    archive = bundle_of({"a.py": b"1"})
    folders = {unpack(archive, tmp_path) for _ in range(3)}
    assert len(folders) == 3
    assert not dead.exists()
    assert alive.exists()


def test_a_bundle_that_would_fill_the_memory_is_refused_in_no_time(site: Site) -> None:
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("pyproject.toml", bytes(2**28))
    site.pin(b"another one")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ForeignApplicationError):
        run_clientapp.install_from_fab(zeros.getvalue(), skip_prompt=True)  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_our_own_bundle_is_far_below_the_bound() -> None:
    files = [file for part in ("client", "server", "strategies", "layerweld")
             for file in Path(app_folder() / part).rglob("*.py")]  # fmt: skip
    assert 20 * sum(file.stat().st_size for file in files) < LARGEST_BUNDLE
