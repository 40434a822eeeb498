"""A site that trained its adapter loses its cache, or a part of it: the run ends the same."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message

from client import state as site_states
from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.formats.adapters import Adapter
from layerweld.settings.run import RunSettings
from server.run import run as run_server
from strategies.cohort import Cohort, Patience
from tests.deployed import digest_in
from tests.dying_server import killed_after
from tests.faulty_grid import Clock
from tests.losing_caches import PARTS, LosingGrid, make_training_sites, training_settings
from tests.stub_sites import site_info_of
from tests.tiny_sites import TinySites

pytestmark = pytest.mark.usefixtures("one_thread", "clock")
RUNS = int(os.environ.get("LAYERWELD_LOSING_RUNS", "3"))
METHODS = "chain,ties,fisher,adamerging,prodistill"
REQUESTS = {
    "query.handshake", "train.finetune", "train.statistics", "train.adapter", "train.fisher",
    "train.entropy", "train.distillation", "evaluate.model", "query.shift", "query.finished",
}  # fmt: skip
WAYS = [*PARTS, "a bit"]


def nothing(*_asked: Any) -> str:
    return ""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    return make_training_sites(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def settings(sites: TinySites) -> RunSettings:
    short = {"adamerging": {"rounds": 2}, "prodistill": {"steps": 2}}
    return training_settings(sites, METHODS, **short)


@pytest.fixture
def run(
    sites: TinySites, settings: RunSettings, tmp_path: Path
) -> Callable[..., tuple[LosingGrid, str]]:
    shutil.rmtree(sites.folder / "caches", ignore_errors=True)  # of another test

    def run(
        loses: Any, output: Path = tmp_path / "out", chosen: RunSettings = settings
    ) -> tuple[LosingGrid, str]:
        grid = LosingGrid(sites.nodes, chosen, loses)
        run_server(grid, chosen, str(sites.base), output)
        return grid, digest_in(output)

    return run


@pytest.fixture(scope="module")
def whole(sites: TinySites, settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the manifest of a run in which nothing is lost."""
    output = tmp_path_factory.mktemp("whole") / "out"
    grid = LosingGrid(sites.nodes, settings, nothing)
    run_server(grid, settings, str(sites.base), output)
    assert {*grid.asked} == REQUESTS
    return digest_in(output)


@pytest.mark.parametrize("way", WAYS)
def test_at_the_first_message_of_each_kind_every_site_may_lose_it(
    run: Callable[..., tuple[LosingGrid, str]], whole: str, way: Any
) -> None:
    met = set()

    def loses(_number: Any, request: Any, site: str) -> Any:
        first = (request, site) not in met
        met.add((request, site))
        return way if first else ""

    grid, digest = run(loses)
    assert digest == whole
    assert {request for request, _ in grid.lost} == REQUESTS


@pytest.mark.parametrize("seed", range(RUNS))
def test_any_part_may_be_lost_at_any_message(
    run: Callable[..., tuple[LosingGrid, str]], whole: str, seed: int
) -> None:
    drawn = random.Random(seed)

    def loses(_number: Any, request: Any, _site: Any) -> str:
        ways = WAYS if request == "query.handshake" else [*WAYS, "moved"]
        return drawn.choice(ways) if drawn.random() < 0.3 else ""

    grid, digest = run(loses)
    assert digest == whole
    assert grid.lost


def test_a_cache_may_go_while_a_message_is_handled(
    run: Callable[..., tuple[LosingGrid, str]], whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[Any] = []

    def read_and_lose(
        folder: Path,
        base: Any,
        read: Callable[..., Adapter] = site_states.read_fine_tuned,  # type: ignore[attr-defined]
    ) -> Adapter:
        adapter = read(folder, base)
        if len(gone) < 20 and len(gone) % 2 == 0:
            shutil.rmtree(folder.parents[2])  # the whole cache, lock and all
        gone.append(folder)
        return adapter

    monkeypatch.setattr(site_states, "read_fine_tuned", read_and_lose)
    assert run(nothing)[1] == whole
    assert len(gone) > 20


def test_a_resumed_run_goes_on_with_sites_that_have_lost_all(
    run: Callable[..., tuple[LosingGrid, str]],
    whole: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with killed_after(1, monkeypatch):
        run(nothing)
    _, digest = run(lambda _n, request, _site: "all" if request == "query.handshake" else "")
    assert digest == whole


def test_a_site_that_says_so_for_ever_is_asked_ever_less_often_and_ends_the_run_by_name(
    sites: TinySites, tmp_path: Path, clock: Clock
) -> None:
    class LiesAboutIt(LosingGrid):
        def _answer(self, message: Message) -> Message:
            if message.metadata.message_type == "train.statistics":
                self.asked.append("train.statistics")
                return Message(Error(204, f"E204 incident {'a' * 16}"), reply_to=message)
            return super()._answer(message)

    chosen = training_settings(sites, deadline=600.0)
    grid = LiesAboutIt(sites.nodes, chosen, nothing)
    with pytest.raises(LostSiteError, match=r"ash: the adapter that it trained is gone .*E204"):
        run_server(grid, chosen, str(sites.base), tmp_path / "out")
    assert clock.now < 700
    assert 3 * 5 < grid.asked.count("train.statistics") < 3 * 20
    assert grid.asked.count("train.finetune") < 3 * 20


def test_a_node_that_comes_without_its_adapter_must_train_it_even_if_the_sites_old_node_has() -> (
    None
):
    known = replace(site_info_of("ash"), adapter="a", dataset="h")
    bare = replace(known, kind="none", adapter="", dataset="x", factors="")
    cohort = Cohort({"ash": 1}, {"ash": known}, "run", Patience.of(RunSettings()))
    assert cohort.recognise(bare) == "ash"
    cohort.note(bare, 2)
    cohort.lost_adapter("ash")
    assert cohort.untrained == {1, 2}
    cohort.trained_again(known, "ash", 1)
    assert cohort.untrained == {2}
    with pytest.raises(RefusedReplyError, match="trained another one"):
        cohort.trained_again(replace(known, adapter="b"), "ash", 2)


class TestAnotherAdapter:
    """Trained again it has other bits, as on other hardware."""

    @pytest.fixture(autouse=True)
    def other_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From the second time on that somebody trains; then the seed is another one."""
        from client.handlers import finetune as handler
        from client.training import finetune

        trained = []

        def fine_tune(*given: Any, train: Callable[..., None] = finetune.fine_tune) -> None:
            trained.append(given)
            again = len(trained) > 3
            train(*given[:4], given[4] + again, *given[5:])

        monkeypatch.setattr(handler, "fine_tune", fine_tune)

    @pytest.fixture
    def sites(self, tmp_path: Path) -> TinySites:
        return make_training_sites(tmp_path / "own")

    @pytest.fixture
    def settings(self, sites: TinySites) -> RunSettings:
        return training_settings(sites)

    says = r"lost the adapter that it had trained .*other .*adapter.* put its cache folder back"

    def test_the_site_is_refused_by_name_with_what_to_do(
        self, run: Callable[..., tuple[LosingGrid, str]]
    ) -> None:
        with pytest.raises(RefusedReplyError, match=f"ash, asked 3 times: it {self.says}"):
            run(lambda n, request, site: "all" if (n, site) == (6, "ash") else "")

    def test_so_it_is_when_the_run_is_resumed(
        self, run: Callable[..., tuple[LosingGrid, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with killed_after(1, monkeypatch):
            run(nothing)
        with pytest.raises(RefusedReplyError, match=self.says):
            run(lambda _n, request, site: "all" if request == "query.handshake" else "")
