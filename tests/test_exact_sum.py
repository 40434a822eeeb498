from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerweld.updates.exact_sum import LIMIT, ExactSum

terms = st.lists(
    st.floats(-1e9, 1e9).map(lambda x: torch.tensor([x], dtype=torch.float64)),
    min_size=1,
    max_size=12,
)


def total(tensors: list[Any]) -> Tensor:
    running = ExactSum(tuple(tensors[0].shape))
    for tensor in tensors:
        running.add(tensor)
    return running.total()


@given(terms=terms, order=st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_the_order_of_the_terms(terms: Any, order: Any) -> None:
    shuffled = list(terms)
    order.shuffle(shuffled)
    assert torch.equal(total(terms), total(shuffled))


@given(numerators=st.lists(st.integers(-(2**52), 2**52), min_size=1, max_size=8))
def test_sums_of_representable_terms_are_right_to_the_last_bit(numerators: Any) -> None:
    # Multiples of 2⁻⁶⁰ are what the sum counts; Python's integers give the exact total, whose
    # float64 rounding can differ by one unit from ours, which rounds the two limbs one by one.
    terms = [torch.tensor([n * 2.0**-60], dtype=torch.float64) for n in numerators]
    assert float(total(terms)) == pytest.approx(sum(numerators) * 2.0**-60, rel=2**-52, abs=2**-61)


def test_a_term_far_above_the_others_does_not_swallow_them() -> None:
    # In float64, 2⁴⁰ + 2⁻⁵⁰ is 2⁴⁰: the small term would be lost, here it comes back.
    large, small = (torch.tensor([x], dtype=torch.float64) for x in (2.0**40, 2.0**-50))
    assert torch.equal(total([large, small, -large]), small)


def test_every_term_is_rounded_to_a_multiple_of_the_resolution() -> None:
    torch.manual_seed(0)
    terms = torch.randn(50, 7, dtype=torch.float64)
    error = (total(list(terms)) - terms.sum(dim=0)).abs().max()
    # half a unit of 2⁻⁶⁰ for each of 50 terms, and the rounding of float64 sums below 2⁵
    assert error < 50 * 2**-61 + 50 * 2**-48


@pytest.mark.parametrize("entry", [float("nan"), float("inf"), -float("inf"), LIMIT, -LIMIT])
def test_what_cannot_be_counted_is_refused_and_not_added(entry: Any) -> None:
    running = ExactSum((2,))
    with pytest.raises(ValueError, match="not finite, or not below"):
        running.add(torch.tensor([1.0, entry], dtype=torch.float64))
    assert torch.equal(running.total(), torch.zeros(2, dtype=torch.float64))


def test_a_term_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a term of \(3,\) for a sum of \(2,\)"):
        ExactSum((2,)).add(torch.zeros(3, dtype=torch.float64))


def test_the_largest_terms_of_two_thousand_sites_fit() -> None:
    largest = torch.tensor([LIMIT - 1], dtype=torch.float64)
    assert float(total([largest] * 2047)) == pytest.approx(2047 * (LIMIT - 1), rel=2**-52)
