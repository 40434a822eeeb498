"""Read a fully fine-tuned model folder as a task vector: its weights minus the base model's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from layerweld.errors import AdapterError
from layerweld.model.base_model import BaseModel
from layerweld.model.families import load_backbone, missing_weights
from layerweld.model.folder import check_model_folder
from layerweld.model.linear import is_transposed, linear_layers
from layerweld.untrusted.files import reading
from layerweld.untrusted.tensors import check_numbers
from layerweld.untrusted.text import quoted
from layerweld.updates.task_vector import TaskVector
from layerweld.updates.update import DenseUpdate


def read_checkpoint(folder: Path, base: BaseModel) -> TaskVector:
    """The task vector of a transformers model folder; its task head is ignored.

    Weights of linear layers become dense updates in ``nn.Linear`` layout, all others go
    into the other parameters; what did not change is left out. A weight that two modules share is
    counted once, under the name of the first.

    Raises:
        AdapterError: the folder is damaged, incomplete or quantised, is of another architecture,
            holds NaN, or equals the base model.
    """
    base_config: PretrainedConfig = base.backbone.config
    _check_config(folder, base_config.to_dict())
    model = _load(folder)
    tuned, original = dict(model.named_parameters()), dict(base.backbone.named_parameters())
    for name, parameter in original.items():
        _check_parameter(folder, name, tuned, parameter)
    layers = linear_layers(base.backbone)
    updates: dict[str, DenseUpdate] = {}
    other_params: dict[str, Tensor] = {}
    for name, parameter in original.items():
        difference = tuned[name].detach().float() - parameter.detach().float().cpu()
        if not difference.any():
            continue
        layer = name.removesuffix(".weight")
        if layer != name and layer in layers:
            turned = difference.T if is_transposed(layers[layer]) else difference
            updates[layer] = DenseUpdate(turned.contiguous())
        else:
            other_params[name] = difference
    if not updates:
        raise AdapterError(
            f"{folder} changes no linear layer of the base model; was its backbone trained, or "
            f"is this the base model itself?"
        )
    return TaskVector(updates, other_params)


def _check_config(folder: Path, base_config: Mapping[str, Any]) -> None:
    if not any(folder.glob("*.safetensors")):
        raise AdapterError(
            f"{folder} has no *.safetensors, and pickled weights are never opened; convert it "
            f"where you trust it: `AutoModel.from_pretrained(…).save_pretrained(…)`"
        )
    config = check_model_folder(folder, AdapterError)
    if config.get("quantization_config"):
        raise AdapterError(
            f"{folder} is quantised; give the weights from before, or call `model.dequantize()` "
            f"and save it"
        )
    for key in _architecture_keys(config):
        if key in base_config and config[key] != base_config[key]:
            raise AdapterError(
                f"{folder}: `{key}` is {quoted(config[key])}, but {base_config[key]!r} in the base "
                f"model; only models fine-tuned from the same base model can be merged"
            )


def _architecture_keys(config: Collection[str]) -> list[str]:
    """Settings whose value decides which network it is: sizes, counts, activation."""
    named = {"model_type", "hidden_act"}
    return [k for k in config if k in named or k.startswith("num_") or k.endswith("_size")]


def _load(folder: Path) -> nn.Module:
    problem = f"{folder} is damaged, or not a model that transformers can load"
    with reading(problem, "save it again", AdapterError):
        model, report = load_backbone(folder)
    missing = missing_weights(report)
    if missing:
        raise AdapterError(
            f"{folder} is incomplete: {missing[0]!r} (of {len(missing)} such) is not in its files; "
            f"save the whole model with `save_pretrained`"
        )
    loaded: nn.Module = model
    return loaded


def _check_parameter(
    folder: Path, name: str, tuned: Mapping[str, Tensor], original: Tensor
) -> None:
    if name not in tuned or tuned[name].shape != original.shape:
        found = tuple(tuned[name].shape) if name in tuned else "absent"
        raise AdapterError(
            f"{folder}: {name!r} is {found}, but {tuple(original.shape)} in the base model; only "
            f"models fine-tuned from the same base model can be merged"
        )
    check_numbers(tuned[name], folder, name, AdapterError)
