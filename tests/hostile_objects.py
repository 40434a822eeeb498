"""What one site may send in place of its reply, as Flower's objects."""

import json
from collections.abc import Callable
from functools import cache, partial
from hashlib import sha256
from typing import Any

from flwr.app import Message

from tests.mutations import HUGE_VARINT, Mutator


def parents_renamed(objects: Any, root: str, old: Any, content: bytes) -> tuple[Any, ...]:
    return objects, Mutator(0)._renamed(objects, root, old, content)


def of_kind(objects: Any, kind: bytes) -> Any:
    return next(k for k, content in objects.items() if content.startswith(kind + b" "))


def with_body(objects: Any, root: str, kind: bytes, change: Callable[..., Any]) -> tuple[Any, ...]:
    """Another body in the first object of a kind, its head made to fit."""
    old = of_kind(objects, kind)
    head, _, body = objects.pop(old).partition(b"\0")
    body = change(body)
    head = head.rpartition(b" ")[0] + b" %d" % len(body)
    return parents_renamed(objects, root, old, head + b"\0" + body)


def chunk(number: int, size: int) -> bytes:
    body = number.to_bytes(8, "little") * (size // 8)
    return b"ArrayChunk  %d\0" % len(body) + body


@cache
def piece_id(number: int, size: int) -> str:
    return sha256(chunk(number, size)).hexdigest()


def with_records_nobody_asked_for(
    _message: Message, objects: Any, root: str, count: int = 160, size: int = 5 * 2**20
) -> tuple[Any, ...]:
    """One more record of an array in as many pieces; each is made when it is pulled."""
    pieces = {piece_id(n, size): partial(chunk, n, size) for n in range(count)}
    about = {"dtype": "float32", "shape": [1], "stype": "layerweld.raw"}
    array = json.dumps(about | {"arraychunk_ids": list(range(count))}).encode()
    array = b"Array %s %d\0" % (",".join(pieces).encode(), len(array)) + array
    key = sha256(array).hexdigest()
    record = json.dumps({"x": key}).encode()
    record = b"ArrayRecord %s %d\0" % (key.encode(), len(record)) + record
    name = sha256(record).hexdigest()
    old = of_kind(objects, b"RecordDict")
    head, _, body = objects.pop(old).partition(b"\0")
    kind, children, _ = head.split(b" ")
    body = body[:-1] + b', "zz": "%s"}' % name.encode()
    content = b"%s %s,%s %d\0%s" % (kind, name.encode(), children, len(body), body)
    objects, root = parents_renamed(objects, root, old, content)
    return {**objects, **pieces, key: array, name: record}, root


def never_there(_message: Message, objects: Any, root: str) -> tuple[Any, ...]:
    objects[of_kind(objects, b"ArrayChunk")] = lambda: None
    return objects, root


def given_up(_message: Message, objects: Any, root: str) -> tuple[Any, ...]:
    del objects[of_kind(objects, b"ArrayChunk")]
    return objects, root


def body_of(kind: bytes, change: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _message, objects, root: with_body(objects, root, kind, change)


ATTACKS = {
    "a date in the header": body_of(b"Array", lambda b: b.replace(b"float32", b"<M8[s/0]")),
    "no protobuf": body_of(b"ConfigRecord", lambda b: b"\x0a" + HUGE_VARINT + b),
    "no JSON": body_of(b"ArrayRecord", lambda b: b[1:]),
    "brackets": body_of(b"ArrayRecord", lambda _: b"[" * 20_000),
    "pieces without end": body_of(
        b"Array", lambda b: b.replace(b'_ids": [0', b'_ids": [' + b"0, " * 50_000 + b"0")
    ),
    "800 MB of records": with_records_nobody_asked_for,
    "30 MB of text": body_of(b"ConfigRecord", lambda b: b + b"x" * (30 * 2**20)),
    "no message": lambda _m, objects, _root: (objects, of_kind(objects, b"RecordDict")),
    "no object": lambda _m, _objects, _root: ({"0" * 64: b"nothing"}, "0" * 64),
    "another object": lambda _m, objects, root: (
        {**objects, of_kind(objects, b"ArrayChunk"): chunk(7, 8)},
        root,
    ),
    "a million children": lambda _m, objects, root: parents_renamed(
        objects,
        root,
        of_kind(objects, b"Array"),
        b"Array " + b",".join([b"0" * 64] * 10**5) + b" 0\0",
    ),
}
