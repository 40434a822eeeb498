"""What a run says while it stands still."""

from __future__ import annotations

import logging

from flwr.supercore import log

from layerweld.runtime.progress import report_progress
from layerweld.untrusted.text import shown

_LONGEST = 2000  # characters; sites and Flower have a say in them


def notice(text: str) -> None:
    """To whoever shows progress, and to Flower's log, which is all that a deployment has."""
    report_progress(text, 0, 0)
    log(logging.WARNING, shown(text, _LONGEST))


def tell(text: str) -> None:
    """To Flower's log alone: whoever watches progress sees how far it is."""
    log(logging.INFO, shown(text, _LONGEST))
