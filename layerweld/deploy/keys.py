"""A site's key: the only thing that a coordinator knows it by."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from layerweld.deploy.files import PRIVATE, write_whole
from layerweld.errors import DeployError
from layerweld.untrusted.files import contents, reading

_LARGEST = 65_536  # bytes


def make_key(file: Path) -> str:
    """Write an ECDSA P-384 key with mode 0600, and its public half beside it.

    Args:
        file: of the private key; the public one gets ``.pub`` added.

    Returns:
        The public key's fingerprint.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_whole(file, private, PRIVATE)
    write_whole(public_file(file), public + f" {file.name}\n".encode())
    return fingerprint(public)


def public_file(file: Path) -> Path:
    """The file of a private key's public half."""
    return file.with_name(file.name + ".pub")


def read_public_key(file: Path) -> bytes:
    """The content of an SSH public key file that Flower will accept.

    Raises:
        DeployError: it is missing, private, or not an ECDSA key on P-384.
    """
    content = contents(file, DeployError, _LARGEST)
    if b"PRIVATE KEY" in content:
        raise DeployError(
            f"{file} is a private key, which must never leave its site; ask for the file that "
            f"ends in .pub, and let the site make a new key"
        )
    with reading(f"{file} is not an SSH public key", "ask the site again", DeployError):
        key = load_ssh_public_key(content)
        fingerprint(content)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise DeployError(
            f"{file} is not an ECDSA P-384 key; `layerweld site init` makes one, or "
            f"`ssh-keygen -t ecdsa -b 384`"
        )
    return content


def fingerprint(public: bytes) -> str:
    """``SHA256:…`` of an SSH public key, as ``ssh-keygen -l`` prints it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
