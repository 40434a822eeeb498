"""Find a model's layer groups by running it once: which layers read which tensor, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layerweld.errors import PlanError
from layerweld.model.families import probe_inputs, taken_apart
from layerweld.model.linear import linear_layers, weight_of
from layerweld.plan import LayerGroup, LayerShape, MergePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ONE_STACK = (
    "layerweld merges models with one stack of blocks (encoders, decoders, vision transformers)"
)


def discover_plan(backbone: PreTrainedModel) -> MergePlan:
    """The merge plan of a transformers model, from one hooked forward pass on a made-up input.

    No architecture is known by name. The blocks are the elements of the model's one list of modules
    that run one after the other, each on what the one before it returned. A group is the linear
    layers inside a block that were given the same tensor.

    Raises:
        PlanError: the model has no such list, several of them (encoder-decoder), or runs a layer
            more than once a pass.
    """
    if backbone.config.is_encoder_decoder:
        raise PlanError(f"{type(backbone).__name__} is an encoder-decoder; {_ONE_STACK}")
    blocks = _find_blocks(backbone)
    names = {module: name for name, module in backbone.named_modules()}
    owners = {
        names[block] + "." + name: index
        for index, block in enumerate(blocks)
        for name in linear_layers(block)
    }
    layers = {name: layer for name, layer in linear_layers(backbone).items() if name in owners}
    groups = [
        _group(owners[readers[0]], {name: layers[name] for name in readers})
        for readers in _readers_of_each_input(backbone, layers)
    ]
    return MergePlan(tuple(names[block] for block in blocks), tuple(groups))


@dataclass
class _Calls:
    """Inputs of modules during one pass; holding them keeps any address from being reused."""

    order: list[tuple[nn.Module, Tensor]] = field(default_factory=list)


@contextmanager
def _watching(modules: list[nn.Module]) -> Iterator[_Calls]:
    calls = _Calls()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, _, _ = taken_apart(args, kwargs)
        if isinstance(hidden, Tensor):
            calls.order.append((module, hidden))

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def _find_blocks(backbone: PreTrainedModel) -> list[nn.Module]:
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m)]
    elements = [element for module_list in lists for element in module_list]
    with _watching(elements) as calls:
        backbone(**probe_inputs(backbone))
    called = [module for module, _ in calls.order]
    chains = [
        list(module_list)
        for module_list in lists
        if [m for m in called if any(m is element for element in module_list)] == list(module_list)
        and all(linear_layers(element) for element in module_list)
    ]
    nested = {id(inner) for chain in chains for element in chain for inner in element.modules()}
    for chain in chains:  # a chain's own elements are not nested in it
        nested -= {id(element) for element in chain}
    outermost = [chain for chain in chains if not any(id(e) in nested for e in chain)]
    if len(outermost) != 1:
        number = "no list of blocks" if not outermost else f"{len(outermost)} lists of blocks"
        raise PlanError(
            f"{type(backbone).__name__} has {number} that run one after the other; {_ONE_STACK}"
        )
    return outermost[0]


@torch.inference_mode()
def _readers_of_each_input(
    backbone: PreTrainedModel, layers: Mapping[str, nn.Module]
) -> list[list[str]]:
    with _watching(list(layers.values())) as calls:
        backbone(**probe_inputs(backbone))
    names = {layer: name for name, layer in layers.items()}
    readers: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for layer, read in calls.order:
        key = (read.data_ptr(), tuple(read.shape), read.stride())
        readers.setdefault(key, []).append(names[layer])
    order = [name for group in readers.values() for name in group]
    twice = next((name for name in order if order.count(name) > 1), None)
    if twice:
        raise PlanError(
            f"{twice!r} runs more than once in one pass (weights shared between places); its "
            f"inputs have no single Gram matrix, so it cannot be merged by statistics"
        )
    return list(readers.values())


def _group(block: int, layers: Mapping[str, nn.Module]) -> LayerGroup:
    shapes = [LayerShape(name, weight_of(layer).shape[0]) for name, layer in layers.items()]
    d_in = weight_of(next(iter(layers.values()))).shape[1]
    return LayerGroup(_group_name(list(layers)), block, d_in, tuple(shapes))


def _group_name(layers: list[str]) -> str:
    if len(layers) == 1:
        return layers[0]
    paths = [name.split(".") for name in layers]
    shared = 0
    while len({path[shared] for path in paths}) == 1:
        shared += 1
    leaves = [".".join(path[shared:]) for path in paths]
    return ".".join([*paths[0][:shared], f"{{{','.join(leaves)}}}"])
