"""Solved steps on disk: what a killed server goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from layerweld.errors import JournalError
from layerweld.pool import GroupSolution
from layerweld.transport import update_tensors, updates_from
from strategies.chain_of_merges import SolvedStep

_HEADER = "run.json"


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
        except (json.JSONDecodeError, KeyError) as error:
            raise JournalError(f"{header} is damaged ({error}); remove {self._folder}") from None
        return run

    def open(self, facts: Mapping[str, Any]) -> None:
        """Begin a journal, or check that the interrupted run was about the same things.

        Args:
            facts: JSON values by name; ``run`` among them.

        Raises:
            JournalError: the journal on disk is of other sites, settings or models.
        """
        if not self._facts:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_whole(self._folder / _HEADER, json.dumps(facts, sort_keys=True).encode())
            self._facts = dict(facts)
            return
        other = [name for name in facts if facts[name] != self._facts.get(name)]
        if other:
            raise JournalError(
                f"{self._folder} holds an interrupted run with other {', '.join(other)}; finish "
                f"that one with its own settings, or remove the folder to begin anew"
            )

    def of_method(self, method: str) -> StepJournal:
        """The steps of one method of the run."""
        return StepJournal(self._folder / method)

    def remove(self) -> None:
        """The run is finished and written out."""
        shutil.rmtree(self._folder)


class StepJournal:
    """The solved steps of one method, one checked file each.

    Args:
        folder: of the steps; created with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> Sequence[SolvedStep]:
        """Every kept step in order.

        Raises:
            JournalError: a file is damaged.
        """
        files = sorted(self._folder.glob("step-*.safetensors"))
        steps = [_read_step(file) for file in files]
        for index, step in enumerate(steps):
            if step.index != index:
                raise JournalError(
                    f"{self._folder} lacks step {index}; remove the later files to go on from it"
                )
        return steps

    def keep(self, step: SolvedStep) -> None:
        """Write one step under another name first, then rename: it is whole or not there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"step-{step.index:04d}.safetensors"
        partial = file.with_suffix(".partial")
        tensors = {key: t.contiguous() for key, t in update_tensors(step.updates).items()}
        figures = {
            "index": step.index,
            "bytes_up": step.bytes_up,
            "bytes_down": step.bytes_down,
            "solutions": [_figures(solution) for solution in step.solutions],
        }
        text = json.dumps(figures, sort_keys=True)
        save_file(tensors, partial, metadata={"figures": text})
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        _write_whole(file.with_suffix(".sha256"), digest.encode())
        _sync(partial)
        partial.replace(file)


def _figures(solution: GroupSolution) -> dict[str, Any]:
    about = {key: value for key, value in vars(solution).items() if key != "updates"}
    return about | {"layers": list(solution.updates)}


def _read_step(file: Path) -> SolvedStep:
    try:
        expected = file.with_suffix(".sha256").read_text()
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise JournalError(
                f"{file} does not match its hash; remove it to solve that step again"
            )
        with safe_open(file, framework="pt") as opened:
            figures = json.loads(opened.metadata()["figures"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise JournalError(
            f"{file} cannot be read ({error}); remove it to solve that step again"
        ) from None
    updates = updates_from(tensors)
    solutions = []
    for about in figures["solutions"]:
        layers = about.pop("layers")
        solutions.append(GroupSolution(updates={k: updates[k] for k in layers}, **about))
    return SolvedStep(
        figures["index"], tuple(solutions), figures["bytes_up"], figures["bytes_down"]
    )


def _write_whole(file: Path, content: bytes) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    _sync(partial)
    partial.replace(file)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
