"""Decode mutated messages of every kind, as many as asked for, and count how they ended.

Whatever ends the process, or leaves a decoder as anything but a refusal, is a failure of the test
that started it: ``python -m tests.mutated_replies SEED COUNT``.
"""

import json
import logging
import resource
import sys
from collections import Counter
from itertools import cycle, islice
from typing import Any

import torch
from flwr.app import (
    Error,
    Message,
    RecordDict,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from layerweld.errors import RefusedReplyError
from layerweld.transport.identity import require_identity, with_identity
from layerweld.transport.objects import assembled
from layerweld.transport.untrusted import refusing_malformed
from strategies.failures import why_it_failed
from tests.honest_messages import IDENTITY, SITE, replies, requests
from tests.mutations import NASTY_TEXTS, Mutator


def message_of(content: RecordDict) -> Message:
    return Message(content, 2, "train.statistics", ttl=60.0, group_id="fuzz")


def objects_of(message: Message) -> tuple[dict[str, bytes], str]:
    root = message.object_id
    return {key: part.deflate() for key, part in get_all_nested_objects(message).items()}, root


def is_sound(value: Any) -> bool:
    """No decoder may hand on a number of a field that it could not be."""
    if isinstance(value, dict):
        return all(map(is_sound, value.values()))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return True


def outcome(contents: Any, root: Any, budget: Any, is_reply: Any, read: Any) -> str:
    try:
        message = assembled(root, budget, contents.get)
        if message is None:
            return "incomplete"
        if message.has_error():
            why_it_failed(message.error)
            return "an error"
        with refusing_malformed():
            if is_reply:
                require_identity(message.content, IDENTITY)
            value = read(SITE, message.content)
    except RefusedReplyError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert len(refusal) < 1000, f"a refusal of {len(refusal)} characters"
        assert refusal.isprintable(), f"a refusal with control characters: {refusal!a}"
        return "refused"
    assert is_sound(vars(value) if hasattr(value, "__dict__") else value), value
    return "accepted"


def kinds_of_messages() -> dict[Any, Any]:
    """By kind: content, how it is read, what it may take, and whether it says what it is about."""
    kinds = {
        kind: (with_identity(content, IDENTITY), read, budget, True)
        for kind, (content, read, budget) in replies().items()
    }
    return kinds | {kind: (*about, False) for kind, about in requests().items()}


def run(seed: int, count: int) -> dict[Any, Any]:
    """Decode so many; what became of them, by kind."""
    mutator, kinds = Mutator(seed), kinds_of_messages()
    found: dict[str, Counter[str]] = {kind: Counter() for kind in (*kinds, "error")}
    for kind, (content, read, budget, is_reply) in kinds.items():
        ended = outcome(*objects_of(message_of(content)), budget, is_reply, read)
        assert ended == "accepted", f"an honest {kind} is {ended}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, (content, read, budget, is_reply) in islice(cycle(kinds.items()), count):
        contents, root = mutated(mutator, content)
        found[kind][outcome(contents, root, budget, is_reply, read)] += 1
        if mutator.random.random() < 0.02:
            reason = mutator.random.choice(NASTY_TEXTS)
            error = Message(
                Error(mutator.random.randrange(-9, 900), reason), reply_to=message_of(content)
            )
            objects = mutator.objects(*objects_of(error))
            found["error"][outcome(*objects, budget, is_reply, read)] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"outcomes": found, "grown_kib": grown}


def mutated(mutator: Mutator, content: RecordDict) -> tuple[Any, str]:
    """The objects of a message with spoilt records, spoilt bytes, or both."""
    what = mutator.random.random()
    while True:
        try:
            changed = mutator.content(content) if what < 0.6 else content
            objects = objects_of(message_of(changed))
        except (TypeError, ValueError, OverflowError, KeyError):
            continue  # Flower itself would not send it
        return mutator.objects(*objects) if what > 0.4 else objects


if __name__ == "__main__":
    for name in ("_task_id", "_run_id", "_node_id"):
        setattr(TaskIdentity, name, 1)
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
