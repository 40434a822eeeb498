"""What a site was asked and what it sent, a line each, in a file of its own."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from layerweld.runtime.incidents import REPLIES
from layerweld.untrusted.text import shown

_LONGEST = 200  # characters of a request
_LARGEST = 2**20  # bytes; an older file is kept beside it


def note_reply(folder: Path, asked: str, answered: str, seconds: float) -> None:
    """Append one line.

    A disk that is full or read-only keeps no line; what needs that disk says so itself.

    Args:
        folder: of the site's logs.
        asked: the request, as the coordinator calls it.
        answered: what was sent, or under which number the failure is kept.
        seconds: that it took.
    """
    file = folder / REPLIES
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.stat().st_size > _LARGEST:
            file.replace(file.with_suffix(".old.log"))
        with file.open("a", encoding="utf-8") as log:
            # The coordinator's words: one line of them.
            what = shown(" ".join(asked.split()), _LONGEST)
            log.write(f"{now}  {what}: {shown(answered)} in {seconds:.1f} s\n")
    except OSError:
        with suppress(OSError):
            if not file.stat().st_size:
                file.unlink()
