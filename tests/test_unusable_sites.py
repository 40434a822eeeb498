"""Sites whose samples or head cannot do what the run will ask: said in the handshake, by name."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.app import app as client_app
from client.training.heads import ClassifierHead
from layerweld.errors import LostSiteError
from layerweld.settings.run import RunSettings
from server.in_process import InProcessGrid
from server.run import run as run_server
from tests.tiny_sites import TinySites, make_labelled_sites, read_samples, write_samples


class AskedGrid(InProcessGrid):
    """Its nodes hide their errors, as in processes of their own; what they are asked is noted."""

    def __init__(self, nodes: list[dict[str, str]], settings: RunSettings) -> None:
        super().__init__(client_app, nodes, settings)
        self.asked: set[str] = set()

    def _answer(self, message: Message) -> Message:
        self.asked.add(message.metadata.message_type)
        return self._app(message, self._contexts[message.metadata.dst_node_id])


@pytest.fixture
def sites(tmp_path: Path) -> TinySites:
    return make_labelled_sites(tmp_path).on_their_own(tmp_path / "caches")


def relabelled(node: Any, field: str, label: str | None | str | None) -> None:
    """The site with samples of its own under this field, all of that label, or of none."""
    file = Path(node["data"]).with_name(f"{field}.jsonl")
    bare = ({k: v for k, v in s.items() if k != "label"} for s in read_samples(node["data"]))
    added = {} if label is None else {"label": label}
    write_samples(file, [sample | added for sample in bare])
    node[field] = str(file)


def untrained(node: Any, label: str | None) -> None:
    del node["adapter"]
    relabelled(node, "data", label)


def with_damaged_head(node: Any) -> None:
    (Path(node["adapter"]).parent / "head.safetensors").write_bytes(b"\x09")


def with_wide_head(node: Any) -> None:
    ClassifierHead(17, "ab").save(Path(node["adapter"]).parent / "head.safetensors")


def with_head_elsewhere(node: Any) -> None:
    node["head"] = "nowhere.safetensors"


UNUSABLE = {
    "held-out samples without labels": (lambda node: relabelled(node, "held_out", None), "E202"),
    "a class that the head does not know": (lambda node: relabelled(node, "held_out", "z"), "E202"),
    "a damaged head": (with_damaged_head, "E201"),
    "a head for another width": (with_wide_head, "E201"),
    "a named head that is not there": (with_head_elsewhere, "E201"),
    "samples without labels to train on": (lambda node: untrained(node, None), "E202"),
    "samples of one class to train on": (lambda node: untrained(node, "a"), "E202"),
}


@pytest.mark.parametrize(("spoil", "code"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_nothing_is_computed_before_a_site_is_named_that_could_not_go_through_with_it(
    sites: TinySites, tmp_path: Path, spoil: Any, code: Any
) -> None:
    spoil(sites.nodes[1])
    settings = sites.settings()
    grid = AskedGrid(sites.nodes, settings)
    with pytest.raises(LostSiteError, match=rf"node 2 failed at the handshake: .*{code} incident"):
        run_server(grid, settings, str(sites.base), tmp_path / "out")
    assert grid.asked == {"query.handshake"}
    assert not (tmp_path / "out").exists()
