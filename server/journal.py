"""A run's folder on disk: what a killed server resumes from."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from layerweld.errors import JournalError
from layerweld.runtime.disk import move, raising_storage_error, writing
from layerweld.transport.site_info import SiteInfo, site_info_from
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import reading
from layerweld.untrusted.names import below
from server.kept_rounds import RoundFiles

FINISHED = "journal.finished"
"""The journal's name while it is being removed."""

_FORMAT = 2  # of all files here; 1 had files of steps and files of rounds
_HEADER = "run.json"
_LARGEST_HEADER = 256 * 2**20  # bytes: it has every site's info
_OTHER_PARAMS = "other-params"


class RunJournal:
    """One run's folder of finished rounds, and the facts that a resumed run must share with it.

    Args:
        folder: of the journal; created by :meth:`open`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._facts: dict[str, Any] = {}

    def run_id(self) -> str:
        """The identifier of the interrupted run, or a new one. Nothing is written yet.

        Raises:
            JournalError: the journal is damaged, or another version of layerweld began it.
        """
        header = self._folder / _HEADER
        if not header.is_file():
            return secrets.token_hex(8)
        remedy = f"remove {self._folder}"
        self._facts = read_json(header, JournalError, remedy, most=_LARGEST_HEADER)
        run = self._facts.get("run")
        methods, sites = self._facts.get("methods", []), self._facts.get("sites", {})
        named = [run, *methods] if isinstance(methods, list) else [None]
        if not all(map(_is_name, named)) or not isinstance(sites, dict):
            raise JournalError(
                f"{header} is damaged: it does not name a run, methods and sites; {remedy}"
            )
        if self._facts.get("format") != _FORMAT:
            raise JournalError(
                f"{self._folder} holds an interrupted run of another version of layerweld: finish "
                f"it with that version, or {remedy} to begin anew"
            )
        return str(run)

    def absent(self, came: Collection[str]) -> list[SiteInfo]:
        """Sites that the interrupted run began with and that have not come again.

        Raises:
            JournalError: their entries in the journal cannot be read.
        """
        sites = {*self._facts.get("sites", {})}
        return [self._site_info_of(name) for name in sorted(sites - {*came})]

    def site_info_of(self, site: str) -> SiteInfo | None:
        """A site's info when the interrupted run began; None if the site was not there.

        Raises:
            JournalError: its entry in the journal cannot be read.
        """
        return self._site_info_of(site) if site in self._facts.get("sites", {}) else None

    def _site_info_of(self, site: str) -> SiteInfo:
        problem = f"{self._folder / _HEADER} is damaged"
        with reading(problem, f"remove {self._folder}", JournalError):
            return site_info_from(self._facts["sites"][site])

    def remaining(self) -> set[str]:
        """Names of the sites that the interrupted run still had; none for a new run."""
        methods = self._facts.get("methods", ())
        rounds = [self.of_other_params(), *map(self.of_method, methods)]
        lost = {site for files in rounds for site in files.lost()}
        return {*self._facts.get("sites", {})} - lost

    def open(self, facts: Mapping[str, Any]) -> None:
        """Begin a journal, or check that the interrupted run was about the same things.

        Args:
            facts: JSON values by name; ``run`` among them.

        Raises:
            JournalError: the journal on disk is of other sites, settings or models.
        """
        if not self._facts:
            text = json.dumps({"format": _FORMAT, **facts}, sort_keys=True, allow_nan=False)
            with writing(self._folder / _HEADER) as partial:
                partial.write_text(text, encoding="utf-8")
            self._facts = json.loads(text)
            return
        same = json.loads(json.dumps(facts))  # tuples are lists in JSON
        other = [name for name in same if same[name] != self._facts.get(name)]
        if other:
            raise JournalError(
                f"{self._folder} holds an interrupted run with other {', '.join(other)}; finish "
                f"that one with its own settings, or remove the folder to begin anew"
            )

    def of_other_params(self) -> RoundFiles:
        """The round that averages the other parameters."""
        return RoundFiles(self._folder / _OTHER_PARAMS)

    def require_nothing_kept(self) -> None:
        """Refuse to average the other parameters again once rounds were measured with their mean.

        The sites that are left may have another one.

        Raises:
            JournalError: a method has kept rounds.
        """
        methods = self._facts.get("methods", ())
        begun = next((name for name in methods if self.of_method(name).are_there), "")
        if begun:
            raise JournalError(
                f"{self._folder / _OTHER_PARAMS} is missing or damaged, and the rounds of {begun} "
                f"were measured with what it held; remove {self._folder} to begin anew"
            )

    def of_method(self, method: str) -> RoundFiles:
        """The finished rounds of one method of the run."""
        return RoundFiles(below(self._folder, method))

    def remove(self) -> None:
        """The run is finished and written out.

        The rename is what finishes it: a journal that is only half removed is never resumed.
        """
        with raising_storage_error(self._folder):
            done = self._folder.with_name(FINISHED)
            move(self._folder, done)
            shutil.rmtree(done)


def _is_name(value: object) -> bool:
    """Whether a run's or method's name may be a folder's."""
    return (
        isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value) is not None
    )
