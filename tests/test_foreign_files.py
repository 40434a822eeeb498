"""Files of the user's that this process may not read are called that, and not damaged."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.data.samples import read_dataset
from layerweld.errors import AdapterError, ConfigError, DataError, MemoryShortageError
from layerweld.formats.adapters import read_fine_tuned
from layerweld.model.base_model import load_base
from layerweld.settings.run import RunSettings
from layerweld.untrusted.files import reading
from tests.tiny_sites import TinySites, make_sites


@pytest.fixture
def sites(tmp_path: Path) -> TinySites:
    return make_sites(tmp_path, ["query"])


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the system refuse one file, as it does to all but root."""
    access = os.access

    def forbid(file: Path) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: path != file and access(path, mode))

    return forbid


def files_of(sites: TinySites) -> list[tuple[Path, type[Exception], Callable[[], Any]]]:
    """A file of each kind, the error that names it, and what reads it."""
    base, data, adapter = load_base(sites.base), sites.folder / "ash.jsonl", sites.folder / "ash"
    calibration = RunSettings().calibration
    return [
        (data, DataError, lambda: read_dataset(data, calibration, reads_images=False)),
        (
            adapter / "adapter_model.safetensors",
            AdapterError,
            lambda: read_fine_tuned(adapter, base),
        ),
        (sites.base / "model.safetensors", ConfigError, lambda: load_base(sites.base)),
    ]


def test_a_file_that_may_not_be_read_is_named_with_the_way_out(
    sites: TinySites, forbid: Callable[..., None], tmp_path: Path
) -> None:
    for file, error, read in files_of(sites):
        forbid(file)
        with pytest.raises(error, match=rf"{file.name}: permission denied; change its"):
            read()


def test_a_pointer_of_git_lfs_is_called_that(sites: TinySites, tmp_path: Path) -> None:
    pointer = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 9\n"
    )
    for file, error, read in files_of(sites):
        file.write_bytes(pointer)
        with pytest.raises(error, match=rf"{file.name} is only a Git LFS pointer .*git lfs pull"):
            read()


class PanicException(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("raised", [RecursionError(), OverflowError("a"), PanicException("b\nc")])
def test_whatever_a_library_raises_about_a_file_is_one_line_of_ours(raised: Any) -> None:
    with pytest.raises(DataError, match=r"^f is damaged \(.*\); mend it$") as caught:  # noqa: SIM117
        with reading("f is damaged", "mend it", DataError):
            raise raised
    assert "\n" not in str(caught.value)


def test_a_lack_of_memory_names_the_file_that_may_claim_too_much() -> None:
    with pytest.raises(MemoryShortageError, match=r"out of memory.*or f is damaged"):  # noqa: SIM117
        with reading("f is damaged", "mend it", DataError):
            raise MemoryError


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_damage(raised: Any) -> None:
    with pytest.raises(raised), reading("f is damaged", "mend it", DataError):
        raise raised
