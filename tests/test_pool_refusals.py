"""What a layer group's pool does not take from a site, and that it is as it was afterwards."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from layerweld.errors import RefusedReplyError
from layerweld.plan import LayerGroup, LayerShape
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.group import GroupStatistics, Product
from layerweld.statistics.pool import GroupPool
from layerweld.updates.exact_sum import FLOOR, LIMIT
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests.pooled_sites import D_IN, D_OUT, GROUP, new_sites, statistics_of

REFUSED_STATISTICS = {
    "another group": ({"group": "mlp"}, r"'mlp' where 'attn.\{q,v\}' was asked"),
    "no tokens": ({"num_tokens": 0}, "counted 0 tokens"),
    "nan": ({"gram": torch.full((D_IN, D_IN), math.nan)}, "not finite"),
    "width": ({"gram": torch.eye(D_IN + 1)}, r"is \(7, 7\), not \(6, 6\)"),
    "trace": ({"gram": torch.eye(D_IN)}, "has trace 6; 'token' makes it 1"),
}
REFUSED_PRODUCTS = {
    "left": ({"left": torch.zeros(D_OUT + 1, 1)}, r"q: a product of \(5, 6\), not \(4, 6\)"),
    "right": ({"right": torch.zeros(1, D_IN - 1)}, r"q: a product of \(4, 5\), not \(4, 6\)"),
    "nan": ({"left": torch.full((D_OUT, 1), math.nan)}, "q: left holds a number that is not"),
    "huge": ({"right": torch.full((1, D_IN), 2 * LIMIT)}, "too large to sum exactly"),
    "huge, of nothing": (
        {"left": torch.zeros(D_OUT, 1), "right": torch.full((1, D_IN), 3e38)},
        "too large to sum exactly",
    ),
    "large, of nothing": (
        {"left": torch.zeros(D_OUT, 1), "right": torch.full((1, D_IN), 1e9)},
        "q: only an update with numbers up to .* has this product",
    ),
    "left beyond": ({"left": torch.full((D_OUT, 1), 1e5)}, "q: left has numbers up to 1e"),
}


def refuse(pool: GroupPool, site: str, statistics: Any, message: str) -> None:
    """The reply is refused, and the pool is as it was: another site's merge has its own bits."""
    with pytest.raises(RefusedReplyError, match=message):
        pool.add(site, statistics)


def honest(**entries: Any) -> tuple[MergeSettings, GroupStatistics, GroupStatistics]:
    chosen = MergeSettings(**entries)
    one, other = new_sites(2, seed=0)
    return chosen, statistics_of(one, chosen), statistics_of(other, chosen)


def same_as_alone(pool: GroupPool, chosen: MergeSettings, statistics: GroupStatistics) -> None:
    alone = GroupPool(GROUP, chosen)
    alone.add("b", statistics)
    pool.add("b", statistics)
    ours, theirs = pool.solve(), alone.solve()
    assert torch.equal(ours.updates["q"].dense(), theirs.updates["q"].dense())
    assert ours.residual == theirs.residual
    assert list(ours.tokens) == ["b"]


@pytest.mark.parametrize(
    ("change", "message"), REFUSED_STATISTICS.values(), ids=REFUSED_STATISTICS.keys()
)
def test_statistics_that_answer_nothing_we_asked_are_refused(change: Any, message: Any) -> None:
    chosen, one, other = honest()
    pool = GroupPool(GROUP, chosen)
    refuse(pool, "a", dataclasses.replace(one, **change), message)
    same_as_alone(pool, chosen, other)


@pytest.mark.parametrize(
    ("change", "message"), REFUSED_PRODUCTS.values(), ids=REFUSED_PRODUCTS.keys()
)
def test_products_of_impossible_form_are_refused_and_nothing_is_added(
    change: Any, message: Any
) -> None:
    chosen, one, other = honest()
    pool = GroupPool(GROUP, chosen)
    product = Product(dataclasses.replace(one.products["q"].moments, **change))  # type: ignore[type-var]
    broken = dataclasses.replace(one, products={**one.products, "q": product})
    refuse(pool, "a", broken, message)
    same_as_alone(pool, chosen, other)


@pytest.mark.parametrize("entry", ["moments", "own"])
def test_dense_numbers_beyond_the_exact_sum_are_refused_and_nothing_is_added(entry: str) -> None:
    chosen, one, other = honest(products="dense", anchor="mean")
    pool = GroupPool(GROUP, chosen)
    numbers = torch.full((3, D_IN), 1e20)
    change: dict[str, Any] = {entry: DenseUpdate(numbers) if entry == "moments" else numbers}
    huge = dataclasses.replace(one.products["v"], **change)
    broken = dataclasses.replace(one, products={**one.products, "v": huge})
    refuse(
        pool,
        "a",
        broken,
        "too large to sum exactly|has numbers up to|the product is not that of the update",
    )
    same_as_alone(pool, chosen, other)


def test_a_site_counts_once() -> None:
    chosen, one, other = honest()
    pool = GroupPool(GROUP, chosen)
    pool.add("a", one)
    refuse(pool, "a", other, "a replied for attn.* twice")


def test_a_layer_of_another_group_is_refused() -> None:
    chosen, one, _ = honest()
    broken = dataclasses.replace(one, products={"mlp.up": one.products["q"]})
    refuse(GroupPool(GROUP, chosen), "a", broken, "'mlp.up' is not a layer of attn")


def test_factored_and_dense_products_do_not_mix() -> None:
    chosen, one, _ = honest()
    pool = GroupPool(GROUP, chosen)
    pool.add("a", one)
    refuse(pool, "b", honest(products="dense")[2], "q: factored and dense products in one run")


def test_an_anchor_needs_the_updates() -> None:
    _, one, _ = honest(anchor="base")
    pool = GroupPool(GROUP, MergeSettings(anchor="mean"))
    refuse(pool, "a", one, "q: the anchor 'mean' needs the update itself")


ONE_HOT = torch.eye(D_IN).repeat(2, 1)  # each token excites one feature: G is exactly diagonal
TOO_LITTLE = {
    "exactly diagonal": (ONE_HOT, {}, r"weight 0 times a largest moment of 0\.167 is too little"),
    "diagonal features": (ONE_HOT, {"normalization": "feature"}, "weight 0 times .* of 1 is"),
    "tiny": (
        1e-4 * ONE_HOT + 1e-9,
        {"normalization": "none"},
        r"weight 5e-13 times .* of 1\.67e-09",
    ),
    "subnormal": (torch.full((9, D_IN), 1e-20), {"normalization": "none"}, "of 1e-40 is too"),
    "subnormal, uniform": (
        torch.full((9, D_IN), 1e-20),
        {"normalization": "none", "importance": "uniform"},
        "weight 1 times a largest moment of 1e-40 is too little",
    ),
}


@pytest.mark.parametrize(("tokens", "entries", "message"), TOO_LITTLE.values(), ids=TOO_LITTLE)
def test_a_site_that_would_count_for_nothing_is_refused_by_name(
    tokens: Any, entries: Any, message: Any
) -> None:
    chosen, one, other = honest(**entries)
    silent = statistics_of(dataclasses.replace(new_sites(1, seed=0)[0], tokens=tokens), chosen)
    pool = GroupPool(GROUP, chosen)
    refuse(pool, "a", silent, rf"attn.*: a would count for nothing.*{message}.*give the site")
    same_as_alone(pool, chosen, other)
    pool.add("a", one)


@pytest.mark.parametrize("normalization", ["feature", "none"])
@pytest.mark.parametrize("importance", ["off-diagonal", "uniform"])
def test_a_site_whose_samples_excite_nothing_is_refused(
    normalization: str, importance: str
) -> None:
    chosen, _, other = honest(normalization=normalization, importance=importance)
    dead = dataclasses.replace(new_sites(1, seed=0)[0], tokens=torch.zeros(9, D_IN))
    pool = GroupPool(GROUP, chosen)
    refuse(pool, "a", statistics_of(dead, chosen), "is all zero: .* give it other samples")
    same_as_alone(pool, chosen, other)


@pytest.mark.parametrize("products", ["auto", "dense"])
def test_the_smallest_moments_that_are_taken_still_merge_alike(products: str) -> None:
    entries: dict[str, Any] = {
        "normalization": "none",
        "importance": "uniform",
        "products": products,
    }
    chosen, (site,) = MergeSettings(**entries), new_sites(1, seed=0)
    largest = float(statistics_of(site, chosen).gram.abs().max())
    merged = []
    for scale in (1.0, (1.01 * FLOOR / largest) ** 0.5):
        pool = GroupPool(GROUP, chosen)
        pool.add("a", statistics_of(dataclasses.replace(site, tokens=scale * site.tokens), chosen))
        merged.append(pool.solve().updates["q"].dense())
    # 20 bits of the largest moment are left, and the ridge of 1% keeps the condition below 600.
    assert float((merged[0] - merged[1]).norm() / merged[0].norm()) < 600 * 2**-20


def test_a_diagonal_gram_counts_where_every_site_counts_alike() -> None:
    chosen, _, other = honest(importance="uniform")
    diagonal = dataclasses.replace(new_sites(1, seed=0)[0], tokens=ONE_HOT)
    pool = GroupPool(GROUP, chosen)
    pool.add("a", statistics_of(diagonal, chosen))
    pool.add("b", other)
    assert pool.solve().importance == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("normalization", ["token", "feature", "trace", "none"])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
def test_a_site_of_one_token_counts(normalization: Any, scale: float) -> None:
    chosen = MergeSettings(normalization=normalization)
    (site,) = new_sites(1, seed=0, num_tokens=1)
    pool = GroupPool(GROUP, chosen)
    pool.add("a", statistics_of(dataclasses.replace(site, tokens=scale * site.tokens), chosen))
    assert pool.solve().importance["a"] > 0


def test_a_group_of_one_feature_has_no_off_diagonal_and_counts_all_the_same() -> None:
    chosen = MergeSettings(ridge=0.0)
    group = LayerGroup("one", 0, 1, (LayerShape("q", D_OUT),))
    pool = GroupPool(group, chosen)
    for name, factor in (("a", 1.0), ("b", 3.0)):
        product = Product(LowRankUpdate(torch.ones(D_OUT, 1), torch.tensor([[factor]])))
        pool.add(name, GroupStatistics("one", torch.ones(1, 1), {"q": product}, 5))
    assert torch.equal(pool.solve().updates["q"].dense(), torch.full((D_OUT, 1), 2.0))
