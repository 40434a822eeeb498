"""What may be the name of a file or folder, and the one place where a name becomes a path.

A name that somebody else chose is never joined to a folder with ``/``: ``..`` and ``a/b`` are
names, too. Knows nothing of what the names are of.
"""

from __future__ import annotations

import re
from pathlib import Path

from layerweld.errors import RefusedReplyError
from layerweld.untrusted.text import shown

SITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""What sites and runs may be called: these are names of folders and files."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # methods have a plus in their names


def is_name(text: str) -> bool:
    """Whether a site or a run may be called so."""
    return re.fullmatch(SITE_NAME, text) is not None


def below(folder: Path, *names: str) -> Path:
    """The path that the names, one inside the other, have in a folder; always inside of it.

    Raises:
        RefusedReplyError: one of them is no name: empty, with a separator, or beginning with a dot.
    """
    for name in names:
        if not _PART.fullmatch(name):
            raise RefusedReplyError(
                f"{shown(name, 80)!r} cannot name a file or folder: letters, digits and ._+- can, "
                f"and the first is a letter or digit"
            )
    return folder.joinpath(*names)
