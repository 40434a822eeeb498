"""Files of the user's that this process may not read are called that, and not damaged."""

import os

import pytest

from client.data import read_rows
from layerweld.base_model import load_base
from layerweld.config import RunSettings
from layerweld.errors import AdapterError, ConfigError, DataError
from layerweld.task_vectors import read_fine_tuned
from tests.tiny_sites import make_sites


@pytest.fixture
def sites(tmp_path):
    return make_sites(tmp_path, ["query"])


@pytest.fixture
def forbid(monkeypatch):
    """Let the system refuse one file, as it does to all but root."""
    access = os.access

    def forbid(file):
        monkeypatch.setattr(os, "access", lambda path, mode: path != file and access(path, mode))

    return forbid


def test_a_file_that_may_not_be_read_is_named_with_the_way_out(sites, forbid, tmp_path):
    base = load_base(sites.base)
    for file, error, read in (
        (tmp_path / "ash.jsonl", DataError,
         lambda: read_rows(tmp_path / "ash.jsonl", RunSettings().calibration, False)),
        (tmp_path / "ash" / "adapter_model.safetensors", AdapterError,
         lambda: read_fine_tuned(tmp_path / "ash", base)),
        (sites.base / "model.safetensors", ConfigError, lambda: load_base(sites.base)),
    ):  # fmt: skip
        forbid(file)
        with pytest.raises(error, match=rf"{file.name} may not be read by this user; change its"):
            read()
