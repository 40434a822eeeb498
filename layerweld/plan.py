"""The merge plan: a model's layer groups in forward order. Values only; no model is touched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass

from layerweld.errors import PlanError


@dataclass(frozen=True)
class LayerShape:
    """One linear layer: a name in the backbone and its size."""

    name: str
    d_out: int


@dataclass(frozen=True)
class LayerGroup:
    """The layers that read the same input and share one Gram matrix.

    Attributes:
        name: for humans, unique in the plan, e.g. ``layers.0.self_attn.{q_proj,k_proj,v_proj}``.
        block: index of the block that the group lies in.
        d_in: width of the shared input.
        layers: in the order in which the block calls them.
    """

    name: str
    block: int
    d_in: int
    layers: tuple[LayerShape, ...]


@dataclass(frozen=True)
class MergePlan:
    """The layer groups in forward order, and the blocks they lie in.

    Attributes:
        blocks: module names of the blocks, in forward order.
        groups: every group of every block, in the order in which the network applies them.
    """

    blocks: tuple[str, ...]
    groups: tuple[LayerGroup, ...]

    @property
    def digest(self) -> str:
        """SHA-256 that servers and sites must agree on before anything is computed."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """All layers, in forward order."""
        return tuple(layer.name for group in self.groups for layer in group.layers)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(d_out, d_in)`` of all layers by name, in forward order."""
        return {s.name: (s.d_out, group.d_in) for group in self.groups for s in group.layers}

    def restricted_to(self, layers: Collection[str]) -> MergePlan:
        """The plan of only these layers: what no site has fine-tuned need not be merged.

        Raises:
            PlanError: a layer is not in the plan.
        """
        unknown = sorted(set(layers) - set(self.layer_names))
        if unknown:
            raise PlanError(
                f"{unknown[0]!r} (of {len(unknown)} such) lies outside of the model's "
                f"{len(self.blocks)} blocks, where inputs cannot be replayed; fine-tune with "
                f"target_modules inside `{self.blocks[0]}` and its like, or leave that layer out"
            )
        groups = []
        for group in self.groups:
            kept = tuple(layer for layer in group.layers if layer.name in layers)
            if kept:
                groups.append(LayerGroup(group.name, group.block, group.d_in, kept))
        return MergePlan(self.blocks, tuple(groups))

    def groups_of_block(self, block: int) -> tuple[LayerGroup, ...]:
        """The groups of one block, in calling order."""
        return tuple(group for group in self.groups if group.block == block)
