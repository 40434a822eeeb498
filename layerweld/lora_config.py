"""Read PEFT's ``adapter_config.json`` and refuse, by name, what is more than ``scaling · B A``."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from layerweld.errors import AdapterError

CONFIG_FILE = "adapter_config.json"

AS_MODEL = (
    "merge it into its model (`merge_and_unload()`, then `save_pretrained(…)`) and give that "
    "model folder instead"
)

_AS_LORA = "train a plain LoRA adapter instead"

# Fields that leave `W_0 + scaling · B A` as it is, or that are read in this module.
_UNDERSTOOD = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "velora_config",
}

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

# The other initialisations (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) change the base weights as well.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")


TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION")
"""Task types that a merge keeps. With others PEFT expects a head, and heads stay at the sites."""


def read_lora_config(folder: Path) -> LoraConfig:
    """The adapter's configuration, known to describe plain LoRA or rsLoRA.

    Raises:
        AdapterError: the file is unreadable, or it asks for something that ``scaling · B A`` on
            linear layers does not cover; the message names the setting and the way out.
    """
    entries = _read_entries(folder / CONFIG_FILE)
    if entries.get("peft_type") != "LORA":
        raise AdapterError(
            f"{folder} is a PEFT adapter of type {entries.get('peft_type')!r}, and only LORA can "
            f"be merged as a LoRA; {AS_MODEL}"
        )
    entries.pop("runtime_config", None)  # how it ran, not what it is
    _refuse_variants(folder, entries)
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    try:
        config = LoraConfig(**{key: value for key, value in entries.items() if key in known})
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG_FILE} contradicts itself: {error}") from error
    _check_values(folder, config)
    return config


def task_of(config: LoraConfig) -> str:
    """PEFT's task type, if it is one of :data:`TASKS`; else empty."""
    named = str(getattr(config.task_type, "value", config.task_type))
    return named if named in TASKS else ""


def rank_of(config: LoraConfig, layer: str) -> int:
    """The rank that the configuration gives to a layer, by its full name in the wrapped model."""
    patterns = config.rank_pattern or {}
    rank: int = patterns.get(get_pattern_key(patterns, layer), config.r)
    return rank


def scaling_of(config: LoraConfig, layer: str) -> float:
    """The factor before ``B A``: ``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA."""
    patterns = config.alpha_pattern or {}
    alpha: float = patterns.get(get_pattern_key(patterns, layer), config.lora_alpha)
    rank = rank_of(config, layer)
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def targeted(config: LoraConfig, layers: Iterable[str]) -> set[str]:
    """Those of the layers (full names in the wrapped model) that PEFT would adapt."""
    if config.target_modules == "all-linear":
        return set(layers)
    return {layer for layer in layers if check_target_module_exists(config, layer)}


def _read_entries(file: Path) -> dict[str, Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} cannot be read ({error}); save the adapter again") from error
    if not isinstance(entries, dict):
        raise AdapterError(f"{file} holds no JSON object; save the adapter again")
    return entries


def _refuse_variants(folder: Path, entries: dict[str, Any]) -> None:
    for key, value in entries.items():
        if value and key not in _UNDERSTOOD:
            reason = _REFUSED.get(key, f"this LoRA variant is not known here; {AS_MODEL}")
            raise AdapterError(f"{folder} has `{key}` = {value!r}: {reason}")
    bias = entries.get("bias", "none")
    if bias != "none":
        raise AdapterError(f"{folder} has `bias` = {bias!r}: biases were trained too; {AS_MODEL}")
    start = entries.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _INITIALISATIONS:
        raise AdapterError(
            f"{folder} has `init_lora_weights` = {start!r}, which changes the base weights too; "
            f"save it with `save_pretrained(…, path_initial_model_for_weight_conversion=…)`, or "
            f"{AS_MODEL}"
        )


def _check_values(folder: Path, config: LoraConfig) -> None:
    ranks = {"r": config.r, **(config.rank_pattern or {})}
    alphas = {"lora_alpha": config.lora_alpha, **(config.alpha_pattern or {})}
    for key, rank in ranks.items():
        if not isinstance(rank, int) or rank < 1:
            raise AdapterError(
                f"{folder}: the rank {key!r} = {rank!r} should be a whole number > 0"
            )
    for key, alpha in alphas.items():
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise AdapterError(f"{folder}: the alpha {key!r} = {alpha!r} should be a number")
    if not config.target_modules:
        raise AdapterError(
            f"{folder} has no `target_modules`, so nobody can say whether it is complete; save it "
            f"with PEFT's `save_pretrained`"
        )
    if isinstance(config.target_modules, str):
        _check_pattern(folder, config.target_modules)
    for pattern in (*(config.rank_pattern or {}), *(config.alpha_pattern or {})):
        _check_pattern(folder, pattern)


def _check_pattern(folder: Path, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterError(
            f"{folder}: {pattern!r} is no regular expression ({error}); correct {CONFIG_FILE}"
        ) from error
