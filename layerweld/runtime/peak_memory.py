"""Peak resident memory of this process while something runs, as the kernel counts it (Linux)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_RESET_HIGH_WATER_MARK = "5"  # proc(5), /proc/pid/clear_refs


@contextmanager
def peak_resident(process: Path = Path("/proc/self")) -> Iterator[Callable[[], int | None]]:
    """Measure a block of code.

    Tensors and files mapped into memory count, and so does whatever was resident before: server and
    sites of an in-process run are one process.

    Yields:
        Asked inside of the block or after it, the largest number of bytes since it began; None
        where the kernel does not tell.
    """
    reset = process / "clear_refs"
    if reset.exists():
        reset.write_text(_RESET_HIGH_WATER_MARK)
    yield lambda: _high_water_mark(process / "status")


def _high_water_mark(status: Path) -> int | None:
    if not status.exists():
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
