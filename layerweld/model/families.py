"""In what families of transformers models differ: layers, inputs, calls of blocks, parts of heads.

The rest of the package knows no architecture. A family that differs in one of these is one more
case here, and one more line in ``tests/tiny_models.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LINEAR = nn.Linear | Conv1D
"""Classes of linear layers; ``Conv1D`` is GPT-2's."""
TRANSPOSED = Conv1D
"""Those that store ``(d_in, d_out)``."""
CACHES = ("past_key_values", "cache")
"""What blocks are handed key-value caches as."""

_PROBE_TOKENS = 8
_HIDDEN = "hidden_states"
_POOLER = "pooler"


def reads_images(backbone: PreTrainedModel) -> bool:
    """Whether the model's input is pixels and not token ids."""
    name: str = backbone.main_input_name
    return name == "pixel_values"


def image_size(config: PretrainedConfig) -> tuple[int, int]:
    """Height and width of the images that a model takes, in pixels."""
    size = config.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def probe_inputs(backbone: PreTrainedModel) -> dict[str, Tensor]:
    """A made-up batch of one sample: a few token ids, or one image of the configured size."""
    config = backbone.config
    if reads_images(backbone):
        channels: int = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.zeros(1, channels, *image_size(config))}
    text_config = config.get_text_config()
    ids = torch.arange(_PROBE_TOKENS)[None] % text_config.vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def taken_apart(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The hidden states that a module is called with (None without any), and all else."""
    if args:
        return args[0], args[1:], dict(kwargs)
    others = dict(kwargs)
    return others.pop(_HIDDEN, None), (), others


def states_in(output: Any) -> Tensor:
    """The hidden states in what a block returns, ``(batch, seq, d_model)``."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def load_backbone(folder: Path) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """A model without its head, in float32: safetensors only, no remote code, no network.

    Returns:
        The model, and transformers' report of what was loaded.
    """
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    return model, report


def missing_weights(report: Mapping[str, Any]) -> list[str]:
    """Names of the weights that a model's folder lacks, and that transformers has made up.

    A pooler does not count: it is part of the heads of some classes, and no block reads it.

    Args:
        report: of :func:`load_backbone`.
    """
    return sorted(key for key in report["missing_keys"] if not key.startswith(f"{_POOLER}."))


def without_pooler(backbone: PreTrainedModel) -> None:
    """Take the pooler off a backbone, if it has one."""
    if isinstance(getattr(backbone, _POOLER, None), nn.Module):
        backbone.pooler = None


def without_made_up_pooler(backbone: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """As :func:`without_pooler`, where the model's folder has none."""
    if len(missing_weights(report)) < len(report["missing_keys"]):
        without_pooler(backbone)


def without_cache(backbone: PreTrainedModel) -> None:
    """Let no block be handed a key-value cache: it would corrupt every replay."""
    if getattr(backbone.config, "use_cache", False):
        backbone.config.use_cache = False
