"""What a misspelled name was probably meant to be."""

from collections.abc import Sequence
from difflib import get_close_matches

_LONGEST = 64  # characters that are compared; no name of ours is longer


def listed(known: Sequence[str], typed: str) -> str:
    """The known names, for an error about an unknown one, and the closest if one is close."""
    close = get_close_matches(typed[:_LONGEST], known, n=1)
    hint = f". Did you mean {close[0]!r}?" if close else ""
    return ", ".join(known) + hint
