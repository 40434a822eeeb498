from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerweld.statistics.covariate_shift import MomentAccumulator, squared_wasserstein

seeds = st.integers(0, 2**16)


def tokens_of(num: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, dtype=torch.float64, generator=generator)
    return scale * torch.randn(num, d, dtype=torch.float64, generator=generator) @ mixing + seed % 3


def moments(tokens: Tensor) -> tuple[Tensor, Tensor]:
    accumulator = MomentAccumulator(tokens.shape[1])
    accumulator.update(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))
    return accumulator.moments()


def by_scipy(mean: Any, covariance: Any, other_mean: Any, other_covariance: Any) -> float:
    """Equation 8 as it stands in the paper, with matrix square roots."""
    linalg = pytest.importorskip("scipy.linalg")
    root = linalg.sqrtm(other_covariance.numpy())
    cross = linalg.sqrtm(root @ covariance.numpy() @ root)
    distance = float((mean - other_mean).square().sum())
    traces = float(covariance.trace() + other_covariance.trace())
    return distance + traces - 2 * float(cross.real.trace())


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), d=st.integers(1, 6), seed=seeds)
def test_moments_are_numpys_however_the_tokens_are_batched(lengths: Any, d: int, seed: Any) -> None:
    tokens = tokens_of(sum(lengths), d, seed)
    accumulator = MomentAccumulator(d)
    for piece in tokens.split(lengths):
        padded = torch.cat([piece, torch.full((2, d), float("nan"), dtype=torch.float64)])
        accumulator.update(padded[None], torch.arange(len(padded))[None] < len(piece))
    mean, covariance = accumulator.moments()
    torch.testing.assert_close(mean, tokens.mean(dim=0))
    torch.testing.assert_close(
        covariance, torch.cov(tokens.T, correction=0).reshape(d, d), rtol=1e-7, atol=1e-9
    )


@given(d=st.integers(1, 6), scale=st.floats(0.1, 3), seed=seeds)
def test_distance_is_equation_eight(d: int, scale: float, seed: Any) -> None:
    here, there = moments(tokens_of(40, d, seed)), moments(tokens_of(40, d, seed + 1, scale))
    distance = squared_wasserstein(*here, *there)
    assert distance == pytest.approx(by_scipy(*here, *there), rel=1e-5, abs=1e-6)
    assert squared_wasserstein(*there, *here) == pytest.approx(distance, rel=1e-5, abs=1e-6)


@given(num=st.integers(1, 30), d=st.integers(1, 8), seed=seeds)
def test_equal_gaussians_are_no_distance_apart_even_if_degenerate(
    num: int, d: int, seed: Any
) -> None:
    mean, covariance = moments(tokens_of(num, d, seed))
    # The root of an eigenvalue that rounding moved from 0 to 1e-12 of the variance is 1e-6 of it.
    tolerance = 1e-5 * (1 + float(covariance.trace())) * d
    assert squared_wasserstein(mean, covariance, mean, covariance) < tolerance


def test_one_dimension_has_a_closed_form() -> None:
    # (μ - μ̂)² + (σ - σ̂)² = (1 - 4)² + (3 - 1)²
    one, other = (
        [torch.tensor(x, dtype=torch.float64) for x in ([1.0], [[9.0]])],
        [torch.tensor(x, dtype=torch.float64) for x in ([4.0], [[1.0]])],
    )
    assert squared_wasserstein(*one, *other) == pytest.approx(13)


def test_moving_all_tokens_costs_the_square_of_the_way() -> None:
    mean, covariance = moments(tokens_of(50, 3, 0))
    step = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    assert squared_wasserstein(mean, covariance, mean + step, covariance) == pytest.approx(9)
