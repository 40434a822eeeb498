"""Who may call the gateway: a registered site, whose key has just signed the time.

Flower's SuperNodes sign the time of each call, and the SuperLink verifies that once it has read
the call. The gateway verifies it before anything is read. A caller without a registered key gets
an HTTP error, and nothing of the call is forwarded or kept. A signature is good for one call, so
headers that somebody copied on the way are worth nothing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from layerweld.deploy.fleet_proxy import FLEET_CALLS, App, Headers, Receive, Scope, Send, respond
from layerweld.deploy.keys import read_public_key
from layerweld.errors import DeployError

_KEY, _TIME, _SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
_LONGEST = 1024  # bytes of one of these headers
_AHEAD, _BEHIND = 5.0, 305.0  # seconds, as Flower has them
_LOOK = 0.2  # seconds between two looks at the registered keys
_ACTIVATE = "/v1/fleet/activate-node"
# In Flower's words, by which a SuperNode says that its key is not registered.
_NOT_ACTIVATED = json.dumps({"code": 2004, "detail": "Failed to activate SuperNode."}).encode()


class UnknownKeyError(Exception):
    """A call without a key, or with one that is not registered."""


class UnprovenCallError(Exception):
    """A call with a registered key, but without a fresh signature by it."""


class RegisteredOnly:
    """Passes the Fleet calls of registered sites to another ASGI application.

    Args:
        app: gets these, and every call that is not a Fleet call.
        keys: folder of the registered sites' public keys, ``*.pub``; it is read again regularly.
    """

    def __init__(self, app: App, keys: Path) -> None:
        self._app = app
        self._keys = _RegisteredKeys(keys)
        self._used: dict[int, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] in FLEET_CALLS and scope["method"] == "POST":
            try:
                self._require_registered(scope["headers"])
            except UnknownKeyError:
                if scope["path"] == _ACTIVATE:
                    await respond(send, 412, _NOT_ACTIVATED, b"application/json")
                else:
                    await respond(send, 401, b"this key is not registered")
                return
            except UnprovenCallError:
                await respond(send, 401, b"this call is not signed by its key just now")
                return
        await self._app(scope, receive, send)

    def _require_registered(self, headers: Headers) -> None:
        name = _one(headers, _KEY)
        key = self._keys.get(name)
        if key is None:
            raise UnknownKeyError
        stamp, signature = _one(headers, _TIME, ascii_only=True), _one(headers, _SIGNATURE)
        now = time.time()
        if not -_AHEAD < now - _seconds(stamp) < _BEHIND:
            raise UnprovenCallError
        try:
            key.verify(signature, stamp, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise UnprovenCallError from None
        self._use_once(decode_dss_signature(signature)[0], now)

    def _use_once(self, used: int, now: float) -> None:
        # From a signature (r, s) anybody can make (r, -s). r has 384 random bits, which suffice.
        while self._used and next(iter(self._used.values())) < now:
            del self._used[next(iter(self._used))]
        if used in self._used:
            raise UnprovenCallError
        self._used[used] = now + _AHEAD + _BEHIND


class _RegisteredKeys:
    """The public keys in a folder, in the form in which SuperNodes send theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._look_again = 0.0
        self._files: dict[Path, int] = {}
        self._keys: dict[bytes, ec.EllipticCurvePublicKey] = {}

    def get(self, name: bytes) -> ec.EllipticCurvePublicKey | None:
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK
            self._look()
        return self._keys.get(name)

    def _look(self) -> None:
        files = {}
        for entry in self._folder.glob("*.pub"):
            with contextlib.suppress(FileNotFoundError):  # just now removed
                files[entry] = entry.stat().st_mtime_ns
        if files != self._files:
            self._files, self._keys = files, dict(map(_read_key, _readable(files)))


def _readable(files: Iterable[Path]) -> Iterator[bytes]:
    for file in files:
        try:
            yield read_public_key(file)
        except DeployError as error:
            print(f"not registered: {error}", file=sys.stderr)


def _read_key(content: bytes) -> tuple[bytes, ec.EllipticCurvePublicKey]:
    key = load_ssh_public_key(content)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # no other is readable
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), key


def _one(headers: Headers, name: bytes, *, ascii_only: bool = False) -> bytes:
    """The one value of a header, decoded unless it is plain text.

    Raises:
        UnknownKeyError: the key is missing, there is more than one, or it is not base64.
        UnprovenCallError: the same of another header.
    """
    wrong = UnknownKeyError if name == _KEY else UnprovenCallError
    values = [value for key, value in headers if key.lower() == name]
    if len(values) != 1 or len(values[0]) > _LONGEST or not values[0].isascii():
        raise wrong
    try:
        return values[0] if ascii_only else base64.b64decode(values[0], validate=True)
    except binascii.Error:
        raise wrong from None


def _seconds(stamp: bytes) -> float:
    try:
        signed = datetime.datetime.fromisoformat(stamp.decode("ascii"))
        return signed.timestamp() if signed.tzinfo is not None else float("nan")
    except (ValueError, OverflowError):
        raise UnprovenCallError from None
