import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerweld.errors import RefusedReplyError
from layerweld.plan import LayerGroup, LayerShape
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.checks import check_statistics
from layerweld.statistics.gram import shrink
from layerweld.statistics.group import (
    GroupAccumulator,
    GroupStatistics,
    ProductForm,
    blank_statistics,
)
from layerweld.transport.arrays import num_bytes
from layerweld.transport.identity import Identity, with_identity
from layerweld.transport.statistics import StatisticsReply, encode_statistics, statistics_layout
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update

NORMALIZATIONS = ["token", "feature", "trace", "none"]
GROUP = LayerGroup("mlp", 0, 3, (LayerShape("up", 4), LayerShape("gate", 2)))
seeds = st.integers(0, 2**16)


def measured(
    normalization: Any = "token",
    shrinkage: float = 1.0,
    dense: bool = False,
    with_updates: bool = False,
    num: int = 9,
    seed: int = 0,
) -> tuple[GroupStatistics, dict[str, Update]]:
    """Statistics of three-wide tokens, and the updates they were formed with."""
    generator = torch.Generator().manual_seed(seed)
    chosen = MergeSettings(normalization=normalization, shrinkage=shrinkage)
    accumulator = GroupAccumulator(GROUP, chosen)
    tokens = torch.randn(1, num, 3, generator=generator)
    accumulator.update(tokens, torch.ones(1, num, dtype=torch.bool))
    updates = {
        "up": LowRankUpdate(
            torch.randn(4, 2, generator=generator), torch.randn(2, 3, generator=generator)
        ),
        "gate": DenseUpdate(torch.randn(2, 3, generator=generator)),
    }
    return accumulator.statistics(updates, ProductForm(dense, with_updates)), updates


def product_of(statistics: GroupStatistics, layer: str) -> Tensor:
    return statistics.products[layer].moments.dense()


@pytest.mark.parametrize(
    ("normalization", "dense"), itertools.product(NORMALIZATIONS, [True, False])
)
@given(shrinkage=st.floats(0, 1), seed=seeds)
def test_products_are_the_update_times_the_shrunk_gram(
    normalization: Any, dense: Any, shrinkage: float, seed: Any
) -> None:
    statistics, updates = measured(normalization, shrinkage, dense, seed=seed)
    gram = shrink(statistics.gram.double(), shrinkage)
    for layer, update in updates.items():
        weight = update.dense().double()
        # one float32 rounding of each factor, of entries of order 10
        torch.testing.assert_close(
            product_of(statistics, layer).double(), weight @ gram, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("dense", "with_updates"), itertools.product([True, False], repeat=2))
def test_what_travels_is_all_of_it_and_has_the_shapes_that_are_known_before(
    dense: Any, with_updates: Any
) -> None:
    statistics, _ = measured(dense=dense, with_updates=with_updates)
    sent = statistics.tensors()
    blank = blank_statistics(GROUP, {"up": 2, "gate": 0}, ProductForm(dense, with_updates))
    shapes = {name: tensor.shape for name, tensor in blank.tensors().items()}
    assert [*shapes.items()] == [(name, tensor.shape) for name, tensor in sent.items()]
    back = GroupStatistics.from_tensors(GROUP, statistics.num_tokens, sent)
    assert torch.equal(back.gram, statistics.gram)
    assert back.products.keys() == statistics.products.keys()
    again = back.tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in sent.items())


def test_dense_form_sends_no_factors_and_the_anchor_sends_the_updates() -> None:
    statistics, updates = measured(dense=True, with_updates=True)
    assert all(isinstance(p.moments, DenseUpdate) for p in statistics.products.values())
    own = statistics.products["up"].update
    assert isinstance(own, DenseUpdate)
    torch.testing.assert_close(own.weight, updates["up"].dense())
    factored, _ = measured(with_updates=True)
    factors = factored.products["up"].update
    assert isinstance(factors, LowRankUpdate)
    assert isinstance(updates["up"], LowRankUpdate)
    assert torch.equal(factors.right, updates["up"].right)
    assert measured()[0].products["up"].update is None


@pytest.mark.parametrize("with_updates", [True, False])
def test_bytes_are_a_triangle_and_the_products_tensors(with_updates: bool) -> None:
    statistics, _ = measured(with_updates=with_updates)
    numbers = 6 + (4 * 2 + 2 * 3) + 2 * 3  # triangle of 3, factors of up, product of gate
    if with_updates:
        numbers += 2 * 3 + 2 * 3
    layers = (LayerShape("up", 4), LayerShape("gate", 2))
    form = ProductForm(dense=False, with_updates=with_updates)
    layout = statistics_layout([LayerGroup("group", 0, 3, layers)], {"up": 2, "gate": 0}, form)
    sent = with_identity(encode_statistics(StatisticsReply((statistics,))), Identity("run", "id"))
    layout.check(sent)
    assert layout.num_bytes == num_bytes(sent) == 4 * numbers


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(num=st.integers(1, 20), seed=seeds)
def test_honest_statistics_pass_every_check(normalization: Any, num: int, seed: Any) -> None:
    statistics, _ = measured(normalization, num=num, seed=seed)
    check_statistics(statistics, 3, normalization)


def with_gram(rows: Any) -> GroupStatistics:
    return GroupStatistics("mlp", torch.tensor(rows), {}, 1)


THIRD = 1 / 3
BROKEN = {
    "another width": ([[1.0]], "none", r"is \(1, 1\), not \(3, 3\)"),
    "nan": (
        [[math.nan, 0, 0], [0, THIRD, 0], [0, 0, THIRD]],
        "token",
        "holds a number that is not finite",
    ),
    "infinite": (
        [[1.0, math.inf, 0], [math.inf, 1, 0], [0, 0, 1]],
        "none",
        "holds a number that is not finite",
    ),
    "trace of tokens": ([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], "token", "has trace 3; 'token'"),
    "trace": ([[0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], "trace", "has trace 0.3; 'trace' makes"),
    "diagonal": ([[1.0, 0, 0], [0, 0.9, 0], [0, 0, 1]], "feature", "has a diagonal that is not 1"),
    "negative diagonal": (
        [[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
        "token",
        "has a negative number on its diagonal: no data has such moments",
    ),
    "Cauchy-Schwarz": (
        [[1.0, 1.5, 0], [1.5, 1, 0], [0, 0, 1]],
        "feature",
        r"breaks \|G_pq\|² ≤ G_pp G_qq",
    ),
    # Three unit vectors cannot be pairwise at 120° in one plane and beyond: eigenvalue 1 - 2 · 0.9.
    "indefinite": (
        [[1.0, -0.9, -0.9], [-0.9, 1, -0.9], [-0.9, -0.9, 1]],
        "feature",
        "has a negative eigenvalue",
    ),
}


@pytest.mark.parametrize(("gram", "normalization", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_moments_that_no_data_has_are_refused(gram: Any, normalization: Any, message: Any) -> None:
    with pytest.raises(RefusedReplyError, match=message) as refused:
        check_statistics(with_gram(gram), 3, normalization)
    assert str(refused.value).startswith("mlp: the Gram matrix")
