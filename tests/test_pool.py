"""Every law of one layer group's merge, against dense formulas written down independently."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import floating
from numpy.typing import NDArray
from torch import Tensor

from layerweld.plan import LayerGroup, LayerShape
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.group import GroupAccumulator, ProductForm
from layerweld.statistics.pool import GroupPool, GroupSolution
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests.pooled_sites import D_IN, D_OUT, GROUP, new_sites, statistics_of

NORMALIZATIONS = ["token", "feature", "trace", "none"]
IMPORTANCES = ["off-diagonal", "uniform"]
seeds = st.integers(0, 2**16)
sites_counts = st.integers(1, 4)


def merge(sites: list[Any], **entries: Any) -> GroupSolution:
    chosen = MergeSettings(**{"max_weight": 0.0, "max_size": 1e9, "influence": False} | entries)
    pool = GroupPool(GROUP, chosen)
    for site in sites:
        pool.add(site.name, statistics_of(site, chosen))
    return pool.solve()


def dense_gram(tokens: Any, normalization: str) -> Any:
    """The normalised Gram matrix in numpy, from its definition in words."""
    x = tokens.double().numpy()
    if normalization == "token":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return x.T @ x / len(x)
    if normalization == "feature":
        x = x / np.linalg.norm(x, axis=0)
        return x.T @ x
    gram = x.T @ x / len(x)
    return gram / np.trace(gram) if normalization == "trace" else gram


def weight_of(gram: Any, importance: str) -> Any:
    return np.abs(np.triu(gram, 1)).sum() if importance == "off-diagonal" else 1.0


def shrunk(gram: Any, factor: float) -> Any:
    return factor * gram + (1 - factor) * np.diag(np.diag(gram))


def weighted_grams(sites: list[Any], chosen: MergeSettings) -> list[Any]:
    grams = [dense_gram(site.tokens, chosen.normalization) for site in sites]
    return [weight_of(g, chosen.importance) * shrunk(g, chosen.shrinkage) for g in grams]


def by_the_formula(sites: list[Any], layer: str, chosen: MergeSettings) -> Any:
    """``(R + λ ΔW_anchor) (S + λI)⁻¹``, dense and in float64."""
    weighted = weighted_grams(sites, chosen)
    updates = [site.updates[layer].dense().double().numpy() for site in sites]
    s = sum(weighted)
    r = sum(u @ g for u, g in zip(updates, weighted, strict=True))
    ridge = chosen.ridge * np.trace(s) / D_IN
    anchor = sum(updates) / len(sites) if chosen.anchor == "mean" else 0.0
    return (r + ridge * anchor) @ np.linalg.inv(s + ridge * np.eye(D_IN))


def relative(actual: Any, expected: NDArray[Any]) -> floating[Any]:
    return np.linalg.norm(actual.double().numpy() - expected) / np.linalg.norm(expected)


def merged_of(solution: GroupSolution, layer: str) -> Any:
    update = solution.updates[layer]
    if isinstance(update, LowRankUpdate):  # in float64: the product of factors is not the subject
        return update.left.double() @ update.right.double()
    return update.weight  # type: ignore[attr-defined]


EVERY_WAY = list(
    itertools.product(NORMALIZATIONS, IMPORTANCES, [1.0, 0.8], ["base", "mean"], ["auto", "dense"])
)


@pytest.mark.parametrize(
    ("normalization", "importance", "shrinkage", "anchor", "products"), EVERY_WAY
)
@settings(max_examples=4)
@given(count=sites_counts, ridge=st.sampled_from([0.01, 0.1, 1.0]), seed=seeds)
def test_merge_is_the_formula(
    normalization: Any,
    importance: Any,
    shrinkage: Any,
    anchor: Any,
    products: Any,
    count: Any,
    ridge: Any,
    seed: Any,
) -> None:
    entries = {
        "normalization": normalization,
        "importance": importance,
        "shrinkage": shrinkage,
        "anchor": anchor,
        "products": products,
        "ridge": ridge,
    }
    sites = new_sites(count, seed)
    solution = merge(sites, **entries)
    for layer in ("q", "v"):
        expected = by_the_formula(sites, layer, MergeSettings(**entries))
        assert relative(merged_of(solution, layer), expected) < 1e-5


@pytest.mark.parametrize("products", ["auto", "dense"])
def test_without_a_ridge_the_merge_is_pooled_least_squares(products: str) -> None:
    # argmin_W Σ ω_i / n_i ‖X_i (W - W_i)ᵀ‖², by stacking all tokens of all sites
    sites = new_sites(3, seed=0)
    solution = merge(sites, ridge=0.0, normalization="none", products=products)
    inputs, targets = [], []
    for site in sites:
        x = site.tokens.double().numpy()
        scale = math.sqrt(weight_of(x.T @ x / len(x), "off-diagonal") / len(x))
        inputs.append(scale * x)
        targets.append(scale * x @ site.updates["q"].dense().double().numpy().T)
    expected = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets))[0].T
    # The statistics are float32: their 6e-8 times the condition number of S, at most 1e3 here.
    assert relative(merged_of(solution, "q"), expected) < 1e-4


@given(order=st.permutations(range(4)), seed=seeds, dense=st.booleans())
def test_bits_do_not_depend_on_the_order_of_arrival(order: Any, seed: Any, dense: bool) -> None:
    sites = new_sites(4, seed, dense=dense)
    sorted_first = merge(sites, anchor="mean")
    as_they_came = merge([sites[i] for i in order], anchor="mean")
    for layer in ("q", "v"):
        for name in ("left", "right", "weight"):
            bits = getattr(sorted_first.updates[layer], name, None)
            if bits is not None:
                assert torch.equal(bits, getattr(as_they_came.updates[layer], name))
    assert sorted_first.residual == as_they_came.residual
    assert list(sorted_first.importance) == list(as_they_came.importance) == list("abcd")


@given(num_tokens=st.integers(1, 9), seed=seeds)
def test_one_site_alone_gets_its_update_back_on_the_span_of_its_tokens(
    num_tokens: int, seed: Any
) -> None:
    (site,) = new_sites(1, seed, num_tokens=num_tokens)
    solution = merge([site], ridge=0.0, normalization="token")
    unit = site.tokens.double() / site.tokens.double().norm(dim=1, keepdim=True)
    own = site.updates["q"].dense().double()
    difference = unit @ (merged_of(solution, "q").double() - own).T
    # Directions whose share of the energy is below 6 · 1.2e-7 count as silent (the cut-off of the
    # pseudo-inverse), so a token may lose sqrt(6 · 1.2e-7 · 9) = 2.5e-3 of its output.
    assert float(difference.norm()) < 3e-3 * float(own.norm()) * math.sqrt(num_tokens)


@pytest.mark.parametrize("importance", IMPORTANCES)
@given(count=sites_counts, seed=seeds)
def test_sites_with_the_same_tokens_merge_to_the_mean(
    importance: Any, count: Any, seed: Any
) -> None:
    sites = new_sites(count, seed)
    sites = [dataclasses.replace(site, tokens=sites[0].tokens) for site in sites]
    solution = merge(sites, ridge=0.0, importance=importance)
    mean = sum(site.updates["q"].dense().double() for site in sites) / count
    # Gram matrix and products are rounded to float32, which an ill-conditioned S magnifies.
    tokens = sites[0].tokens.double()
    condition = np.linalg.cond(dense_gram(tokens, "token"))
    size = sum(float(s.updates["q"].left.norm() * s.updates["q"].right.norm()) for s in sites)
    rounding = D_IN * torch.finfo(torch.float32).eps * size
    difference = merged_of(solution, "q") - mean
    assert float(difference.norm()) < rounding * condition
    on_tokens = tokens / tokens.norm(dim=1, keepdim=True) @ difference.T
    assert float(on_tokens.norm()) < rounding * math.sqrt(condition * len(tokens))


@given(scales=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=4), seed=seeds)
def test_grams_of_one_shape_but_different_size_merge_to_the_weighted_mean(
    scales: Any, seed: Any
) -> None:
    # normalization none, tokens scaled by c: G scales with c², ω with c² again
    (first, *_) = sites = new_sites(len(scales), seed)
    sites = [
        dataclasses.replace(site, tokens=scale * first.tokens)
        for site, scale in zip(sites, scales, strict=True)
    ]
    solution = merge(sites, ridge=0.0, normalization="none")
    weights = np.array(scales) ** 4
    updates = [site.updates["q"].dense().double().numpy() for site in sites]
    expected = sum(w * u for w, u in zip(weights, updates, strict=True)) / weights.sum()
    tokens = first.tokens.double().numpy()
    error = tokens @ (merged_of(solution, "q").double().numpy() - expected).T
    assert np.linalg.norm(error) < 1e-4 * np.linalg.norm(tokens @ expected.T)


@pytest.mark.parametrize("anchor", ["base", "mean"])
@given(count=sites_counts, seed=seeds)
def test_sites_that_agree_merge_to_what_they_agree_on_up_to_the_ridge(
    anchor: Any, count: Any, seed: Any
) -> None:
    # R = ΔW S, so the merge is ΔW S (S + λI)⁻¹ = ΔW - λ ΔW (S + λI)⁻¹; the anchor adds it back.
    sites = new_sites(count, seed)
    sites = [dataclasses.replace(site, updates=sites[0].updates) for site in sites]
    chosen = MergeSettings(anchor=anchor, ridge=0.1)
    solution = merge(sites, anchor=anchor, ridge=0.1)
    agreed = sites[0].updates["q"].dense().double().numpy()
    s = sum(weighted_grams(sites, chosen))
    ridge = 0.1 * np.trace(s) / D_IN
    pulled = ridge * agreed @ np.linalg.inv(s + ridge * np.eye(D_IN))
    expected = agreed - pulled if anchor == "base" else agreed
    assert relative(merged_of(solution, "q"), expected) < 1e-5


@pytest.mark.parametrize("products", ["auto", "dense"])
def test_a_huge_ridge_gives_the_anchor(products: str) -> None:
    sites = new_sites(3, seed=0)
    mean = sum(site.updates["q"].dense().double() for site in sites).numpy() / 3
    to_mean = merge(sites, ridge=1e6, anchor="mean", products=products)
    assert relative(merged_of(to_mean, "q"), mean) < 1e-5
    # (R + λ 0)(S + λI)⁻¹ ≈ R / λ: six orders below the updates
    to_base = merge(sites, ridge=1e6, products=products)
    assert float(merged_of(to_base, "q").norm()) < 1e-4 * np.linalg.norm(mean)


@pytest.mark.parametrize("anchor", ["base", "mean"])
@given(count=sites_counts, seed=seeds)
def test_factors_merge_to_what_dense_products_merge_to(anchor: str, count: Any, seed: Any) -> None:
    sites = new_sites(count, seed)
    factored = merge(sites, anchor=anchor, products="auto", ridge=0.1)
    dense = merge(sites, anchor=anchor, products="dense", ridge=0.1)
    assert isinstance(factored.updates["q"], LowRankUpdate)
    assert isinstance(dense.updates["q"], DenseUpdate)
    assert relative(merged_of(factored, "q"), dense.updates["q"].weight.double().numpy()) < 1e-5
    assert factored.residual == pytest.approx(dense.residual, rel=1e-4, abs=1e-6)
    assert factored.condition == dense.condition


@given(count=sites_counts, seed=seeds)
def test_a_merge_of_loras_is_a_lora_of_the_summed_rank(count: Any, seed: Any) -> None:
    solution = merge(new_sites(count, seed))
    assert solution.updates["q"].rank == sum((1, 2, 3, 1)[:count])


@pytest.mark.parametrize("products", ["auto", "dense"])
@pytest.mark.parametrize("rank", [0, 1])
@given(count=sites_counts, seed=seeds)
def test_residual_is_what_one_layer_cannot_reproduce(
    products: str, rank: int, count: Any, seed: Any
) -> None:
    sites = new_sites(count, seed)
    entries: dict[str, Any] = {
        "products": products,
        "ridge": 0.1,
        "shrinkage": 0.9,
        "rank": rank,
    }
    chosen = MergeSettings(**entries)
    solution = merge(sites, **entries)
    misfit = energy = 0.0
    for layer in ("q", "v"):
        merged = merged_of(solution, layer).double().numpy()
        for site, gram in zip(sites, weighted_grams(sites, chosen), strict=True):
            own = site.updates[layer].dense().double().numpy()
            misfit += np.trace((merged - own) @ gram @ (merged - own).T)
            energy += np.trace(own @ gram @ own.T)
    assert solution.residual == pytest.approx(misfit / energy, rel=1e-3, abs=1e-5)


def test_a_layer_that_one_site_left_alone_counts_as_no_update_there() -> None:
    sites = new_sites(2, seed=0)
    sites[1] = dataclasses.replace(sites[1], updates={"v": sites[1].updates["v"]})
    zero = DenseUpdate(torch.zeros(D_OUT, D_IN))
    explicit = [sites[0], dataclasses.replace(sites[1], updates=sites[1].updates | {"q": zero})]
    for anchor in ("base", "mean"):
        expected = by_the_formula(explicit, "q", MergeSettings(anchor=anchor))
        assert relative(merged_of(merge(sites, anchor=anchor), "q"), expected) < 1e-5


def test_a_layer_that_no_site_fine_tuned_is_absent() -> None:
    sites = [
        dataclasses.replace(site, updates={"v": site.updates["v"]}) for site in new_sites(2, 0)
    ]
    assert list(merge(sites).updates) == ["v"]


def test_importance_and_tokens_are_reported_by_site() -> None:
    sites = new_sites(2, seed=0, num_tokens=17)
    solution = merge(sites)
    for site in sites:
        expected = weight_of(dense_gram(site.tokens, "token"), "off-diagonal")
        assert solution.importance[site.name] == pytest.approx(expected, rel=1e-6)
    assert solution.tokens == {"a": 17, "b": 17}
    assert merge(sites, importance="uniform").importance == {"a": 1.0, "b": 1.0}


def test_compressed_merge_reports_the_error_of_its_worst_layer() -> None:
    sites = new_sites(3, seed=0)
    exact, small = merge(sites), merge(sites, rank=2)
    s = sum(weighted_grams(sites, MergeSettings()))
    errors = []
    for layer in ("q", "v"):
        assert small.updates[layer].rank == 2
        whole = merged_of(exact, layer).numpy()
        lost = whole - merged_of(small, layer).numpy()
        errors.append(math.sqrt(np.trace(lost @ s @ lost.T) / np.trace(whole @ s @ whole.T)))
    assert small.compression_error == pytest.approx(max(errors), rel=1e-4)
    assert exact.compression_error == 0.0
    assert small.residual > exact.residual


def test_a_dense_merge_compressed_to_a_rank_becomes_factors() -> None:
    sites = new_sites(3, seed=0)
    dense, factored = (merge(sites, rank=2, products=form) for form in ("dense", "auto"))
    assert isinstance(dense.updates["q"], LowRankUpdate)
    assert relative(merged_of(dense, "q"), merged_of(factored, "q").numpy()) < 1e-4


def error_on_fresh_tokens(num_tokens: int, ridge: float, width: int = 48) -> float:
    """Of a merge of two sites with so many tokens each, relative to the outputs.

    A site's tokens have a decaying spectrum, as hidden states have.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spectrum = torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    group = LayerGroup("g", 0, width, (LayerShape("g", width),))
    pool = GroupPool(group, MergeSettings(ridge=ridge))
    fresh = []
    for name in "ab":
        mixing = torch.linalg.qr(random(width, width))[0]
        tokens, unseen = ((random(n, width) * spectrum) @ mixing for n in (num_tokens, 2000))
        update = random(width, width)
        accumulator = GroupAccumulator(group, MergeSettings())
        accumulator.update(tokens[None], torch.ones(1, num_tokens, dtype=torch.bool))
        form = ProductForm(dense=True, with_updates=False)
        pool.add(name, accumulator.statistics({"g": DenseUpdate(update)}, form))
        fresh.append((unseen, update))
    merged = pool.solve().updates["g"].dense().double()
    error = sum(float((x @ (merged - update).T).square().sum()) for x, update in fresh)
    return error / sum(float((x @ update.T).square().sum()) for x, update in fresh)


def test_the_default_ridge_takes_the_peak_off_double_descent() -> None:
    few, as_many_as_features, many = 12, 24, 96  # tokens of each of two sites, for 48 features
    bare = [error_on_fresh_tokens(n, 1e-12) for n in (few, as_many_as_features, many)]
    assert bare[1] > 50 * bare[0]
    ridged = [error_on_fresh_tokens(n, MergeSettings().ridge) for n in (few, as_many_as_features)]
    assert ridged[1] < 2 * ridged[0]
    assert error_on_fresh_tokens(many, MergeSettings().ridge) < 1.01 * bare[2]  # and costs nothing
