"""An update is one matrix, whether it is kept as factors or as it is: all its methods agree."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerweld.updates.bounds import cancels, largest_of_update
from layerweld.updates.named_tensors import update_tensors, updates_from
from layerweld.updates.update import (
    DenseUpdate,
    LowRankUpdate,
    all_low_rank,
    stack,
    update_from,
)

sizes, ranks, seeds = st.integers(2, 9), st.integers(1, 9), st.integers(0, 2**16)


def random(*shape: Any, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def low_rank(d_out: int, d_in: int, rank: int, seed: int) -> LowRankUpdate:
    return LowRankUpdate(random(d_out, rank, seed=seed), random(rank, d_in, seed=seed + 1))


def both(d_out: int, d_in: int, rank: int, seed: int) -> tuple[Any, ...]:
    """One update in both forms, and the matrix that it is."""
    factored = low_rank(d_out, d_in, rank, seed)
    matrix = factored.left.numpy() @ factored.right.numpy()
    return (factored, DenseUpdate(torch.from_numpy(matrix))), matrix


def close(update: LowRankUpdate, matrix: Any) -> None:
    np.testing.assert_allclose(update.dense().numpy(), matrix, rtol=1e-9, atol=1e-9)


@given(d_out=sizes, d_in=sizes, rank=ranks, seed=seeds, k=sizes)
def test_products_with_matrices_are_those_of_the_matrix(
    d_out: Any, d_in: Any, rank: Any, seed: Any, k: Any
) -> None:
    left, right = random(k, d_out, seed=seed + 2), random(d_in, k, seed=seed + 3)
    updates, matrix = both(d_out, d_in, rank, seed)
    for update in updates:
        assert update.shape == (d_out, d_in)
        close(left @ update, left.numpy() @ matrix)
        close(update @ right, matrix @ right.numpy())
        close(left @ update @ right, left.numpy() @ matrix @ right.numpy())
        close(update * -3.0, -3 * matrix)
        close(update.map_columns(lambda columns: columns[:1]), matrix[:1])
        close(update.map_rows(lambda rows: rows[:, :1]), matrix[:, :1])
        close(update.factored(), matrix)
        assert (left @ update).is_low_rank == (update @ right).is_low_rank == update.is_low_rank


@given(d_out=sizes, d_in=sizes, rank=ranks, other_rank=ranks, seed=seeds)
def test_sums_and_inner_products_are_those_of_the_matrices(
    d_out: Any, d_in: Any, rank: Any, other_rank: Any, seed: Any
) -> None:
    ones, one = both(d_out, d_in, rank, seed)
    others, other = both(d_out, d_in, other_rank, seed + 2)
    for update in ones:
        assert update.inner_with(torch.from_numpy(other)) == pytest.approx(np.sum(one * other))
        for subtracted in others:
            close(update - subtracted, one - other)
            assert update.inner(subtracted) == pytest.approx(np.sum(one * other))
            both_factored = update.is_low_rank and subtracted.is_low_rank
            assert (update - subtracted).is_low_rank == both_factored
    close(stack([ones[0], others[0]]), one + other)
    assert all_low_rank([ones[0], others[0]]) == [ones[0], others[0]]
    assert all_low_rank([ones[0], others[1]]) == []


@given(d_out=sizes, d_in=sizes, rank=ranks, seed=seeds)
def test_energies_in_the_metric_of_a_gram_matrix_agree(
    d_out: Any, d_in: Any, rank: Any, seed: Any
) -> None:
    inputs = random(3 * d_in, d_in, seed=seed + 2)
    gram = inputs.T @ inputs
    updates, matrix = both(d_out, d_in, rank, seed)
    expected = np.sum((matrix @ inputs.numpy().T) ** 2)
    for update in updates:
        assert (update @ gram).inner(update) == pytest.approx(expected)
        assert update.norm == pytest.approx(np.linalg.norm(matrix))
        metric = torch.eye(d_out).double() if update.metric is None else update.metric
        rows = update.rows
        assert float((metric @ rows * rows).sum()) == pytest.approx(np.linalg.norm(matrix) ** 2)


@given(d_out=sizes, d_in=sizes, rank=ranks, seed=seeds)
def test_factors_of_one_side_have_its_moments_and_its_span(
    d_out: Any, d_in: Any, rank: Any, seed: Any
) -> None:
    updates, matrix = both(d_out, d_in, rank, seed)
    for update in updates:
        rows, columns, basis = update.row_factor(), update.column_factor(), update.row_basis()
        np.testing.assert_allclose((rows.T @ rows).numpy(), matrix.T @ matrix, atol=1e-8)
        np.testing.assert_allclose((columns @ columns.T).numpy(), matrix @ matrix.T, atol=1e-8)
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)).double())
        close(update @ basis.T @ basis, matrix)


@given(d_out=sizes, d_in=sizes, rank=ranks, seed=seeds)
def test_the_spectrum_is_numpys_without_the_directions_that_are_not_there(
    d_out: Any, d_in: Any, rank: Any, seed: Any
) -> None:
    updates, matrix = both(d_out, d_in, rank, seed)
    values = np.linalg.svd(matrix, compute_uv=False)
    values = values[values > 1e-6 * values[0]]
    for update in updates:
        found = update.spectrum()
        np.testing.assert_allclose(found.values.numpy(), values, rtol=1e-6)
        whole = found.left * found.values @ found.right
        np.testing.assert_allclose(whole.numpy(), matrix, atol=1e-5 * values[0])
        assert len(found.leading(1).values) == 1


@given(d_out=sizes, d_in=sizes, rank=ranks, seed=seeds)
def test_no_entry_is_larger_than_its_bound_and_honest_factors_do_not_cancel(
    d_out: Any, d_in: Any, rank: Any, seed: Any
) -> None:
    updates, matrix = both(d_out, d_in, rank, seed)
    largest = np.abs(matrix).max()
    for update in updates:
        assert largest <= update.largest_entry() * (1 + 1e-12)
        assert largest_of_update(update) >= max(
            float(t.abs().max()) for t in update.tensors().values()
        )
        assert not cancels(update)
    assert updates[1].largest_entry() == pytest.approx(largest)
    one = updates[0]
    nothing = stack([one, one * -1.0])
    assert cancels(nothing)
    assert not cancels(DenseUpdate(nothing.dense()))


def test_what_is_no_number_has_no_bound() -> None:
    nan = torch.tensor([[1.0, float("nan")]])
    assert largest_of_update(DenseUpdate(nan)) == float("inf")
    assert largest_of_update(LowRankUpdate(torch.ones(3, 1), nan)) == float("inf")
    assert largest_of_update(LowRankUpdate(nan, torch.zeros(2, 3))) == float("inf")


@given(d_out=sizes, d_in=sizes, rank=ranks, seed=seeds)
def test_tensors_are_all_of_it_and_keep_their_names(
    d_out: Any, d_in: Any, rank: Any, seed: Any
) -> None:
    updates, _ = both(d_out, d_in, rank, seed)
    named = dict(zip(("a.b", "a"), updates, strict=True))
    tensors = update_tensors(named)
    assert list(tensors) == ["a.b/left", "a.b/right", "a/weight"]
    back = updates_from(tensors)
    for name, update in named.items():
        assert type(back[name]) is type(update)
        same = zip(back[name].tensors().values(), update.tensors().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in same)
        assert update_from(update.tensors()).rank == update.rank
    assert [update.rank for update in updates] == [rank, 0]


@pytest.mark.parametrize(
    "factors",
    [(torch.zeros(4, 2), torch.zeros(1, 6)), (torch.zeros(4, 1), torch.zeros(6))],
    ids=["rank", "flat"],
)
def test_factors_without_a_common_rank_are_no_update(factors: Any) -> None:
    with pytest.raises(ValueError, match="have no common rank"):
        LowRankUpdate(*factors)


@given(d_out=sizes, d_in=sizes, rank=ranks, seed=seeds)
def test_an_update_is_zero_where_a_tensor_is_and_precision_changes_nothing_else(
    d_out: Any, d_in: Any, rank: Any, seed: Any
) -> None:
    for update in both(d_out, d_in, rank, seed)[0]:
        assert not update.is_zero
        assert (update * 0.0).is_zero
        single = update.float32()
        assert {t.dtype for t in single.tensors().values()} == {torch.float32}
        assert {t.dtype for t in single.float64().tensors().values()} == {torch.float64}
        assert single.norm == pytest.approx(update.norm, rel=1e-5)
