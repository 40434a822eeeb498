"""Rounds of a method that plays many, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from server.numbered_files import Contents, NumberedFiles
from strategies.kept_rounds import KeptRound, Traffic

RoundFiles = NumberedFiles[KeptRound]
"""The kept rounds of one method."""


def round_files(folder: Path) -> RoundFiles:
    """The rounds that are kept in a folder."""
    return NumberedFiles(folder, "round", _encoded, _decoded)


def _encoded(kept: KeptRound) -> Contents:
    figures = {
        "index": kept.index,
        "figures": dict(kept.figures),
        "up": kept.traffic.up,
        "down": kept.traffic.down,
        "lost": kept.lost,
    }
    return kept.tensors, figures


def _decoded(tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> KeptRound:
    return KeptRound(
        figures["index"],
        tensors,
        figures["figures"],
        Traffic(figures["up"], figures["down"]),
        tuple(figures["lost"]),
    )
