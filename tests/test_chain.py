"""The chain, run through Flower's messages, against a slow implementation of the formulas."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from layerweld.errors import OutputError
from layerweld.formats.adapters import read_fine_tuned
from layerweld.model.base_model import load_base
from layerweld.model.discover import discover_plan
from layerweld.model.linear import updated, weight_of
from layerweld.plan import LayerGroup
from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.update import DenseUpdate
from server import federation
from server.journal import RunJournal
from strategies import ChainOfMerges
from strategies.other_params import OtherParams
from tests.dying_server import killed_after
from tests.tiny_peft import new_model
from tests.tiny_sites import TinySites, make_sites, read_samples, write_samples


def merged_updates(output: Path) -> dict[Any, Any]:
    """ΔW of every layer of the written adapter, as PEFT itself reads it."""
    wrapped = PeftModel.from_pretrained(new_model("bert"), output / "adapter")
    return {
        name.removeprefix("base_model.model.bert."): module.get_delta_weight("default").double()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }


class Reference:
    """Algorithm 1 by the book: dense updates, float64, the whole model run again every time."""

    def __init__(self, sites: TinySites) -> None:
        self.base = load_base(sites.base)
        self.plan = discover_plan(self.base.backbone)
        self.layers = {n: self.base.backbone.get_submodule(n) for n in self.plan.layer_names}
        tokenizer = AutoTokenizer.from_pretrained(sites.base)
        self.updates, self.batches = {}, {}
        for node in sites.nodes:
            adapter = read_fine_tuned(node["adapter"], self.base)
            self.updates[node["name"]] = {
                layer: update.dense().double()
                for layer, update in adapter.task_vector.updates.items()
            }
            texts = [sample["text"] for sample in read_samples(node["data"])]
            self.batches[node["name"]] = tokenizer(
                texts, padding=True, truncation=True, max_length=12, return_tensors="pt"
            )

    def inputs(self, site: str, group: LayerGroup, in_place: dict[Any, Any]) -> Any:
        """Kept tokens that reach the group in the whole model, with these updates in place."""
        batch, seen = self.batches[site], []
        layer = self.layers[group.layers[0].name]
        hook = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        dense = {name: DenseUpdate(update.float()) for name, update in in_place.items()}
        with updated(self.layers, dense), torch.no_grad():
            self.base.backbone(**{k: v for k, v in batch.items() if k != "token_type_ids"})
        hook.remove()
        return seen[0][batch["attention_mask"].bool()].double()

    def gram(self, x: Any, normalization: str) -> Any:
        if normalization == "token":
            x = x / x.norm(dim=1, keepdim=True)
        gram = x.T @ x / len(x)
        if normalization == "feature":
            scale = gram.diagonal().rsqrt()
            gram = gram * scale * scale[:, None]
        return gram / gram.trace() if normalization == "trace" else gram

    def solve(
        self,
        group: LayerGroup,
        grams: dict[str, Any],
        *,
        importance: Any,
        shrinkage: Any,
        ridge: float,
        anchor: Any,
    ) -> dict[str, Any]:
        d = group.d_in
        off = torch.ones(d, d, dtype=torch.float64).triu(1)
        omega = {s: float((g.abs() * off).sum()) for s, g in grams.items()}
        if importance == "uniform":
            omega = dict.fromkeys(grams, 1.0)
        masses = {site: omega[site] * float(gram.trace()) for site, gram in grams.items()}
        limit = 3.0 * sorted(masses.values())[(len(masses) - 1) // 2]  # merge.max-weight
        omega = {site: w * min(1.0, limit / masses[site]) for site, w in omega.items()}
        mask = torch.full((d, d), shrinkage, dtype=torch.float64).fill_diagonal_(1.0)
        grams = {site: gram * mask for site, gram in grams.items()}
        s = sum(omega[i] * grams[i] for i in grams)
        lam = ridge * s.trace() / d
        merged: dict[str, Tensor] = {}
        for layer in (shape.name for shape in group.layers):
            own = {i: self.updates[i][layer] for i in grams if layer in self.updates[i]}
            if not own:
                continue
            r = sum(omega[i] * u @ grams[i] for i, u in own.items())
            if anchor == "mean":
                r = r + lam * sum(own.values()) / len(grams)
            merged[layer] = torch.linalg.solve(s + lam * torch.eye(d), r.T).T
        return merged

    def chain(
        self,
        granularity: str = "group",
        rounds: int = 2,
        normalization: str = "token",
        **settings: Any,
    ) -> dict[Any, Any]:
        settings = {"importance": "off-diagonal", "shrinkage": 1.0, "ridge": 0.01} | settings
        settings = {"anchor": "base"} | settings
        groups = self.plan.groups
        if granularity == "group":
            steps = [[group] for group in groups]
        elif granularity == "block":
            steps = [self.plan.groups_of_block(b) for b in range(len(self.plan.blocks))]  # type: ignore[misc]
        else:
            steps = [groups] * (1 if granularity == "model" else rounds)  # type: ignore[list-item]
        merged: dict[str, Tensor] = {}
        for number, step in enumerate(steps):
            names = {shape.name for group in step for shape in group.layers}
            in_place = {}
            for site in self.batches:
                own = {n: u for n, u in self.updates[site].items() if n in names}
                jacobi = granularity == "jacobi" and number > 0
                in_place[site] = merged if jacobi else {**merged, **own}
            solved: dict[str, Tensor] = {}
            for group in step:
                grams = {
                    site: self.gram(self.inputs(site, group, in_place[site]), normalization)
                    for site in self.batches
                }
                solved |= self.solve(group, grams, **settings)
            merged = merged | solved
        return merged


SETTINGS = [
    {},
    {"granularity": "block"},
    {"granularity": "model"},
    {"granularity": "jacobi", "rounds": 3},
    {"normalization": "feature", "ridge": 0.1},
    {"normalization": "trace", "importance": "uniform"},
    {"normalization": "none", "shrinkage": 0.8, "anchor": "mean", "ridge": 0.3},
]


@pytest.mark.parametrize("merge", SETTINGS, ids=str)
def test_the_merge_is_what_the_formulas_say(
    bert_sites: TinySites, tmp_path: Path, merge: Any
) -> None:
    bert_sites.run(tmp_path / "out", **merge)
    reference = Reference(bert_sites)
    expected = reference.chain(**merge)
    got = merged_updates(tmp_path / "out")
    assert got.keys() == expected.keys()
    for layer, update in expected.items():
        assert (got[layer] - update).norm() / update.norm() < 1e-4, layer


def test_a_llama_with_grouped_query_attention_is_merged_too(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, ["q_proj", "v_proj", "o_proj", "down_proj"], family="llama")
    sites.run(tmp_path / "out")
    with safe_open(tmp_path / "out/adapter/adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any(
        name.startswith("base_model.model.model.layers.0.self_attn.q_proj") for name in names
    )
    assert not any("k_proj" in name for name in names)  # nobody fine-tuned it


def test_dense_products_give_the_weights_of_factored_ones(
    bert_sites: TinySites, tmp_path: Path
) -> None:
    bert_sites.run(tmp_path / "factored")
    bert_sites.run(tmp_path / "dense", products="dense")
    base = load_base(bert_sites.base)
    factored = merged_updates(tmp_path / "factored")
    dense = AutoModel.from_pretrained(tmp_path / "dense/model")
    for layer, update in factored.items():
        difference = weight_of(dense.get_submodule(layer)) - weight_of(
            base.backbone.get_submodule(layer)
        )
        torch.testing.assert_close(difference.double(), update, rtol=1e-3, atol=2e-6)


def fully_fine_tuned(sites: TinySites, folder: Path) -> tuple[Any, ...]:
    """The sites with one and the same fully fine-tuned model, and that model."""
    tuned = load_base(sites.base).backbone
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    nodes = [node | {"adapter": str(folder)} for node in sites.nodes]
    return replace(sites, nodes=nodes), tuned


def test_fully_fine_tuned_sites_that_agree_merge_to_themselves(
    bert_sites: TinySites, tmp_path: Path
) -> None:
    sites, tuned = fully_fine_tuned(bert_sites, tmp_path / "tuned")
    sites.run(tmp_path / "out", ridge=1e-9)
    merged = AutoModel.from_pretrained(tmp_path / "out/model", add_pooling_layer=False).eval()
    # Equal on what the sites' samples excite; elsewhere the ridge keeps the base model's weights.
    for batch in Reference(bert_sites).batches.values():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            got, expected = (m(**inputs).last_hidden_state for m in (merged, tuned))
        keep = inputs["attention_mask"].bool()
        torch.testing.assert_close(got[keep], expected[keep], rtol=0, atol=1e-3)


def test_compressed_ranks_and_their_errors_are_in_the_manifest(
    bert_sites: TinySites, tmp_path: Path
) -> None:
    bert_sites.run(tmp_path / "out", rank=4)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert all(0 < group["compression_error"] < 1 for group in manifest["groups"])
    with safe_open(tmp_path / "out/adapter/adapter_model.safetensors", "pt") as file:
        ranks = {file.get_tensor(n).shape[0] for n in file.keys() if "lora_A" in n}  # noqa: SIM118
    assert ranks == {4}


def test_the_order_of_the_sites_does_not_change_a_bit(
    bert_sites: TinySites, tmp_path: Path
) -> None:
    first = bert_sites.run(tmp_path / "one")
    bert_sites.nodes.reverse()
    second = bert_sites.run(tmp_path / "two")
    bert_sites.nodes.reverse()
    assert first.manifest_hash == second.manifest_hash


def test_flowers_own_start_runs_the_same_chain(bert_sites: TinySites, tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "journal")
    settings = bert_sites.settings()
    grid = bert_sites.grid(settings)
    run = federation.Federation(grid, settings, str(bert_sites.base), journal)
    run.meet_sites()
    here, by_flower = (
        ChainOfMerges(run.plan, run.cohort, settings, journal=journal.of_method(f"com-{number}"))
        for number in range(2)
    )
    run.cohort.run = "run-0"
    here.run(grid)
    run.cohort.run = "run-1"
    result = by_flower.start(grid, ArrayRecord())
    outcome = here.rounds.outcome()
    assert outcome.chain_digest == by_flower.rounds.outcome().chain_digest
    merged = update_tensors(outcome.updates)
    assert result.arrays.keys() == merged.keys()
    for name, tensor in merged.items():
        assert torch.equal(torch.from_numpy(result.arrays[name].numpy()), tensor)
    rounds = result.train_metrics_clientapp
    assert [*rounds] == [*range(1, by_flower.rounds.count + 1)]
    assert [rounds[1][key] for key in ("condition", "residual", "sites")] == [
        outcome.groups[0]["condition"], outcome.groups[0]["residual"], 3
    ]  # fmt: skip
    resumed = ChainOfMerges(run.plan, run.cohort, settings, journal=journal.of_method("com-1"))
    assert resumed.finished == resumed.rounds.count
    assert resumed.rounds.outcome().groups[-1]["influence"] == outcome.groups[-1]["influence"]


def test_an_output_folder_in_use_is_left_alone(bert_sites: TinySites, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"letter\.txt"):
        bert_sites.run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_every_group_of_the_chain_measures_behind_the_one_before(
    bert_sites: TinySites, tmp_path: Path
) -> None:
    manifest_of = {}
    for name in ("one", "two"):
        bert_sites.run(tmp_path / name)
        manifest_of[name] = json.loads((tmp_path / name / "manifest.json").read_text())
    steps = [group["step"] for group in manifest_of["one"]["groups"]]
    assert all(later == earlier + 1 for earlier, later in pairwise(steps))
    assert manifest_of["one"] == manifest_of["two"]


def test_a_resumed_run_keeps_the_other_params_its_steps_were_measured_behind(
    bert_sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, _ = fully_fine_tuned(bert_sites, tmp_path / "tuned")
    whole = sites.run(tmp_path / "whole")
    with killed_after(2, monkeypatch):
        sites.run(tmp_path / "out")
    monkeypatch.setattr(OtherParams, "round_at", lambda *_: pytest.fail("asked for it again"))
    assert sites.run(tmp_path / "out").manifest_hash == whole.manifest_hash


def test_sites_without_adapters_fine_tune_first(bert_sites: TinySites, tmp_path: Path) -> None:
    nodes = []
    for node in bert_sites.nodes:
        data, samples = tmp_path / f"{node['name']}.jsonl", enumerate(read_samples(node["data"]))
        write_samples(data, [s | {"label": i % 2} for i, s in samples])
        nodes.append({"name": node["name"], "data": str(data), "held-out": str(data)})
    sites = replace(bert_sites, nodes=nodes, folder=tmp_path)
    plain = sites.settings()
    finetune = plain.finetune.model_copy(update={"max_steps": 2, "logger": "none"})
    settings = plain.model_copy(update={"finetune": finetune, "methods": "com,mean"})
    results = sites.run_with(settings, tmp_path / "out")
    scored = {m.name: set(m.scores) for m in results.methods}
    everybody = {"ash", "birch", "cedar"}
    assert scored == dict.fromkeys(("base", "individual", "com", "mean"), everybody)
    again = sites.run_with(settings, tmp_path / "again")
    assert again.manifest_hash == results.manifest_hash


def test_sites_forget_a_finished_run(bert_sites: TinySites, tmp_path: Path) -> None:
    before = {*(bert_sites.folder / "cache/runs").glob("*")}
    bert_sites.run(tmp_path / "out")
    assert {*(bert_sites.folder / "cache/runs").glob("*")} == before
