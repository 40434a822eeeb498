"""ProDistill: what a federation learns is what one process with all samples would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from client.data.samples import read_dataset
from client.handlers import block_gradients
from layerweld.formats.adapters import read_fine_tuned
from layerweld.merging.prodistill import ProDistill
from layerweld.model.base_model import load_base
from layerweld.model.discover import discover_plan
from layerweld.model.linear import weight_of
from layerweld.report.results import RunResults
from layerweld.settings.run import RunSettings
from tests.run_methods import (
    TARGETS,
    killed_and_resumed,
    run_forgetting,
    run_methods,
    settings_of,
    written,
)
from tests.tiny_sites import TinySites, make_sites, with_whole_models

FEW = {"prodistill.steps": 4, "prodistill.learning-rate": 0.05}


@pytest.fixture(scope="module")
def whole(sites: TinySites, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResults, Path]:
    """A run that nothing disturbs: its results, and what it wrote."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return run_methods(sites, output, "prodistill", **FEW), output


def in_one_place(sites: TinySites, settings: RunSettings) -> dict[Any, Any]:
    """ΔW after the same steps: whole models run from end to end, autograd over the coefficients."""
    backbone = load_base(sites.base).backbone
    own = [
        read_fine_tuned(node["adapter"], load_base(sites.base)).task_vector.updates
        for node in sites.nodes
    ]
    inputs = [inputs_of(sites, node, settings) for node in sites.nodes]
    plan = discover_plan(backbone).restricted_to({layer for of in own for layer in of})
    merged: dict[str, Tensor] = {}
    for block in range(len(plan.blocks)):
        names = [s.name for g in plan.groups_of_block(block) for s in g.layers]
        vectors = {k: torch.stack([of[k].dense() for of in own]) for k in names}
        free = {k: torch.full_like(v, 0.3).requires_grad_() for k, v in vectors.items()}
        adam = torch.optim.Adam(free.values(), lr=settings.table(ProDistill).learning_rate)
        for _ in range(settings.table(ProDistill).steps):
            adam.zero_grad()
            now = merged | {k: (free[k] * vectors[k]).sum(dim=0) for k in names}
            loss = 0
            for of, batch in zip(own, inputs, strict=True):
                dense = {k: update.dense() for k, update in of.items()}
                got = after_block(backbone, now, batch, block)
                wanted = after_block(backbone, dense, batch, block)
                keep = batch["attention_mask"].bool()
                loss = loss + (got - wanted)[keep].square().sum() / len(keep)
            loss.backward()  # type: ignore[attr-defined]
            adam.step()
        merged |= {k: (free[k].detach() * vectors[k]).sum(dim=0) for k in names}
    return merged


def inputs_of(sites: TinySites, node: dict[str, str], settings: RunSettings) -> dict[Any, Any]:
    dataset = read_dataset(Path(node["data"]), settings.calibration, reads_images=False)
    tokenizer = AutoTokenizer.from_pretrained(sites.base)
    encoded = tokenizer(
        list(dataset.inputs), truncation=True, max_length=12, padding=True, return_tensors="pt"
    )
    return {k: encoded[k] for k in ("input_ids", "attention_mask")}


def after_block(
    backbone: Any, updates: dict[Any, Any] | dict[str, Tensor], inputs: dict[Any, Any], block: int
) -> Any:
    weights = {f"{k}.weight": weight_of(backbone.get_submodule(k)) + v for k, v in updates.items()}
    states = torch.func.functional_call(
        backbone, weights, (), inputs | {"output_hidden_states": True}
    ).hidden_states
    return states[block + 1]


def test_the_federation_learns_what_one_process_with_all_samples_would(
    sites: TinySites, whole: tuple[RunResults, Path]
) -> None:
    results, output = whole
    expected = in_one_place(sites, settings_of(sites, "prodistill", **FEW))
    got = written(sites, output)
    for layer, values in expected.items():
        torch.testing.assert_close(got[layer], values, rtol=1e-3, atol=1e-4)
    assert results.methods[-1].rounds == 1 + 2 * FEW["prodistill.steps"]
    assert len(results.methods[-1].metrics) == 2
    assert all(0 < value < 1 for value in results.methods[-1].metrics.values())


def test_no_step_is_task_arithmetic(sites: TinySites, tmp_path: Path) -> None:
    run_methods(sites, tmp_path / "none", "prodistill", **{"prodistill.steps": 0})
    run_methods(sites, tmp_path / "sum", "task-arithmetic")
    learnt, summed = written(sites, tmp_path / "none"), written(sites, tmp_path / "sum")
    for layer, values in summed.items():
        torch.testing.assert_close(learnt[layer], values, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_sites_does_not_change_a_bit(
    sites: TinySites, whole: tuple[RunResults, Path], tmp_path: Path
) -> None:
    sites.nodes.reverse()
    second = run_methods(sites, tmp_path / "two", "prodistill", **FEW)
    sites.nodes.reverse()
    assert second.manifest_hash == whole[0].manifest_hash


def test_a_merge_is_cut_to_a_rank_and_is_an_adapter_again(sites: TinySites, tmp_path: Path) -> None:
    run_methods(sites, tmp_path / "out", "prodistill", **FEW | {"merge.rank": 4})
    assert (tmp_path / "out/adapter").is_dir()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_killed_after_any_block_ends_in_the_same_bytes(
    sites: TinySites,
    whole: tuple[RunResults, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    output = tmp_path / "out"
    resumed = killed_and_resumed(sites, output, after, monkeypatch, "prodistill", **FEW)
    assert resumed.manifest_hash == whole[0].manifest_hash


@pytest.mark.parametrize("number", [2, 8, 14, 20])
def test_a_site_in_a_new_process_without_a_cache_catches_up(
    sites: TinySites, whole: tuple[RunResults, Path], tmp_path: Path, number: int
) -> None:
    chosen, forget = settings_of(sites, "prodistill", **FEW), block_gradients._memory.cache_clear
    results, _ = run_forgetting(
        sites, chosen, tmp_path / "out", "train.distillation", number, forget
    )
    assert results.manifest_hash == whole[0].manifest_hash


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_other_families_are_distilled_as_well(tmp_path: Path, family: str) -> None:
    targets = {"gpt2": ["c_attn", "c_fc", "c_proj"], "llama": ["q_proj", "down_proj"]}[family]
    sites = make_sites(tmp_path, targets, family)
    results = run_methods(sites, tmp_path / "out", "prodistill", **FEW)
    assert all(0 < value < 1 for value in results.methods[-1].metrics.values())


def test_whole_models_are_distilled_each_behind_its_own_embeddings(tmp_path: Path) -> None:
    sites = with_whole_models(make_sites(tmp_path, TARGETS))
    results = run_methods(sites, tmp_path / "out", "prodistill", **FEW)
    assert all(0 < value < 1 for value in results.methods[-1].metrics.values())
