"""A site that sends what it likes: its reply is refused by its name, and the run goes on."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.launch import app_module
from layerweld.schedule import Step
from layerweld.transport.score import decode_score
from layerweld.transport.shift import decode_shifts
from layerweld.transport.subject import with_subject
from tests.faulty_grid import Faults, none
from tests.honest_messages import SITE, SUBJECT
from tests.made_up_results import made_up_results
from tests.mutations import HUGE_VARINT, NASTY_NUMBERS, Mutator
from tests.stub_sites import NODES, PLAN, StubApp, digest_of, new_chain, settings
from tests.test_faults import play_without, raises
from tests.wire_grid import WireGrid, as_it_is

MESSAGES = int(os.environ.get("LAYERWELD_FUZZ_MESSAGES", "3200"))

pytestmark = pytest.mark.usefixtures("one_thread")


def test_no_mutated_message_ends_a_process_or_is_anything_but_refused():
    command = [sys.executable, "-m", "tests.mutated_replies", "11", str(MESSAGES)]
    ended = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    totals = sum(map(Counter, found["outcomes"].values()), Counter())
    print(f"\n{totals.total()} messages: {dict(totals)}, {found['grown_kib']} KiB more memory")
    assert all(counts["refused"] for counts in found["outcomes"].values())
    assert found["grown_kib"] < 64 * 1024


# What one site sends in place of its reply, as objects.


def parents_renamed(objects, root, old, content):
    return objects, Mutator(0)._renamed(objects, root, old, content)


def of_kind(objects, kind):
    return next(k for k, content in objects.items() if content.startswith(kind + b" "))


def with_body(objects, root, kind, change):
    """Another body in the first object of a kind, its head made to fit."""
    old = of_kind(objects, kind)
    head, _, body = objects.pop(old).partition(b"\0")
    body = change(body)
    head = head.rpartition(b" ")[0] + b" %d" % len(body)
    return parents_renamed(objects, root, old, head + b"\0" + body)


def chunk(number, size):
    body = number.to_bytes(8, "little") * (size // 8)
    return b"ArrayChunk  %d\0" % len(body) + body


@cache
def piece_id(number, size):
    return sha256(chunk(number, size)).hexdigest()


def with_records_nobody_asked_for(_message, objects, root, count=160, size=5 * 2**20):
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


def never_there(_message, objects, root):
    objects[of_kind(objects, b"ArrayChunk")] = lambda: None
    return objects, root


def given_up(_message, objects, root):
    del objects[of_kind(objects, b"ArrayChunk")]
    return objects, root


def body_of(kind, change):
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


def play_wire(clock, spoil=as_it_is, app=None, faults=None, **entries):
    chosen = settings(**entries)
    grid = WireGrid(app or StubApp(), NODES, chosen, faults or none(), clock, spoil)
    chain = new_chain(chosen)
    chain.play(grid)
    return chain, grid


def test_between_processes_the_chain_is_the_same_and_every_reply_is_confirmed(clock):
    here = play_without(clock, raises, step=9)
    chain, grid = play_wire(clock)
    assert digest_of(chain) == digest_of(here)
    assert len(grid.confirmed) == len(NODES) * len(PLAN.groups)
    assert not grid._objects


@pytest.mark.parametrize("seed", range(10))
def test_between_processes_no_fault_on_the_way_changes_a_bit(seed, clock):
    kinds = ("error 2", "error 8", "late", "silence", "replay", "another's", "corrupt", "moved")
    chain, _ = play_wire(clock, faults=Faults(seed, kinds=kinds))
    assert digest_of(chain) == digest_of(play_wire(clock)[0])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_reply_that_cannot_be_put_together_is_its_sites_refusal(name, clock):
    with pytest.raises(RefusedReplyError, match=r"^birch, asked 3 times: ") as refusal:
        play_wire(clock, ATTACKS[name])
    assert len(str(refusal.value)) < 600
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", [*ATTACKS, "never there", "given up"])
def test_the_others_merge_goes_on_unharmed(name, clock):
    spoil = {**ATTACKS, "never there": never_there, "given up": given_up}[name]
    policy = {"lost-site": "continue", "deadline": 60.0}
    chain, grid = play_wire(clock, spoil, **policy)
    assert chain.cohort.lost.keys() == {"birch"}
    assert digest_of(chain) == digest_of(play_without(clock, raises, step=0, **policy))
    assert name in ("never there", "given up") or not grid._objects


def test_a_site_whose_objects_never_come_keeps_nobody_waiting(clock):
    with pytest.raises(LostSiteError, match=r"60 s from birch: it did not answer within 30 s\."):
        play_wire(clock, never_there, deadline=60.0)


def test_objects_that_come_late_are_waited_for(clock):
    held = []

    def late(_message, objects, root):
        content = objects[root]
        objects[root] = lambda: None if len(held) < 5 and not held.append(0) else content
        return objects, root

    chain, _ = play_wire(clock, late)
    assert len(held) == 5
    assert digest_of(chain) == digest_of(play_wire(clock)[0])


def test_memory_stays_flat_whatever_a_site_offers(clock):
    play_wire(clock)
    offered = 40 * 5 * 2**20
    spoil = partial(with_records_nobody_asked_for, count=40)
    tracemalloc.start()
    with pytest.raises(RefusedReplyError, match="larger than the"):
        play_wire(clock, spoil)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\n{offered / 2**20:.0f} MiB offered three times, at most {peak / 2**20:.1f} MiB held")
    assert peak < 4 * 5 * 2**20  # a piece, and what made it


def test_what_two_sites_tell_of_themselves_is_bounded_by_the_site_that_is_named(clock):
    """A reply to what somebody else was asked is not taken for the answer."""

    class Crossing(WireGrid):
        def PullMessages(self, request):
            named = super().PullMessages(request)
            for one in named.messages_list:
                one.metadata.reply_to_message_id = "of somebody else"
            return named

    chosen = settings(deadline=60.0)
    with pytest.raises(LostSiteError, match="ash: it did not answer within 30 s"):
        new_chain(chosen).play(Crossing(StubApp(), NODES, chosen, none(), clock))


# What a site may ask for.


def test_a_site_that_lacks_more_and_more_is_sent_it_three_times():
    encoded = []
    module = app_module("strategies.catching_up")
    step = Step(1200, PLAN.groups[:1], "merged")
    catch_up = module.CatchUp(step, lambda steps, _remainder: encoded.append(steps), 1199)
    for first in (1199, 700, -1):
        catch_up.note("birch", first)
        catch_up.content("birch")
    with pytest.raises(RefusedReplyError, match="still lacks"):
        catch_up.note("birch", -1)
    fresh = module.CatchUp(step, lambda steps, _remainder: encoded.append(steps), 1199)
    for first in (1199, 1198, 1197):
        fresh.note("birch", first)
    with pytest.raises(RefusedReplyError, match="lacks more each time"):
        fresh.note("birch", 1196)


def test_a_site_that_always_lacks_one_more_step_is_refused_by_name(clock):
    class Greedy(StubApp):
        lacking = 3

        def answer(self, name, message):
            answer = super().answer(name, message)
            if name != "birch" or answer.step < 3:
                return answer
            self.lacking -= 1
            return replace(answer, statistics=(), need_from=max(self.lacking, -1))

    with pytest.raises(RefusedReplyError, match="birch, asked 3 times: it"):
        play_wire(clock, app=Greedy())


# Numbers that a page or a file would show.


@pytest.mark.parametrize("number", [n for n in NASTY_NUMBERS if isinstance(n, float)])
def test_a_shift_is_a_finite_distance(number):
    record = ConfigRecord({"groups": ["0.in", "1.in"], "shifts": [0.5, number]})
    content = with_subject(RecordDict({"shift": record}), SUBJECT)
    if 0 <= number < float("inf"):
        assert decode_shifts(content, ["1.in", "0.in"]) == {"0.in": 0.5, "1.in": number}
    else:
        with pytest.raises(RefusedReplyError, match="'shifts' should be a"):
            decode_shifts(content, ["0.in", "1.in"])


@pytest.mark.parametrize("number", [*NASTY_NUMBERS, True, 2])
def test_an_accuracy_is_a_share(number):
    metrics = MetricRecord({"accuracy": 0.5, "num-examples": 3})
    if not isinstance(number, bool):  # Flower sends none in a metric record
        metrics["accuracy"] = number
    content = with_subject(RecordDict({"metrics": metrics}), SUBJECT)
    if isinstance(number, float) and 0 <= number <= 1:
        assert decode_score(content) == (number, 3)
    elif not isinstance(number, bool):
        with pytest.raises(RefusedReplyError, match="'accuracy' should be a"):
            decode_score(content)


def test_no_number_that_is_not_finite_gets_into_a_results_file(tmp_path):
    results = made_up_results()
    methods = [replace(method, seconds=float("nan")) for method in results.methods]
    with pytest.raises(ValueError, match="not JSON compliant"):
        app_module("server.output").write_results(tmp_path, replace(results, methods=methods))
    assert not (tmp_path / "results.json").exists()


def test_honest_messages_are_of_the_site_that_sends_them():
    assert SITE == SUBJECT.site == "birch"
