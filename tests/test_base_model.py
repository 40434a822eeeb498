"""How a base model is told from another, and where it is put."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerweld.errors import ConfigError
from layerweld.model.base_model import (
    TOKENIZER_FILES,
    device_named,
    load_base,
    tokenizer_fingerprint,
)
from tests.tiny_peft import save_base


def fingerprint_of(folder: Path, **files: Any) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tokenizer_fingerprint(folder)


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_folders_that_differ_in_one_tokenizer_file_differ(name: Any, tmp_path: Path) -> None:
    one = fingerprint_of(tmp_path / "one", **{name: b"one"})
    other = fingerprint_of(tmp_path / "other", **{name: b"other"})
    assert len({one, other, ""}) == 3
    assert one == fingerprint_of(tmp_path / "again", **{name: b"one", "README.md": b"another"})


def test_a_folder_without_tokenizer_files_has_no_fingerprint(tmp_path: Path) -> None:
    assert fingerprint_of(tmp_path / "model", **{"config.json": b"{}"}) == ""


@pytest.mark.parametrize(
    "name", [f"cuda:{torch.cuda.device_count() + 7}", "nonsense", "cuda:-1", "cuda:x", "meta", ""]
)
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"calibration\.device = '{name}': .*`auto` always works"
    ):
        device_named(name)


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("family", "layer"),
    [("bert", "query.weight"), ("llama", "q_proj.weight"), ("gpt2", "c_attn.weight")],
)
def test_weights_that_a_folder_lacks_are_not_drawn_at_random(
    tmp_path: Path, family: str, layer: str
) -> None:
    save_base(family, tmp_path, 2)
    load_base(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    lost = max(name for name in tensors if name.endswith(layer))
    save_file({k: v for k, v in tensors.items() if k != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"lacks 1 of its model's weights, .*{layer}"):
        load_base(tmp_path)
