"""Sums whose bits do not depend on the order of the terms. Pure tensor code."""

import torch
from jaxtyping import Float64
from torch import Tensor

_HIGH_BITS = 10  # the high limb counts units of 2^-10
_LOW_BITS = 50  # the low limb counts units of 2^-60 and stays below 2^50 a term
LIMIT = 2.0**42  # largest term: 2,048 of them fit into the high limb
FLOOR = 2.0**-40  # a term whose largest entry is below it keeps fewer than 20 bits of it


class ExactSum:
    """A running sum in fixed point: two int64 limbs, resolution 2⁻⁶⁰, terms below 2⁴².

    Sites reply in any order, and floating-point addition is not associative. Integers are, so a
    server that folds replies as they arrive ends in the same bits as one that sorts them first.

    Args:
        shape: of the terms and of the total.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._high = torch.zeros(shape, dtype=torch.int64)
        self._low = torch.zeros(shape, dtype=torch.int64)

    def add(self, term: Float64[Tensor, "*shape"]) -> None:
        """Add one tensor, rounded to a multiple of 2⁻⁶⁰.

        Raises:
            ValueError: the shape differs, or an entry is not finite or not below ``LIMIT``.
        """
        if term.shape != self._high.shape:
            raise ValueError(f"a term of {tuple(term.shape)} for a sum of {tuple(self.shape)}")
        if not bool((term.abs() < LIMIT).all()):  # False for NaN too
            raise ValueError(f"an entry is not finite, or not below {LIMIT:.0f}")
        scaled = term * 2.0**_HIGH_BITS
        whole = scaled.floor()
        self._high += whole.to(torch.int64)
        rest = scaled.sub_(whole).mul_(2.0**_LOW_BITS).round_()  # in place: a third of the time
        self._low += rest.to(torch.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the terms and of the total."""
        return tuple(self._high.shape)

    def total(self) -> Float64[Tensor, "*shape"]:
        """The sum so far."""
        carry = self._low >> _LOW_BITS
        rest = self._low - (carry << _LOW_BITS)
        high = (self._high + carry).double() * 2.0**-_HIGH_BITS
        return high + rest.double() * 2.0 ** -(_HIGH_BITS + _LOW_BITS)
