"""Random backbones of two or more tiny blocks, one for each way of calling a block."""

from typing import Any

import torch
from torch.nn.modules.module import Module
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Phi3Config,
    Phi3Model,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

VOCABULARY = 40
WIDTH, INNER = 16, 24
SEQUENCE = 9

_SIZES = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 4}
_SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TWO = {"num_hidden_layers": 2}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 4}
_POSITIONS = {"max_position_embeddings": 32}
_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 3}

TEXT = {**_SIZES, **_SPECIAL, **_TWO, **_POSITIONS}
_SLIDES, _SEES_ALL = "sliding_attention", "full_attention"
_GEMMA = {
    **TEXT,
    **_GROUPED,
    "num_hidden_layers": 4,
    "sliding_window": 4,
    "layer_types": [_SLIDES, _SEES_ALL, _SLIDES, _SEES_ALL],
}
_GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32, **_SPECIAL}

ENCODERS = {
    "bert": lambda: BertModel(BertConfig(**TEXT), add_pooling_layer=False),
    "roberta": lambda: RobertaModel(RobertaConfig(**TEXT), add_pooling_layer=False),
}
DECODERS = {
    "llama": lambda: LlamaModel(LlamaConfig(**TEXT, **_GROUPED)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**TEXT, **_GROUPED)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**_GEMMA)),
    "mistral": lambda: MistralModel(MistralConfig(**TEXT, **_GROUPED, sliding_window=4)),
    "gpt2": lambda: GPT2Model(GPT2Config(**_GPT2)),
    "phi3": lambda: Phi3Model(Phi3Config(**TEXT, num_key_value_heads=2)),
    "gpt-neox": lambda: GPTNeoXModel(GPTNeoXConfig(**TEXT)),
}
VISION = {
    "vit": lambda: ViTModel(ViTConfig(**_SIZES, **_TWO, **_IMAGE), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(
        Dinov2Config(hidden_size=WIDTH, num_attention_heads=4, mlp_ratio=2, **_TWO, **_IMAGE)
    ),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**_SIZES, **_TWO, **_IMAGE)),
}
UNSUPPORTED = {
    "t5": lambda: T5Model(
        T5Config(
            d_model=WIDTH, d_ff=INNER, d_kv=4, num_heads=4, num_layers=2, vocab_size=VOCABULARY
        )
    ),
    "albert": lambda: AlbertModel(
        AlbertConfig(**TEXT, embedding_size=WIDTH), add_pooling_layer=False
    ),
}
MODELS = ENCODERS | DECODERS | VISION
EVERY_MODEL = sorted(MODELS)


def new_backbone(name: str) -> Any:
    """The named model with seeded random weights, in evaluation mode and without a cache."""
    torch.manual_seed(1)
    backbone = (MODELS | UNSUPPORTED)[name]().eval().requires_grad_(False)
    backbone.config.use_cache = False
    for parameter in backbone.parameters():  # biases start as zero, norms as one: hide nothing
        parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def make_batch(
    backbone: Module, padded: bool = True, side: str = "right", seed: int = 0
) -> dict[Any, Any]:
    """Three images, or three texts of which two are padded on the given side."""
    generator = torch.Generator().manual_seed(seed)
    if backbone.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (3, SEQUENCE), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row, length in ((1, 6), (2, 2)):
            mask[row, slice(length, None) if side == "right" else slice(0, -length)] = 0
        ids[mask == 0] = 0
    return {"input_ids": ids, "attention_mask": mask}
