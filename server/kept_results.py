"""Results of a comparison, on disk: an interrupted one resumes, a longer one adds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from layerweld.errors import StorageError
from layerweld.report.comparison.results import Entry
from layerweld.runtime.disk import writing
from layerweld.transport.site_info import facts_of
from layerweld.untrusted.files import contents
from layerweld.untrusted.names import below
from server.federation import Federation

Facts = Mapping[str, Any]
"""What decides a result, as JSON values."""

_FORMAT = 2  # of the files; those of another one are not found
_LARGEST = 2**28  # bytes
_ENTRY = TypeAdapter(Entry)
_COMMON = ("calibration", "finetune", "evaluate", "merge")  # tables that every method depends on


class KeptResults:
    """One file per method and seed, named by a hash over all that decides what is in it.

    Other settings, sites, adapters, packages or another base model give another name, so nothing
    from other conditions is ever found.

    Args:
        folder: of the files; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str, facts: Facts) -> Entry | None:
        """What was kept under these facts; None where that is nothing, or cannot be read."""
        file = self._file(name, facts)
        if not file.is_file():
            return None
        try:
            return _ENTRY.validate_json(contents(file, StorageError, _LARGEST))
        except (StorageError, ValidationError):
            return None  # cut short by a power failure, or of another version: run again

    def keep(self, facts: Facts, entry: Entry) -> None:
        """Write one result: it is whole or not there.

        Raises:
            StorageError: it cannot be written.
        """
        with writing(self._file(entry.result.name, facts)) as partial:
            partial.write_bytes(_ENTRY.dump_json(entry, indent=1) + b"\n")

    def _file(self, name: str, facts: Facts) -> Path:
        text = json.dumps(facts, sort_keys=True, allow_nan=False)
        return below(self._folder, f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json")


def deciding_facts(federation: Federation, name: str, tables: tuple[str, ...]) -> Facts:
    """All that decides what a method, or a reference, comes to in this federation.

    Args:
        federation: after the handshake and any fine-tuning.
        name: of the method, or ``base`` or ``individual``.
        tables: of settings that it reads beside the common ones.
    """
    settings = federation.settings.model_dump(by_alias=True)
    return {
        "format": _FORMAT,
        "name": name,
        "base": federation.base.fingerprint,
        "plan": federation.plan.digest,
        "sites": [facts_of(info) for info in federation.site_infos],
        "settings": {table: settings[table] for table in {*_COMMON, *tables}},
    }
