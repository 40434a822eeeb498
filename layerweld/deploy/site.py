"""A site's folder: what is in it, how it is made, and the program it runs."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from layerweld.deploy.checks import skew
from layerweld.deploy.environment import SUPEREXEC, flower_environment, program
from layerweld.deploy.files import new_folder, read_toml, require_private, write_toml, write_whole
from layerweld.deploy.keys import make_key, public_file
from layerweld.deploy.processes import Program
from layerweld.errors import DeployError, InUseError
from layerweld.runtime.app_path import app_folder
from layerweld.runtime.disk import holding_lock, is_held
from layerweld.settings.sites import SiteEntry, on_its_own
from layerweld.untrusted.files import named_path

_MADE_BY = "layerweld site init SITE --model … --data …"
_REFUSE = "#!/bin/sh\necho 'this site runs ClientApps only' >&2\nexit 1\n"
_CHECKING = {"flwr-clientapp": "pinned.py", "flower-supernode": "pinned_supernode.py"}
_UNQUOTABLE = frozenset('"\\\n')  # Flower's node configuration has no way to write these


@dataclass(frozen=True)
class Site:
    """One site's folder.

    Attributes:
        folder: absolute.
        entry: what its node configuration says.
    """

    folder: Path
    entry: SiteEntry

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / self.entry.name

    @property
    def public_key(self) -> Path:
        """What the coordinator gets."""
        return public_file(self.key)

    @property
    def authority(self) -> Path:
        """Certificate of the coordinator's authority; absent where the system's are enough."""
        return self.folder / "ca.crt"

    @property
    def cache(self) -> Path:
        """Folder of what the site remembers between messages, and of adapters that it trained."""
        return Path(self.entry.cache)

    @property
    def run_file(self) -> Path:
        """The coordinator's settings, as they were at ``site init``."""
        return self.folder / "run.toml"

    @property
    def logs(self) -> Path:
        """Folder of the SuperNode's log."""
        return self.folder / "logs"

    @property
    def programs(self) -> Path:
        """Folder of the programs that replace Flower's here."""
        return self.folder / "bin"

    def supernode(self, address: str, authority: Path | None, port: int) -> Program:
        """Flower's SuperNode.

        Args:
            address: ``host:port`` of the coordinator's gateway.
            authority: certificate to verify it with; None for the system's.
            port: loopback port on which the SuperNode and its ClientApp talk.
        """
        command = [str(self.programs / "flower-supernode"), "--superlink", address]
        if authority is not None:
            command += ["--root-certificates", str(authority)]
        command += ["--auth-supernode-private-key", str(self.key), "--port", str(port)]
        command += ["--node-config", node_config(self.entry)]
        environment = flower_environment(self.folder / "flower", self.programs)

        def explain(log: str) -> str:
            # If its clock is why it is refused, a SuperNode ends with code 0 and says nothing.
            return explain_end(log) or skew(address, authority)

        return Program("supernode", command, environment, explain)

    def pin(self, application: str) -> None:
        """Let only this application run here from now on; see :mod:`client.pinned`.

        Flower starts a task by the name of a program: ``flwr-clientapp`` for a ClientApp, others
        for servers, agents and simulations. Programs of these names are put before Flower's own on
        the SuperNode's search path. The first one checks, and the others refuse. The program that
        asks for tasks, ``flower-superexec``, is replaced too; see :mod:`client.superexec`. The
        SuperNode itself is started through a program that checks.

        Raises:
            DeployError: others may write into the site's folder, and so decide what runs.
        """
        require_private(self.folder)
        self.programs.mkdir(exist_ok=True)
        for flowers in Path(program("flwr-clientapp")).parent.glob("flwr-*"):
            self._write_program(flowers.name, _REFUSE)
        for name, checking in _CHECKING.items():
            checks = (sys.executable, "-P", str(app_folder() / "client" / checking), application)
            self._write_program(name, f'#!/bin/sh\nexec {shlex.join(checks)} "$@"\n')
        self._write_program("flower-superexec", f'#!/bin/sh\nexec {shlex.join(SUPEREXEC)} "$@"\n')

    def _write_program(self, name: str, script: str) -> None:
        write_whole(self.programs / name, script.encode(), mode=0o755)


def site_entry(
    name: str, parent: Path, min_samples: int | None, words: Mapping[str, str], **paths: str
) -> SiteEntry:
    """Check what a person typed, and make every path absolute.

    Args:
        name: of the site and of its folder.
        parent: absolute folder in which that will be made.
        min_samples: as in :class:`SiteEntry`; None means the default.
        words: ``text_column``, ``label_column`` and ``logger`` of :class:`SiteEntry`. An empty one
            means the default; no run can change it.
        paths: the fields of :class:`SiteEntry` that are paths, other than ``cache``.

    Raises:
        DeployError: a name or path is impossible or does not exist.
    """
    absolute = {key: _absolute(path) for key, path in paths.items() if path}
    entries = absolute | {**words, "name": name, "cache": str(parent / name / "cache")}
    for key, value in entries.items():
        if _UNQUOTABLE & set(value):
            raise DeployError(
                f"{key} {value!r} has a quote, backslash or line break in it; rename it"
            )
    try:
        fewest = {} if min_samples is None else {"min-samples": min_samples}
        return on_its_own(SiteEntry.model_validate(entries | fewest))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DeployError(f"{where} = {problem['input']!r}: {problem['msg']}") from None


def create(folder: Path, entry: SiteEntry, settings: bytes) -> tuple[Site, str]:
    """Make a site's folder with a new key; it is complete or absent.

    Args:
        folder: to make.
        entry: the site.
        settings: content of the coordinator's ``run.toml``, for later checks.

    Returns:
        The site, and its key's fingerprint.

    Raises:
        DeployError: the folder exists already.
    """
    with new_folder(folder) as new:
        for name in ("bin", "cache", "flower", "logs"):
            (new / name).mkdir()
        write_toml(
            new / "site.toml", entry.model_dump(by_alias=True), "A site: all paths absolute."
        )
        write_whole(new / "run.toml", settings)
        fingerprint = make_key(new / entry.name)
    return Site(folder, entry), fingerprint


def open_site(folder: Path) -> Site:
    """Read a site's folder.

    Raises:
        DeployError: it is not such a folder, or its settings are wrong.
    """
    folder = named_path(folder, "--folder", DeployError)
    file = folder / "site.toml"
    try:
        entry = SiteEntry.model_validate(read_toml(file, _MADE_BY))
        return Site(folder, on_its_own(entry))
    except ValidationError as error:
        problem = error.errors()[0]
        raise DeployError(
            f"{file}, {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        ) from None


def node_config(entry: SiteEntry) -> str:
    """A site in the form of Flower's ``--node-config``.

    The watchdog is always on. Flower starts one process per message here, and a process that hangs
    would block the site for every later message.
    """
    entries = entry.model_dump(by_alias=True, exclude={"watchdog", "min_samples"})
    texts = [f'{key}="{value}"' for key, value in entries.items() if value]
    return " ".join([*texts, f"min-samples={entry.min_samples}", "watchdog=true"])


@contextmanager
def joined(site: Site) -> Iterator[None]:
    """Hold the site's lock: one SuperNode per key.

    Raises:
        DeployError: another process holds it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(holding_lock(_join_lock(site), str(site.folder)))
        except InUseError:
            raise DeployError(
                f"{site.folder} has joined already, and a site is one process; end that one first"
            ) from None
        yield


def is_joined(site: Site) -> bool:
    """Whether a ``layerweld site join`` of this folder is running."""
    return is_held(_join_lock(site))


def purge(site: Site, *, adapters: bool) -> int:
    """Delete what finished and interrupted runs have left in the cache.

    Args:
        site: whose.
        adapters: delete the adapters that the site trained, too.

    Returns:
        Bytes freed.

    Raises:
        DeployError: the site has joined, and a run may be using the cache.
    """
    with joined(site):
        folders = [site.cache / "runs", *([site.cache / "adapters"] if adapters else [])]
        freed = sum(bytes_in(folder) for folder in folders)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return freed


def bytes_in(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def explain_end(log: str) -> str:
    """What a person can do about a SuperNode that ended, by the end of its log."""
    if "Failed to activate" in log:
        return (
            "the coordinator does not accept this key: it is not registered (yet), or was in use "
            "until a minute ago"
        )
    if "CERTIFICATE_VERIFY_FAILED" in log or "SSL/TLS handshake error" in log:
        return "the coordinator's certificate cannot be verified; see `layerweld site check`"
    return ""


def _join_lock(site: Site) -> Path:
    return site.folder / "join.lock"


def _absolute(path: str) -> str:
    absolute = named_path(path, "the site's files", DeployError)
    if not absolute.exists():
        raise DeployError(f"{absolute} does not exist")
    return str(absolute)
