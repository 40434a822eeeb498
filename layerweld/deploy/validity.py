"""How long a coordinator's certificates are valid, and what is done before they expire.

A federation needs four certificates: the gateway's and its authority's, which sites see, and the
two of the SuperLink behind it, which nobody sees. What this folder has the key for is renewed here.
What the organisation signs is named, with the day it expires.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from layerweld.deploy import certificates
from layerweld.deploy.certificates import SERVER_DAYS, make_server, prolonged
from layerweld.deploy.coordinator import (
    LOOPBACK,
    Coordinator,
    hosts_of,
    read_identity,
    write_identity,
)
from layerweld.deploy.life import life_of
from layerweld.errors import DeployError

_AUTHORITIES = {"server": "ca", "inside": "inside-ca"}  # what signs, by what is signed
_PROGRAMS = {"server": "gateway", "inside": "superlink"}  # what must be restarted with it
_DAY = timedelta(days=1)


def is_own(coordinator: Coordinator) -> bool:
    """Whether this folder's own authority signs the gateway's certificate."""
    return (_folder(coordinator) / "ca.key").is_file()


def warnings_of(coordinator: Coordinator) -> list[str]:
    """One line for each certificate that has expired or will within a month, with what to do."""
    lines = []
    for name in ("server", "ca", "inside", "inside-ca"):
        trouble = life_of(_folder(coordinator) / f"{name}.crt").trouble
        if trouble:
            lines.append(f"{trouble}; {_remedy(coordinator, name)}")
    return lines


def _remedy(coordinator: Coordinator, name: str) -> str:
    if is_own(coordinator) or name.startswith("inside"):
        return "type `layerweld coordinator renew`, and start `layerweld coordinator up` again"
    folder = _folder(coordinator)
    what = "--certificate FILE --key FILE" + (" --authority FILE" if name == "ca" else "")
    return (
        f"get a new one from your organisation's certificate authority, type `layerweld "
        f"coordinator renew {what} --folder {folder.parent}`, and start `up` again"
    )


def renew(coordinator: Coordinator) -> list[str]:
    """Sign anew whatever this folder has the authority for; sites keep what they have.

    An authority that would not outlive the new certificate is prolonged first, with the same key.

    Returns:
        What was done, and what is left to do, a line each.
    """
    said = _sign(coordinator, "inside")
    if is_own(coordinator):
        return [*_sign(coordinator, "server"), *said]
    own = life_of(_folder(coordinator) / "server.crt")
    left = f"{own.file} is your organisation's, and valid until {own.ends:%Y-%m-%d}"
    return [*said, f"{left}; {_remedy(coordinator, 'server')}" if own.trouble else left]


def tend(coordinator: Coordinator, say: Callable[[str], None]) -> set[str]:
    """Renew what expires within a month, and warn of what cannot be renewed here.

    Returns:
        The programs that must be restarted to use what was renewed.
    """
    stale = set()
    for name, authority in _AUTHORITIES.items():
        files = [_folder(coordinator) / f"{stem}.crt" for stem in (name, authority)]
        may_sign = name == "inside" or is_own(coordinator)
        if may_sign and any(life_of(file).trouble for file in files):
            for line in _sign(coordinator, name):
                say(line)
            stale.add(_PROGRAMS[name])
    for line in warnings_of(coordinator):
        say(f"warning: {line}")
    return stale


def require_alive(coordinator: Coordinator) -> None:
    """Refuse to start with a certificate that every site would refuse.

    Raises:
        DeployError: the organisation's certificate or its authority has expired.
    """
    for name in ("server", "ca"):
        life = life_of(_folder(coordinator) / f"{name}.crt")
        if life.is_over:
            raise DeployError(
                f"{life.trouble}, and no site trusts it; {_remedy(coordinator, name)}"
            )


def _sign(coordinator: Coordinator, name: str) -> list[str]:
    folder, stem = _folder(coordinator), _AUTHORITIES[name]
    authority, said = read_identity(folder, stem), []
    old = authority.certificate.not_valid_after_utc
    if old < certificates.now() + timedelta(days=SERVER_DAYS) + _DAY:
        authority = prolonged(authority)
        write_identity(folder, stem, authority)
        if name == "server":
            said.append(_new_authority(folder / "ca.crt", old))
    hosts = hosts_of(coordinator.file) if name == "server" else LOOPBACK
    signed = make_server(authority, hosts)
    write_identity(folder, name, signed)
    ends = signed.certificate.not_valid_after_utc
    return [f"renewed {folder / name}.crt, valid until {ends:%Y-%m-%d}", *said]


def _new_authority(file: Path, old: datetime) -> str:
    if old < certificates.now():
        return f"the authority expired on {old:%Y-%m-%d}: no site can connect before it has {file}"
    return (
        f"the authority that sites have expires on {old:%Y-%m-%d}: give every site the new {file} "
        f"before that day; until then the old one works"
    )


def _folder(coordinator: Coordinator) -> Path:
    return coordinator.folder / "certificates"
