"""Solved steps of a chain, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from layerweld.statistics.pool import GroupSolution
from layerweld.updates.named_tensors import update_tensors, updates_from
from layerweld.updates.update import Update
from server.numbered_files import Contents, NumberedFiles
from strategies.chain_of_merges import SolvedStep

StepFiles = NumberedFiles[SolvedStep]
"""The solved steps of one chain."""


def step_files(folder: Path) -> StepFiles:
    """The steps that are kept in a folder."""
    return NumberedFiles(folder, "step", _encoded, _decoded)


def _encoded(step: SolvedStep) -> Contents:
    figures = {
        "index": step.index,
        "bytes_up": step.bytes_up,
        "bytes_down": step.bytes_down,
        "lost": step.lost,
        "solutions": [_facts(solution) for solution in step.solutions],
    }
    return update_tensors(step.updates), figures


def _decoded(tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> SolvedStep:
    updates = updates_from(tensors)
    return SolvedStep(
        figures["index"],
        tuple(_solution(facts, updates) for facts in figures["solutions"]),
        figures["bytes_up"],
        figures["bytes_down"],
        tuple(figures["lost"]),
    )


def _facts(solution: GroupSolution) -> dict[str, Any]:
    about = {key: value for key, value in vars(solution).items() if key != "updates"}
    return about | {"layers": list(solution.updates)}


def _solution(facts: Mapping[str, Any], updates: Mapping[str, Update]) -> GroupSolution:
    others = {key: value for key, value in facts.items() if key != "layers"}
    return GroupSolution(updates={k: updates[k] for k in facts["layers"]}, **others)
