"""Solved steps on disk: what a killed server goes on from."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from layerweld.disk import reported, writing
from layerweld.errors import JournalError
from layerweld.named_tensors import update_tensors, updates_from
from layerweld.pool import GroupSolution
from layerweld.progress import report_progress
from layerweld.transport.introduction import introduction_from
from layerweld.transport.messages import Introduction
from server.hashed_files import read_hashed, write_hashed
from server.round_journal import RoundFiles
from strategies.chain_of_merges import SolvedStep

FINISHED = "journal.finished"
"""What the journal is called while it is being removed."""

_HEADER = "run.json"
_REMAINDER = "remainder.safetensors"


class RunJournal:
    """One run's folder of solved steps, and the facts that a resumed run must share with it.

    Args:
        folder: of the journal; created by :meth:`open`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._facts: dict[str, Any] = {}

    def run_id(self) -> str:
        """The identifier of the interrupted run, or a new one. Nothing is written yet."""
        header = self._folder / _HEADER
        if not header.is_file():
            return secrets.token_hex(8)
        try:
            self._facts = json.loads(header.read_text())
            run: str = self._facts["run"]
        except (ValueError, TypeError, KeyError) as error:
            raise JournalError(f"{header} is damaged ({error}); remove {self._folder}") from None
        return run

    def lost_introductions(self, came: Collection[str]) -> list[Introduction]:
        """Sites that the interrupted run had lost and that have not come again.

        Raises:
            JournalError: what the journal says of them cannot be read.
        """
        sites = self._facts.get("sites", {})
        try:
            return [introduction_from(sites[n]) for n in self._lost() if n not in came]
        except (KeyError, TypeError) as error:
            raise JournalError(f"{self._folder / _HEADER} is damaged: {error}") from None

    def open(self, facts: Mapping[str, Any]) -> None:
        """Begin a journal, or check that the interrupted run was about the same things.

        Args:
            facts: JSON values by name; ``run`` among them.

        Raises:
            JournalError: the journal on disk is of other sites, settings or models.
        """
        if not self._facts:
            text = json.dumps(facts, sort_keys=True)
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

    def keep_remainder(self, remainder: Mapping[str, Tensor]) -> None:
        """Keep the averaged remainder: every step of the run is measured behind just this one."""
        write_hashed(self._folder / _REMAINDER, remainder, {})

    def load_remainder(self) -> dict[str, Tensor] | None:
        """The kept remainder; None where the run was interrupted before there was one.

        Raises:
            JournalError: the file is damaged.
        """
        file = self._folder / _REMAINDER
        return read_hashed(file)[0] if file.is_file() else None

    def of_method(self, method: str) -> StepJournal:
        """The steps of one chain of the run."""
        return StepJournal(self._folder / method)

    def rounds_of(self, method: str) -> RoundFiles:
        """The rounds of one method that is no chain."""
        return RoundFiles(self._folder / method)

    def remove(self) -> None:
        """The run is finished and written out.

        The rename is what finishes it: a journal that is only half removed is never resumed.
        """
        with reported(self._folder):
            done = self._folder.with_name(FINISHED)
            self._folder.replace(done)
            shutil.rmtree(done)

    def _lost(self) -> list[str]:
        methods = self._facts.get("methods", ())
        steps = [step.lost for name in methods for step in self.of_method(name).load()]
        rounds = [kept.lost for name in methods for kept in self.rounds_of(name).load()]
        return sorted({site for lost in (*steps, *rounds) for site in lost})


class StepJournal:
    """The solved steps of one method, one checked file each.

    Args:
        folder: of the steps; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> Sequence[SolvedStep]:
        """Every kept step in order.

        A last file that does not match its hash was being written when the power went: it is left
        out, and that step is solved again.

        Raises:
            JournalError: an earlier file is damaged or missing.
        """
        files = sorted(self._folder.glob("step-*.safetensors"))
        steps: list[SolvedStep] = []
        for file in files:
            try:
                steps.append(_read_step(file))
            except JournalError as error:
                if file != files[-1]:
                    raise
                report_progress(f"{error}: that step is solved again", 0, 0)
        for index, step in enumerate(steps):
            if step.index != index:
                raise JournalError(
                    f"{self._folder} lacks step {index}; remove the later files to go on from it"
                )
        return steps

    def keep(self, step: SolvedStep) -> None:
        """Write one step: it is whole or not there.

        Raises:
            StorageError: it cannot be written; the steps before it are untouched.
        """
        file = self._folder / f"step-{step.index:04d}.safetensors"
        figures = {
            "index": step.index,
            "bytes_up": step.bytes_up,
            "bytes_down": step.bytes_down,
            "lost": step.lost,
            "solutions": [_figures(solution) for solution in step.solutions],
        }
        text = json.dumps(figures, sort_keys=True)
        write_hashed(file, update_tensors(step.updates), {"figures": text})


def _figures(solution: GroupSolution) -> dict[str, Any]:
    about = {key: value for key, value in vars(solution).items() if key != "updates"}
    return about | {"layers": list(solution.updates)}


def _read_step(file: Path) -> SolvedStep:
    tensors, metadata = read_hashed(file)
    try:
        figures = json.loads(metadata["figures"])
        updates = updates_from(tensors)
        solutions = []
        for about in figures["solutions"]:
            layers = about.pop("layers")
            solutions.append(GroupSolution(updates={k: updates[k] for k in layers}, **about))
        return SolvedStep(
            figures["index"],
            tuple(solutions),
            figures["bytes_up"],
            figures["bytes_down"],
            tuple(figures["lost"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(
            f"{file} cannot be read ({error}); remove it to solve that step again"
        ) from None
