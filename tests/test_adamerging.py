"""AdaMerging: coefficients learnt in a federation are those of one process with all samples."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from client.data.parcels import in_parcels
from client.data.samples import read_dataset
from client.handlers import coefficients
from client.site import site_of_node
from client.state import site_state
from client.training.heads import ClassifierHead, load_head
from layerweld.errors import CohortError, JournalError
from layerweld.formats.adapters import read_fine_tuned
from layerweld.merging.adamerging import AdaMerging, weighed
from layerweld.merging.registry import METHODS
from layerweld.model.base_model import load_base
from layerweld.model.discover import discover_plan
from layerweld.model.linear import weight_of
from layerweld.report.results import RunResults
from layerweld.runtime.incidents import raising_here
from layerweld.settings.run import RunSettings
from layerweld.transport.coefficients import CoefficientsRequest
from layerweld.updates.named_tensors import digest_of_sites, first_digest
from layerweld.updates.update import Update
from tests.dying_server import killed_after
from tests.random_updates import side_by_side
from tests.run_methods import (
    TARGETS,
    killed_and_resumed,
    run_forgetting,
    run_methods,
    settings_of,
    written,
)
from tests.tiny_sites import TinySites, make_sites, read_samples, with_whole_models, write_samples

CLASSES = ("no", "yes", "perhaps")
FEW = {"adamerging.rounds": 5, "adamerging.learning-rate": 0.05, "adamerging.samples": 7}


def with_heads(sites: TinySites) -> TinySites:
    """A head for each site, beside its adapter; samples stay without labels."""
    for seed, node in enumerate(sites.nodes):
        folder = sites.folder / f"at-{node['name']}"
        folder.mkdir()
        (sites.folder / node["name"]).rename(folder / "adapter")
        torch.manual_seed(seed)
        head = ClassifierHead(16, CLASSES)
        head.linear.weight.data *= 8
        head.save(folder / "head.safetensors")
        node["adapter"] = str(folder / "adapter")
    return sites


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    return with_heads(make_sites(tmp_path_factory.mktemp("headed"), TARGETS))


@pytest.fixture(scope="module")
def whole(sites: TinySites, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResults, Path]:
    """A run that nothing disturbs: its results, and what it wrote."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return run_methods(sites, output, "adamerging", **FEW), output


def in_one_place(
    sites: TinySites, method: str, settings: RunSettings
) -> tuple[dict[Any, Any], Tensor]:
    """ΔW after the same steps: dense weights, all samples, autograd over the coefficients."""
    base = load_base(sites.base)
    tokenizer = AutoTokenizer.from_pretrained(sites.base)
    own = {
        node["name"]: dict(read_fine_tuned(node["adapter"], base).task_vector.updates)
        for node in sites.nodes
    }
    plan = discover_plan(base.backbone).restricted_to({k for of in own.values() for k in of})
    updates = weighed(METHODS[method], side_by_side(own), settings.table(AdaMerging)).layers
    vectors = {
        layer: {site: update.dense() for site, update in updates[layer].items()}
        for layer in plan.layer_names
    }
    free = torch.full((len(own), len(vectors)), 0.3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([free], lr=settings.table(AdaMerging).learning_rate)
    for round_ in range(1, settings.table(AdaMerging).rounds + 1):
        adam.zero_grad()
        loss = 0
        merged = merged_by(free, own, vectors)
        weights = {
            f"{k}.weight": weight_of(base.backbone.get_submodule(k)) + v for k, v in merged.items()
        }
        for node in sites.nodes:
            data = read_dataset(Path(node["data"]), settings.calibration, reads_images=False)
            of_round = (settings.table(AdaMerging).seed << 32) + round_
            data = in_parcels(data, 1).draw(settings.table(AdaMerging).samples, of_round).dataset
            inputs = tokenizer(
                list(data.inputs),
                truncation=True,
                max_length=12,
                padding=True,
                return_tensors="pt",
            )
            inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
            hidden = torch.func.functional_call(base.backbone, weights, (), inputs)
            head = load_head(sites.folder / f"at-{node['name']}/head.safetensors")
            p = head(hidden.last_hidden_state, inputs["attention_mask"]).softmax(dim=1)
            loss = loss - (p * p.log()).sum(dim=1).mean()
        loss.backward()  # type: ignore[attr-defined]
        adam.step()
    return {k: v.detach() for k, v in merged_by(free, own, vectors).items()}, free.detach()


def merged_by(
    free: Tensor, own: dict[str, dict[str, Update]], vectors: dict[str, dict[str, Tensor]]
) -> dict[Any, Any]:
    row_of = {name: row for row, name in enumerate(sorted(own))}
    used = free.clamp(0, 1).float()
    return {
        layer: sum(used[row_of[site], column] * one for site, one in of.items())
        for column, (layer, of) in enumerate(vectors.items())
    }


@pytest.mark.parametrize("method", ["adamerging", "adamerging++"])
def test_the_federation_learns_what_one_process_with_all_samples_would(
    sites: TinySites, tmp_path: Path, method: str
) -> None:
    results = run_methods(sites, tmp_path / "out", method, **FEW)
    expected, free = in_one_place(sites, method, settings_of(sites, method, **FEW))
    got = written(sites, tmp_path / "out")
    for layer, values in expected.items():
        torch.testing.assert_close(got[layer], values, rtol=1e-3, atol=1e-5)
    assert (free - 0.3).abs().max() > 0.1
    merged = next(m for m in results.methods if m.name == method)
    assert merged.rounds == 6
    assert merged.metrics["largest coefficient"] == pytest.approx(float(free.clamp(0, 1).max()))
    first, last = (merged.metrics[f"mean entropy in the {n} round"] for n in ("first", "last"))
    assert last < first


def test_a_site_answers_with_the_slope_of_its_entropy(sites: TinySites) -> None:
    chosen = settings_of(sites, "adamerging", **FEW)
    base = load_base(sites.base)
    updates = {
        node["name"]: read_fine_tuned(node["adapter"], base).task_vector.updates
        for node in sites.nodes
    }
    with raising_here():
        site = site_of_node(sites.nodes[0], chosen)
    state = site_state(site, chosen, "slope")
    plan = state.plan.restricted_to({layer for of in updates.values() for layer in of})
    first = first_digest(plan.digest, chosen.digest(), {})
    asked = CoefficientsRequest(
        run="slope",
        method="adamerging",
        round=1,
        layers=plan.layer_names,
        sites=tuple(updates),
        plan=plan.digest,
        chain_digest=digest_of_sites(first, updates),
        averaged=False,
        coefficients=torch.full((len(updates), len(plan.layer_names)), 0.3),
        updates=updates,
    )
    gradient = coefficients.reply_to(state, asked).gradient
    assert coefficients.reply_to(state, replace(asked, chain_digest="0" * 64, updates={})).lacks
    for row, column in ((0, 0), (1, 3), (2, 5)):
        entropies = []
        for step in (0.02, -0.02):
            moved = asked.coefficients.clone()
            moved[row, column] += step
            reply = coefficients.reply_to(state, replace(asked, coefficients=moved))
            entropies.append(reply.entropy)
        slope = (entropies[0] - entropies[1]) / 0.04
        assert float(gradient[row, column]) == pytest.approx(slope, rel=0.02, abs=1e-4)


def test_lora_updates_stay_factored_and_the_merge_is_an_adapter(
    whole: tuple[RunResults, Path],
) -> None:
    _, output = whole
    assert (output / "adapter").is_dir()
    assert "every site also received the updates" in (output / "adapter/README.md").read_text()
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["settings"]["adamerging"]["seed"] == 0


def test_no_round_is_task_arithmetic_to_the_bit(sites: TinySites, tmp_path: Path) -> None:
    run_methods(sites, tmp_path / "none", "adamerging", **{"adamerging.rounds": 0})
    run_methods(sites, tmp_path / "sum", "task-arithmetic")
    learnt, summed = written(sites, tmp_path / "none"), written(sites, tmp_path / "sum")
    assert all(torch.equal(learnt[layer], summed[layer]) for layer in summed)


def test_the_order_of_the_sites_does_not_change_a_bit(
    sites: TinySites, whole: tuple[RunResults, Path], tmp_path: Path
) -> None:
    sites.nodes.reverse()
    second = run_methods(sites, tmp_path / "two", "adamerging", **FEW)
    sites.nodes.reverse()
    assert second.manifest_hash == whole[0].manifest_hash


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_run_killed_after_any_round_ends_in_the_same_bytes(
    sites: TinySites,
    whole: tuple[RunResults, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    output = tmp_path / "out"
    resumed = killed_and_resumed(sites, output, after, monkeypatch, "adamerging", **FEW)
    assert resumed.manifest_hash == whole[0].manifest_hash
    assert resumed.methods[-1].rounds == whole[0].methods[-1].rounds
    assert not list((tmp_path / "out").glob("journal*"))


def test_an_interrupted_run_is_not_resumed_with_another_learning_rate(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after(0, monkeypatch):
        run_methods(sites, tmp_path / "out", "adamerging", **FEW)
    with pytest.raises(JournalError, match="interrupted run with other learning"):
        run_methods(
            sites, tmp_path / "out", "adamerging", **FEW | {"adamerging.learning-rate": 0.1}
        )


def test_a_site_that_lost_its_cache_gets_the_updates_again(
    sites: TinySites, whole: tuple[RunResults, Path], tmp_path: Path
) -> None:
    chosen, forget = settings_of(sites, "adamerging", **FEW), coefficients._gains.cache_clear
    in_the_third_round = 8
    results, rounds = run_forgetting(
        sites, chosen, tmp_path / "out", "train.entropy", in_the_third_round, forget
    )
    assert results.manifest_hash == whole[0].manifest_hash
    assert rounds == 15 + 2  # that site, and the one after it in the same folder
    assert results.methods[-1].bytes_down > whole[0].methods[-1].bytes_down


def test_sites_without_a_head_are_refused_in_the_handshake(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"adamerging: it needs a head .* ash has none: let the"):
        run_methods(make_sites(tmp_path, ["query"]), tmp_path / "out", "adamerging")


def test_whole_models_are_weighed_as_well(tmp_path: Path) -> None:
    sites = with_whole_models(with_heads(make_sites(tmp_path, ["query"])), 2)
    results = run_methods(sites, tmp_path / "out", "adamerging", **FEW | {"adamerging.rounds": 2})
    assert (tmp_path / "out/model").is_dir()
    assert results.methods[-1].metrics["largest coefficient"] == pytest.approx(0.4, abs=0.01)


def test_label_words_are_a_head_once_samples_name_the_classes(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, ["q_proj", "down_proj"], "llama")
    words = {"calibration.prompt-end": " w3"}
    with pytest.raises(CohortError, match="label words need labelled samples"):
        run_methods(sites, tmp_path / "bare", "adamerging", **FEW | words)
    for node in sites.nodes:
        samples = enumerate(read_samples(node["data"]))
        write_samples(node["data"], [s | {"label": f"w{i % 3}"} for i, s in samples])
    results = run_methods(sites, tmp_path / "out", "adamerging", **FEW | words)
    metrics = results.methods[-1].metrics
    assert metrics["mean entropy in the last round"] < metrics["mean entropy in the first round"]
