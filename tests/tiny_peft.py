"""Random models of a few blocks, and the PEFT folders that training them would have left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from layerweld.model.base_model import BaseModel, load_base

VOCABULARY = 40
TARGETS = {
    "bert": ["query", "value", "output.dense"],
    "llama": ["q_proj", "k_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}


def new_model(family: str, blocks: int = 2) -> Any:
    """A model of the family, with a head where sites would have trained one."""
    torch.manual_seed(1)
    ends = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    depth = {"num_hidden_layers": blocks, "num_attention_heads": 4}
    if family == "bert":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
        return BertForSequenceClassification(BertConfig(**sizes, **depth, **ends)).eval()
    if family == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**sizes, **depth, **ends)).eval()
    return GPT2Model(GPT2Config(n_positions=16, n_embd=16, n_layer=blocks, n_head=2, **ends)).eval()


def save_base(family: str, folder: Path, blocks: int = 2) -> BaseModel:
    """Write the family's base model and read it as the project does."""
    new_model(family, blocks).save_pretrained(folder)
    return load_base(folder)


def train_adapter(
    model: Any,
    folder: Path | str,
    targets: list[Any] | str | list[str],
    seed: int = 0,
    **settings: Any,
) -> Any:
    """Write the PEFT folder of an adapter with random factors; return the wrapped model."""
    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 3, "lora_alpha": 5, "target_modules": targets, "init_lora_weights": False}
        | settings
    )
    wrapped = get_peft_model(model, config).eval()
    wrapped.save_pretrained(folder)
    return wrapped


def edit_config(folder: Path, **entries: Any) -> None:
    """Overwrite entries of ``adapter_config.json`` (or of a model's ``config.json``)."""
    adapter = folder / "adapter_config.json"
    file = adapter if adapter.is_file() else folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def edit_tensors(file: Any, change: Callable[..., Any]) -> None:
    """Rewrite a safetensors file after ``change(tensors)`` has altered the dictionary in place."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def lora_modules(wrapped: PeftModel) -> dict[Any, Any]:
    """The LoRA layers of a wrapped model, by their full name in the model inside."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@torch.inference_mode()
def hidden_states(model: Any) -> Any:
    """Last hidden states of a small batch with padding."""
    ids = torch.arange(14).reshape(2, 7) % VOCABULARY
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
