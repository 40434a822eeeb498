"""A transformers model folder that somebody else made, looked at before transformers opens it.

It must not claim a larger model than its files hold, or name pickled files or files outside of it.
It must not be an adapter, which would send transformers to another folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from layerweld.errors import LayerweldError
from layerweld.untrusted.documents import MOST_BYTES, read_json
from layerweld.untrusted.files import check_readable, reading
from layerweld.untrusted.tensors import opened_tensors, shape_of
from layerweld.untrusted.text import quoted

_REMEDY = "save it again with `model.save_pretrained(…)`"
_COUNTS_MODULES = re.compile(r"(layer|depth|block|expert|stage)(?!.*(size|dim|capacity)$)")
_FEWEST = 1024
"""Modules that a model may have whatever its files hold: some parts have no tensors of their own,
and one tensor may hold all experts."""
_SMALL = 10_000_000  # parameters that its files may lack: a pooler, tied or fixed embeddings


def check_model_folder(folder: Path, error: type[LayerweldError]) -> dict[str, Any]:
    """Refuse a folder that transformers must not open; return the model's ``config.json``.

    Raises:
        LayerweldError: ``error``, with the file and the way out.
    """
    check_readable(folder, error)
    config = read_json(folder / "config.json", error, _REMEDY)
    if (folder / "adapter_config.json").exists():
        raise error(f"{folder} holds an adapter (adapter_config.json); give a model folder instead")
    _check_index(folder, error)
    tensors, numbers = 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        with opened_tensors(file, "copy or save the model again", error) as opened:
            for name in opened.keys():  # noqa: SIM118
                tensors, numbers = tensors + 1, numbers + prod(shape_of(opened, name))
    _check_counts(folder / "config.json", config, tensors, error)
    if not config.get("quantization_config"):  # whose files hold packed numbers
        _check_size(folder, numbers, error)
    return config


def _check_index(folder: Path, error: type[LayerweldError]) -> None:
    file = folder / "model.safetensors.index.json"
    if not file.exists():
        return
    shards = read_json(file, error, _REMEDY, most=4 * MOST_BYTES).get("weight_map")
    if not isinstance(shards, dict):
        raise error(f"{file} names no files (`weight_map`); {_REMEDY}")
    for shard in set(map(str, shards.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise error(
                f"{file} names {quoted(shard)}, not a safetensors file beside it; {_REMEDY}"
            )


def _check_counts(
    file: Path, config: dict[str, Any], tensors: int, error: type[LayerweldError]
) -> None:
    """Refuse a model of too many modules: building them takes time and memory before any weight."""
    for key, value in _entries(config):
        if _COUNTS_MODULES.search(key) and value > max(_FEWEST, tensors):
            raise error(
                f"{file}: {quoted(key)} = {quoted(value)}, but the folder has {tensors} tensors; "
                f"{_REMEDY}"
            )


def _entries(config: Any) -> Iterator[tuple[str, float]]:
    """All numbers of the configuration, with their keys."""
    waiting = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(inner), item) for inner, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, int | float):
            yield key, value


def _check_size(folder: Path, numbers: int, error: type[LayerweldError]) -> None:
    """Refuse a model larger than its files: transformers would make up the rest, in memory."""
    import torch
    from transformers import AutoConfig, AutoModel

    problem = f"{folder} is not a model that transformers itself can load"
    with reading(problem, _REMEDY, error), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_config(config, trust_remote_code=False)
        claimed = sum(parameter.numel() for parameter in model.parameters())
    if claimed > 2 * numbers + _SMALL:
        raise error(
            f"{folder}: config.json claims {claimed} parameters, but the files hold {numbers}; "
            f"{_REMEDY}"
        )
