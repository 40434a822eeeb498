from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerweld.statistics.gram import (
    GramAccumulator,
    normalize,
    off_diagonal_importance,
    pack_symmetric,
    shrink,
    unpack_symmetric,
)

NORMALIZATIONS = ["token", "feature", "trace", "none"]
seeds = st.integers(0, 2**16)
widths = st.integers(1, 8)


def tokens_of(num: int, d: int, seed: int) -> Tensor:
    return torch.randn(num, d, generator=torch.Generator().manual_seed(seed))


def mean_gram(tokens: Tensor, *, unit_tokens: bool = False) -> Tensor:
    accumulator = GramAccumulator(tokens.shape[1], unit_tokens=unit_tokens)
    accumulator.update(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))
    return accumulator.mean()


def gram_of(normalization: Any, num: int, d: int, seed: int) -> Tensor:
    tokens = tokens_of(num, d, seed)
    return normalize(mean_gram(tokens, unit_tokens=normalization == "token"), normalization)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    d=widths,
    seed=seeds,
    unit=st.booleans(),
)
def test_mean_is_the_closed_form_however_the_tokens_are_batched(
    lengths: Any, d: Any, seed: Any, unit: bool
) -> None:
    tokens = tokens_of(sum(lengths), d, seed)
    accumulator = GramAccumulator(d, unit_tokens=unit)
    for piece in tokens.split(lengths):
        accumulator.update(piece[None], torch.ones(1, len(piece), dtype=torch.bool))
    x = tokens.double()
    if unit:
        x = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(accumulator.mean(), x.T @ x / len(x), rtol=1e-12, atol=1e-14)
    assert accumulator.num_tokens == len(tokens)


def test_more_tokens_than_one_chunk_are_all_counted() -> None:
    tokens = tokens_of(5000, 3, 0)  # a chunk is 4,096 tokens
    x = tokens.double()
    torch.testing.assert_close(mean_gram(tokens), x.T @ x / 5000, rtol=1e-12, atol=1e-14)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=seeds, unit=st.booleans())
def test_padding_does_not_reach_the_statistics_whatever_it_holds(
    lengths: Any, seed: Any, unit: bool
) -> None:
    texts = [tokens_of(length, 4, seed + i) for i, length in enumerate(lengths)]
    batch = torch.full((len(texts), max(lengths), 4), float("nan"))
    keep = torch.zeros(batch.shape[:2], dtype=torch.bool)
    for row, text in enumerate(texts):
        batch[row, : len(text)] = text
        keep[row, : len(text)] = True
    padded = GramAccumulator(4, unit_tokens=unit)
    padded.update(batch, keep)
    torch.testing.assert_close(padded.mean(), mean_gram(torch.cat(texts), unit_tokens=unit))
    assert padded.num_tokens == sum(lengths)


def test_a_token_that_is_zero_has_no_direction_and_is_not_counted() -> None:
    tokens = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    expected = torch.tensor([[9.0, 12.0], [12.0, 16.0]], dtype=torch.float64) / 25
    torch.testing.assert_close(mean_gram(tokens, unit_tokens=True), expected)


def test_bfloat16_tokens_are_accumulated_without_rounding_the_products() -> None:
    tokens = tokens_of(2000, 4, 0).bfloat16()
    x = tokens.double()
    torch.testing.assert_close(mean_gram(tokens), x.T @ x / 2000, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("unit", [True, False])
def test_no_token_at_all_is_an_error(unit: bool) -> None:
    accumulator = GramAccumulator(3, unit_tokens=unit)
    accumulator.update(torch.ones(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no calibration token was seen"):
        accumulator.mean()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@given(num=st.integers(1, 20), d=widths, seed=seeds)
def test_every_normalisation_is_symmetric_and_positive_semidefinite(
    normalization: Any, num: int, d: Any, seed: Any
) -> None:
    gram = gram_of(normalization, num, d, seed)
    assert torch.equal(gram, gram.T)
    assert float(torch.linalg.eigvalsh(gram)[0]) > -1e-12 * d


@pytest.mark.parametrize("normalization", ["token", "trace"])
@given(num=st.integers(1, 20), d=widths, seed=seeds)
def test_unit_tokens_and_unit_trace_make_the_trace_one(
    normalization: str, num: int, d: Any, seed: Any
) -> None:
    assert float(gram_of(normalization, num, d, seed).trace()) == pytest.approx(1, abs=1e-12)


@given(num=st.integers(1, 20), d=widths, seed=seeds)
def test_feature_normalisation_is_the_cosine_matrix_of_the_features(
    num: int, d: Any, seed: Any
) -> None:
    tokens = tokens_of(num, d, seed).double()
    gram = normalize(mean_gram(tokens), "feature")
    assert torch.equal(gram.diagonal(), torch.ones(d, dtype=torch.float64))
    columns = tokens / tokens.norm(dim=0)
    torch.testing.assert_close(gram, columns.T @ columns)


def test_a_feature_that_never_fired_has_a_zero_row_and_no_nan() -> None:
    tokens = tokens_of(6, 3, 0)
    tokens[:, 1] = 0
    gram = normalize(mean_gram(tokens), "feature")
    assert not gram[1].any()
    assert torch.equal(gram.diagonal(), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("normalization", ["feature", "trace"])
@given(scale=st.floats(1e-3, 1e3), seed=seeds)
def test_feature_and_trace_forget_the_scale_of_the_inputs(
    normalization: Any, scale: float, seed: Any
) -> None:
    gram = mean_gram(tokens_of(9, 4, seed))
    torch.testing.assert_close(
        normalize(scale * gram, normalization), normalize(gram, normalization)
    )


@given(factors=st.lists(st.floats(1e-3, 1e3), min_size=7, max_size=7), seed=seeds)
def test_unit_tokens_forget_the_scale_of_each_token(factors: Any, seed: Any) -> None:
    tokens = tokens_of(7, 4, seed).double()
    scaled = tokens * torch.tensor(factors, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        mean_gram(scaled, unit_tokens=True), mean_gram(tokens, unit_tokens=True)
    )


@given(factor=st.floats(0, 1), d=widths, seed=seeds)
def test_shrinking_scales_the_off_diagonal_only(factor: float, d: Any, seed: Any) -> None:
    gram = mean_gram(tokens_of(5, d, seed))
    expected = factor * gram + (1 - factor) * gram.diagonal().diag()
    torch.testing.assert_close(shrink(gram, factor), expected)
    assert torch.equal(shrink(gram, factor).diagonal(), gram.diagonal())
    assert torch.equal(shrink(gram, 1.0), gram)


@given(d=widths, seed=seeds)
def test_importance_is_equation_six(d: Any, seed: Any) -> None:
    gram = mean_gram(tokens_of(5, d, seed))
    naive = sum(abs(float(gram[p, q])) for p in range(d) for q in range(p + 1, d))
    assert off_diagonal_importance(gram) == pytest.approx(naive, rel=1e-12, abs=1e-15)


@given(d=st.integers(1, 12), seed=seeds)
def test_packing_keeps_every_bit_and_half_the_numbers(d: int, seed: Any) -> None:
    gram = mean_gram(tokens_of(5, d, seed)).float()
    packed = pack_symmetric(gram)
    assert packed.numel() == d * (d + 1) // 2
    assert torch.equal(unpack_symmetric(packed, d), gram)


def test_a_triangle_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="7 numbers are not the upper triangle of a 3 x 3 matrix"):
        unpack_symmetric(torch.zeros(7), 3)
