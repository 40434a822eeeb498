"""The linear layers of a model, of whichever class, stored as they are or transposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layerweld.model.families import LINEAR, TRANSPOSED
from layerweld.updates.update import Update


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every ``nn.Linear`` and GPT-2 ``Conv1D`` of the model, by name, in the model's own order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer stores ``(d_in, d_out)``, as ``Conv1D`` does (PEFT: ``fan_in_fan_out``)."""
    return isinstance(layer, TRANSPOSED)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight in ``nn.Linear`` layout, ``(d_out, d_in)``: a view, not a copy."""
    weight = layer.get_parameter("weight").data
    return weight.T if is_transposed(layer) else weight


@contextmanager
def updated(layers: Mapping[str, nn.Module], updates: Mapping[str, Update]) -> Iterator[None]:
    """Run with ``W_0 + ΔW`` in the named layers; afterwards every weight is ``W_0`` again.

    The sum is formed in float32, whatever the layer's dtype on disk: a bfloat16 sum would round
    most of a small update away. Base weights are put back, never recomputed, so nothing drifts.
    """
    base: dict[str, Tensor] = {}
    try:
        for name, update in updates.items():
            layer = layers[name]
            weight = layer.get_parameter("weight")
            base[name] = weight.data
            merged = weight_of(layer) + update.dense().to(weight.device, torch.float32)
            weight.data = (merged.T if is_transposed(layer) else merged).contiguous()
        yield
    finally:
        for name, values in base.items():
            layers[name].get_parameter("weight").data = values


@contextmanager
def shifted(model: nn.Module, other_params: Mapping[str, Tensor]) -> Iterator[None]:
    """Run with ``other_params`` added to the named parameters (norms, biases, embeddings)."""
    parameters = dict(model.named_parameters())
    base = {name: parameters[name].data for name in other_params}
    try:
        for name, values in other_params.items():
            parameters[name].data = base[name] + values.to(base[name])
        yield
    finally:
        for name, values in base.items():
            parameters[name].data = values
