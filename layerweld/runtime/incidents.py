"""What a site says when it fails: a code from a closed list and a number, never the error's text.

An error's text may quote a sample of the site's data. In full it goes into a file at the site. The
coordinator learns the code, and the number by which the site's people find that file.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

from layerweld.errors import (
    AdapterError,
    AdapterLostError,
    CohortError,
    ConfigError,
    DataError,
    InUseError,
    PlanError,
    RefusedReplyError,
    StorageError,
    UnusableMergeError,
)
from layerweld.out_of_memory import is_out_of_memory
from layerweld.untrusted.paths import refused_path
from layerweld.untrusted.text import shown_lines


class Code(IntEnum):
    """Every reason a site may give.

    The hundreds: 1 configuration, 2 input, 3 statistics, 4 network, 5 storage and memory, 6 the
    site's policy, 9 unforeseen.
    """

    CONFIGURATION = 101, "its configuration is wrong"
    ADAPTER = 201, "its adapter or model folder cannot be used"
    DATA = 202, "its data cannot be used"
    MODEL = 203, "its base model cannot be cut into layer groups as asked"
    ADAPTER_LOST = 204, "the adapter that it trained is gone from its cache, or damaged"
    NOT_FINITE = 205, "its model gives numbers on its samples that are not finite"
    REQUEST = 301, "the request does not fit its model or its state"
    NETWORK = 401, "its connection failed"
    DISK_FULL = 501, "its disk is full"
    FILE = 502, "a file or folder cannot be read or written there"
    IN_USE = 503, "another process is using its cache folder"
    MEMORY = 505, "it ran out of memory"
    COHORT = 601, "its own policy does not let it take part"
    UNFORESEEN = 900, "it failed in an unforeseen way"

    meaning: str
    """For humans, about the site."""

    def __new__(cls, number: int, meaning: str) -> Self:  # noqa: D102
        code = int.__new__(cls, number)
        code._value_, code.meaning = number, meaning
        return code

    @property
    def is_lasting(self) -> bool:
        """Whether the site will fail again until one of its people changes something."""
        return self // 100 in (1, 2, 6) and self is not Code.ADAPTER_LOST


# The first entry that fits counts: subclasses before their bases.
_KINDS: tuple[tuple[type[BaseException], Code], ...] = (
    (ConfigError, Code.CONFIGURATION),
    (AdapterLostError, Code.ADAPTER_LOST),
    (UnusableMergeError, Code.NOT_FINITE),
    (AdapterError, Code.ADAPTER),
    (DataError, Code.DATA),
    (PlanError, Code.MODEL),
    (RefusedReplyError, Code.REQUEST),
    (InUseError, Code.IN_USE),
    (CohortError, Code.COHORT),
    (ConnectionError, Code.NETWORK),
    (TimeoutError, Code.NETWORK),
    (StorageError, Code.FILE),
    (OSError, Code.FILE),
)

REPLIES = "replies.log"
"""What a site was asked and what it sent, beside the logs of its incidents."""

_LONGEST = 2**20  # characters of one incident
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEXT = re.compile(r"E(?P<code>[1-9][0-9]{2}) incident (?P<number>[0-9a-f]{16})")


@dataclass(frozen=True)
class Incident:
    """One failure at one site, as far as the coordinator may know it.

    Attributes:
        code: why.
        number: random; names the file at the site.
    """

    code: Code
    number: str

    def __str__(self) -> str:
        return f"E{int(self.code)} incident {self.number}"


def code_of(error: BaseException) -> Code:
    """The code that stands for an error."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return Code.DISK_FULL
    if is_out_of_memory(error):
        return Code.MEMORY
    unforeseen = Code.FILE if refused_path(error) else Code.UNFORESEEN
    return next((code for kind, code in _KINDS if isinstance(error, kind)), unforeseen)


def parse_incident(text: str | None) -> Incident | None:
    """The incident that a reply reports; None for text that no :class:`Incident` gives."""
    match = _TEXT.fullmatch(text or "")
    code = next((code for code in Code if match and code == int(match["code"])), None)
    return Incident(code, match["number"]) if match and code else None


def record_incident(error: BaseException, folder: Path) -> Incident:
    """Write an error in full to ``folder/<number>.log`` at the site, for its owner's eyes only.

    Where that cannot be written either, the text goes to the process's own standard error, which
    stays at the site as well, and no part of it is left in the folder.
    """
    incident = Incident(code_of(error), secrets.token_hex(8))
    text = f"{incident}\n" + shown_lines("".join(traceback.format_exception(error)), _LONGEST)
    log = folder / f"{incident.number}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        print(text, file=sys.stderr)
        with suppress(OSError):
            log.unlink(missing_ok=True)
    return incident


_raises_here: ContextVar[bool] = ContextVar("layerweld_raises_here", default=False)


@contextmanager
def raising_here() -> Iterator[None]:
    """Within, a site's errors are raised as they are: one person runs site and server."""
    token = _raises_here.set(True)
    try:
        yield
    finally:
        _raises_here.reset(token)


def raises_here() -> bool:
    """Whether :func:`raising_here` is in force."""
    return _raises_here.get()
