"""How a base model is told from another, and where it is put."""

import pytest
import torch

from layerweld.base_model import TOKENIZER_FILES, device_named, tokenizer_fingerprint
from layerweld.errors import ConfigError


def fingerprint_of(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tokenizer_fingerprint(folder)


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_folders_that_differ_in_one_tokenizer_file_differ(name, tmp_path):
    one = fingerprint_of(tmp_path / "one", **{name: b"one"})
    other = fingerprint_of(tmp_path / "other", **{name: b"other"})
    assert len({one, other, ""}) == 3
    assert one == fingerprint_of(tmp_path / "again", **{name: b"one", "README.md": b"another"})


def test_a_folder_without_tokenizer_files_has_no_fingerprint(tmp_path):
    assert fingerprint_of(tmp_path / "model", **{"config.json": b"{}"}) == ""


@pytest.mark.parametrize(
    "name", [f"cuda:{torch.cuda.device_count() + 7}", "nonsense", "cuda:-1", "cuda:x", "meta", ""]
)
def test_a_device_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(
        ConfigError, match=rf"calibration\.device = '{name}': .*`auto` always works"
    ):
        device_named(name)


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    assert device_named("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("auto") == torch.device("cuda")
