"""What was merged before a step: read no further back than needed, and never used unproven."""

import hashlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from client import store as client_store
from client.handlers.merged_prefix import merged_prefix
from client.handlers.merged_steps import LacksMerged
from client.store import SiteStore
from layerweld.errors import RefusedReplyError
from layerweld.model.schedule import Step
from layerweld.transport.step_context import StepContext
from layerweld.untrusted import tensors
from layerweld.updates import named_tensors
from layerweld.updates.named_tensors import extend_digest, first_digest
from layerweld.updates.update import LowRankUpdate, Update
from strategies.catching_up import CatchUp
from tests.dying_server import after_keeping
from tests.tiny_sites import BERT_LAYERS, TinySites, make_sites

BLOCKS = (2, 4, 8)
TARGETS = ["query", "value", "output.dense"]
STEPS = [Step(index, (), "merged") for index in range(6)]


class Counted:
    """How often sites open files of merged steps, and bytes hashed by sites and server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.hashed = 0
        self._open = tensors.safe_open  # type: ignore[attr-defined]
        monkeypatch.setattr(tensors, "safe_open", self.safe_open)
        for module in (client_store, named_tensors):
            monkeypatch.setattr(module, "hashlib", self)

    def safe_open(self, file: Path, framework: Any) -> safe_open:
        self.reads += "step-" in file.name
        return self._open(file, framework=framework)

    def sha256(self, text: bytes = b"") -> Any:
        digest, update = hashlib.sha256(text), self._update

        class Digest:
            hexdigest = digest.hexdigest

            def update(self, content: RecordDict) -> None:
                update(digest, content)

        return Digest()

    def _update(self, digest: Any, content: Any) -> None:
        self.hashed += memoryview(content).nbytes
        digest.update(content)


@pytest.fixture(scope="module")
def sites_of(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Sites of a base model of so many blocks."""
    folder = tmp_path_factory.mktemp("bert")
    return {blocks: make_sites(folder / str(blocks), TARGETS, blocks=blocks) for blocks in BLOCKS}


@pytest.fixture(scope="module")
def bert_sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinySites, str]:
    """Sites that adapt all layers, and the hash of their undisturbed merge."""
    folder = tmp_path_factory.mktemp("all")
    sites = make_sites(folder, BERT_LAYERS)
    return sites, sites.run(folder / "whole").manifest_hash


@pytest.mark.parametrize("granularity", ["group", "block"])
def test_what_a_chain_reads_and_hashes_grows_with_its_steps(
    granularity: str, sites_of: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, hashed = [], []
    for blocks in BLOCKS:
        with monkeypatch.context() as patch:
            counted = Counted(patch)
            sites_of[blocks].run(tmp_path / str(blocks), granularity=granularity)
        reads.append(counted.reads)
        hashed.append(counted.hashed)
    print(f"\n{BLOCKS} blocks: {reads} files of steps opened, {hashed} bytes hashed")
    for two, four, eight in (reads, hashed):
        assert eight - four == 2 * (four - two)


class Server:
    """What was merged by one run, and what it asks a site about its last step."""

    def __init__(
        self, seed: int = 0, settings: str = "settings", like: dict[Any, Any] | None = None
    ) -> None:
        self.settings = settings
        self.other_params = {"norm.weight": torch.arange(3.0) + seed}
        generator = torch.Generator().manual_seed(seed)
        self.merged = dict(like or {})
        for index in range(len(self.merged), len(STEPS)):
            left, right = torch.randn(2, 2, 2, generator=generator)
            self.merged[index] = {f"block.{index}": LowRankUpdate(left, right)}

    def context(self, step: int, received: range, with_other_params: bool) -> Any:
        digest = first_digest("plan", self.settings, self.other_params)
        for index in range(step):
            digest = extend_digest(digest, self.merged[index])
        return StepContext(
            run="run",
            method="com",
            step=step,
            layers=(),
            plan="plan",
            chain_digest=digest,
            averaged=True,
            other_params=self.other_params if with_other_params else {},
            merged={index: self.merged[index] for index in received},
        )

    def caught_up(
        self, step: int, store: SiteStore, usual: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Update], list[int]]:
        """What a site holds that is sent what it says it lacks, and what it said."""
        usual = step - 1 if usual is None else usual
        catch_up = CatchUp(STEPS[step], partial(self.context, step), usual)
        lacked: list[int] = []
        while True:
            try:
                context: Any = catch_up.content("ash")
                prefix = merged_prefix(context, STEPS, "plan", self.settings, store)
                return prefix.other_params, prefix.merged.updates_since(0), lacked
            except LacksMerged as lack:
                catch_up.note("ash", lack.first)
                lacked.append(lack.first)

    def run(self, folder: Path, steps: int = 5) -> SiteStore:
        """The store of a site that was asked about so many steps."""
        store = SiteStore(folder)
        for step in range(steps):
            self.caught_up(step, store)
        return store


def flipped(file: Path, place: int | bytes) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(place) if isinstance(place, bytes) else place] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a flipped bit of an update": lambda file: flipped(file, -3),
    "a flipped bit of a layer's name": lambda file: flipped(file, b"/left"),
    "a flipped bit of a part's name": lambda file: flipped(file, b"eft"),
    "a flipped bit of the metadata": lambda file: flipped(file, b"ter"),
    "a flipped bit of the length": lambda file: flipped(file, 0),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "the next step": lambda file: shutil.copy(
        file.with_name(f"step-{int(file.stem[-4:]) + 1:04d}.safetensors"), file
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_site_asks_for_what_was_merged_from_its_first_bad_file_on(
    index: int, damage: Any, tmp_path: Path
) -> None:
    server = Server()
    store = server.run(tmp_path)
    damage(tmp_path / f"step-{index:04d}.safetensors")
    other_params, updates, lacked = server.caught_up(5, store)
    # Behind a foreign first step it may be the other parameters that differ.
    assert lacked == [-1 if index == 0 and damage is DAMAGE["the next step"] else index]
    expected = {layer: u for i in range(5) for layer, u in server.merged[i].items()}
    assert updates.keys() == expected.keys()
    for layer, update in updates.items():
        assert torch.equal(update.dense(), expected[layer].dense())
    assert torch.equal(other_params["norm.weight"], server.other_params["norm.weight"])
    assert server.caught_up(5, store)[-1] == []  # all is in order again


FOREIGN = {
    "of other settings": Server(settings="others"),
    "of different other parameters": Server(seed=1),
    "of other updates": Server(seed=2, like={0: Server().merged[0]}),
}


@pytest.mark.parametrize("other", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("files", ["other_params*", "step-0001*", "step-000[23]*", "step*", "*"])
@pytest.mark.parametrize("usual", [4, 5])
def test_files_of_another_run_are_never_used(
    usual: int, files: str, other: Any, tmp_path: Path
) -> None:
    server = Server()
    store = server.run(tmp_path / "own", 6)
    other.run(tmp_path / "other", 6)
    for file in (tmp_path / "other").glob(files):
        shutil.copy(file, tmp_path / "own")
    other_params, updates, lacked = server.caught_up(5, store, usual)
    assert lacked == sorted({*lacked}, reverse=True)
    for index in range(5):
        for layer, update in server.merged[index].items():
            assert torch.equal(update.dense(), updates[layer].dense())
    assert torch.equal(other_params["norm.weight"], server.other_params["norm.weight"])


def test_a_request_whose_own_updates_do_not_give_its_digest_is_refused_and_not_kept(
    tmp_path: Path,
) -> None:
    server, store = Server(), SiteStore(tmp_path)
    later = server.context(4, range(4), True)
    context = replace(server.context(3, range(3), True), chain_digest=later.chain_digest)
    with pytest.raises(RefusedReplyError, match="the merged updates received give"):
        merged_prefix(context, STEPS, "plan", server.settings, store)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["a flipped bit of an update", "gone", "the next step"])
def test_a_run_whose_sites_find_a_damaged_file_in_the_middle_ends_in_the_same_bytes(
    kind: str, bert_sites: tuple[TinySites, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, whole = bert_sites
    noted = []
    note = CatchUp.note

    def spoil(index: Any) -> None:
        if index == 5:
            for folder in (sites.folder / "cache/runs").glob("*/*/*"):
                DAMAGE[kind](folder / "step-0002.safetensors")
                for file in folder.glob("hidden-*"):
                    file.unlink()  # so that the damaged step is needed once more

    def noting(self: Any, site: str, first: Any) -> None:
        noted.append((site, first))
        note(self, site, first)

    monkeypatch.setattr(CatchUp, "note", noting)
    with after_keeping(monkeypatch, spoil):
        assert sites.run(tmp_path / "out").manifest_hash == whole
    assert sorted(noted) == [("ash", 2), ("birch", 2), ("cedar", 2)]


def test_hidden_states_in_the_format_of_the_version_before_are_made_again(tmp_path: Path) -> None:
    store, file = SiteStore(tmp_path), tmp_path / "hidden-0001.safetensors"
    store.save_hidden(1, "digest", [torch.ones(2)])
    assert store.load_hidden(1, "digest") is not None
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    save_file(tensors, file, metadata={"digest": metadata["digest"], "prefix": "digest"})
    assert store.load_hidden(1, "digest") is None
