"""Certificates of one federation: an authority of its own, and the servers it signs for."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # the longest that strict clients accept


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """PEM, for everybody to see."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """PEM, for the owner alone; not encrypted, since services start without a person."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def now() -> datetime:
    """The time that certificates are made and checked by."""
    return datetime.now(UTC)


def make_authority(name: str) -> Identity:
    """A certificate authority for one federation, ECDSA P-384, valid for ten years."""
    key = ec.generate_private_key(ec.SECP384R1())
    return _authority(_named(f"{name} certificate authority"), key)


def prolonged(authority: Identity) -> Identity:
    """The same authority for ten years from now.

    Its name and key are the same. So a site that has the old certificate can go on verifying with
    it until it expires.
    """
    return _authority(authority.certificate.subject, authority.key)


def _authority(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> Identity:
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(subject, subject, key, now() + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Identity(builder.sign(key, hashes.SHA384()), key)


def make_server(authority: Identity, hosts: Sequence[str]) -> Identity:
    """A server certificate that names every host as a subject alternative name.

    Args:
        authority: the one that signs.
        hosts: DNS names and IP addresses under which clients reach the server.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    end = now() + timedelta(days=SERVER_DAYS)
    end = min(end, authority.certificate.not_valid_after_utc)  # after that nobody accepts it
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(_named(hosts[0]), authority.certificate.subject, key, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_alternative(h) for h in hosts]), critical=False
        )
        .add_extension(signer, critical=False)
    )
    return Identity(builder.sign(authority.key, hashes.SHA384()), key)


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now(), end) - timedelta(hours=1))  # a site's clock may be behind
        .not_valid_after(end)
    )
