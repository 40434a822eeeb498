"""The chain, killed, delayed and robbed of its files: the same bytes, or the lost site by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.app import app as client_app
from layerweld.deploy.runs import notices_in
from layerweld.errors import JournalError
from layerweld.report.results import RunResults
from layerweld.transport.statistics import decode_statistics_request
from server.run import run as run_server
from strategies import notices, poll
from tests.dying_server import after_keeping, killed_after
from tests.faulty_grid import KINDS, Clock, Faults, FaultyGrid, from_the_node
from tests.tiny_sites import TinySites


@pytest.mark.parametrize("after", [0, 3, 6])
def test_a_run_killed_after_any_step_ends_in_the_same_bytes(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = bert_sites.run(tmp_path / "whole")
    with killed_after(after, monkeypatch):
        bert_sites.run(tmp_path / "out")
    assert bert_sites.run(tmp_path / "out").manifest_hash == whole.manifest_hash
    assert not (tmp_path / "out/journal").exists()


def test_whoever_follows_the_log_sees_a_line_a_group(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(notices, "log", lambda _level, text: told.append(text))
    bert_sites.run(tmp_path / "out", influence=False)  # whose warnings are no line a group
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert len(told) == len(manifest["groups"])
    for number, (line, group) in enumerate(zip(told, manifest["groups"], strict=True), start=1):
        assert line.startswith(
            f"solved {group['name']}: 3 sites, condition {group['condition']:.1e}"
        )
        assert f" up; step {number} of {len(told)}, about 0:00:0" in line
    assert notices_in("\n".join(f"INFO :      {line}" for line in told)) == told


def test_a_site_that_lost_its_cache_catches_up(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bert_sites.run(tmp_path / "whole")

    def lose(index: Any) -> None:
        if index == 4:
            shutil.rmtree(bert_sites.folder / "cache/runs")

    with after_keeping(monkeypatch, lose):
        assert bert_sites.run(tmp_path / "out").manifest_hash == whole.manifest_hash


@pytest.mark.parametrize("seed", range(4))
def test_a_whole_run_on_a_faulty_network_ends_in_the_same_manifest(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    clock = Clock()
    monkeypatch.setattr(poll, "time", clock)
    monkeypatch.setattr(notices, "log", lambda _level, _text: None)
    settings = bert_sites.settings()
    kinds = tuple(kind for kind in KINDS if kind != "corrupt")
    faults = Faults(seed, rate=0.3, kinds=kinds)
    grid = FaultyGrid(client_app, bert_sites.nodes, settings, faults, clock)
    faulty = run_server(grid, settings, str(bert_sites.base), tmp_path / "faulty")
    assert len(faults.met) > 3
    assert faulty.manifest_hash == bert_sites.run(tmp_path / "whole").manifest_hash


class CedarFails(FaultyGrid):
    """One site raises whenever it is asked for statistics from the third step on."""

    def _answer(self, message: Message) -> Message:
        asked = message.metadata.message_type == "train.statistics"
        if (
            asked
            and message.metadata.dst_node_id == 3
            and decode_statistics_request(message.content).context.step > 1
        ):
            return from_the_node(message, 2)
        return super()._answer(message)


def test_a_lost_site_is_named_wherever_the_merge_is_described_and_the_run_resumes_without_it(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(poll, "time", clock)
    settings = bert_sites.settings().model_copy(
        update={"lost_site": "continue", "deadline": 60.0, "min_sites": 2}
    )

    def run_with(nodes: list[dict[str, str]], output: Path) -> RunResults:
        grid = CedarFails(client_app, nodes, settings, Faults(0, rate=0.0), clock)
        return run_server(grid, settings, str(bert_sites.base), output)

    whole = run_with(bert_sites.nodes, tmp_path / "whole")
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    assert manifest["lost"] == ["cedar"]
    assert [group.get("lost") for group in manifest["groups"][:3]] == [None, None, ["cedar"]]
    assert "| cedar | 6 |" in (tmp_path / "whole/adapter/README.md").read_text()
    assert whole.methods[0].lost == {"cedar": 3}
    assert list(whole.lost) == ["cedar"]
    assert "Lost sites" in (tmp_path / "whole/report.html").read_text()

    with killed_after(4, monkeypatch):
        run_with(bert_sites.nodes, tmp_path / "out")
    resumed = run_with(bert_sites.nodes[:2], tmp_path / "out")
    assert resumed.manifest_hash == whole.manifest_hash


def test_a_damaged_hidden_state_is_computed_again(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bert_sites.run(tmp_path / "whole")

    def damage(_index: Any) -> None:
        for file in (bert_sites.folder / "cache/runs").rglob("hidden-*.safetensors"):
            content = bytearray(file.read_bytes())
            content[-5] ^= 1
            file.write_bytes(content)

    with after_keeping(monkeypatch, damage):
        assert bert_sites.run(tmp_path / "out").manifest_hash == whole.manifest_hash


def test_a_journal_of_other_settings_is_not_resumed(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after(0, monkeypatch):
        bert_sites.run(tmp_path / "out")
    with pytest.raises(JournalError, match="remove the folder"):
        bert_sites.run(tmp_path / "out", ridge=0.5)
