"""Flower's Grid with everything that goes wrong on the way, at random but repeatably."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from numpy import float64, signedinteger
from numpy.typing import NDArray

from layerweld.settings.run import RunSettings
from server.in_process import InProcessGrid

ERRORS = (0, 2, 3, 5, 8)
FROM_THE_SUPERLINK = (3, 5)
KINDS = (
    *(f"error {code}" for code in ERRORS),
    "silence", "late", "twice", "replay", "another's", "foreign", "corrupt", "moved", "unpushed",
)  # fmt: skip


class Clock:
    """Stands in for :mod:`time`: nobody really waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: Any) -> None:
        self.now += seconds


def handing_over() -> Callable[..., Any]:
    """In place of Flower's serialisation, which takes most of the time of a run without models.

    Contents are handed over as they are: whoever changes one has to copy it first.
    """
    numbers = count(1)

    def carried(message: Message) -> Any:
        message.metadata.__dict__["_message_id"] = f"message {next(numbers)}"
        return message

    return carried


@dataclass
class Faults:
    """What goes wrong: each message with a probability, until there were enough."""

    seed: int
    rate: float = 0.4
    most: int = 25
    kinds: tuple[str, ...] = KINDS
    met: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def draw(self) -> Any:
        if len(self.met) >= self.most or self.random.random() > self.rate:
            return ""
        self.met.append(self.random.choice(self.kinds))
        return self.met[-1]


def none() -> Faults:
    return Faults(seed=0, rate=0.0)


class FaultyGrid(InProcessGrid):
    def __init__(
        self,
        app: Any,
        nodes: list[dict[str, str]],
        settings: RunSettings,
        faults: Faults,
        clock: Clock,
    ) -> None:
        super().__init__(app, nodes, settings)
        self._faults = faults
        self._clock = clock
        self._next_node = 100
        self._gone: set[int] = set()
        self._fate: dict[str, tuple[str, float]] = {}  # fault by message id
        self._past: list[Message] = []  # every good reply there was
        self._corrupted: dict[Any, Any] = {}

    def get_node_ids(self) -> list[Any]:
        return [node for node in self._contexts if node not in self._gone]

    def push_messages(self, messages: Any) -> list[Any]:
        ids: list[Any] = []
        for message in messages:
            fate = self._faults.draw()
            if fate == "unpushed":
                ids.append(None)
                continue
            ids.extend(super().push_messages([message]))
            self._fate[ids[-1]] = (fate, self._clock.now)
        return ids

    def pull_messages(self, message_ids: Any) -> list[Any]:
        return [r for i in list(message_ids) if i in self._pushed for r in self._replies(i)]

    def _replies(self, message_id: str) -> list[Any]:
        message = self._pushed[message_id]
        node = message.metadata.dst_node_id
        fate, since = self._fate[message_id]
        if fate == "moved":
            self._move(node)
        if node in self._gone:
            return [from_the_superlink(self._pushed.pop(message_id), 5)]
        if fate == "silence" or (fate == "late" and self._clock.now < since + 45):
            return []
        message = self._pushed.pop(message_id)
        if fate.startswith("error"):
            code = int(fate.split()[1])
            make = from_the_superlink if code in FROM_THE_SUPERLINK else from_the_node
            return [make(message, code)]
        reply = self._answer(message)
        self._past.append(reply)
        return self._spoilt(fate, reply)

    def _spoilt(self, fate: Any, reply: Message) -> list[Any]:
        if fate == "twice":
            return [reply, reply, reply]
        if fate in ("replay", "another's"):  # an earlier reply of this site, or of any
            past = self._faults.random.choice(self._earlier(reply, any_site=fate != "replay"))
            return [with_content(reply, past.content), past]
        if fate == "foreign":
            spoofed = with_content(reply, reply.content)
            spoofed.metadata.__dict__["_src_node_id"] = 77
            unasked = with_content(reply, reply.content)
            unasked.metadata.__dict__["_reply_to_message_id"] = "unasked"
            return [spoofed, unasked, reply]
        if fate == "corrupt":
            return [self._corrupt(reply)]
        return [reply]

    def _earlier(self, reply: Message, any_site: Any) -> list[Any]:
        ours = reply.metadata
        return [
            past
            for past in self._past
            if past.metadata.message_type == ours.message_type
            and (any_site or past.metadata.src_node_id == ours.src_node_id)
        ]

    def _corrupt(self, reply: Message) -> Any:
        """At most two in a row at one node: the third would be the policy's."""
        node = reply.metadata.src_node_id
        self._corrupted[node] = self._corrupted.get(node, 0) + 1
        if self._corrupted[node] % 3 == 0 or "statistics" not in reply.content:
            return reply
        spoil = self._faults.random.choice(list(CORRUPTIONS.values()))
        return with_content(reply, spoil(reply.content))

    def _move(self, node: int) -> None:
        """The node dies; its site comes back under another id, without its cache."""
        if node in self._gone:
            return
        self._gone.add(node)
        context = replace(self._contexts[node], node_id=self._next_node)
        self._contexts[self._next_node] = context
        self._next_node += 1
        getattr(self._app, "has", {}).get(context.node_config["name"], set()).clear()


def from_the_node(message: Message, code: int) -> Message:
    return Message(Error(code, "row 17: <ValueError> " * 3), reply_to=message)


def from_the_superlink(message: Message, code: int) -> Message:
    reply = from_the_node(message, code)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


def with_content(reply: Any, content: Any) -> Any:
    made = Message(content=RecordDict(dict(content)), metadata=reply.metadata)  # type: ignore[call-overload]
    made.__dict__["_metadata"] = type(reply.metadata)(
        **{k.removeprefix("_"): v for k, v in vars(reply.metadata).items() if k != "_delivered_at"}
    )
    return made


def with_arrays(content: RecordDict, **changes: Any) -> RecordDict:
    arrays = {k: changes.get(k.split("/")[-1], lambda a: a)(a) for k, a in statistics(content)}
    return RecordDict(
        dict(content) | {"statistics": ArrayRecord({k: a for k, a in arrays.items() if a})}
    )


def statistics(content: RecordDict) -> Any:
    return content.array_records["statistics"].items()


def with_about(content: RecordDict, **changes: Any) -> RecordDict:
    old: Any = content["about"]
    about = type(old)(dict(old))
    for key, change in changes.items():
        about[key.replace("_", "-")] = change(about.get(key.replace("_", "-")))
    return RecordDict(dict(content) | {"about": about})


def numbers_of(array: Any) -> NDArray[Any]:
    return np.frombuffer(array.data, "<f4").reshape(array.shape).copy()


def array_of(numbers: NDArray[Any], dtype: str = "float32", stype: str = "layerweld.raw") -> Array:
    return Array(dtype, tuple(numbers.shape), stype, numbers.tobytes())


def times(factor: int) -> Callable[..., Any]:
    return lambda array: array_of((numbers_of(array) * factor).astype(np.float32))


def to(dtype: type[float64] | type[signedinteger[Any]]) -> Callable[..., Any]:
    return lambda array: array_of(numbers_of(array).astype(dtype), dtype=np.dtype(dtype).name)


def first(value: float) -> Callable[..., Any]:
    def change(array: Any) -> Array:
        values = numbers_of(array)
        values.flat[0] = value
        return array_of(values)

    return change


def swapped(array: Any) -> Array:
    values = numbers_of(array)
    values[:2] = values[1::-1]
    return array_of(values)


def claiming(
    shape: tuple[Any, ...], data_shape: tuple[int, int] | None = None
) -> Callable[..., Any]:
    """A header of numpy's that asks for memory which the data does not fill."""

    def change(array: Any) -> Array:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {data_shape or shape}, }}"
        padded = header.encode() + b" " * (117 - len(header)) + b"\n"
        data = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + b"\0" * 16
        return Array("float32", shape, "numpy.ndarray", data)

    return change


def named(**fields: Any) -> Callable[..., Any]:
    """Another name of a format, or another shape, over the same bytes."""

    def change(array: Any) -> Array:
        kept = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype}
        return Array(**(kept | fields), data=array.data)

    return change


def cut(end: int) -> Callable[..., Array]:
    return lambda array: Array(array.dtype, array.shape, array.stype, array.data[:end])


CORRUPTIONS = {
    "nan": lambda c: with_arrays(c, gram=first(np.nan)),
    "infinity": lambda c: with_arrays(c, gram=first(np.inf)),
    "nan product": lambda c: with_arrays(c, right=first(np.nan)),
    "all zero": lambda c: with_arrays(c, gram=times(0)),
    "trace": lambda c: with_arrays(c, gram=times(3)),
    "negative": lambda c: with_arrays(c, gram=times(-1)),
    "indefinite": lambda c: with_arrays(c, gram=swapped),
    "float64": lambda c: with_arrays(c, gram=to(np.float64)),
    "integers": lambda c: with_arrays(c, left=to(np.int32)),
    "float64 by another name": lambda c: with_arrays(
        c, gram=lambda a: array_of(numbers_of(a).astype(np.float64))
    ),
    "big endian": lambda c: with_arrays(c, gram=named(dtype=">f4")),
    "pickle": lambda c: with_arrays(c, gram=named(stype="pickle")),
    "Flower's own": lambda c: with_arrays(c, gram=lambda a: Array(numbers_of(a))),
    "a date": lambda c: with_arrays(c, gram=named(stype="numpy.ndarray", dtype="<M8[s/0]")),
    "oversized": lambda c: with_arrays(c, gram=named(shape=(10**9, 10**9))),
    "numpy's header": lambda c: with_arrays(c, gram=claiming((10**9, 10**9))),
    "oversized inside": lambda c: with_arrays(
        c, gram=lambda a: claiming(tuple(a.shape), (10**9, 10**9))(a)
    ),
    "cut short": lambda c: with_arrays(c, gram=cut(-5)),
    "empty": lambda c: with_arrays(c, gram=cut(0)),
    "transposed": lambda c: with_arrays(c, left=lambda a: array_of(numbers_of(a).T)),
    "negative shape": lambda c: with_arrays(c, gram=lambda a: named(shape=(-a.shape[0], -1))(a)),
    "missing": lambda c: with_arrays(c, left=lambda _: None),
    "other width": lambda c: with_arrays(c, right=lambda a: array_of(numbers_of(a)[:, 1:])),
    "other record": lambda c: RecordDict({"about": c["about"]}),
    "tokens": lambda c: with_about(c, tokens=lambda t: [0 for _ in t]),
    "huge count": lambda c: with_about(c, tokens=lambda t: [2**60 for _ in t]),
    "group": lambda c: with_about(c, groups=lambda g: ["0.zzz" for _ in g]),
    "another record": lambda c: RecordDict(dict(c) | {"more": c["statistics"]}),
    "another entry": lambda c: with_about(c, more=lambda _: "x"),
    "long text": lambda c: with_about(c, groups=lambda g: ["x" * 10**6 for _ in g]),
    "long list": lambda c: with_about(c, tokens=lambda t: t * 10**5),
    "types": lambda c: with_about(c, need_from=lambda _: "0"),
}
