"""The base model that all sites started from: loaded, named and fingerprinted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from layerweld.errors import ConfigError
from layerweld.model.families import (
    load_backbone,
    missing_weights,
    reads_images,
    without_cache,
    without_pooler,
)
from layerweld.model.folder import check_model_folder
from layerweld.untrusted.files import add_to_hash, opened_file, reading, refuse_larger
from layerweld.untrusted.text import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "preprocessor_config.json", "sentencepiece.bpe.model",
    "special_tokens_map.json", "spiece.model", "spm.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
"""The files that decide which tokens a text, or which pixels an image, becomes."""
_LARGEST_TOKENIZER = 256 * 2**20  # bytes of one of its files; vocabularies of 256,000 words have 35


@dataclass(frozen=True)
class BaseModel:
    """The backbone without a task head, in float32 and in evaluation mode.

    Attributes:
        folder: the transformers model folder that it was read from.
        backbone: the model; layer names in this project are names of its modules.
        name: what cards and adapter configurations call it: a hub name, or the folder's.
    """

    folder: Path
    backbone: PreTrainedModel
    name: str

    @property
    def prefix(self) -> str:
        """What transformers puts before a backbone name once a head is on top, e.g. ``bert.``."""
        prefix: str = getattr(self.backbone, "base_model_prefix", "")
        return f"{prefix}." if prefix else ""

    @property
    def reads_images(self) -> bool:
        """Whether the model's input is pixels and not token ids."""
        return reads_images(self.backbone)

    @property
    def d_model(self) -> int:
        """Width of the hidden states."""
        width: int = self.backbone.config.hidden_size
        return width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every parameter's name, dtype, shape and bytes."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.backbone.named_parameters()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            values = parameter.detach().cpu().flatten().contiguous()
            digest.update(values.view(torch.uint8).numpy().data if values.numel() else b"")
        return digest.hexdigest()


def load_base(folder: str | Path, name: str = "") -> BaseModel:
    """Read a transformers model folder: safetensors only, no remote code, no network.

    Args:
        folder: of the model.
        name: what to call it; empty for the name of the folder.

    Raises:
        ConfigError: the folder is missing, is not a model, or would have to be unpickled.
    """
    from transformers import logging

    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} is not a model folder: it has no config.json")
    if not any(path.glob("*.safetensors")):
        raise ConfigError(
            f"{path} has no *.safetensors; convert it once with "
            f"`AutoModel.from_pretrained(…).save_pretrained(…)`"
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    check_model_folder(path, ConfigError)
    problem = f"{path} is not a model that transformers itself can load"
    with reading(problem, "save it again with `model.save_pretrained(…)`", ConfigError):
        backbone, report = load_backbone(path)
    drawn = missing_weights(report)
    if drawn:  # transformers has just made them up at random
        raise ConfigError(
            f"{path} lacks {len(drawn)} of its model's weights, such as {quoted(drawn[0])}; copy "
            f"the whole folder again"
        )
    for name_of, parameter in backbone.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ConfigError(f"{path}: {name_of!r} holds NaN or infinity; give another base model")
    without_pooler(backbone)
    without_cache(backbone)
    return BaseModel(path, backbone.eval().requires_grad_(False), name or path.resolve().name)


def device_named(name: str) -> torch.device:
    """The device of a name; ``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch does not know the name, or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("meta"):
        raise ConfigError(
            f"calibration.device = {name!r}: this device computes nothing; `auto` always works"
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"calibration.device = {name!r}: {reason}; `auto` always works") from None


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the tokenizer's or image processor's files; empty if there are none."""
    files = tokenizer_files(folder)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        add_to_hash(digest, file, ConfigError, _LARGEST_TOKENIZER)
    return digest.hexdigest() if files else ""


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's or image processor's files that exist, each safe to give to a library.

    Raises:
        ConfigError: one is larger than any such file, not a plain file, or not readable.
    """
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    for file in files:
        with opened_file(file, ConfigError) as opened:
            refuse_larger(file, opened, ConfigError, _LARGEST_TOKENIZER)
    return files
