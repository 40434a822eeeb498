"""Journals of a run for readers of damaged files: a header, and two steps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from layerweld.statistics.pool import GroupSolution
from layerweld.updates.update import LowRankUpdate
from server.journal import RunJournal
from strategies.chain_of_merges import SolvedStep
from tests.damage import damaged_json


def journal_header(folder: Path) -> tuple[Any, ...]:
    introduction = {
        **dict.fromkeys(("site", "base", "tokenizer", "plan", "settings", "kind", "prefix"), "x"),
        **dict.fromkeys(("task", "factors", "adapter", "holdings"), "x"),
        **dict.fromkeys(("rows", "samples", "tokens", "skipped"), 3),
        **dict.fromkeys(("evaluates", "classifies", "labelled"), False),
        "layers": ["a"], "ranks": [2], "versions": [],
    }  # fmt: skip
    facts = {"run": "0a1b", "methods": ["com"], "sites": {"ash": introduction}}
    RunJournal(folder / "journal").open(facts)

    def read() -> None:
        journal = RunJournal(folder / "journal")
        journal.run_id()
        journal.absent([])
        journal.remaining()
        journal.open(facts)

    return folder / "journal/run.json", damaged_json, read


def journal_step(of: str, damage: Callable[..., bytes]) -> Callable[..., Any]:
    def made(folder: Path) -> tuple[Any, ...]:
        steps = RunJournal(folder / "journal").of_method("com")
        for index in range(2):
            updates = {"layer": LowRankUpdate(torch.ones(2, 1), torch.ones(1, 2))}
            steps.keep(solved_step(index, updates))

        def read() -> None:
            steps.load()
            steps.lost()

        return folder / "journal/com" / of, damage, read

    return made


def solved_step(index: int, updates: dict[str, LowRankUpdate]) -> SolvedStep:
    """A step with a value in each field, whatever fields there are."""
    usual = {"group": "g", "layers": ("layer",), "updates": updates}
    others = {
        field.name: usual.get(field.name, {} if "Mapping" in str(field.type) else 1.0)
        for field in dataclasses.fields(GroupSolution)
    }
    return SolvedStep(index, (GroupSolution(**others),), 1, 1, ())
