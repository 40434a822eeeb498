"""Read PEFT's ``adapter_config.json`` and refuse, by name, anything beyond ``scaling · B A``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig

from layerweld.errors import AdapterError
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import reading
from layerweld.untrusted.tensors import HUGEST
from layerweld.untrusted.text import quoted

CONFIG_FILE = "adapter_config.json"

AS_MODEL = (
    "merge it into its model (`merge_and_unload()`, then `save_pretrained(…)`) and give that "
    "model folder instead"
)

_LARGEST_RANK = 65_536

_AS_LORA = "train a plain LoRA adapter instead"

# Fields that leave `W_0 + scaling · B A` as it is, or that are read in this module.
_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora", "velora_config",
}  # fmt: skip

_REFUSED = {
    "use_dora": f"DoRA also rescales the base weights; {AS_MODEL}",
    "lora_bias": f"the adapter has biases of its own; {AS_MODEL}",
    "trainable_token_indices": f"single token embeddings were trained; {AS_MODEL}",
    "target_parameters": f"bare parameters were adapted, not layers; {AS_MODEL}",
    "kasa_config": f"KaSA also truncates the base weights; {AS_MODEL}",
    "use_bdlora": f"the factors are block-diagonal; {AS_MODEL}",
    "layer_replication": f"the model has more layers than its base model; {_AS_LORA}",
    "alora_invocation_tokens": f"an aLoRA acts on some tokens only; {_AS_LORA}",
    "use_qalora": f"QA-LoRA pools its inputs; {_AS_LORA}",
    "monteclora_config": f"MonteCLoRA samples its update anew each pass; {_AS_LORA}",
    "arrow_config": f"Arrow routes each token to another adapter; {_AS_LORA}",
    "megatron_config": f"Megatron splits the layers between processes; {_AS_LORA}",
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_name_or_names(value: Any) -> bool:
    return _is_text(value) or _are_names(value)


def _are_indices(value: Any) -> bool:
    indices = value if isinstance(value, list) else [value]
    return all(type(index) is int for index in indices)


_NAME_OR_NAMES = "a name, a pattern or a list of names"
_BY_LAYER = "a table of numbers by layer"

# Settings that affect the task vector, and the kind of their values.
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "target_modules": (_is_name_or_names, _NAME_OR_NAMES),
    "exclude_modules": (_is_name_or_names, _NAME_OR_NAMES),
    "layers_pattern": (_is_name_or_names, _NAME_OR_NAMES),
    "modules_to_save": (lambda value: _are_names(value) and len(value) <= 1000, "a list of names"),
    "layers_to_transform": (_are_indices, "a number or a list of numbers"),
    "rank_pattern": (lambda value: isinstance(value, dict), _BY_LAYER),
    "alpha_pattern": (lambda value: isinstance(value, dict), _BY_LAYER),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
}

# The other initialisations (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) change the base weights as well.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")


TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION")
"""Task types that a merge keeps. With others PEFT expects a head, and heads stay at the sites."""


def read_lora_config(folder: Path) -> LoraConfig:
    """The adapter's configuration, known to describe plain LoRA or rsLoRA.

    Raises:
        AdapterError: the file is unreadable, or it asks for something that ``scaling · B A`` on
            linear layers does not cover. The message names the setting and the way out.
    """
    file = folder / CONFIG_FILE
    entries = read_json(file, AdapterError, "save the adapter again")
    if entries.get("peft_type") != "LORA":
        raise AdapterError(
            f"{folder} is a PEFT adapter of type {quoted(entries.get('peft_type'))}, and only LORA "
            f"can be merged as a LoRA; {AS_MODEL}"
        )
    entries.pop("runtime_config", None)  # it says how the adapter ran, not what it is
    _refuse_variants(folder, entries)
    _refuse_other_kinds(file, entries)
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    with reading(
        f"{file} contradicts itself", "correct it, or save the adapter again", AdapterError
    ):
        config = LoraConfig(**{key: value for key, value in entries.items() if key in known})
    _check_values(folder, config)
    return config


def task_of(config: LoraConfig) -> str:
    """PEFT's task type if it is one of :data:`TASKS`; else empty."""
    named = str(getattr(config.task_type, "value", config.task_type))
    return named if named in TASKS else ""


def scaling(config: LoraConfig, alpha: float, rank: int) -> float:
    """The factor before ``B A``: ``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA."""
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _refuse_variants(folder: Path, entries: dict[str, Any]) -> None:
    for key, value in entries.items():
        if value and key not in _UNDERSTOOD:
            reason = _REFUSED.get(key, f"this LoRA variant is not known here; {AS_MODEL}")
            raise AdapterError(f"{folder} has {_named(key)} = {quoted(value)}: {reason}")
    bias = entries.get("bias", "none")
    if bias != "none":
        raise AdapterError(
            f"{folder} has `bias` = {quoted(bias)}: biases were trained too; {AS_MODEL}"
        )
    start = entries.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _INITIALISATIONS:
        raise AdapterError(
            f"{folder} has `init_lora_weights` = {quoted(start)}, which changes the base weights "
            f"too; save it with `save_pretrained(…, path_initial_model_for_weight_conversion=…)`, "
            f"or {AS_MODEL}"
        )


def _named(key: str) -> str:
    return f"`{key}`" if key.isidentifier() else quoted(key)


def _refuse_other_kinds(file: Path, entries: Mapping[str, Any]) -> None:
    for key, (is_right, expected) in _KINDS.items():
        value = entries.get(key)
        if value is not None and not is_right(value):
            raise AdapterError(
                f"{file}: `{key}` = {quoted(value)} should be {expected}; correct it, or save the "
                f"adapter again"
            )


def _check_values(folder: Path, config: LoraConfig) -> None:
    ranks = {"r": config.r, **(config.rank_pattern or {})}
    alphas = {"lora_alpha": config.lora_alpha, **(config.alpha_pattern or {})}
    for key, rank in ranks.items():
        if type(rank) is not int or not 1 <= rank <= _LARGEST_RANK:
            raise AdapterError(
                f"{folder}: the rank {quoted(key)} = {quoted(rank)} should be a whole number > 0, "
                f"and at most {_LARGEST_RANK}; correct {CONFIG_FILE}"
            )
    for key, alpha in alphas.items():
        if type(alpha) not in (int, float) or not 0 <= alpha <= HUGEST:
            raise AdapterError(
                f"{folder}: the alpha {quoted(key)} = {quoted(alpha)} should be a number from 0 to "
                f"{HUGEST:.0e}; correct {CONFIG_FILE}"
            )
    if not config.target_modules:
        raise AdapterError(
            f"{folder} has no `target_modules`, so it may be incomplete; save it "
            f"with PEFT's `save_pretrained`"
        )
