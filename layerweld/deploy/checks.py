"""What can keep a site from joining: found before it tries, with a remedy for each."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from layerweld.deploy.application import application_hash
from layerweld.deploy.fleet_proxy import ABOUT
from layerweld.deploy.life import life_of
from layerweld.errors import DeployError

_TIMEOUT = 10.0  # seconds for one response
_EXPIRES_SOON = 30  # days
_HAS_EXPIRED = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED
_BEHIND, _AHEAD = 290.0, 4.0  # seconds; Flower refuses 300 s behind, and 5 s ahead
_SPARE = 2**28  # bytes of disk that must stay free
_PACKAGES = ("flwr", "torch", "transformers")
_LATEST = 2**40  # seconds; no clock shows that
_LARGEST_ANSWER = 2**16  # bytes; a gateway sends two hundred
_WORD = re.compile(
    r"[0-9A-Za-z.+!_-]{1,80}"
)  # a version or hash: people paste remedies into shells


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was checked.
        found: what was found.
        remedy: what to do; empty if all is well.
        is_fatal: whether nothing after it can be checked.
    """

    name: str
    found: str
    remedy: str = ""
    is_fatal: bool = False


def parse_address(address: str) -> tuple[str, int]:
    """``host:port``; an IPv6 address in brackets.

    Raises:
        DeployError: it is something else.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
        raise DeployError(f"{address!r} is not HOST:PORT, such as fl.example.org:8443")
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class _Answer:
    """What the coordinator's gateway says to anybody.

    Attributes:
        certificate: the gateway's, verified.
        status: of HTTP.
        about: versions, and the hash of the application; empty unless the status is 200 and
            all of them are there.
        ahead: seconds that this machine's clock is ahead of the coordinator's; 0 if unknown.
    """

    certificate: Mapping[str, Any] | None
    status: int
    about: Mapping[str, Any]
    ahead: float


def check_coordinator(address: str, authority: Path | None) -> list[Check]:
    """Check connection, certificate, clock, versions and application, up to the first failure."""
    host, port = parse_address(address)
    try:
        socket.create_connection((host, port), _TIMEOUT).close()
    except OSError as error:
        remedy = "ask whether the coordinator is up; open this port in the firewall, outbound"
        return [Check("connection", f"{address}: {error.strerror or error}", remedy)]
    found = [Check("connection", f"{address} responds")]
    if authority is not None and (ending := _authority_end(authority)):
        found.append(ending)
        if ending.is_fatal:
            return found
    try:
        response = _ask(host, port, authority)
    except ssl.SSLError as error:
        return [*found, Check("TLS", _why(error), _tls_remedy(error, authority))]
    except OSError as error:
        return [
            *found,
            Check("TLS", str(error), "this port does not speak TLS; is it the right one?"),
        ]
    found.append(_expiry(response.certificate))
    about = response.about
    if not about:
        remedy = "this is not a layerweld coordinator; is it the right port?"
        return [*found, Check("coordinator", f"responds {response.status} to {ABOUT}", remedy)]
    return [*found, clock(response.ahead), *versions(about), _application(about)]


def skew(address: str, authority: Path | None) -> str:
    """Why Flower refuses every call of this machine, if its clock is the reason; else empty.

    Also empty if the coordinator cannot be reached now: a SuperNode waits for it.
    """
    try:
        response = _ask(*parse_address(address), authority)
    except OSError:
        return ""
    found = clock(response.ahead)
    return f"this machine's clock is {found.found}; {found.remedy}" if found.remedy else ""


def _ask(host: str, port: int, authority: Path | None) -> _Answer:
    context = ssl.create_default_context(cafile=str(authority) if authority else None)
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)
    try:
        connection.connect()
        certificate = connection.sock.getpeercert()
        started = time.time()
        connection.request("GET", ABOUT)
        response = connection.getresponse()
        body = response.read(_LARGEST_ANSWER)
        middle = (started + time.time()) / 2
    except http.client.HTTPException as error:
        raise ConnectionError(f"{host}:{port} does not speak HTTP ({error!r})") from None
    finally:
        connection.close()
    about, their_time = _read_about(body) if response.status == http.client.OK else ({}, middle)
    return _Answer(certificate, response.status, about, middle - their_time)


def _read_about(body: bytes) -> tuple[dict[str, str], float]:
    """What a gateway says about itself, and its time; nothing if any part of it is malformed."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    known = said if isinstance(said, dict) else {}
    names = ("application", "layerweld", *_PACKAGES)
    words = {k: v for k in names if isinstance(v := known.get(k), str) and _WORD.fullmatch(v)}
    theirs = known.get("time")
    if len(words) < len(names) or not isinstance(theirs, int | float) or not 0 < theirs < _LATEST:
        return {}, time.time()
    return words, float(theirs)


def clock(ahead: float) -> Check:
    """Compare this machine's clock with the coordinator's.

    Args:
        ahead: seconds that this machine's clock is ahead; negative: behind.
    """
    found = f"{abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'} the coordinator's"
    if -_BEHIND < ahead < _AHEAD:
        return Check("clock", found)
    remedy = (
        f"Flower refuses signatures from {_AHEAD:.0f} s ahead and from {_BEHIND:.0f} s behind: "
        f"`timedatectl set-ntp 1` here, or at the coordinator if that clock is wrong"
    )
    return Check("clock", found, remedy)


def versions(about: Mapping[str, str]) -> list[Check]:
    """Check packages whose major and minor version must be the coordinator's."""
    found = []
    for package in _PACKAGES:
        ours, theirs = _installed(package), about[package]
        same = _minor(ours) == _minor(theirs)
        remedy = "" if same else f"pip install '{package}=={_minor(theirs)}.*'"
        found.append(Check(package, f"{ours} here, {theirs} there", remedy))
    return found


def disk(folder: Path, needed: int) -> Check:
    """Check that there is space for what a run keeps."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free, a run needs {needed / 2**30:.1f} GiB"
    if free > needed + _SPARE:
        return Check("disk", found)
    return Check("disk", found, f"free some, or move `cache` in site.toml away from {folder}")


def gpu() -> Check:
    """Name the GPU that the site would use. Having none is slower, not wrong."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "no GPU is visible" if built else "this torch is built for CPUs"
        return Check("GPU", f"none: {why}; the CPU will be used")
    memory = torch.cuda.get_device_properties(0).total_memory
    return Check("GPU", f"{torch.cuda.get_device_name(0)}, {memory / 2**30:.0f} GiB")


def _application(about: Mapping[str, str]) -> Check:
    ours, theirs = application_hash(), about["application"]
    if ours == theirs:
        return Check("application", f"{ours[:12]}, the coordinator's")
    remedy = f"install layerweld {about['layerweld']}, as at the coordinator: both must be the same"
    return Check("application", f"{ours[:12]} here, {theirs[:12]} there", remedy)


def _expiry(certificate: Mapping[str, Any] | None) -> Check:
    ends = ssl.cert_time_to_seconds((certificate or {})["notAfter"])
    days = int((ends - time.time()) // 86400)
    remedy = "" if days >= _EXPIRES_SOON else "ask for `layerweld coordinator renew`"
    return Check("TLS", f"verified, expires in {days} days", remedy)


def _authority_end(file: Path) -> Check | None:
    """Check the coordinator's authority, as this site has it; None if it is valid for long."""
    life = life_of(file)
    if not life.trouble:
        return None
    remedy = "ask the coordinator for its current ca.crt; `layerweld coordinator renew` prolongs it"
    return Check("authority", life.trouble, remedy, is_fatal=life.is_over)


def _why(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return error.reason or str(error)


def _tls_remedy(error: ssl.SSLError, authority: Path | None) -> str:
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _HAS_EXPIRED:
        return "ask for `layerweld coordinator renew`, or check this machine's date"
    used = str(authority) if authority else "this system's authorities"
    return (
        f"verified with {used}: use the ca.crt and the host name that the coordinator gave you, "
        f"and check this machine's date"
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _minor(text: str) -> str:
    return ".".join(text.split("+")[0].split(".")[:2])
