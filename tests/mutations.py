"""Messages spoilt at every level: bytes of Flower's objects, records, entries, numbers."""

import json
import random
import re
import struct
from hashlib import sha256
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    MetricRecord,
    RecordDict,
)

NASTY_NUMBERS = (
    float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1e308, -1e308, 2**63 - 1, -(2**63),
    2**53 + 1, 0, -1, 1.5,
)  # fmt: skip
NASTY_TEXTS = (
    "", "\x00", "\x1b[2J\x1b]0;owned\x07", "a\nb\r", "é" * 50, "‮txt", "💥" * 30, "../../etc",
    "x" * 100_000, "{{7*7}}", "<script>", "=1+1", "0/0", "-1", "9" * 5000,
)  # fmt: skip
NASTY_DTYPES = (
    "<M8[s/0]", "float64", "O", "|O", "(2,)<f4", "f4,f4", "float32\n", "", "x" * 9000, ">f4",
)  # fmt: skip
NASTY_SHAPES = (
    "[1000000000, 1000000000]", "[-1]", "[-4, -1]", "[1.5]", "[true]", '["4"]', "[[4]]", "null",
    "[" + "9" * 5000 + "]", "[1e999]", "[NaN]", "[" * 5000 + "]" * 5000, "[0]", "{}",
    "[" + "1," * 70 + "1]",
)  # fmt: skip
NASTY_PIECES = (
    "[" + "0, " * 20_000 + "0]", "[-1]", "[1000000000]", '["0"]', "[[0]]", "[0.0]", "[]", "null",
    "[true]",
)  # fmt: skip
HUGE_VARINT = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"


class Mutator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, value: Any) -> Any:
        """Another value in place of one."""
        r = self.random
        if isinstance(value, list) and value and r.random() < 0.6:
            changed, kind = list(value), type(value[0])
            place = r.randrange(len(changed))
            pool = NASTY_TEXTS if kind is str else [n for n in NASTY_NUMBERS if type(n) is kind]
            changed[place] = r.choice(pool or value)
            times = 2 if any(type(v) is str and len(v) > 500 for v in changed) else 200
            return r.choice([changed, changed * times, changed[:place], changed[::-1]])
        turned = -value if type(value) in (int, float) and abs(value) < 2**60 else "other"
        lists: tuple[list[Any], ...] = (
            [],
            [True],
            [float("nan")],
            [2**63 - 1] * 3,
            [r.choice(NASTY_TEXTS)],
        )
        single = (r.choice(NASTY_NUMBERS), r.choice(NASTY_TEXTS), True, False, b"\x00\xff", turned)
        return r.choice((*single, *lists))

    def array(self, array: Any) -> Array:
        r = self.random
        data = bytearray(array.data)
        for _ in range(r.randint(1, 4)):
            if data:
                number = r.choice((float("nan"), float("inf"), -0.0, 1e-45, 3e38, -3e38, 1e30))
                struct.pack_into("<f", data, 4 * r.randrange(len(data) // 4), number)
        shape = tuple(
            r.choice((d, d + 1, 0, 2**31)) if r.random() < 0.1 else d for d in array.shape
        )
        dtype = r.choice(NASTY_DTYPES) if r.random() < 0.1 else array.dtype
        stype = r.choice(("numpy.ndarray", "", "torch")) if r.random() < 0.1 else array.stype
        cut = r.randrange(len(data) + 1) if r.random() < 0.1 else len(data)
        return Array(dtype, shape, stype, bytes(data[:cut]))

    def content(self, content: RecordDict) -> RecordDict:
        """The same records, but for one or two things."""
        made = RecordDict({name: record.copy() for name, record in content.items()})
        for _ in range(self.random.randint(1, 2)):
            self.random.choice((self._entry, self._entry, self._entry, self._record))(made)
        return made

    def _entry(self, content: RecordDict) -> None:
        r = self.random
        if not content:
            return
        record = content[r.choice(list(content))]
        keys = list(record)
        if not keys:
            return
        key, other = r.choice(keys), r.choice(keys)
        what = r.random()
        if what < 0.65:
            change = self.array if isinstance(record, ArrayRecord) else self.value
            record[key] = change(record[key])  # type: ignore[assignment]
        elif what < 0.75:
            del record[key]
        elif what < 0.85:
            record[r.choice(NASTY_TEXTS)] = record[key]  # type: ignore[assignment]
        else:
            record[key], record[other] = record[other], record[key]  # type: ignore[assignment]

    def _record(self, content: RecordDict) -> None:
        r = self.random
        if not content:
            return
        key, other = r.choice(list(content)), r.choice(list(content))
        what = r.random()
        if what < 0.3:
            del content[key]
        elif what < 0.6:
            content[r.choice(NASTY_TEXTS)] = content[key].copy()
        elif what < 0.8:
            content[key] = content[other].copy()
        else:
            content.pop(key)
            content[key] = r.choice((ArrayRecord(), ConfigRecord(), MetricRecord()))

    def objects(self, contents: Any, root: str) -> tuple[Any, str]:
        """The same objects, but for some bytes of one; ids and lengths mostly made to fit again."""
        r = self.random
        for _ in range(r.randint(1, 2)):
            if not contents:
                break
            victim = r.choice(list(contents))
            content = contents[victim]
            head, _, body = content.partition(b"\0")
            kind = head.split(b" ")[0]
            if kind == b"Array" and body.startswith(b"{") and r.random() < 0.6:
                body = self._array_body(body)
            elif r.random() < 0.15 and head.count(b" ") == 2:
                head = self._head(head)
            elif r.random() < 0.05:
                del contents[victim]
                continue
            else:
                body = self._bytes(body, contents)
            if r.random() < 0.8 and head.count(b" ") == 2:
                head = head.rpartition(b" ")[0] + b" %d" % len(body)
            root = self._put(contents, root, victim, head + b"\0" + body)
        return contents, root

    def _array_body(self, body: Any) -> bytes:
        r = self.random
        field, nasty = r.choice(
            [
                ("dtype", [json.dumps(name) for name in NASTY_DTYPES]),
                ("shape", NASTY_SHAPES),
                ("arraychunk_ids", NASTY_PIECES),
            ]
        )
        value = r.choice(nasty).encode().replace(b"\\", b"\\\\")
        return re.sub(rb'("%b": )("[^"]*"|\[[^]]*\])' % field.encode(), rb"\g<1>" + value, body)

    def _head(self, head: Any) -> Any:
        r = self.random
        kind, children, length = head.split(b" ")
        kinds = (
            b"Message RecordDict ArrayRecord Array ArrayChunk ConfigRecord MetricRecord X".split()
        )
        return r.choice(
            [
                b" ".join((r.choice(kinds), children, length)),
                b" ".join((kind, b",".join([children] * 3), length)),
                b" ".join((kind, b"", length)),
                b" ".join((kind, children, r.choice((b"-1", b"9" * 4000, b"1_0", b"\xd9\xa1")))),
                head + b" ",
                b"",
            ]
        )

    def _bytes(self, body: Any, contents: Any) -> bytes:
        r = self.random
        body = bytearray(body)
        at = r.randrange(len(body) + 1)
        end = min(len(body), at + r.randint(1, 20))
        what = r.randrange(6)
        if what == 0 and body:
            for _ in range(r.randint(1, 8)):
                body[r.randrange(len(body))] ^= 1 << r.randrange(8)
        elif what == 1:
            del body[at:]
        elif what == 2:
            other = r.choice(list(contents.values()))
            body[at:end] = other[: r.randint(0, 200)]
        elif what == 3:
            body[at:at] = body[at:end] * r.choice((1, 2, 50))
        elif what == 4:
            body[at:at] = HUGE_VARINT[r.randrange(8) :]
        else:
            body[at:end] = r.randbytes(end - at)
        return bytes(body)

    def _put(self, contents: Any, root: str, old: Any, content: RecordDict) -> Any:
        """Replace an object, and its id in all that name it, up to the message."""
        if self.random.random() < 0.05:
            contents[old] = content  # under its old id: a lie
            return root
        del contents[old]
        return self._renamed(contents, root, old, content)

    def _renamed(self, contents: Any, root: str, old: Any, content: Any, depth: int = 0) -> Any:
        new = sha256(content).hexdigest()
        contents[new] = content
        if old == root or depth == 6:  # splicing can make an object name itself
            return new if old == root else root
        for parent in [k for k, c in contents.items() if old.encode() in c and k != new]:
            if parent in contents:
                changed = contents.pop(parent).replace(old.encode(), new.encode())
                root = self._renamed(contents, root, parent, changed, depth + 1)
        return root
