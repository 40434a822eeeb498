"""RegMean and MaTS against the formula, on inputs that each site sees in its own model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from layerweld.formats.adapters import read_fine_tuned
from layerweld.merging.sums import Mean
from layerweld.model.base_model import load_base
from layerweld.settings.run import RunSettings
from layerweld.updates.update import Update
from tests.run_methods import by_the_kernel, run_methods, written
from tests.tiny_sites import TinySites, make_sites, read_samples

RAW = {"merge.normalization": "none", "merge.importance": "uniform", "merge.ridge": 1e-3}


def test_regmean_measures_each_site_in_its_own_model_with_its_own_norms(
    full_sites: TinySites, tmp_path: Path
) -> None:
    layer = "encoder.layer.1.attention.self.query"
    run_methods(full_sites, tmp_path / "out", "regmean", **RAW)
    base, grams, updates = load_base(full_sites.base), [], []
    for node in full_sites.nodes:
        own = AutoModel.from_pretrained(node["adapter"]).eval()
        grams.append(gram_of(own, full_sites, node, layer))
        updates.append(read_fine_tuned(node["adapter"], base).task_vector.updates[layer])
    got = written(full_sites, tmp_path / "out")[layer]
    torch.testing.assert_close(got, slow_regmean(grams, updates), rtol=1e-3, atol=1e-4)


def test_regmean_measures_behind_blocks_that_no_adapter_touches(tmp_path: Path) -> None:
    layer = "encoder.layer.1.attention.self.query"
    sites = make_sites(tmp_path / "sites", ["layer.1.attention.self.query"])
    run_methods(sites, tmp_path / "out", "regmean", **RAW)
    base, grams, updates = load_base(sites.base), [], []
    for node in sites.nodes:
        own = read_fine_tuned(node["adapter"], base).task_vector.updates
        assert list(own) == [layer]  # and so its inputs are the base model's
        grams.append(gram_of(base.backbone, sites, node, layer))
        updates.append(own[layer])
    got = written(sites, tmp_path / "out")[layer]
    torch.testing.assert_close(got, slow_regmean(grams, updates), rtol=1e-3, atol=1e-4)


def slow_regmean(grams: list[Any], updates: list[Update], ridge: float = 1e-3) -> Any:
    products = sum(u.dense().double() @ gram for u, gram in zip(updates, grams, strict=True))
    system = sum(grams)
    system = system + ridge * system.trace() / len(system) * torch.eye(len(system)).double()
    return torch.linalg.solve(system, products.T).T.float()


def gram_of(model: Any, sites: TinySites, node: dict[str, str], layer: str) -> Tensor:
    """Mean Gram matrix of a layer's inputs at the real tokens, a sample at a time."""
    tokenizer, seen = AutoTokenizer.from_pretrained(sites.base), []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    for sample in read_samples(node["data"]):
        model(**tokenizer(sample["text"], truncation=True, max_length=12, return_tensors="pt"))
    hook.remove()
    tokens = torch.cat([inputs[0] for inputs in seen]).detach().double()
    return tokens.T @ tokens / len(tokens)


def test_mats_descends_from_the_mean_to_regmean(sites: TinySites, tmp_path: Path) -> None:
    calibrated = {"merge.importance": "uniform"}
    chosen: dict[str, dict[str, Any]] = {
        "regmean": {"merge.ridge": 1e-5, "merge.anchor": "mean"},  # LayerNorm leaves S singular
        "mats": {"mats.iterations": 500},
        "short": {"mats.iterations": 1},
        "dense": {"mats.iterations": 1, "merge.products": "dense"},
    }
    for name, entries in chosen.items():
        method = "regmean" if name == "regmean" else "mats"
        run_methods(sites, tmp_path / name, method, **calibrated | entries)
    exact, far, near = (written(sites, tmp_path / name) for name in ("regmean", "mats", "short"))
    dense = written(sites, tmp_path / "dense")
    means = by_the_kernel(sites, RunSettings().table(Mean))
    for layer, values in exact.items():
        assert (far[layer] - values).norm() < 0.05 * values.norm()
        whole = (means[layer].dense() - values).norm()
        assert (near[layer] - values).norm() < whole
        torch.testing.assert_close(dense[layer], near[layer], rtol=1e-3, atol=1e-4)
