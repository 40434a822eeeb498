"""Messages as values, and values as Flower records. The only module here that knows Flower."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.gram import pack_symmetric, unpack_symmetric
from layerweld.prefix import factors
from layerweld.sites import SITE_NAME
from layerweld.statistics import (
    DenseProduct,
    GroupStatistics,
    LowRankProduct,
    Product,
    ProductForm,
)
from layerweld.updates import DenseUpdate, LowRankUpdate, Update

T = TypeVar("T")

_MERGED, _REMAINDER, _STATISTICS, _ABOUT = "merged", "remainder", "statistics", "about"


@dataclass(frozen=True)
class Introduction:
    """What a site says of itself in the handshake, before anything is computed.

    Attributes:
        site: the site's name, unique in the cohort.
        base: fingerprint of the base model's weights.
        tokenizer: fingerprint of the tokenizer or image processor.
        plan: digest of the whole model's merge plan.
        settings: digest of the settings that decide the merged bits.
        kind: ``lora``, ``full``, or ``none`` where the site must fine-tune first.
        layers: the layers that the site fine-tuned, in the plan's order.
        ranks: their LoRA ranks; 0 for full fine-tuning.
        prefix: what the site's adapter names put before the backbone's, e.g. ``bert.``.
        samples: calibration rows.
        tokens: calibration tokens.
        skipped: unreadable rows that were passed over.
        evaluates: whether the site can measure held-out accuracy.
        classifies: whether the site has a head.
        labelled: whether it has labels for its calibration rows as well.
        factors: SHA-256 over all ``A`` of a LoRA, so that sites that share a frozen ``A`` are
            known; empty otherwise.
        versions: ``name=version`` of the packages that matter.
    """

    site: str
    base: str
    tokenizer: str
    plan: str
    settings: str
    kind: str
    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    prefix: str
    samples: int
    tokens: int
    skipped: int
    evaluates: bool
    classifies: bool
    labelled: bool
    factors: str
    versions: tuple[str, ...]


FOUND_OUT_BY_TRAINING = (
    "kind", "layers", "ranks", "prefix", "evaluates", "classifies", "labelled", "factors",
)  # fmt: skip
"""What a site that fine-tunes first can only say of itself afterwards."""


@dataclass(frozen=True)
class Question:
    """The server's request for the statistics of one step.

    Attributes:
        run: identifies the run; sites keep their state under it.
        method: name of the chain variant being played, see :mod:`layerweld.methods`.
        step: index of the step in the schedule.
        layers: the layers being merged; with the model they give the plan.
        plan: digest of that plan.
        prefix: hash over everything merged before this step.
        form: how products travel.
        averaged: whether a remainder was averaged before the chain began.
        remainder: the averaged remainder of full fine-tuning; only where the site may lack it.
        merged: updates of earlier steps, by step; only what the site may lack.
    """

    run: str
    method: str
    step: int
    layers: tuple[str, ...]
    plan: str
    prefix: str
    form: ProductForm
    averaged: bool
    remainder: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[int, Mapping[str, Update]] = field(default_factory=dict)

    def catching_up(
        self, remainder: Mapping[str, Tensor], merged: Mapping[int, Mapping[str, Update]]
    ) -> Question:
        """The same question with more of what was merged before."""
        return replace(self, remainder=remainder, merged=merged)


@dataclass(frozen=True)
class Answer:
    """A site's reply to one :class:`Question`.

    Attributes:
        site: who answers.
        run, step, plan, prefix: of the question, sent back.
        statistics: of every group of the step; empty if the site must catch up first.
        need_from: first step whose merged updates the site lacks (-1: the remainder too), if any.
    """

    site: str
    run: str
    step: int
    plan: str
    prefix: str
    statistics: tuple[GroupStatistics, ...] = ()
    need_from: int | None = None


@dataclass(frozen=True)
class ModelToMeasure:
    """A model that sites shall evaluate, or compare their own inputs with.

    Attributes:
        run: identifies the run.
        kind: ``base``, each site's ``individual`` one, or ``merged``.
        layers: the layers being merged.
        updates: the merged updates, by layer; empty unless ``merged``.
        remainder: the averaged remainder; empty unless ``merged`` from full fine-tuning.
    """

    run: str
    kind: str
    layers: tuple[str, ...]
    updates: Mapping[str, Update] = field(default_factory=dict)
    remainder: Mapping[str, Tensor] = field(default_factory=dict)


def encode_run(run: str) -> RecordDict:
    """A message that only says which run it belongs to."""
    return RecordDict({_ABOUT: ConfigRecord({"run": run})})


def decode_run(content: RecordDict) -> str:
    """Which run a message belongs to.

    Raises:
        RefusedReplyError: it does not say so, or in a way that cannot name a folder.
    """
    with refusing_malformed():
        run = read(content.config_records[_ABOUT], "run", str)
    if not re.fullmatch(SITE_NAME, run):
        raise RefusedReplyError(f"a run cannot be called {run!r}: its name is a folder's")
    return run


def encode_model(model: ModelToMeasure) -> RecordDict:
    """A model to measure."""
    about = ConfigRecord({"run": model.run, "kind": model.kind, "layers": list(model.layers)})
    return RecordDict(
        {
            _ABOUT: about,
            _MERGED: to_arrays(update_tensors(model.updates)),
            _REMAINDER: to_arrays(model.remainder),
        }
    )


def decode_model(content: RecordDict) -> ModelToMeasure:
    """Inverse of :func:`encode_model`."""
    about = content.config_records[_ABOUT]
    return ModelToMeasure(
        run=read(about, "run", str),
        kind=read(about, "kind", str),
        layers=tuple(read_list(about, "layers", str)),
        updates=updates_from(from_arrays(content.array_records[_MERGED])),
        remainder=from_arrays(content.array_records[_REMAINDER]),
    )


def encode_introduction(introduction: Introduction) -> RecordDict:
    """The handshake's reply."""
    entries = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(introduction).items()}
    return RecordDict({_ABOUT: ConfigRecord(entries)})


def decode_introduction(content: RecordDict) -> Introduction:
    """Inverse of :func:`encode_introduction`, with every field's type checked.

    Raises:
        RefusedReplyError: a field is missing or has another type.
    """
    with refusing_malformed():
        return introduction_from(content.config_records[_ABOUT])


def introduction_from(about: Mapping[str, Any]) -> Introduction:
    """An introduction from its fields: a Flower record's, or a JSON object's.

    Raises:
        KeyError: a field is missing.
        TypeError: a field has another type.
    """
    return Introduction(
        site=read(about, "site", str),
        base=read(about, "base", str),
        tokenizer=read(about, "tokenizer", str),
        plan=read(about, "plan", str),
        settings=read(about, "settings", str),
        kind=read(about, "kind", str),
        prefix=read(about, "prefix", str),
        samples=read(about, "samples", int),
        tokens=read(about, "tokens", int),
        skipped=read(about, "skipped", int),
        evaluates=read(about, "evaluates", bool),
        classifies=read(about, "classifies", bool),
        labelled=read(about, "labelled", bool),
        factors=read(about, "factors", str),
        layers=tuple(read_list(about, "layers", str)),
        ranks=tuple(read_list(about, "ranks", int)),
        versions=tuple(read_list(about, "versions", str)),
    )


def encode_question(question: Question) -> RecordDict:
    """A question with the merged updates it carries."""
    about = ConfigRecord(
        {
            "run": question.run,
            "method": question.method,
            "step": question.step,
            "layers": list(question.layers),
            "plan": question.plan,
            "prefix": question.prefix,
            "dense": question.form.dense,
            "with-updates": question.form.with_updates,
            "averaged": question.averaged,
        }
    )
    merged = {
        f"{step}/{name}": tensor
        for step, updates in question.merged.items()
        for name, tensor in update_tensors(updates).items()
    }
    return RecordDict(
        {
            _ABOUT: about,
            _MERGED: to_arrays(merged),
            _REMAINDER: to_arrays(question.remainder),
        }
    )


def decode_question(content: RecordDict) -> Question:
    """Inverse of :func:`encode_question`."""
    about = content.config_records[_ABOUT]
    by_step: dict[int, dict[str, Tensor]] = {}
    for name, tensor in from_arrays(content.array_records[_MERGED]).items():
        step, _, rest = name.partition("/")
        by_step.setdefault(int(step), {})[rest] = tensor
    return Question(
        run=read(about, "run", str),
        method=read(about, "method", str),
        step=read(about, "step", int),
        layers=tuple(read_list(about, "layers", str)),
        plan=read(about, "plan", str),
        prefix=read(about, "prefix", str),
        form=ProductForm(read(about, "dense", bool), read(about, "with-updates", bool)),
        averaged=read(about, "averaged", bool),
        remainder=from_arrays(content.array_records[_REMAINDER]),
        merged={step: updates_from(tensors) for step, tensors in by_step.items()},
    )


def encode_answer(answer: Answer) -> RecordDict:
    """An answer; of each Gram matrix only the upper triangle travels."""
    tensors: dict[str, Tensor] = {}
    energies: dict[str, float] = {}
    for i, statistics in enumerate(answer.statistics):
        tensors[f"{i}/gram"] = pack_symmetric(statistics.gram)
        for layer, product in statistics.products.items():
            energies[f"{i}/{layer}"] = product.energy
            for name, tensor in product.tensors().items():
                tensors[f"{i}/{layer}/{name}"] = tensor
    about = ConfigRecord(
        {
            "site": answer.site,
            "run": answer.run,
            "step": answer.step,
            "plan": answer.plan,
            "prefix": answer.prefix,
            "need-from": answer.step if answer.need_from is None else answer.need_from,
            "groups": [statistics.group for statistics in answer.statistics],
            "widths": [len(statistics.gram) for statistics in answer.statistics],
            "tokens": [statistics.num_tokens for statistics in answer.statistics],
            "energy-of": list(energies),
            "energies": list(energies.values()),
        }
    )
    return RecordDict({_ABOUT: about, _STATISTICS: to_arrays(tensors)})


def decode_subject(content: RecordDict) -> Answer:
    """What an answer is about, without its statistics: to be compared before more is read.

    Raises:
        RefusedReplyError: a field is missing or has the wrong type.
    """
    with refusing_malformed():
        about = content.config_records[_ABOUT]
        step, need_from = read(about, "step", int), read(about, "need-from", int)
        return Answer(
            site=read(about, "site", str),
            run=read(about, "run", str),
            step=step,
            plan=read(about, "plan", str),
            prefix=read(about, "prefix", str),
            need_from=need_from if need_from < step else None,
        )


def decode_statistics(
    content: RecordDict, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[GroupStatistics, ...]:
    """The statistics of an answer that does not ask for merged updates instead.

    Args:
        content: of the reply.
        shapes: the arrays it must hold, :func:`layerweld.expected.statistics_shapes`.

    Raises:
        RefusedReplyError: a record is missing, has the wrong type, or does not fit the others; an
            array is missing, unexpected, or not what its place needs. That is seen on the headers,
            before memory is taken for any number.
    """
    with refusing_malformed():
        about = content.config_records[_ABOUT]
        return _all_statistics(about, read_arrays(content.array_records[_STATISTICS], shapes))


def _all_statistics(
    about: ConfigRecord, arrays: Mapping[str, Tensor]
) -> tuple[GroupStatistics, ...]:
    names = read_list(about, "energy-of", str)
    energies = dict(zip(names, read_list(about, "energies", float), strict=True))
    if energies.keys() != {n.rpartition("/")[0] for n in arrays if not n.endswith("/gram")}:
        raise ValueError("the energies are of other layers than the products")
    groups = zip(
        read_list(about, "groups", str),
        read_list(about, "widths", int),
        read_list(about, "tokens", int),
        strict=True,
    )
    return tuple(
        _statistics_from(i, group, width, tokens, arrays, energies)
        for i, (group, width, tokens) in enumerate(groups)
    )


def _statistics_from(
    index: int,
    group: str,
    width: int,
    tokens: int,
    arrays: Mapping[str, Tensor],
    energies: Mapping[str, float],
) -> GroupStatistics:
    products: dict[str, Product] = {}
    for key, energy in energies.items():
        owner, _, layer = key.partition("/")
        if owner != str(index):
            continue
        if f"{key}/left" in arrays:
            products[layer] = LowRankProduct(
                arrays[f"{key}/left"], arrays[f"{key}/right"], arrays.get(f"{key}/factor"), energy
            )
        else:
            products[layer] = DenseProduct(
                arrays[f"{key}/product"], arrays.get(f"{key}/update"), energy
            )
    gram = unpack_symmetric(arrays[f"{index}/gram"], width)
    return GroupStatistics(group, gram, products, tokens)


def update_tensors(updates: Mapping[str, Update]) -> dict[str, Tensor]:
    """The tensors of several updates, by ``layer/left``, ``layer/right`` or ``layer/weight``."""
    return {
        name: tensor
        for layer, update in updates.items()
        for name, tensor in factors(layer, update).items()
    }


def updates_from(tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """Inverse of :func:`update_tensors`."""
    updates: dict[str, Update] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition("/")
        if part == "left":
            updates[layer] = LowRankUpdate(tensor, tensors[f"{layer}/right"])
        elif part == "weight":
            updates[layer] = DenseUpdate(tensor)
    return updates


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower arrays. numpy has no bfloat16, so everything travels as float32."""
    return ArrayRecord({k: Array(t.float().contiguous().numpy()) for k, t in tensors.items()})


def from_arrays(record: ArrayRecord) -> dict[str, Tensor]:
    """Flower arrays as float32 tensors of their own memory."""
    return {key: torch.from_numpy(array.numpy().copy()).float() for key, array in record.items()}


def read_arrays(record: ArrayRecord, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """As :func:`from_arrays`, for arrays that nobody vouches for.

    Args:
        record: as it came over the network.
        shapes: of every array that must be there; no other may.

    Raises:
        ValueError: one is missing, is not expected, or is anything but little-endian float32 in
            C order of that shape and of just as many bytes. Nothing was allocated then.
    """
    missing, surplus = sorted(shapes.keys() - record.keys()), sorted(record.keys() - shapes.keys())
    if missing or surplus:
        kind, names = ("missing", missing) if missing else ("unexpected", surplus)
        raise ValueError(f"array {names[0]!r} (of {len(names)} such) is {kind}")
    for name, shape in shapes.items():
        _check_header(name, record[name], shape)
    return from_arrays(record)


def _check_header(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """What numpy would believe when it allocates: the header inside the data, not Flower's."""
    if array.stype != "numpy.ndarray" or array.dtype != "float32":
        raise ValueError(f"{name!r} is {array.stype} of {array.dtype}, not numpy float32")
    opened = io.BytesIO(array.data)
    if np.lib.format.read_magic(opened) != (1, 0):
        raise ValueError(f"{name!r} has a header of another version")
    found, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
    if tuple(array.shape) != shape or found != shape:
        raise ValueError(f"{name!r} is {found}, not {shape}")
    if dtype.str != "<f4" or (fortran and min(shape, default=1) > 1):
        raise ValueError(f"{name!r} is {dtype.str} in another order than C")
    numbers, rest = int(np.prod(shape, dtype=object)), len(array.data) - opened.tell()
    if rest != 4 * numbers:
        raise ValueError(f"{name!r} has {rest} bytes for {numbers} numbers")


@contextmanager
def refusing_malformed() -> Iterator[None]:
    """Whatever cannot be read as what it should be is a refused reply.

    Raises:
        RefusedReplyError: as said.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, EOFError, RuntimeError, OverflowError) as error:
        raise RefusedReplyError(f"a reply that cannot be read: {error}") from error


def num_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message; the few words around them are not counted."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())


def read(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """One typed value of a record that came over the network."""
    value = record[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"record entry {key!r} should be a {kind.__name__}, not {value!r}")
    return value


def read_list(record: Mapping[str, Any], key: str, kind: type[T]) -> Sequence[T]:
    """One typed list of a record that came over the network."""
    values: Any = record[key]
    if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
        raise TypeError(f"record entry {key!r} should be a list of {kind.__name__}")
    return values
