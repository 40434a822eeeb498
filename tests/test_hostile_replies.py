"""A site that sends what it likes: its reply is refused by its name, and the run goes on."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.model.schedule import Step
from layerweld.report.run.files import write_results
from layerweld.transport.evaluation import decode_accuracy
from layerweld.transport.identity import with_identity
from layerweld.transport.shift import decode_shifts
from layerweld.transport.statistics import StatisticsReply
from strategies import catching_up, notices
from strategies.merge_strategy import MergeStrategy
from tests.faulty_grid import Clock, Faults, none
from tests.honest_messages import IDENTITY
from tests.hostile_objects import ATTACKS, given_up, never_there, with_records_nobody_asked_for
from tests.made_up_results import made_up_results
from tests.mutations import NASTY_NUMBERS
from tests.stub_sites import NODES, PLAN, StubApp, digest_of, new_chain, settings, step_of
from tests.test_faults import raises, run_without
from tests.wire_grid import WireGrid, as_it_is

MESSAGES = int(os.environ.get("LAYERWELD_FUZZ_MESSAGES", "3200"))

pytestmark = pytest.mark.usefixtures("one_thread")


def test_no_mutated_message_ends_a_process_or_is_anything_but_refused() -> None:
    command = [sys.executable, "-m", "tests.mutated_replies", "11", str(MESSAGES)]
    ended = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    totals: Counter[str] = Counter()
    for outcomes in found["outcomes"].values():
        totals.update(outcomes)
    print(f"\n{totals.total()} messages: {dict(totals)}, {found['grown_kib']} KiB more memory")
    assert all(counts["refused"] for counts in found["outcomes"].values())
    assert found["grown_kib"] < 64 * 1024


def run_wire(
    clock: Clock,
    spoil: Callable[..., tuple[Any, ...]] | partial[tuple[Any, ...]] = as_it_is,
    app: Any = None,
    faults: Faults | None = None,
    **entries: Any,
) -> tuple[MergeStrategy, WireGrid]:
    chosen = settings(**entries)
    grid = WireGrid(app or StubApp(), NODES, chosen, faults or none(), clock, spoil)
    chain = new_chain(chosen)
    chain.run(grid)
    return chain, grid


def test_between_processes_the_chain_is_the_same_and_every_reply_is_confirmed(
    clock: Clock,
) -> None:
    here = run_without(clock, raises, step=9)
    chain, grid = run_wire(clock)
    assert digest_of(chain) == digest_of(here)
    assert len(grid.confirmed) == len(NODES) * len(PLAN.groups)
    assert not grid._objects


@pytest.mark.parametrize("seed", range(10))
def test_between_processes_no_fault_on_the_way_changes_a_bit(seed: int, clock: Clock) -> None:
    kinds = ("error 2", "error 8", "late", "silence", "replay", "another's", "corrupt", "moved")
    chain, _ = run_wire(clock, faults=Faults(seed, kinds=kinds))
    assert digest_of(chain) == digest_of(run_wire(clock)[0])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_reply_that_cannot_be_put_together_is_its_sites_refusal(name: Any, clock: Clock) -> None:
    with pytest.raises(RefusedReplyError, match=r"^birch, asked 3 times: ") as refusal:
        run_wire(clock, ATTACKS[name])
    assert len(str(refusal.value)) < 600
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", [*ATTACKS, "never there", "given up"])
def test_the_others_merge_goes_on_unharmed(name: Any, clock: Clock) -> None:
    spoil = {**ATTACKS, "never there": never_there, "given up": given_up}[name]
    policy: dict[str, Any] = {"lost-site": "continue", "deadline": 60.0}
    chain, grid = run_wire(clock, spoil, **policy)
    assert chain.cohort.lost.keys() == {"birch"}
    assert digest_of(chain) == digest_of(run_without(clock, raises, step=0, **policy))
    assert name in ("never there", "given up") or not grid._objects


def test_a_site_whose_objects_never_come_keeps_nobody_waiting(clock: Clock) -> None:
    with pytest.raises(LostSiteError, match=r"60 s from birch: it did not reply within 30 s\."):
        run_wire(clock, never_there, deadline=60.0)


def test_objects_that_come_late_are_waited_for(clock: Clock) -> None:
    held: list[int] = []

    def late(_message: Message, objects: Any, root: str) -> tuple[Any, ...]:
        content = objects[root]

        def pulled() -> Any:
            if len(held) < 5:
                held.append(0)
                return None
            return content

        objects[root] = pulled
        return objects, root

    chain, _ = run_wire(clock, late)
    assert len(held) == 5
    assert digest_of(chain) == digest_of(run_wire(clock)[0])


def test_memory_stays_flat_whatever_a_site_offers(clock: Clock) -> None:
    run_wire(clock)
    offered = 40 * 5 * 2**20
    spoil = partial(with_records_nobody_asked_for, count=40)
    tracemalloc.start()
    with pytest.raises(RefusedReplyError, match="larger than the"):
        run_wire(clock, spoil)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\n{offered / 2**20:.0f} MiB offered three times, at most {peak / 2**20:.1f} MiB held")
    assert peak < 4 * 5 * 2**20  # a piece, and what made it


def test_a_reply_to_what_somebody_else_was_asked_is_nobodys(clock: Clock) -> None:
    class Crossing(WireGrid):
        def PullMessages(self, request: Any) -> SimpleNamespace:
            named = super().PullMessages(request)
            for one in named.messages_list:
                one.metadata.reply_to_message_id = "of somebody else"
            return named

    chosen = settings(deadline=60.0)
    with pytest.raises(LostSiteError, match="ash: it did not reply within 30 s"):
        new_chain(chosen).run(Crossing(StubApp(), NODES, chosen, none(), clock))


# What a site may ask for.


def test_a_site_that_lacks_more_and_more_is_sent_it_three_times() -> None:
    encoded: list[range] = []

    def encode(steps: range, _with_other_params: bool) -> RecordDict:
        encoded.append(steps)
        return RecordDict()

    step = Step(1200, PLAN.groups[:1], "merged")
    catch_up = catching_up.CatchUp(step, encode, 1199)
    for first in (1199, 700, -1):
        catch_up.note("birch", first)
        catch_up.content("birch")
    with pytest.raises(RefusedReplyError, match="still lacks"):
        catch_up.note("birch", -1)
    fresh = catching_up.CatchUp(step, encode, 1199)
    for first in (1199, 1198, 1197):
        fresh.note("birch", first)
    with pytest.raises(RefusedReplyError, match="lacks more each time"):
        fresh.note("birch", 1196)


def test_a_site_that_always_lacks_one_more_step_is_refused_by_name(clock: Clock) -> None:
    class Greedy(StubApp):
        lacking = 3

        def reply(self, name: str, message: Message) -> StatisticsReply:
            reply = super().reply(name, message)
            if name != "birch" or step_of(message) < 3:
                return reply
            self.lacking -= 1
            return replace(reply, statistics=(), need_from=max(self.lacking, -1))

    with pytest.raises(RefusedReplyError, match="birch, asked 3 times: it"):
        run_wire(clock, app=Greedy())


# Numbers that a page or a file would show.


@pytest.mark.parametrize("number", [n for n in NASTY_NUMBERS if isinstance(n, float)])
def test_a_shift_is_a_finite_distance(number: Any) -> None:
    record = ConfigRecord({"groups": ["0.in", "1.in"], "shifts": [0.5, number]})
    content = with_identity(RecordDict({"shift": record}), IDENTITY)
    if 0 <= number < float("inf"):
        assert decode_shifts(content, ["1.in", "0.in"]) == {"0.in": 0.5, "1.in": number}
    else:
        with pytest.raises(RefusedReplyError, match="'shifts' should be a"):
            decode_shifts(content, ["0.in", "1.in"])


@pytest.mark.parametrize("number", [*NASTY_NUMBERS, True, 2])
def test_an_accuracy_is_a_share(number: Any) -> None:
    metrics = ConfigRecord({"accuracy": 0.5, "num-examples": 3})
    if not isinstance(number, bool):  # Flower sends none in a metric record
        metrics["accuracy"] = number
    content = with_identity(RecordDict({"metrics": metrics}), IDENTITY)
    if isinstance(number, float) and 0 <= number <= 1:
        assert decode_accuracy(content) == (number, 3)
    elif not isinstance(number, bool):
        with pytest.raises(RefusedReplyError, match="'accuracy' should be a"):
            decode_accuracy(content)


def test_no_number_that_is_not_finite_gets_into_a_results_file(tmp_path: Path) -> None:
    results = made_up_results()
    methods = tuple(replace(method, seconds=float("nan")) for method in results.methods)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, replace(results, methods=methods))
    assert not (tmp_path / "results.json").exists()


class Failing(WireGrid):
    """The SuperLink answers one site's messages with a status."""

    status = 500

    def PullMessages(self, request: Any) -> SimpleNamespace:
        message = self._pushed.get(request.message_ids[0])
        node = message.metadata.dst_node_id if message else 0
        if node in self._contexts and self._contexts[node].node_config["name"] == "birch":
            self._pushed.pop(request.message_ids[0])
            asked = httpx.Request("POST", "http://superlink")
            raise httpx.HTTPStatusError("", request=asked, response=httpx.Response(self.status))
        return super().PullMessages(request)


def test_a_reply_at_which_the_superlink_fails_is_its_sites_refusal(clock: Clock) -> None:
    chosen = settings()
    with pytest.raises(RefusedReplyError, match=r"^birch, asked 3 times: the SuperLink cannot"):
        new_chain(chosen).run(Failing(StubApp(), NODES, chosen, none(), clock))


def test_a_superlink_that_knows_the_run_no_more_ends_it(clock: Clock) -> None:
    class Unknown(Failing):
        status = 401

    chosen = settings()
    with pytest.raises(httpx.HTTPStatusError):
        new_chain(chosen).run(Unknown(StubApp(), NODES, chosen, none(), clock))


def test_a_stranger_whose_site_info_cannot_be_read_is_turned_away(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that nobody knows is greeted while a site is missing; it may be anybody."""
    said = []
    monkeypatch.setattr(notices, "log", lambda _level, t: said.append(t))

    class Stranger(WireGrid):
        def _kept(self, message_id: str, reply: Any) -> Any:
            root = super()._kept(message_id, reply)
            if reply.metadata.message_type != "query.handshake":
                return root
            objects, root = ATTACKS["no protobuf"](message_id, self._objects.pop(root), root)
            self._objects[root] = objects
            return root

    chosen = settings(deadline=60.0)
    faults = Faults(seed=1, rate=1.0, most=1, kinds=("moved",))
    with pytest.raises(LostSiteError, match="ash: its node is not reachable"):
        new_chain(chosen).run(Stranger(StubApp(), NODES, chosen, faults, clock))
    assert any("is turned away: a reply that cannot be read" in text for text in said)


def test_nothing_is_left_at_the_superlink_of_a_reply_that_was_refused(clock: Clock) -> None:
    chosen = settings(**{"lost-site": "continue", "deadline": 60.0})
    grid = WireGrid(StubApp(), NODES, chosen, none(), clock, ATTACKS["30 MB of text"])
    new_chain(chosen).run(grid)
    assert not grid._objects
    assert grid.most_pulled < 31 * 2**20
