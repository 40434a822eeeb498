"""Whatever goes wrong on the way: the same bytes, or an error that says what to do."""

import os
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from hypothesis import given
from hypothesis import strategies as st

from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.merging.registry import METHODS
from layerweld.transport.arrays import from_arrays, read_arrays, to_arrays
from layerweld.transport.identity import identity_of, with_identity
from layerweld.transport.site_info import encode_site_info
from layerweld.transport.untrusted import refusing_malformed
from layerweld.transport.updates import encode_updates
from layerweld.updates.update import LowRankUpdate
from server import in_process
from strategies import notices
from strategies.by_method import rounds_of
from strategies.merge_strategy import MergeStrategy
from tests import faulty_grid
from tests.faulty_grid import (
    CORRUPTIONS,
    KINDS,
    Clock,
    Faults,
    FaultyGrid,
    array_of,
    from_the_node,
    handing_over,
    named,
    none,
)
from tests.stub_sites import (
    NODES,
    PLAN,
    MemoryJournal,
    RecordedApp,
    StubApp,
    digest_of,
    new_chain,
    reply_with,
    settings,
    site_info_of,
    step_of,
    updates_of,
)

ABORTS: dict[str, Any] = {"lost-site": "abort"}
CONTINUES: dict[str, Any] = {"lost-site": "continue"}
CASES = int(os.environ.get("LAYERWELD_FAULT_CASES", "1000"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process, "_through_the_wire", handing_over())


def run(
    faults: Faults, clock: Clock, method: str = "com", app: Any = None, **entries: Any
) -> MergeStrategy:
    chosen = settings(**entries)
    grid = FaultyGrid(app or StubApp(), NODES, chosen, faults, clock)
    chain = new_chain(chosen, method)
    chain.run(grid)
    return chain


@pytest.mark.parametrize("method", ["com", "regmean++"])
def test_no_fault_on_the_way_changes_a_bit(method: str, clock: Clock, no_wire: None) -> None:
    whole = digest_of(run(none(), clock, method))
    met: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    recording: dict[Any, Any] = {}
    for seed in range(CASES // 2):
        faults = Faults(seed)
        chain = run(faults, clock, method, RecordedApp(recording))
        assert digest_of(chain) == whole, f"seed {seed}: {faults.met}"
        met.update(faults.met)
        ignored.update(chain.cohort.ignored)
    print(f"\n{CASES // 2} runs of {method}, {met.total()} faults: {dict(met)}, ignored {ignored}")
    assert {*met} == {*KINDS}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_spoilt_reply_is_refused_before_any_sum_and_asked_for_again(
    name: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faulty_grid, "CORRUPTIONS", {name: CORRUPTIONS[name]})
    chain = run(Faults(seed=3, rate=1.0, most=9, kinds=("corrupt",)), clock)
    assert chain.cohort.ignored["refused"] > 0
    assert digest_of(chain) == digest_of(run(none(), clock))


class Without(StubApp):
    """One site fails, from one step on, in one way."""

    def __init__(self, name: str, step: int, fail: Callable[..., Any]) -> None:
        super().__init__()
        self.name, self.step, self.fail = name, step, fail

    def reply(self, name: str, message: Message) -> Any:
        reply = super().reply(name, message)
        if name == self.name and step_of(message) >= self.step and reply.need_from is None:
            return self.fail(reply)
        return reply


def raises(_answer: Any) -> None:
    raise ValueError("row 17: Jane Doe, HIV+")


def with_a_nan_in_the_last_group(reply: Any) -> Any:
    gram = reply.statistics[-1].gram.clone()
    gram[0, 0] = float("nan")
    return replace(
        reply, statistics=(*reply.statistics[:-1], replace(reply.statistics[-1], gram=gram))
    )


class SilentGrid(FaultyGrid):
    """An app that raises is a site that never answers."""

    def _answer(self, message: Message) -> Message:
        try:
            return super()._answer(message)
        except ValueError:
            return from_the_node(message, 2)


def run_without(
    clock: Clock,
    fail: Callable[..., Any],
    step: int = 2,
    method: str = "com",
    journal: MemoryJournal | None = None,
    **entries: Any,
) -> Any:
    chosen = settings(**entries)
    grid = SilentGrid(Without("birch", step, fail), NODES, chosen, none(), clock)
    chain = new_chain(chosen, method, journal)
    chain.run(grid)
    return chain


def test_a_run_waits_for_a_lost_site_until_the_deadline_and_says_how_to_go_on(
    clock: Clock,
) -> None:
    with pytest.raises(LostSiteError, match=r"birch: its app raised .*same command.*resumes") as e:
        run_without(clock, raises, deadline=600.0)
    assert 600 < clock.now < 700
    assert "Jane Doe" not in str(e.value)


@pytest.fixture
def said(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    lines = []
    monkeypatch.setattr(notices, "log", lambda _level, t: lines.append(t))
    return lines


def test_a_site_that_takes_long_is_named_while_the_others_have_answered(
    clock: Clock, said: list[Any]
) -> None:
    chosen = settings(timeout=600.0)
    faults = Faults(seed=0, rate=1.0, most=1, kinds=("late",))
    chain = new_chain(chosen)
    chain.run(FaultyGrid(StubApp(), NODES, chosen, faults, clock))
    waiting = "waiting for ash at the statistics of step 1: no reply for"
    assert said == [f"{waiting} 15 s", f"{waiting} 30 s"]
    assert digest_of(chain) == digest_of(run(none(), clock))


def test_asking_again_backs_off(clock: Clock) -> None:
    sent = []

    class CountingGrid(SilentGrid):
        def push_messages(self, messages: Any) -> list[Any]:
            sent.append(clock.now)
            return super().push_messages(messages)

    chosen = settings(deadline=3600.0)
    grid = CountingGrid(Without("birch", 0, raises), NODES, chosen, none(), clock)
    with pytest.raises(LostSiteError):
        new_chain(chosen).run(grid)
    assert len(sent) < 80  # one a minute, after the first six


def test_a_run_that_aborts_stops_at_the_first_failure(clock: Clock) -> None:
    with pytest.raises(LostSiteError, match="birch failed at the statistics of step 3"):
        run_without(clock, raises, **ABORTS)
    assert clock.now < 10


def test_a_run_that_goes_on_leaves_a_lost_site_out_from_there(clock: Clock) -> None:
    chain = run_without(clock, raises, deadline=600.0, **CONTINUES)
    groups = [group for step in chain.rounds.groups for group in step]
    assert [group["lost"] for group in groups] == [(), (), ("birch",), ("birch",)]
    assert chain.lost == {"birch": 3}
    sites = [sorted(group["tokens"]) for group in groups]
    assert sites == [["ash", "birch", "cedar"]] * 2 + [["ash", "cedar"]] * 2


def test_a_lost_site_stays_out_when_the_run_is_resumed(clock: Clock) -> None:
    journal = MemoryJournal()
    whole = run_without(clock, raises, journal=journal, deadline=60.0, **CONTINUES)
    journal.rounds.pop()
    resumed = run_without(clock, raises, step=9, journal=journal, deadline=60.0, **CONTINUES)
    assert digest_of(resumed) == digest_of(whole)


def test_fewer_than_min_sites_do_not_go_on(clock: Clock) -> None:
    entries: dict[str, Any] = {"lost-site": "continue", "min-sites": 3, "deadline": 60.0}
    with pytest.raises(LostSiteError, match="2 sites would be left, and min-sites is 3"):
        run_without(clock, raises, **entries)


def test_a_site_that_keeps_sending_nonsense_ends_the_run_by_name(clock: Clock) -> None:
    with pytest.raises(RefusedReplyError, match=r"birch, asked 3 times: 1\.in: .*not finite"):
        run_without(clock, with_a_nan_in_the_last_group)


@pytest.mark.parametrize("method", ["com", "regmean++"])
def test_nothing_of_a_site_is_added_when_one_of_its_groups_is_bad(
    method: Any, clock: Clock
) -> None:
    entries: dict[str, Any] = {"lost-site": "continue", "deadline": 60.0}
    spoilt = run_without(clock, with_a_nan_in_the_last_group, 0, method, **entries)
    silent = run_without(clock, raises, 0, method, **entries)
    assert digest_of(spoilt) == digest_of(silent)


@pytest.mark.parametrize("field", ["run", "request", "plan", "chain_digest"])
def test_a_site_that_only_replays_is_waited_for_and_never_summed(field: str, clock: Clock) -> None:
    class Old(StubApp):
        def __call__(self, message: Message, context: Any) -> Message:
            reply = super().__call__(message, context)
            if context.node_config["name"] == "birch" and step_of(message) >= 2:
                old = replace(identity_of(message.content), **{field: "0" * 64})
                asked = replace(old, node=str(context.node_id), site="birch")
                reply.content = with_identity(reply.content, asked)
            return reply

    says = f"birch: it replied to another {field}".replace("_", " ")
    with pytest.raises(LostSiteError, match=says):
        run(none(), clock, app=Old(), deadline=60.0)


def test_a_site_that_never_has_what_it_was_sent_is_refused(clock: Clock) -> None:
    def behind(reply: Any) -> Any:
        return replace(reply, statistics=(), need_from=1)

    with pytest.raises(RefusedReplyError, match=r"birch.*cache folder writable"):
        run_without(clock, behind)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"tokens": 21}, "another tokens"), ({"base": "c"}, "another base"), ({"site": "elm"}, "elm")],
)
def test_a_node_that_is_not_the_site_it_replaces_is_turned_away(
    change: dict[str, int] | dict[str, str], says: str, clock: Clock, said: list[Any]
) -> None:
    class Impostor(StubApp):
        def __call__(self, message: Message, context: Any) -> Message:
            if message.metadata.message_type == "query.handshake":
                known = site_info_of(context.node_config["name"])
                return reply_with(encode_site_info(replace(known, **change)), message, context)
            return super().__call__(message, context)

    chosen = settings(deadline=600.0)
    faults = Faults(seed=1, rate=1.0, most=1, kinds=("moved",))
    with pytest.raises(LostSiteError, match="ash: its node is not reachable"):
        new_chain(chosen).run(FaultyGrid(Impostor(), NODES, chosen, faults, clock))
    assert any("turned away" in text and says in text for text in said)


@pytest.mark.parametrize("seed", range(30))
def test_averaged_updates_survive_faults_too(seed: int, clock: Clock) -> None:
    merged = []
    for faults in (none(), Faults(seed)):
        chosen = settings()
        cohort = new_chain(chosen).cohort
        averaging = rounds_of(METHODS["mean"], PLAN, cohort, chosen, {})
        grid = FaultyGrid(StubApp(), NODES, chosen, faults, clock)
        MergeStrategy(cohort, averaging).run(grid)
        merged.append(averaging.outcome().updates)
    for layer, update in merged[0].items():
        assert torch.equal(update.dense(), merged[1][layer].dense())


@pytest.mark.parametrize("name", ["nan", "infinity", "shape", "extra", "huge"])
def test_an_update_to_be_averaged_is_checked_as_strictly(name: str, clock: Clock) -> None:
    def spoil(updates: dict[Any, Any]) -> dict[Any, Any]:
        left, right = updates["0.q"].left.clone(), updates["0.q"].right
        left[0, 0] = {"nan": float("nan"), "infinity": float("inf"), "huge": 1e20}.get(name, 1.0)
        if name == "shape":
            left = left[1:]
        extra = {"9.q": updates["0.q"]} if name == "extra" else {}
        return updates | {"0.q": LowRankUpdate(left, right)} | extra

    class Spoiler(StubApp):
        def __call__(self, message: Message, context: Any) -> Message:
            updates = updates_of(context.node_config["name"])
            if context.node_config["name"] == "birch":
                updates = spoil(updates)
            return reply_with(encode_updates(updates), message, context)

    chosen = settings()
    cohort = new_chain(chosen).cohort
    averaging = rounds_of(METHODS["mean"], PLAN, cohort, chosen, {})
    grid = FaultyGrid(Spoiler(), NODES, chosen, none(), clock)
    with pytest.raises(RefusedReplyError, match="birch, asked 3 times"):
        MergeStrategy(cohort, averaging).run(grid)


def test_a_shape_that_asks_for_an_exabyte_takes_no_memory() -> None:
    array = named(shape=(10**9, 10**9))(array_of(np.zeros(4, np.float32)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="is "):
        read_arrays(ArrayRecord({"x": array}), {"x": (4,)})
    with pytest.raises(ValueError, match="16 bytes"):
        from_arrays(ArrayRecord({"x": array}))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (3,), (3, 2), (1, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_array_is_read_as_it_was_whatever_its_layout_in_memory(shape: Any, dtype: Any) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if tensor.ndim > 1:
        tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    record = to_arrays({"x": tensor})
    assert len(record["x"].data) == 4 * tensor.numel()
    for read in (read_arrays(record, {"x": shape})["x"], from_arrays(record)["x"]):
        assert torch.equal(read, tensor.float())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_array_are_refused(data: Any) -> None:
    record = ArrayRecord({"x": Array("float32", (4,), "numpy.ndarray", data)})
    with pytest.raises(RefusedReplyError), refusing_malformed():
        read_arrays(record, {"x": (4,)})


def test_flowers_own_start_asks_again_what_its_loop_did_not_get(clock: Clock) -> None:
    chosen = settings()
    grid = FaultyGrid(StubApp(), NODES, chosen, Faults(5, kinds=("error 2", "error 5")), clock)
    chain = new_chain(chosen)
    chain.start(grid, ArrayRecord())
    assert digest_of(chain) == digest_of(run(none(), clock))
