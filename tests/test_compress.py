from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerweld.statistics.compress import compress
from layerweld.updates.update import DenseUpdate, LowRankUpdate, stack

seeds = st.integers(0, 2**16)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(d_out: int, d_in: int, full: int, seed: int) -> tuple[Any, ...]:
    x = random(3 * d_in, d_in, seed=seed)
    left, right = random(d_out, full, seed=seed + 1), random(full, d_in, seed=seed + 2)
    return LowRankUpdate(left, right), x.T @ x / len(x)


def output_norm(update: Any, gram: Any) -> Any:
    """``‖ΔW S^½‖_F``."""
    return float((update @ gram * update).sum()) ** 0.5


@given(
    d_out=st.integers(2, 8), d_in=st.integers(2, 8), full=st.integers(2, 6), seed=seeds,
    data=st.data(),
)  # fmt: skip
def test_no_update_of_that_rank_is_closer_in_the_outputs(
    d_out: int, d_in: int, full: int, seed: Any, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, full - 1))
    factored, gram = problem(d_out, d_in, full, seed)
    update = factored.dense()
    small, error = compress(factored, gram, rank)

    # Eckart-Young on ΔW L with L Lᵀ = S: what the best rank-r matrix misses are the other
    # singular values, and any square root of S gives the same ones.
    values = np.linalg.svd((update @ torch.linalg.cholesky(gram)).numpy(), compute_uv=False)
    best = float(np.sqrt((values[rank:] ** 2).sum()))
    missed = output_norm(update - small.dense(), gram)
    whole = output_norm(update, gram)
    assert missed == pytest.approx(best, rel=1e-6, abs=1e-6 * whole)
    # An energy is a difference of terms up to ‖·‖², so its root is right to 1e-7 of the whole.
    assert error == pytest.approx(missed / whole, abs=1e-6)
    assert small.rank == min(rank, d_out)


def test_a_rank_at_least_as_large_changes_nothing() -> None:
    update, gram = problem(5, 4, 3, seed=0)
    for rank in (3, 9):
        same, error = compress(update, gram, rank)
        assert same is update
        assert error == 0.0


def test_an_update_whose_true_rank_is_small_is_compressed_without_error() -> None:
    update, gram = problem(6, 5, 2, seed=0)
    small, error = compress(stack([update, update * 2.0]), gram, 2)
    torch.testing.assert_close(small.dense(), 3 * update.dense())
    assert error < 1e-7


def test_a_dense_update_is_compressed_like_its_factors() -> None:
    update, gram = problem(6, 5, 4, seed=0)
    small, error = compress(update, gram, 2)
    dense, dense_error = compress(DenseUpdate(update.dense()).factored(), gram, 2)
    torch.testing.assert_close(dense.dense(), small.dense())
    assert dense_error == pytest.approx(error)


def test_directions_that_the_tokens_never_excite_cost_nothing() -> None:
    update, _ = problem(6, 4, 3, seed=0)
    gram = torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    _, error = compress(update, gram, 1)
    assert error < 1e-7


def test_an_update_without_energy_has_no_error() -> None:
    update, _ = problem(6, 4, 3, seed=0)
    assert compress(update, torch.zeros(4, 4, dtype=torch.float64), 1)[1] == 0.0
