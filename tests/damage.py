"""Damaged files, made from whole ones by a random generator: the same seed, the same damage."""

import json
import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from flwr.app import RecordDict

DEEP = 3000
NUMBERS = (-1, 0, 1, 10**9, 2**63, 10**30, -(2**31), 1e300, 0.5)
TEXTS = (
    "", "x", "../../etc/passwd", "/dev/zero", "a\0b", "a\nb", "\x1b[31mred", "\ud800", "é" * 9,
    "=1+1", "(", "(a+)+$", "x" * 5000, "NaN", "model.safetensors", "__class__", "a.b.c",
)  # fmt: skip
STRUCTURES: tuple[Any, ...] = (None, True, False, [], {}, [1], {"a": 1}, [[[]]], ["x"] * 300)


def put_something_else(file: Path, draw: Random) -> None:
    """No file at all in its place; opening some of these would never end."""
    file.unlink(missing_ok=True)
    match draw.choice(("folder", "pipe", "socket", "device", "loop", "nowhere", "pointer")):
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                os.chdir(file.parent)  # a socket's path may have a hundred characters
                bound.bind(file.name)
        case "device":
            file.symlink_to("/dev/zero")
        case "loop":
            file.symlink_to(file.name)
        case "nowhere":
            file.symlink_to("nowhere")
        case "pointer":
            digest = "oid sha256:" + "4d" * 32
            file.write_text(f"version https://git-lfs.github.com/spec/v1\n{digest}\nsize 9\n")


def damaged_bytes(whole: bytes, draw: random.Random) -> bytes:
    """Cut, flipped, spliced, with lengths made huge, in another encoding, or something else."""
    return draw.choice(BYTE_DAMAGE)(whole, draw)


def damaged_json(whole: bytes, draw: random.Random) -> bytes:
    """One entry somewhere of another kind, or there twice, or gone; or damaged as bytes."""
    if draw.random() < 0.25:
        return damaged_bytes(whole, draw)
    if draw.random() < 0.05:
        return draw.choice((b"[", b'{"a":')) * draw.choice((10, DEEP, 200_000))
    content = json.loads(whole)
    places = list(_places(content))
    holder, key = draw.choice(places)
    if draw.random() < 0.1:
        del holder[key]
    elif draw.random() < 0.1 and isinstance(holder, dict):
        return json.dumps(content).replace("{", '{"a": 1, "a": 2, ', 1).encode()
    else:
        holder[key] = other_value(draw)
    return json.dumps(content).replace('"DEEP"', "[" * DEEP + "]" * DEEP).encode()


def damaged_toml(whole: bytes, draw: random.Random) -> bytes:
    """One value of another kind, a line twice, brackets in brackets; or damaged as bytes."""
    if draw.random() < 0.4:
        return damaged_bytes(whole, draw)
    lines = whole.decode().splitlines()
    place = draw.randrange(len(lines))
    name = lines[place].partition("=")[0].strip() or "x"
    value = draw.choice((
        "nan", "inf", "-1", "9" * 30, "9" * 5000,
        "'x'", "[]", "{}", "true", "1979-05-27", "''",
        "'../..'", '"a\\nb\\u001b"', "[" * DEEP + "]" * DEEP, "{a={a={a=1}}}",
    ))  # fmt: skip
    lines.insert(place + draw.randrange(2), f"{name} = {value}")
    if draw.random() < 0.7:
        del lines[place if lines[place] != lines[-1] else -1]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damaged_tensors(whole: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header says something else, or that is damaged as bytes."""
    if draw.random() < 0.4:
        return damaged_bytes(whole, draw)
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    holder, key = draw.choice(list(_places(header)))
    holder[key] = draw.choice((
        other_value(draw), draw.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3",
        "F4", "C64", "OBJECT")), [2**62, 2**62], [0], [], [1, 1, 1, 1], [0, 2**60], [8, 0],
    ))  # fmt: skip
    text = json.dumps(header).replace('"DEEP"', "[" * DEEP + "]" * DEEP).encode()
    claimed = draw.choice((len(text),) * 6 + (2**60, len(text) + 1, 0, 2**64 - 1))
    body = whole[8 + length :]
    values = draw.choice((body,) * 4 + (b"\xff" * len(body), b"\x7f" * len(body), b""))
    return struct.pack("<Q", claimed) + text + values


def other_value(draw: random.Random) -> Any:
    """A value of any kind."""
    return draw.choice((draw.choice(NUMBERS), draw.choice(TEXTS), draw.choice(STRUCTURES), "DEEP"))


def _places(content: RecordDict) -> Iterator[tuple[Any, ...]]:
    """Every container with every key or index in it."""
    waiting: list[Any] = [content]
    while waiting:
        holder = waiting.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
        for key in list(keys):
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def _cut(whole: Any, draw: Any) -> Any:
    return whole[: draw.randrange(len(whole))]


def _flipped(whole: Any, draw: Any) -> bytes:
    made = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _spliced(whole: Any, draw: Any) -> Any:
    a, b, size = draw.randrange(len(whole)), draw.randrange(len(whole)), draw.randrange(1, 64)
    return whole[:a] + whole[b : b + size] + whole[a + draw.choice((0, size)) :]


def _filled(whole: Any, draw: Any) -> Any:
    a, size = draw.randrange(len(whole)), draw.choice((1, 2, 4, 8))
    return whole[:a] + bytes([draw.choice((0, 255, 127, 128))]) * size + whole[a + size :]


def _doubled(whole: Any, draw: Any) -> Any:
    return whole + whole[draw.randrange(len(whole)) :]


def _recoded(whole: Any, draw: Any) -> Any:
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return whole[::-1]
    return text.encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037")))


def _replaced(_whole: Any, draw: Any) -> Any:
    return draw.choice((b"", b"\0" * 64, b"\xff" * 64, b"\n", b"null", b"{}", b"PK", b"[" * 99999))


def _garbled(whole: Any, draw: Any) -> Any:
    a = draw.randrange(len(whole))
    return whole[:a] + draw.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\0", b"\x1b[2J")) + whole[a:]


BYTE_DAMAGE = (_cut, _flipped, _flipped, _spliced, _filled, _doubled, _recoded, _replaced, _garbled)
