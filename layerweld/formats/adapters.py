"""Read what a site fine-tuned as a task vector of the base model: strictly, and never a pickle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from layerweld.errors import AdapterError
from layerweld.formats.checkpoint import read_checkpoint
from layerweld.formats.layer_patterns import LayerPatterns
from layerweld.formats.lora_config import AS_MODEL, CONFIG_FILE, read_lora_config, scaling, task_of
from layerweld.model.base_model import BaseModel
from layerweld.model.linear import linear_layers, weight_of
from layerweld.untrusted.files import check_readable
from layerweld.untrusted.tensors import check_numbers, opened_tensors, shape_of, trained_tensor
from layerweld.untrusted.text import quoted
from layerweld.updates.task_vector import TaskVector
from layerweld.updates.update import LowRankUpdate

WEIGHTS_FILE = "adapter_model.safetensors"

_WRAPPER = "base_model.model."  # what PEFT puts before every name
_FACTOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")


@dataclass(frozen=True)
class Adapter:
    """What one site brings to the merge.

    Attributes:
        task_vector: what its fine-tuning added to the base model.
        prefix: what stood before the backbone's layer names in the folder: ``""``, or
            :attr:`BaseModel.prefix` where a head class was trained.
        ranks: LoRA rank of each layer, by the layer's name in the backbone; empty for a fully
            fine-tuned model.
        digest: :func:`digest_of` the task vector.
        task: PEFT's task type, as ``CAUSAL_LM``; empty where the folder names none.
    """

    task_vector: TaskVector
    prefix: str
    ranks: Mapping[str, int]
    digest: str
    task: str = ""


def read_adapter(folder: Path, base: BaseModel) -> Adapter:
    """Read ``adapter_config.json`` and ``adapter_model.safetensors``.

    The update of a layer is ``LowRankUpdate(scaling · B, A)`` in float32, with PEFT's own scaling
    (alpha / r, rsLoRA, rank and alpha patterns). GPT-2's ``Conv1D`` needs no turning round: PEFT
    stores ``A`` as ``(r, d_in)`` and ``B`` as ``(d_out, r)`` there too. Task heads are ignored.

    Raises:
        AdapterError: the folder is damaged, belongs to another base model, was not trained, or
            holds more than LoRA on linear layers. The message names the tensor or the setting.
    """
    config = read_lora_config(folder)
    patterns = LayerPatterns(folder / CONFIG_FILE, config)
    file = _weights_of(folder)
    with opened_tensors(file, "copy or save the adapter again", AdapterError) as opened:
        return _read_opened(folder, base, config, patterns, opened)


def _read_opened(
    folder: Path, base: BaseModel, config: LoraConfig, patterns: LayerPatterns, opened: Any
) -> Adapter:
    factors, others = _split(opened.keys())
    layers = linear_layers(base.backbone)
    prefix = _find_prefix(folder, factors, layers, base.prefix)
    _refuse_all_but_heads(folder, others, config, prefix, base.backbone)
    wanted = {prefix + name for name in layers}
    if config.target_modules != "all-linear":
        wanted = {layer for layer in wanted if patterns.targets(layer)}
    _refuse_other_targets(folder, set(factors), wanted)
    updates = {}
    for name, layer in layers.items():
        wrapped = prefix + name
        if wrapped in factors:
            rank = patterns.rank(wrapped)
            _check_shapes(folder, wrapped, factors[wrapped], opened, layer, rank)
            scale = scaling(config, patterns.alpha(wrapped), rank)
            updates[name] = _update(folder, factors[wrapped], opened, scale)
    _refuse_untrained(folder, updates)
    task_vector = TaskVector(updates)
    ranks = {name: update.rank for name, update in updates.items()}
    return Adapter(task_vector, prefix, ranks, digest_of(task_vector), task_of(config))


def digest_of(task_vector: TaskVector) -> str:
    """SHA-256 over every tensor's name, shape and bytes.

    The scaling is inside the factors. So this covers every part of the adapter's configuration that
    matters, and not the order in which PEFT happened to write it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_named_tensors(task_vector), key=lambda pair: pair[0]):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _named_tensors(task_vector: TaskVector) -> Iterator[tuple[str, Tensor]]:
    for name, update in task_vector.updates.items():
        for part, tensor in update.tensors().items():
            yield f"{name}.{part}", tensor
    for name, difference in task_vector.other_params.items():
        yield f"{name}.other_params", difference


def _weights_of(folder: Path) -> Path:
    file = folder / WEIGHTS_FILE
    if file.is_file():
        return file
    if (folder / "adapter_model.bin").is_file():
        raise AdapterError(
            f"{folder} has only a pickled adapter_model.bin, which is never opened; convert it "
            f"where you trust it: `PeftModel.from_pretrained(…).save_pretrained(…)`"
        )
    raise AdapterError(f"{folder} has no {WEIGHTS_FILE}; save it with PEFT's `save_pretrained`")


def _split(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Names of the LoRA factors by layer and then by ``A`` or ``B``, and all other names."""
    factors: dict[str, dict[str, str]] = {}
    others = []
    for name in names:
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(match["layer"], {})[match["factor"]] = name
        else:
            others.append(name)
    return factors, others


def _find_prefix(
    folder: Path, names: Collection[str], layers: Collection[str], head_prefix: str
) -> str:
    """The prefix under which most of the adapter's layers are linear layers of the backbone."""

    def unmatched_names(prefix: str) -> list[str]:
        own = {prefix + layer for layer in layers}
        return sorted(name for name in names if name not in own)

    prefix = min(("", head_prefix), key=lambda candidate: len(unmatched_names(candidate)))
    unmatched = unmatched_names(prefix)
    if unmatched:
        raise AdapterError(
            f"{folder}: {len(unmatched)} of {len(names)} adapted layers are not linear layers of "
            f"the base model's backbone, such as {quoted(unmatched[0])}; check that the site "
            f"started from this base model, and put heads, poolers, convolutions and embeddings "
            f"into `exclude_modules`"
        )
    return prefix


def _refuse_all_but_heads(
    folder: Path, others: Collection[str], config: LoraConfig, prefix: str, backbone: nn.Module
) -> None:
    own = {prefix + name for name, _ in backbone.named_parameters()}
    for key in others:
        name = key.removeprefix(_WRAPPER)
        reason = _why_refused(name, own, config.modules_to_save or ())
        if reason:
            raise AdapterError(f"{folder}: {quoted(key)} {reason}")


def _why_refused(name: str, own: Collection[str], modules_to_save: Collection[str]) -> str:
    """Why a tensor that is not a LoRA factor cannot be ignored; empty for a task head's."""
    if "lora_embedding_" in name:
        return f"is LoRA on an embedding, which has no Gram matrix; {AS_MODEL}"
    if "lora_magnitude_vector" in name:
        return f"is a DoRA magnitude, which also rescales the base weights; {AS_MODEL}"
    if name in own:
        return f"is a full copy of a parameter inside the backbone (`modules_to_save`); {AS_MODEL}"
    if not any(f".{head}." in f".{name}." for head in modules_to_save):
        return f"is neither a LoRA factor nor part of a head in `modules_to_save`; {AS_MODEL}"
    return ""


def _refuse_other_targets(folder: Path, present: set[str], expected: set[str]) -> None:
    missing, surplus = sorted(expected - present), sorted(present - expected)
    if missing:
        raise AdapterError(
            f"{folder}: {quoted(missing[0])} (of {len(missing)} such) is in `target_modules` but "
            f"not in {WEIGHTS_FILE}; the file is incomplete: save the adapter again"
        )
    if surplus:
        raise AdapterError(
            f"{folder}: {quoted(surplus[0])} (of {len(surplus)} such) is in {WEIGHTS_FILE} but not "
            f"in `target_modules`, so PEFT would not load it; save the adapter again"
        )


def _check_shapes(
    folder: Path, name: str, factors: Mapping[str, str], opened: Any, layer: nn.Module, rank: int
) -> None:
    d_out, d_in = weight_of(layer).shape
    for factor, expected in (("A", (rank, d_in)), ("B", (d_out, rank))):
        if factor not in factors:
            raise AdapterError(
                f"{folder}: {quoted(name)} has no lora_{factor}; the file is incomplete: save the "
                f"adapter again"
            )
        found = shape_of(opened, factors[factor])
        if found != expected:
            raise AdapterError(
                f"{folder}: lora_{factor} of {quoted(name)} is {quoted(found)}, but rank {rank} on "
                f"this base model makes it {expected}; check that the site started from this base "
                f"model and that `r` and `rank_pattern` are those of the training"
            )


def _update(folder: Path, factors: Mapping[str, str], opened: Any, scale: float) -> LowRankUpdate:
    read = {
        factor: trained_tensor(opened, folder / WEIGHTS_FILE, name, AdapterError).float()
        for factor, name in factors.items()
    }
    left = scale * read["B"]
    check_numbers(left, folder / CONFIG_FILE, f"{factors['B']} times alpha / r", AdapterError)
    return LowRankUpdate(left, read["A"])


def _refuse_untrained(folder: Path, updates: Mapping[str, LowRankUpdate]) -> None:
    for update in updates.values():
        # Term k of ΔW = Σ_k left_k right_k vanishes with either factor; no ΔW has to be formed.
        if (update.left.any(dim=0) & update.right.any(dim=1)).any():
            return
    raise AdapterError(
        f"{folder} changes nothing: the update of each of its {len(updates)} layers is zero; was "
        f"it trained?"
    )


def read_fine_tuned(folder: str | Path, base: BaseModel) -> Adapter:
    """Read a PEFT adapter folder, or a model folder if it has no ``adapter_config.json``.

    A whole model comes back with prefix ``""`` and without ranks.

    Raises:
        AdapterError: it is neither, or cannot be read as a task vector of the base model.
    """
    path = Path(folder).expanduser()
    check_readable(path, AdapterError)
    if (path / "adapter_config.json").is_file():
        return read_adapter(path, base)
    if (path / "config.json").is_file():
        task_vector = read_checkpoint(path, base)
        return Adapter(task_vector, prefix="", ranks={}, digest=digest_of(task_vector))
    raise AdapterError(
        f"{path} has neither adapter_config.json (a PEFT adapter) nor config.json (a model); give "
        f"the folder that `save_pretrained` wrote"
    )
