"""What a coordinator's certificates promise, checked by Python's own TLS."""

import re
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from layerweld.deploy import certificates
from layerweld.deploy.certificates import make_authority, make_server
from layerweld.deploy.checks import Check, check_coordinator
from tests.fake_superlink import write_certificates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder, ["localhost", "127.0.0.1", "fl.example.org"])
    (folder / "stranger.crt").write_bytes(make_authority("stranger").certificate_pem)
    return folder


def shake_hands(folder: Path, host: str, authority: str) -> str | None:
    """A TLS handshake between a server with our certificate and a client that wants ``host``."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")

    def serve() -> None:
        try:
            context.wrap_socket(ours, server_side=True).close()
        except (ssl.SSLError, OSError):
            ours.close()  # the client has refused us

    server = threading.Thread(target=serve)
    server.start()
    client = ssl.create_default_context(cafile=folder / authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with client.wrap_socket(theirs, server_hostname=host) as connection:
            return connection.version()
    finally:
        theirs.close()
        server.join()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "fl.example.org"])
def test_every_host_verifies(folder: Path, host: str) -> None:
    assert shake_hands(folder, host, "ca.crt") == "TLSv1.3"


def test_another_host_does_not(folder: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(folder, "example.org", "ca.crt")


def test_another_authority_does_not(folder: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate"):
        shake_hands(folder, "localhost", "stranger.crt")


def check_certificate(folder: Path, authority: Path) -> list[Check]:
    """All that ``site check`` finds at a server with the folder's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")

    def serve(listener: Any) -> None:
        for _ in ("is the port open?", "TLS"):
            connection, _peer = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()  # the site has refused us

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=[listener])
        server.start()
        found = check_coordinator(f"localhost:{listener.getsockname()[1]}", authority)
        server.join()
    return found


@pytest.mark.parametrize(
    ("end", "found", "remedy"),
    [
        (-0.5, "certificate has expired", "ask for `layerweld coordinator renew`"),
        (397 * 24, "unable to get local issuer|self.signed", "use the ca.crt and the host name"),
    ],
    ids=["expired", "of another authority"],
)
def test_a_site_says_why_it_does_not_trust_a_certificate(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: float,
    found: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(certificates, "SERVER_DAYS", end / 24)
    authority = make_authority("fed")
    server = make_server(authority, ["localhost"])
    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem)
    (tmp_path / "server.crt").write_bytes(server.certificate_pem)
    (tmp_path / "server.key").write_bytes(server.key_pem)
    ours = tmp_path / "ca.crt" if end < 0 else folder / "stranger.crt"
    check = check_certificate(tmp_path, ours)[-1]
    assert check.name == "TLS"
    assert re.search(found, check.found)
    assert remedy in check.remedy
    assert "this machine's date" in check.remedy
