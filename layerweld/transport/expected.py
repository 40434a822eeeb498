"""Which arrays a site's reply must hold: known from the plan and the site's introduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from layerweld.plan import LayerGroup, MergePlan
from layerweld.statistics.group import ProductForm, blank_statistics
from layerweld.updates.named_tensors import blank_update, update_tensors

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
    return {
        f"{index}/{name}": tuple(tensor.shape)
        for index, group in enumerate(groups)
        for name, tensor in blank_statistics(group, ranks, form).tensors().items()
    }


def update_shapes(plan: MergePlan, ranks: Mapping[str, int]) -> Shapes:
    """Names and shapes of a site's updates themselves."""
    shapes = {layer.name: (layer.d_out, g.d_in) for g in plan.groups for layer in g.layers}
    blank = {k: blank_update(shape, ranks[k]) for k, shape in shapes.items() if k in ranks}
    return {name: tuple(tensor.shape) for name, tensor in update_tensors(blank).items()}


def fisher_shapes(plan: MergePlan) -> Shapes:
    """Names and shapes of a site's Fisher sums: two matrices for every layer that is merged."""
    return {
        f"{part}/{layer.name}": (layer.d_out, group.d_in)
        for part in ("importance", "product")
        for group in plan.groups
        for layer in group.layers
    }
