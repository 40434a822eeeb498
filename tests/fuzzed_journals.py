"""Journals of a run for readers of damaged files: a header, and two rounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from layerweld.updates.named_tensors import update_tensors
from layerweld.updates.update import LowRankUpdate
from server.journal import RunJournal
from strategies.rounds import Kept, KeptRound
from tests.damage import damaged_json


def journal_header(folder: Path) -> tuple[Any, ...]:
    site_info = {
        **dict.fromkeys(("site", "base", "tokenizer", "plan", "settings", "kind", "adapter"), "x"),
        **dict.fromkeys(("task", "factors", "name_prefix", "dataset"), "x"),
        **dict.fromkeys(("samples", "calibration_samples", "tokens", "skipped"), 3),
        **dict.fromkeys(("evaluates", "classifies", "labelled"), False),
        "layers": ["a"], "ranks": [2], "versions": [],
    }  # fmt: skip
    facts = {"run": "0a1b", "methods": ["com"], "sites": {"ash": site_info}}
    RunJournal(folder / "journal").open(facts)

    def read() -> None:
        journal = RunJournal(folder / "journal")
        journal.run_id()
        journal.absent([])
        journal.remaining()
        journal.open(facts)

    return folder / "journal/run.json", damaged_json, read


def journal_round(of: str, damage: Callable[..., bytes]) -> Callable[..., Any]:
    def made(folder: Path) -> tuple[Any, ...]:
        rounds = RunJournal(folder / "journal").of_method("com")
        for index in range(2):
            tensors = update_tensors({"layer": LowRankUpdate(torch.ones(2, 1), torch.ones(1, 2))})
            kept = Kept(tensors, {"groups": [{"name": "g", "condition": 1.5}]})
            rounds.keep(KeptRound(index, index + 1, kept, 1, 1, ("birch",)))

        def read() -> None:
            rounds.load()
            rounds.lost()

        return folder / "journal/com" / of, damage, read

    return made
