"""Write a merge as a PEFT adapter folder or as a model folder: whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from layerweld.errors import OutputError, UnusableMergeError
from layerweld.model.base_model import TOKENIZER_FILES, BaseModel
from layerweld.model.families import load_backbone, without_made_up_pooler
from layerweld.model.linear import is_transposed, linear_layers, weight_of
from layerweld.runtime.disk import new_folder
from layerweld.updates.bounds import LARGEST_WEIGHT, out_of_bounds, require_finite
from layerweld.updates.update import LowRankUpdate, Update

_PREPROCESSING = (
    *TOKENIZER_FILES, "chat_template.jinja", "generation_config.json", "processor_config.json",
)  # fmt: skip


def write_adapter(
    folder: Path, updates: Mapping[str, LowRankUpdate], base: BaseModel, prefix: str, task: str = ""
) -> None:
    """Write a folder that ``PeftModel.from_pretrained`` loads without a missing or unknown key.

    The same updates give the same bytes on every machine: nothing written depends on a path, a
    date or a hash seed.

    Args:
        folder: to be created; its parents are created as well.
        updates: at least one, by the layer's name in the backbone, of any rank > 0.
        base: what the adapter is for; only its name is written down.
        prefix: ``""`` to load onto ``AutoModel``; :attr:`BaseModel.prefix` to load onto the class
            with a head that the sites trained. PEFT matches names exactly, so it is one or the
            other.
        task: PEFT's task type, from which ``AutoPeftModel`` tells the class; empty for none.

    Raises:
        OutputError: something is there already.
        StorageError: the folder cannot be written.
        UnusableMergeError: an update holds numbers that no model can use.
        ValueError: there is no update, or one of rank 0.
    """
    if not updates or any(update.rank < 1 for update in updates.values()):
        raise ValueError("an adapter needs at least one update, each of rank 1 or more")
    _require_usable(updates)
    layers = linear_layers(base.backbone)
    config = _lora_config(
        {prefix + name: update.rank for name, update in updates.items()},
        transposed=any(is_transposed(layers[name]) for name in updates),
        base_name=base.name,
        task=task,
    )
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        key = f"base_model.model.{prefix}{name}"
        tensors[f"{key}.lora_A.weight"] = _own(update.right)
        tensors[f"{key}.lora_B.weight"] = _own(update.left)
    _must_be_free(folder)
    with new_folder(folder) as partial:
        config.save_pretrained(partial)
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})


def write_model(
    folder: Path, updates: Mapping[str, Update], other_params: Mapping[str, Tensor], base: BaseModel
) -> None:
    """Write the merged backbone in float32, with the base model's tokenizer or image processor.

    The sums are formed in a second copy, read from the base model's folder, so ``base`` is never
    changed. Both are in memory for a while. A pooler is kept as the base model has it.

    Args:
        folder: to be created; its parents are created as well.
        updates: ``ΔW`` by the layer's name in the backbone.
        other_params: what to add to parameters outside of the layers, by name.
        base: the base model.

    Raises:
        OutputError: something is there already.
        StorageError: the folder cannot be written.
        UnusableMergeError: an update, or a weight with its update, has numbers that no model can
            use.
    """
    _require_usable(updates)
    require_finite(other_params, "the merged model")
    model, report = load_backbone(base.folder)
    without_made_up_pooler(model, report)
    layers, parameters = linear_layers(model), dict(model.named_parameters())
    for name, update in updates.items():
        weight_of(layers[name]).add_(update.dense().to("cpu", torch.float32))
    for name, difference in other_params.items():
        parameters[name].data.add_(difference.to("cpu", torch.float32))
    require_finite(parameters, "the merged model")
    _must_be_free(folder)
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        for file in _PREPROCESSING:
            if (base.folder / file).is_file():
                shutil.copyfile(base.folder / file, partial / file)


def _require_usable(updates: Mapping[str, Update]) -> None:
    layer = out_of_bounds(updates)
    if layer:
        raise UnusableMergeError(
            f"the merged update of {layer} holds numbers that are not finite, or beyond "
            f"{LARGEST_WEIGHT:.0f}; nothing is written"
        )


def _lora_config(
    ranks: Mapping[str, int], *, transposed: bool, base_name: str, task: str
) -> LoraConfig:
    """Scaling 1 in every layer: alpha equals the rank, by anchored full names where they differ."""
    rank = max(ranks.values())
    others = {f"^{re.escape(name)}": r for name, r in sorted(ranks.items()) if r != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=sorted(ranks),
        fan_in_fan_out=transposed,
        base_model_name_or_path=base_name,
        task_type=task or None,
        inference_mode=True,
    )
    config.target_modules = sorted(ranks)  # LoraConfig makes it a set, whose order is random
    return config


def _own(factor: Tensor) -> Tensor:
    """A separate copy: layers of a group may share ``A``, and safetensors refuses to write that."""
    return factor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _must_be_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already; give another name, or remove it first")
