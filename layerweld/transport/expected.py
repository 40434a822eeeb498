"""Which arrays a site's reply must hold: known from the plan and the site's introduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from layerweld.plan import LayerGroup, MergePlan
from layerweld.statistics.group import ProductForm

Shapes = dict[str, tuple[int, ...]]


def bytes_of(shapes: Shapes) -> int:
    """What they take on the wire, headers aside: everything travels as float32."""
    return sum(4 * prod(shape) for shape in shapes.values())


def statistics_shapes(
    groups: Sequence[LayerGroup], ranks: Mapping[str, int], form: ProductForm
) -> Shapes:
    """Names and shapes of the arrays of one answer, as :mod:`layerweld.transport` names them.

    Args:
        groups: of the step, in the plan's order.
        ranks: LoRA rank of each layer that the site fine-tuned; 0 where the whole layer changed.
        form: how products travel in this run.
    """
    shapes: Shapes = {}
    for index, group in enumerate(groups):
        shapes[f"{index}/gram"] = (group.d_in * (group.d_in + 1) // 2,)
        for layer in group.layers:
            if layer.name not in ranks:
                continue
            rank = 0 if form.dense else ranks[layer.name]
            parts = _product(layer.d_out, group.d_in, rank, form.with_updates)
            shapes |= {f"{index}/{layer.name}/{part}": shape for part, shape in parts.items()}
    return shapes


def update_shapes(plan: MergePlan, ranks: Mapping[str, int]) -> Shapes:
    """Names and shapes of a site's updates themselves."""
    shapes: Shapes = {}
    for group in plan.groups:
        for layer in group.layers:
            rank = ranks.get(layer.name)
            if rank:
                shapes[f"{layer.name}/left"] = (layer.d_out, rank)
                shapes[f"{layer.name}/right"] = (rank, group.d_in)
            elif rank == 0:
                shapes[f"{layer.name}/weight"] = (layer.d_out, group.d_in)
    return shapes


def fisher_shapes(plan: MergePlan) -> Shapes:
    """Names and shapes of a site's Fisher sums: two matrices for every layer that is merged."""
    return {
        f"{part}/{layer.name}": (layer.d_out, group.d_in)
        for part in ("importance", "product")
        for group in plan.groups
        for layer in group.layers
    }


def _product(d_out: int, d_in: int, rank: int, with_updates: bool) -> Shapes:
    if rank:
        factors: Shapes = {"left": (d_out, rank), "right": (rank, d_in)}
        return factors | {"factor": (rank, d_in)} if with_updates else factors
    product: Shapes = {"product": (d_out, d_in)}
    return product | {"update": (d_out, d_in)} if with_updates else product
