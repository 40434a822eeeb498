"""A coordinator's folder: what is in it, how it is made, and which programs it runs."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from layerweld.config import RunSettings, validate_settings
from layerweld.deploy.certificates import Identity, make_authority, make_server
from layerweld.deploy.environment import flower_environment, program
from layerweld.deploy.files import PRIVATE, new_folder, read_toml, write_toml, write_whole
from layerweld.deploy.processes import Program
from layerweld.deploy.units import unit
from layerweld.errors import DeployError
from layerweld.launch import app_folder
from layerweld.settings import Settings
from layerweld.sites import SITE_NAME

CONNECTION = "here"
_HOST = r"^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f]*:[0-9A-Fa-f:]+)$"
_LOOPBACK = ("localhost", "127.0.0.1")
_MADE_BY = "layerweld coordinator init NAME --host HOST"


class CoordinatorFile(Settings):
    """``coordinator.toml``."""

    name: str = Field(pattern=f"^{SITE_NAME}$")
    """Name of the federation, of its folder and of its first run."""
    host: str = Field(pattern=_HOST)
    """Name or address under which sites reach this machine; it is in the certificate."""
    bind: str = "0.0.0.0"
    """Address on which the door for SuperNodes listens."""
    port: int = Field(ge=1, le=65535)
    """Port of the door for SuperNodes: the only one that sites need."""
    superlink_port: int = Field(ge=1, le=65535)
    """Port of Flower's SuperLink on loopback."""


@dataclass(frozen=True)
class Coordinator:
    """One coordinator's folder.

    Attributes:
        folder: absolute.
        file: its settings.
    """

    folder: Path
    file: CoordinatorFile

    @property
    def authority(self) -> Path:
        """Certificate that sites verify the door with; they get a copy."""
        return self.folder / "certificates" / "ca.crt"

    @property
    def inside_authority(self) -> Path:
        """Certificate that vouches for the SuperLink on loopback."""
        return self.folder / "certificates" / "inside-ca.crt"

    @property
    def environment(self) -> dict[str, str]:
        """For Flower's programs and commands."""
        return flower_environment(self.folder / "flower")

    @property
    def sites(self) -> Path:
        """Folder of the registered sites' public keys."""
        return self.folder / "sites"

    @property
    def runs(self) -> Path:
        """Folder of what runs write."""
        return self.folder / "runs"

    @property
    def superlink(self) -> str:
        """Where the SuperLink listens."""
        return f"127.0.0.1:{self.file.superlink_port}"

    def settings(self, name: str = "") -> RunSettings:
        """The settings of a run, from ``run.toml``; a relative model path is the folder's.

        Args:
            name: of the run; empty for the file's.

        Raises:
            ConfigError: a setting is unknown or wrong.
            DeployError: there is no base model, or the name cannot name a folder.
        """
        file = self.folder / "run.toml"
        settings = validate_settings(read_toml(file, _MADE_BY))
        chosen = name or settings.name
        if not re.fullmatch(SITE_NAME, chosen):
            raise DeployError(f"{chosen!r} cannot name a run; use letters, digits and `._-`")
        if not settings.base:
            raise DeployError(f"{file} names no base model; set `base` to its folder")
        base = (self.folder / Path(settings.base).expanduser()).resolve()
        return settings.model_copy(update={"base": str(base), "name": chosen})

    def programs(self) -> list[Program]:
        """SuperLink, SuperExec and the door, in the layout that survives a killed SuperLink."""
        certificates = self.folder / "certificates"
        secret = ["--superexec-auth-secret-file", str(self.folder / "superexec.secret")]
        bound = app_folder() / "server" / "bound_superlink.py"
        superlink = [
            *(sys.executable, "-P", str(bound)),
            *(program("flower-superlink"), "--host", "127.0.0.1"),
            *("--port", str(self.file.superlink_port)),
            *("--ssl-ca-certfile", str(self.inside_authority)),
            *("--ssl-certfile", str(certificates / "inside.crt")),
            *("--ssl-keyfile", str(certificates / "inside.key")),
            *("--enable-supernode-auth", "--database", str(self.folder / "state.db")),
            *("--isolation", "process", *secret, "--disable-runtime-dependency-installation"),
        ]
        superexec = [
            *(program("flower-superexec"), "--runtime-api-address", self.superlink),
            *("--root-certificates", str(self.inside_authority), *secret),
        ]
        door = [sys.executable, "-P", "-m", "layerweld.deploy.door", str(self.folder)]
        commands = {"superlink": superlink, "superexec": superexec, "door": door}
        return [Program(name, command, self.environment) for name, command in commands.items()]


@dataclass(frozen=True)
class OwnCertificate:
    """The organisation's own server certificate, as files: nothing is made then.

    Attributes:
        certificate: of the server, with the chain that clients need.
        key: its private key.
        authority: what sites verify it with.
    """

    certificate: Path
    key: Path
    authority: Path


def create(
    parent: Path, file: CoordinatorFile, base: str, own: OwnCertificate | None = None
) -> Coordinator:
    """Make a coordinator's folder; it is complete or not there.

    Args:
        parent: where to make it.
        file: its settings.
        base: folder of the base model; may be empty, and is then to be written into ``run.toml``.
        own: the organisation's certificate; None makes one, and an authority.

    Raises:
        DeployError: the folder exists already, or a file cannot be read.
    """
    final = parent.resolve() / file.name
    with new_folder(final) as folder:
        write_toml(folder / "coordinator.toml", file.model_dump(by_alias=True), "A coordinator.")
        write_toml(folder / "run.toml", _first_settings(file, base), _RUN_COMMENT)
        for name in ("certificates", "flower", "sites", "runs"):
            (folder / name).mkdir()
        _write_certificates(folder / "certificates", file, own)
        write_whole(folder / "superexec.secret", secrets.token_bytes(32), PRIVATE)
        coordinator = Coordinator(final, file)
        connection = {
            "address": coordinator.superlink,
            "root-certificates": str(coordinator.inside_authority),
        }
        write_toml(
            folder / "flower" / "config.toml",
            {"superlink": {"default": CONNECTION, CONNECTION: connection}},
            "How `flwr` reaches this coordinator's SuperLink.",
        )
        write_whole(folder / unit_name(file), _unit(final, file).encode())
    return coordinator


def open_coordinator(folder: Path) -> Coordinator:
    """Read a coordinator's folder.

    Raises:
        DeployError: it is none, or its settings are wrong.
    """
    file = folder.resolve() / "coordinator.toml"
    tables = read_toml(file, _MADE_BY)
    try:
        return Coordinator(folder.resolve(), CoordinatorFile.model_validate(tables))
    except ValidationError as error:
        raise DeployError(f"{file}, {_problem(error)}") from None


def check_file(**entries: str | int) -> CoordinatorFile:
    """Settings of a new coordinator, from what a person typed.

    Raises:
        DeployError: a name or port is impossible.
    """
    try:
        file = CoordinatorFile.model_validate(entries)
    except ValidationError as error:
        raise DeployError(_problem(error)) from None
    if file.port == file.superlink_port:
        raise DeployError(f"port {file.port} cannot be the door's and the SuperLink's; choose two")
    return file


def renew(coordinator: Coordinator) -> None:
    """Sign new server certificates with the folder's own authorities; sites notice nothing.

    Raises:
        DeployError: the organisation's own certificate is in use.
    """
    certificates = coordinator.folder / "certificates"
    if not (certificates / "ca.key").is_file():
        raise DeployError(
            f"{certificates} holds your organisation's certificate; replace server.crt and "
            f"server.key there, and start `layerweld coordinator up` again"
        )
    outside = _read_identity(certificates, "ca")
    _write_identity(certificates, "server", make_server(outside, _hosts(coordinator.file)))
    inside = _read_identity(certificates, "inside-ca")
    _write_identity(certificates, "inside", make_server(inside, _LOOPBACK))


def unit_name(file: CoordinatorFile) -> str:
    """Name of the systemd unit."""
    return f"layerweld-coordinator-{file.name}.service"


_RUN_COMMENT = """Settings of this federation's runs; `layerweld coordinator run` reads them.
Give the sites a copy: `layerweld site init --settings run.toml` checks with the same ones.
docs/settings.md lists them all."""


def _first_settings(file: CoordinatorFile, base: str) -> dict[str, str | int]:
    path = str(Path(base).expanduser().resolve()) if base else ""
    return {"name": file.name, "base": path, "min-sites": 2, "methods": "chain"}


def _unit(folder: Path, file: CoordinatorFile) -> str:
    arguments = ("coordinator", "up", "--folder", str(folder))
    return unit(f"layerweld coordinator {file.name}", arguments, folder)


def _hosts(file: CoordinatorFile) -> list[str]:
    """A federation on one machine is tried out under both names of loopback."""
    return [*_LOOPBACK] if file.host in _LOOPBACK else [file.host]


def _write_certificates(folder: Path, file: CoordinatorFile, own: OwnCertificate | None) -> None:
    inside = make_authority(f"{file.name} loopback")
    _write_identity(folder, "inside-ca", inside)
    _write_identity(folder, "inside", make_server(inside, _LOOPBACK))
    if own is None:
        authority = make_authority(file.name)
        _write_identity(folder, "ca", authority)
        _write_identity(folder, "server", make_server(authority, _hosts(file)))
        return
    copies = (("server.crt", own.certificate), ("server.key", own.key), ("ca.crt", own.authority))
    for name, source in copies:
        try:
            write_whole(folder / name, source.read_bytes(), PRIVATE)
        except OSError as error:
            raise DeployError(f"{source} cannot be read: {error.strerror}") from None


def _write_identity(folder: Path, stem: str, identity: Identity) -> None:
    write_whole(folder / f"{stem}.key", identity.key_pem, PRIVATE)
    write_whole(folder / f"{stem}.crt", identity.certificate_pem)


def _read_identity(folder: Path, stem: str) -> Identity:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate = x509.load_pem_x509_certificate((folder / f"{stem}.crt").read_bytes())
    key = load_pem_private_key((folder / f"{stem}.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError(f"{folder / stem}.key was not made by layerweld; sign by hand")
    return Identity(certificate, key)


def _problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where: Sequence[str | int] = problem["loc"]
    return f"{'.'.join(map(str, where))} = {problem['input']!r}: {problem['msg']}"
