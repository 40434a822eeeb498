"""How a base model is told from another, and where it is put."""

import pytest

from layerweld.base_model import tokenizer_fingerprint

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "preprocessor_config.json",
)


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
