"""The last message of a run: a site forgets it."""

from __future__ import annotations

from layerweld.transport.layout import Budget

END_OF_RUN = "query.finished"
"""Flower's type of the message; its request says no more than what it is about."""

END_OF_RUN_BUDGET = Budget(2**16, 8)
"""What the reply may take; nothing reads it."""
