"""Out of memory, under one name: Python, torch and accelerators each raise their own error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from layerweld.errors import MemoryShortageError

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch's, in the text of a plain RuntimeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine or its accelerator has no memory left."""
    if isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error):
        return True
    accelerators = type(error).__name__ == "OutOfMemoryError"  # torch need not be imported here
    return accelerators or isinstance(error, MemoryError | MemoryShortageError)


@contextmanager
def raising_memory_shortage() -> Iterator[None]:
    """Turn every out-of-memory error into ours, so that nothing takes it for damaged input.

    Raises:
        MemoryShortageError: memory has run out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or "MemoryError"
        raise MemoryShortageError(f"out of memory ({reason})") from error
