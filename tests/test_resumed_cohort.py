"""A run that is resumed before, or without, a site that it was begun with."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from client.app import app as client_app
from client.guard import SiteApp
from client.state import site_state
from layerweld.errors import CohortError, JournalError, LostSiteError
from layerweld.model.base_model import load_base
from layerweld.report.results import RunResults
from layerweld.settings.run import RunSettings
from server import federation
from server.in_process import InProcessGrid
from server.run import run as run_server
from tests.dying_server import killed_after
from tests.faulty_grid import Clock
from tests.tiny_sites import TinySites, make_sites, with_whole_models


class WallClock(Clock):
    perf_counter = staticmethod(time.perf_counter)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock()
    monkeypatch.setattr(federation, "time", clock)
    return clock


class LateGrid(InProcessGrid):
    """The last node connects at a time of its own."""

    def __init__(
        self,
        app: SiteApp,
        nodes: list[dict[str, str]],
        settings: RunSettings,
        clock: WallClock,
        comes_at: float,
    ) -> None:
        super().__init__(app, nodes, settings)
        self._clock, self._comes_at = clock, comes_at

    def get_node_ids(self) -> Any:
        nodes = super().get_node_ids()
        return nodes if self._clock.now >= self._comes_at else nodes[:-1]  # type: ignore[index]


@pytest.fixture
def run(sites: TinySites, clock: WallClock) -> Callable[..., Any]:
    def run(output: Path, comes_at: float = 0.0, **entries: Any) -> RunResults:
        chosen = sites.settings().model_copy(update={"min_sites": 2, "timeout": 60.0} | entries)
        grid = LateGrid(client_app, sites.nodes, chosen, clock, comes_at)
        return run_server(grid, chosen, str(sites.base), output)

    return run


def test_a_site_that_comes_back_late_is_waited_for(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    with killed_after(0, monkeypatch):
        run(tmp_path / "out")
    resumed = run(tmp_path / "out", comes_at=50.0)
    assert resumed.manifest_hash == whole.manifest_hash


def test_without_one_that_stays_away_the_run_stops_by_name_and_can_go_on_without_it(
    run: Callable[..., Any], clock: WallClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after(0, monkeypatch):
        run(tmp_path / "out")
    with pytest.raises(LostSiteError, match=r"cedar: it did not connect within 60 s .* lost-site"):
        run(tmp_path / "out", comes_at=float("inf"))
    assert not (tmp_path / "out/manifest.json").exists()
    resumed = run(tmp_path / "out", comes_at=float("inf"), lost_site="continue")
    assert list(resumed.lost) == ["cedar"]
    groups = json.loads((tmp_path / "out/manifest.json").read_text())["groups"]
    assert [group.get("lost") for group in groups] == [None, ["cedar"]]


def test_a_new_run_that_too_few_sites_join_says_so_and_ends_in_time(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(federation, "notice", said.append)
    with pytest.raises(CohortError, match="2 of min-sites = 3 sites connected within 60 s"):
        run(tmp_path / "out", comes_at=float("inf"), min_sites=3)
    assert said == ["waiting for sites: 2 of 3 are connected"]


@pytest.mark.parametrize("exchanged", ["adapter", "samples"])
def test_a_site_that_comes_back_with_something_else_is_not_taken_for_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: str
) -> None:
    sites = make_sites(tmp_path / "sites", ["query", "value"])
    node = sites.nodes[0]
    if exchanged == "adapter":  # whole models of one shape, which only their weights tell apart
        node["adapter"] = whole_model(sites, tmp_path / "first", seed=1)
    with killed_after(0, monkeypatch):
        sites.run(tmp_path / "out")
    if exchanged == "adapter":
        node["adapter"] = whole_model(sites, tmp_path / "second", seed=2)
    else:  # as many samples and tokens as before, of other words
        data = Path(node["data"])
        data.write_text(data.read_text().replace("w1 ", "w2 "))
    site_state.cache_clear()  # as in a process of its own
    with pytest.raises(JournalError, match="an interrupted run with other sites"):
        sites.run(tmp_path / "out")


@pytest.mark.parametrize("harm", ["cut short", "gone"])
def test_a_mean_that_rounds_were_measured_behind_is_never_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """The sites that are there now may have another one, and no hash of a round would say so."""
    sites = with_whole_models(make_sites(tmp_path / "sites", ["query", "value"]))
    with killed_after(1, monkeypatch):  # of the method: the mean is a round of its own
        sites.run(tmp_path / "out")
    mean = tmp_path / "out/journal/other-params/round-00000.safetensors"
    mean.write_bytes(mean.read_bytes()[:-1]) if harm == "cut short" else mean.unlink()
    with pytest.raises(JournalError, match=r"other-params.*com.*remove .*journal"):
        sites.run(tmp_path / "out")


def whole_model(sites: TinySites, folder: Path, seed: int) -> str:
    model = load_base(sites.base).backbone
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)
