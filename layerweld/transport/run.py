"""Which run a message belongs to."""

from __future__ import annotations

import re

from flwr.app import ConfigRecord, RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.transport.layout import Budget
from layerweld.transport.untrusted import read, refusing_malformed
from layerweld.untrusted.names import SITE_NAME
from layerweld.untrusted.text import quoted

ABOUT = "about"
"""The record that says what a message is about."""

FAREWELL = Budget(2**16, 8)
"""What the reply to the last message may take, which nobody reads."""


def encode_run(run: str) -> RecordDict:
    """A message that only says which run it belongs to."""
    return RecordDict({ABOUT: ConfigRecord({"run": run})})


def decode_run(content: RecordDict) -> str:
    """Which run a message belongs to.

    Raises:
        RefusedReplyError: it does not say so, or in a way that cannot name a folder.
    """
    with refusing_malformed():
        run = read(content.config_records[ABOUT], "run", str)
    if not re.fullmatch(SITE_NAME, run):
        raise RefusedReplyError(f"a run cannot be called {quoted(run)}: its name is a folder's")
    return run
