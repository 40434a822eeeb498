"""Check beforehand, by a TLS handshake in memory, whether a site would trust a certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

from layerweld.errors import DeployError

_ROUNDS = 10  # of messages to and fro; TLS 1.3 has two


def require_verified(certificate: Path, key: Path, authority: Path, host: str) -> None:
    """Refuse a server certificate that a site could not verify now.

    Args:
        certificate: of the server, with the chain that clients need.
        key: its private key.
        authority: what sites verify it with.
        host: what they reach the server as.

    Raises:
        DeployError: key and certificate do not belong together, or the certificate is of another
            authority or host, has expired, or is not valid yet.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise DeployError(
            f"{certificate} and {key} are not a certificate and its unencrypted private key "
            f"({_reason(error)}); give both as PEM files"
        ) from None
    try:
        client = ssl.create_default_context(cafile=str(authority))
    except (ssl.SSLError, OSError) as error:
        raise DeployError(
            f"{authority} is not an authority's certificate ({_reason(error)}); give a PEM file"
        ) from None
    try:
        _shake_hands(server, client, host)
    except ssl.SSLError as error:
        raise DeployError(
            f"{certificate}: a site that reaches {host} and has {authority} would refuse it "
            f"({_reason(error)}); ask your certificate authority for one with that name, and with "
            f"its whole chain"
        ) from None


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(_ROUNDS):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or str(error)
