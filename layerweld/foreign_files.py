"""Files that other libraries read: whatever they make of a damaged one becomes an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from layerweld.errors import LayerweldError
from layerweld.memory import naming_memory

_LONGEST_REASON = 300  # characters; some libraries list everything they know


@contextmanager
def reading(problem: str, remedy: str, error: type[LayerweldError]) -> Iterator[None]:
    """Let a library read files of the user's inside of this.

    The libraries have no class of their own for a file that is not what it should be: tokenizers
    raises ``Exception`` itself, and transformers whatever its code runs into first.

    Args:
        problem: what is wrong with which file, should the library fail.
        remedy: the way out.
        error: to raise.

    Raises:
        LayerweldError: ``error`` with the library's reason, or one that the body raises itself;
            lack of memory under its own name.
    """
    try:
        with naming_memory():
            yield
    except LayerweldError:
        raise
    except Exception as raised:
        raise error(f"{problem} ({_reason(raised)}); {remedy}") from raised


def _reason(raised: Exception) -> str:
    text = " ".join(str(raised).split())[:_LONGEST_REASON]
    return f"{type(raised).__name__}: {text}" if text else type(raised).__name__
