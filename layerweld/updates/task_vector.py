"""What one site's fine-tuning added to the base model, in all of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from layerweld.updates.update import Update


@dataclass(frozen=True)
class TaskVector:
    """What one site's fine-tuning added to the base model.

    Attributes:
        updates: ``ΔW`` of each linear layer, by the layer's name in the backbone
            (``encoder.layer.0.attention.self.query``), float32. A layer that is absent did not
            change.
        other_params: what fine-tuning added to everything that is not such a layer (norms, biases,
            embeddings), by parameter name, float32. Empty for LoRA.
    """

    updates: Mapping[str, Update]
    other_params: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_low_rank(self) -> bool:
        """Whether every update is factored, so that the merge is a LoRA again."""
        return all(update.is_low_rank for update in self.updates.values())
