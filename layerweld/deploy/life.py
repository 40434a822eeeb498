"""When a certificate file is valid, and what is wrong with it today."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from layerweld.deploy import certificates
from layerweld.errors import DeployError
from layerweld.untrusted.files import contents, reading

SOON = timedelta(days=30)
LARGEST_PEM = 2**20
"""Bytes of a certificate file, including its chain."""


@dataclass(frozen=True)
class Life:
    """When a certificate file is valid.

    Attributes:
        file: of the certificate.
        begins: the first moment.
        ends: the last.
    """

    file: Path
    begins: datetime
    ends: datetime

    @property
    def trouble(self) -> str:
        """What is wrong with it, or will be within a month; empty if all is well."""
        at = certificates.now()
        if at > self.ends:
            return f"{self.file} expired on {self.ends:%Y-%m-%d}"
        if at < self.begins:
            begins = f"{self.begins:%Y-%m-%d}"
            return f"{self.file} is not valid before {begins}: is this machine's date right?"
        if self.ends - at < SOON:
            return f"{self.file} expires in {(self.ends - at).days} days, on {self.ends:%Y-%m-%d}"
        return ""

    @property
    def is_over(self) -> bool:
        """Whether it has expired, so that nobody trusts it any more."""
        return certificates.now() > self.ends


def life_of(file: Path) -> Life:
    """When a server certificate with its chain, or a bundle of authorities, is valid.

    A chain is valid as long as all of its parts are. Of several authorities one is enough.

    Raises:
        DeployError: the file is missing, or not a certificate.
    """
    held_bytes = contents(file, DeployError, LARGEST_PEM)
    with reading(f"{file} is not a PEM certificate", "put it back from a copy", DeployError):
        held = x509.load_pem_x509_certificates(held_bytes)
    is_chain = not _signs(held[0])
    begins = [one.not_valid_before_utc for one in held]
    ends = [one.not_valid_after_utc for one in held]
    if is_chain:
        return Life(file, max(begins), min(ends))
    longest = ends.index(max(ends))
    return Life(file, begins[longest], ends[longest])


def _signs(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
