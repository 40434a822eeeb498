"""A coordinator's folder: what is in it, how it is made, and which programs it runs."""

from __future__ import annotations

import ipaddress
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from layerweld.deploy.certificates import Identity, make_authority, make_server
from layerweld.deploy.environment import SUPEREXEC, flower_environment, program
from layerweld.deploy.files import PRIVATE, new_folder, read_toml, write_toml, write_whole
from layerweld.deploy.life import LARGEST_PEM
from layerweld.deploy.processes import Program
from layerweld.deploy.rehearsal import require_verified
from layerweld.deploy.units import unit
from layerweld.errors import DeployError
from layerweld.runtime.app_path import app_folder
from layerweld.settings.run import RunSettings, validate_settings
from layerweld.settings_table import Settings
from layerweld.untrusted.files import contents, named_path, reading
from layerweld.untrusted.names import SITE_NAME
from layerweld.untrusted.text import quoted

CONNECTION = "here"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # of a DNS name
_HOST = rf"^{_LABEL}(\.{_LABEL})*$"
_LONGEST_HOST = 253  # characters, by RFC 1035
_RESTORE = "put it back from a copy"
LOOPBACK = ("localhost", "127.0.0.1")
_MADE_BY = "layerweld coordinator init NAME --host HOST"
_BOUNDS = ("influence", "max_size", "max_weight")


def _checked_host(host: str) -> str:
    is_name = len(host) <= _LONGEST_HOST and re.fullmatch(_HOST, host)
    if not is_name and not _is_ipv6(host):
        raise ValueError(
            f"it should be a name of at most {_LONGEST_HOST} characters, each part of it of at "
            f"most 63 letters, digits and hyphens, or an IP address"
        )
    return host


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.IPv6Address(host).scope_id is None
    except ValueError:
        return False


Host = Annotated[str, AfterValidator(_checked_host)]


class CoordinatorFile(Settings):
    """``coordinator.toml``."""

    name: str = Field(pattern=f"^{SITE_NAME}$")
    """Name of the federation, of its folder and of its first run."""
    host: Host
    """Name or address under which sites reach this machine; it is in the certificate."""
    bind: Host = "0.0.0.0"
    """Address on which the gateway for SuperNodes listens."""
    port: int = Field(ge=1, le=65535)
    """Port of the gateway for SuperNodes: the only one that sites need."""
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
        """Certificate that sites verify the gateway with; they get a copy."""
        return self.folder / "certificates" / "ca.crt"

    @property
    def inside_authority(self) -> Path:
        """Certificate of the authority that signs for the SuperLink on loopback."""
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
            DeployError: no base model is named, or the name cannot name a folder.
        """
        file = self.folder / "run.toml"
        settings = validate_settings(read_toml(file, _MADE_BY), file)
        chosen = name or settings.name
        if not re.fullmatch(SITE_NAME, chosen):
            where = "" if name else f"{file}: "
            raise DeployError(
                f"{where}{quoted(chosen)} cannot name a run; use letters, digits and `._-`"
            )
        if not settings.base:
            raise DeployError(f"{file} names no base model; set `base` to its folder")
        base = named_path(settings.base, f"{file}, base", DeployError, self.folder)
        return settings.model_copy(update={"base": str(base), "name": chosen})

    def programs(self) -> list[Program]:
        """SuperLink, SuperExec and the gateway, in a layout that survives a killed SuperLink."""
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
            *SUPEREXEC,
            *("--runtime-api-address", self.superlink),
            *("--root-certificates", str(self.inside_authority), *secret),
        ]
        gateway = [sys.executable, "-P", "-m", "layerweld.deploy.gateway", str(self.folder)]
        commands = {"superlink": superlink, "superexec": superexec, "gateway": gateway}
        return [Program(name, command, self.environment) for name, command in commands.items()]


@dataclass(frozen=True)
class OwnCertificate:
    """The organisation's own server certificate, as files; then no certificate is made here.

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
    """Make a coordinator's folder; it is complete or absent.

    Args:
        parent: where to make it.
        file: its settings.
        base: folder of the base model; if empty, somebody must write it into ``run.toml``.
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
        DeployError: it is not such a folder, or its settings are wrong.
    """
    folder = named_path(folder, "--folder", DeployError)
    file = folder / "coordinator.toml"
    tables = read_toml(file, _MADE_BY)
    try:
        return Coordinator(folder, CoordinatorFile.model_validate(tables))
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
        raise DeployError(
            f"port {file.port} cannot serve both the gateway and the SuperLink; choose two ports"
        )
    return file


def unit_name(file: CoordinatorFile) -> str:
    """Name of the systemd unit."""
    return f"layerweld-coordinator-{file.name}.service"


_RUN_COMMENT = """Settings of this federation's runs; `layerweld coordinator run` reads them.
Give the sites a copy: `layerweld site init --settings run.toml` checks with the same ones.
docs/settings.md lists them all."""


def _first_settings(file: CoordinatorFile, base: str) -> dict[str, Any]:
    """What every run needs, and the settings that bound and show how far one site moves a merge."""
    path = str(named_path(base, "--base", DeployError)) if base else ""
    merge = RunSettings().merge.model_dump(by_alias=True, include={*_BOUNDS})
    return {"name": file.name, "base": path, "min-sites": 2, "methods": "chain", "merge": merge}


def _unit(folder: Path, file: CoordinatorFile) -> str:
    arguments = ("coordinator", "up", "--folder", str(folder))
    return unit(f"layerweld coordinator {file.name}", arguments, folder)


def hosts_of(file: CoordinatorFile) -> list[str]:
    """The server's names in its certificate; on one machine both names of loopback."""
    return [*LOOPBACK] if file.host in LOOPBACK else [file.host]


def _write_certificates(folder: Path, file: CoordinatorFile, own: OwnCertificate | None) -> None:
    inside = make_authority(f"{file.name} loopback")
    write_identity(folder, "inside-ca", inside)
    write_identity(folder, "inside", make_server(inside, LOOPBACK))
    if own is None:
        authority = make_authority(file.name)
        write_identity(folder, "ca", authority)
        write_identity(folder, "server", make_server(authority, hosts_of(file)))
        return
    install_own(folder, file, own)


def install_own(folder: Path, file: CoordinatorFile, own: OwnCertificate) -> None:
    """Copy the organisation's certificate, once it has been seen to work.

    Args:
        folder: of the certificates.
        file: settings of the coordinator.
        own: the organisation's certificate.

    Raises:
        DeployError: a file cannot be read, or sites would refuse the certificate.
    """
    copies = {"server.crt": own.certificate, "server.key": own.key, "ca.crt": own.authority}
    found = {name: contents(path, DeployError, LARGEST_PEM) for name, path in copies.items()}
    for host in hosts_of(file):
        require_verified(own.certificate, own.key, own.authority, host)
    for name, content in found.items():
        write_whole(folder / name, content, PRIVATE)


def write_identity(folder: Path, stem: str, identity: Identity) -> None:
    """Keep a certificate and its key in ``stem.crt`` and ``stem.key``."""
    write_whole(folder / f"{stem}.key", identity.key_pem, PRIVATE)
    write_whole(folder / f"{stem}.crt", identity.certificate_pem)


def read_identity(folder: Path, stem: str) -> Identity:
    """Inverse of :func:`write_identity`.

    Raises:
        DeployError: the key is of another kind than those that are made here.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    files = folder / f"{stem}.crt", folder / f"{stem}.key"
    public, private = (contents(file, DeployError, LARGEST_PEM) for file in files)
    with reading(f"{files[0]} is not a certificate", _RESTORE, DeployError):
        certificate = x509.load_pem_x509_certificate(public)
    with reading(f"{files[1]} is not a private key", _RESTORE, DeployError):
        key = load_pem_private_key(private, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError(
            f"{folder / stem}.key was not made by layerweld; sign the certificate by hand"
        )
    return Identity(certificate, key)


def _problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where: Sequence[str | int] = problem["loc"]
    return f"{'.'.join(map(str, where))} = {quoted(problem['input'])}: {problem['msg']}"
