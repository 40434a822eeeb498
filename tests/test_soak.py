"""Two hundred runs one after the other: memory, open files and files on disk stay flat."""

import ctypes
import gc
import shutil
from pathlib import Path

import psutil
import pytest

from tests.tiny_sites import make_sites

pytestmark = pytest.mark.soak

_RUNS, _SETTLED = 200, 40


def test_nothing_grows_over_two_hundred_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = make_sites(tmp_path / "sites", ["query", "value"])
    process = psutil.Process()
    seen, hashes = [], set()
    for number in range(_RUNS):
        output = tmp_path / "out"
        hashes.add(sites.run(output).manifest_hash)
        shutil.rmtree(output)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept by the allocator, is no growth
        left = [path for path in tmp_path.rglob("*") if path.is_file()]
        seen.append((process.memory_info().rss, process.num_fds(), len(left)))
        if number % 20 == 19:
            with capsys.disabled():
                memory, files, left_over = seen[-1]
                print(f"run {number + 1}: {memory >> 20} MiB, {files} open, {left_over} on disk")
    assert len(hashes) == 1
    memory, files, left_over = zip(*seen[_SETTLED:], strict=True)  # type: ignore[assignment]
    assert max(memory) < 1.05 * memory[0]
    assert max(files) <= files[0]
    assert max(left_over) <= left_over[0]  # type: ignore[call-overload, index]
