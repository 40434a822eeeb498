"""No file that somebody else made ends a process, hangs it, fills its memory or shows a traceback.

The files are read in a process of its own (:mod:`tests.fuzzed_readers`, :mod:`tests.bombs`), whose
death is a failure. ``LAYERWELD_FUZZ=1000`` tries as many damaged files of each kind, and all bombs.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layerweld.runtime.app_path import app_folder
from tests.bombs import BOMBS
from tests.fuzzed_readers import LONGEST, READERS

FUZZ = int(os.environ.get("LAYERWELD_FUZZ", "15"))
LONG = "LAYERWELD_FUZZ" in os.environ


def reported(*command: str | Path | int) -> list[Any]:
    """What a process says of each reader or bomb; it must come to its end."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=app_folder(),
        capture_output=True,
        text=True,
        timeout=120 + 60 * FUZZ,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_damaged_file_is_read_or_refused_by_its_name(tmp_path: Path) -> None:
    found = reported("tests.fuzzed_readers", tmp_path / "fuzzed", 0, FUZZ)
    for one in found:
        print(one)
        assert one["broken"] == [], one["reader"]
        assert one["tried"] == one["read"] + one["refused"] == FUZZ
        assert one["grown"] < 300, f"{one['reader']}: {one['grown']} MiB"
    assert len(found) == len(READERS)
    assert sum(one["refused"] for one in found) > len(found) * FUZZ / 3  # the damage is real


def test_a_small_file_that_claims_to_be_large_takes_little_time_and_memory(tmp_path: Path) -> None:
    found = reported("tests.bombs", tmp_path / "bombs", *([] if LONG else ["quick"]))
    for one in found:
        print(one)
        assert not one["ended"].startswith("broken"), one
        assert one["seconds"] < 3 * LONGEST, one
        assert one["grown"] < 700, one
    assert len(found) > len(BOMBS) / 2


@pytest.mark.parametrize("reader", ["data.jsonl", "adapter_config.json", "run.toml"])
def test_the_same_seed_makes_the_same_damage(reader: str, tmp_path: Path) -> None:
    file, damage, _ = READERS[reader](tmp_path)
    whole = file.read_bytes()
    one, again, other = (damage(whole, random.Random(seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
