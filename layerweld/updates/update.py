"""The update (task vector) of one layer as an operator: factored or dense. Pure tensor code.

Weights are in ``nn.Linear`` layout everywhere: ``(d_out, d_in)``. What a model stores the other way
round is turned where a module is touched, never here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from layerweld.updates.spectrum import Spectrum, spectrum_of

U = TypeVar("U", bound="Update")
Linear = Callable[[Tensor], Tensor]
"""A linear map of all columns, or of all rows, of a matrix."""


class Update(ABC):
    """``ΔW`` of one layer, ``(d_out, d_in)``, in one of two forms.

    ``M @ update`` and ``update @ M`` are products with matrices, ``update * c`` and ``-`` are what
    they are for matrices. They are made without ``ΔW`` itself where it has factors, in the dtype
    of the tensors. Numbers and decompositions come in float64.
    """

    is_low_rank: ClassVar[bool]
    """Whether it has factors."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Columns of the left factor, an upper bound of the rank of ``ΔW``; 0 without factors."""

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """What a matrix from the right is multiplied with: the right factor, or ``ΔW``."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name; :func:`update_from` is the inverse."""

    @abstractmethod
    def dense(self) -> Tensor:
        """``ΔW`` itself, ``(d_out, d_in)``."""

    @abstractmethod
    def factored(self) -> LowRankUpdate:
        """The same as two factors; of a dense update the right one is the identity."""

    @abstractmethod
    def map_columns(self: U, linear: Linear) -> U:
        """``L(ΔW)`` for a linear map of columns, as ``X ↦ M X`` is."""

    @abstractmethod
    def map_rows(self: U, linear: Linear) -> U:
        """``L(ΔW)`` for a linear map of rows, as ``X ↦ X M`` is."""

    @abstractmethod
    def inner(self, other: Update) -> float:
        """``tr(ΔW otherᵀ)``; below 0 by rounding where factors cancel."""

    @abstractmethod
    def inner_with(self, matrix: Float[Tensor, "d_out d_in"]) -> float:
        """``tr(ΔW Mᵀ)``, in the dtype of both."""

    @property
    @abstractmethod
    def metric(self) -> Tensor | None:
        """``M`` with ``tr(ΔW ΔWᵀ) = tr(rowsᵀ M rows)``; None for the identity."""

    @abstractmethod
    def row_factor(self) -> Float64[Tensor, "k d_in"]:
        """``X`` with ``Xᵀ X = ΔWᵀ ΔW``: as large as ``ΔW`` by all that acts on its rows."""

    @abstractmethod
    def column_factor(self) -> Float64[Tensor, "d_out k"]:
        """``X`` with ``X Xᵀ = ΔW ΔWᵀ``: with the left singular vectors of ``ΔW``."""

    @abstractmethod
    def row_basis(self) -> Float64[Tensor, "k d_in"]:
        """Orthonormal rows whose span has the rows of ``ΔW`` in it."""

    @abstractmethod
    def spectrum(self) -> Spectrum:
        """Its singular value decomposition, as :func:`layerweld.updates.spectrum.spectrum_of`."""

    @abstractmethod
    def largest_entry(self) -> float:
        """A bound on the magnitude of every entry of ``ΔW``."""

    @property
    def is_zero(self) -> bool:
        """Whether a tensor is zero altogether, as ``B`` of a LoRA is before training."""
        return not all(tensor.any() for tensor in self.tensors().values())

    @property
    def norm(self) -> float:
        """``‖ΔW‖``, Frobenius."""
        return float(self.row_factor().norm())

    def float64(self: U) -> U:
        """The same in float64."""
        return self.map_columns(Tensor.double).map_rows(Tensor.double)

    def float32(self: U) -> U:
        """The same in float32."""
        return self.map_columns(Tensor.float).map_rows(Tensor.float)

    def __matmul__(self: U, matrix: Float[Tensor, "d_in k"]) -> U:
        return self.map_rows(lambda rows: rows @ matrix)

    def __rmatmul__(self: U, matrix: Float[Tensor, "k d_out"]) -> U:
        return self.map_columns(lambda columns: matrix @ columns)

    def __mul__(self: U, factor: float | int) -> U:
        return self.map_columns(lambda columns: columns * factor)

    def __sub__(self, other: Update) -> Update:
        if self.is_low_rank and other.is_low_rank:
            return stack([self.factored(), other.factored() * -1.0])
        return DenseUpdate(self.dense() - other.dense())


@dataclass(frozen=True)
class LowRankUpdate(Update):
    """``ΔW = left @ right``; the LoRA scaling is already inside ``left``.

    Attributes:
        left: ``(d_out, rank)``, the scaled ``B``.
        right: ``(rank, d_in)``, the ``A``.
    """

    is_low_rank = True

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != len(self.right):
            raise ValueError(
                f"factors of shapes {tuple(self.left.shape)} and {tuple(self.right.shape)} "
                f"have no common rank"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    @property
    def rows(self) -> Tensor:
        return self.right

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    def dense(self) -> Tensor:
        return self.left @ self.right

    def factored(self) -> LowRankUpdate:
        return self

    def map_columns(self, linear: Linear) -> LowRankUpdate:
        return replace(self, left=linear(self.left))

    def map_rows(self, linear: Linear) -> LowRankUpdate:
        return replace(self, right=linear(self.right))

    def inner(self, other: Update) -> float:
        return (self.left.double().T @ other.float64()).inner_with(self.right.double())

    def inner_with(self, matrix: Float[Tensor, "d_out d_in"]) -> float:
        return float((self.left * (matrix @ self.right.T)).sum())

    @property
    def metric(self) -> Tensor:
        return self.left.T @ self.left

    def row_factor(self) -> Float64[Tensor, "k d_in"]:
        factor: Tensor = torch.linalg.qr(self.left.double(), mode="r").R @ self.right.double()
        return factor

    def column_factor(self) -> Float64[Tensor, "d_out k"]:
        factor: Tensor = self.left.double() @ torch.linalg.qr(self.right.double().T, mode="r").R.T
        return factor

    def row_basis(self) -> Float64[Tensor, "k d_in"]:
        basis: Tensor = torch.linalg.qr(self.right.double().T).Q
        return basis.T

    def spectrum(self) -> Spectrum:
        # Through two QR factorisations and one matrix of the rank's size.
        q_left, r_left = torch.linalg.qr(self.left.double())
        q_right, r_right = torch.linalg.qr(self.right.double().T)
        inside = spectrum_of(r_left @ r_right.T)
        return Spectrum(q_left @ inside.left, inside.values, inside.right @ q_right.T)

    def largest_entry(self) -> float:
        # By Cauchy and Schwarz: the longest row of one times the longest column of the other.
        rows = self.left.double().norm(dim=1).max()
        return float(rows * self.right.double().norm(dim=0).max())


@dataclass(frozen=True)
class DenseUpdate(Update):
    """``ΔW`` as it is, ``(d_out, d_in)``; what full fine-tuning leaves behind."""

    is_low_rank = False

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def rank(self) -> int:
        return 0

    @property
    def rows(self) -> Tensor:
        return self.weight

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def dense(self) -> Tensor:
        return self.weight

    def factored(self) -> LowRankUpdate:
        return LowRankUpdate(self.weight, torch.eye(self.shape[1], dtype=self.weight.dtype))

    def map_columns(self, linear: Linear) -> DenseUpdate:
        return replace(self, weight=linear(self.weight))

    def map_rows(self, linear: Linear) -> DenseUpdate:
        return self.map_columns(linear)

    def inner(self, other: Update) -> float:
        return other.float64().inner_with(self.weight.double())

    def inner_with(self, matrix: Float[Tensor, "d_out d_in"]) -> float:
        return float((self.weight * matrix).sum())

    @property
    def metric(self) -> None:
        return None

    def row_factor(self) -> Float64[Tensor, "d_out d_in"]:
        return self.weight.double()

    def column_factor(self) -> Float64[Tensor, "d_out d_in"]:
        return self.weight.double()

    def row_basis(self) -> Float64[Tensor, "k d_in"]:
        return self.spectrum().right

    def spectrum(self) -> Spectrum:
        return spectrum_of(self.weight.double())

    def largest_entry(self) -> float:
        return float(self.weight.abs().max())


def update_from(tensors: Mapping[str, Tensor]) -> Update:
    """Inverse of :meth:`Update.tensors`; a ValueError where these are no update's."""
    if tensors.keys() == {"weight"}:
        return DenseUpdate(tensors["weight"])
    if tensors.keys() == {"left", "right"}:
        return LowRankUpdate(tensors["left"], tensors["right"])
    raise ValueError(f"{', '.join(sorted(tensors))}: these are not the parts of one update")


def all_low_rank(updates: Iterable[Update]) -> list[LowRankUpdate]:
    """The same updates if every one has factors; none at all if one is dense."""
    each = list(updates)
    return [update.factored() for update in each] if all(u.is_low_rank for u in each) else []


def stack(updates: Sequence[LowRankUpdate]) -> LowRankUpdate:
    """The sum of the updates as one factored update of rank ``Σ r_i``, without error."""
    return LowRankUpdate(
        torch.cat([update.left for update in updates], dim=1),
        torch.cat([update.right for update in updates], dim=0),
    )
