"""Which names a file or folder may have, and the one place where a name becomes a path.

A name that somebody else chose is never joined to a folder with ``/``: ``..`` and ``a/b`` are
names, too. This module does not know what the names stand for.
"""

from __future__ import annotations

import re
from pathlib import Path

from layerweld.errors import RefusedReplyError
from layerweld.untrusted.text import shown

SITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""Names that sites and runs may have: they name folders and files."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # methods have a plus in their names


def is_name(text: str) -> bool:
    """Whether a site or a run may have this name."""
    return re.fullmatch(SITE_NAME, text) is not None


def below(folder: Path, *names: str) -> Path:
    """The path of the names, one inside the other, in a folder. It never leaves the folder.

    Raises:
        RefusedReplyError: one of them is not a name: it is empty, has a separator, or begins
            with a dot.
    """
    for name in names:
        if not _PART.fullmatch(name):
            raise RefusedReplyError(
                f"{shown(name, 80)!r} cannot name a file or folder: use letters, digits and ._+-, "
                f"and begin with a letter or digit"
            )
    return folder.joinpath(*names)
