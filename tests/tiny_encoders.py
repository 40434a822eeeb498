"""Encoders so small that a test trains them in a second, and samples that they can learn."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
)

from client.data.samples import make_dataset
from layerweld.model.base_model import BaseModel, load_base

WORDS = ["[PAD]", "[UNK]", "[END]", "the", "a", "is", "red", "warm", "blue", "cold", "very"]
TEXTS = [f"{a} {b} is very {c}" for c in ("warm", "cold") for a in ("the", "a") for b in WORDS[3:]]
DATASET = make_dataset(TEXTS, ["fire" if "warm" in text[-4:] else "ice" for text in TEXTS])
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(folder: Path, **special: Any) -> None:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def save_model(model_class: Any, config: Any, folder: Path) -> BaseModel:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    return load_base(folder)


def save_text_base(folder: Path) -> BaseModel:
    """A BERT with a tokenizer of eleven words."""
    save_tokenizer(folder, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(WORDS), intermediate_size=64, max_position_embeddings=16, **TINY
    )
    return save_model(BertModel, config, folder)


def save_image_base(folder: Path) -> BaseModel:
    """A DINOv2 for images of four patches."""
    config = Dinov2Config(image_size=28, patch_size=14, mlp_ratio=2, **TINY)
    return save_model(Dinov2Model, config, folder)
