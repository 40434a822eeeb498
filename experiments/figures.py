"""How every figure here looks, and where it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart without seeing red and green."""
INK = "#1f242b"


def panels(count: int, width: float = 4.6, height: float = 3.4) -> tuple[Any, Sequence[Any]]:
    """A figure with panels side by side, without frames."""
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes[0]


def draw_dots(
    labels: Sequence[str], sides: Mapping[str, Sequence[Sequence[float]]], file: Path
) -> None:
    """Percentages side by side, a row per label: every value as a dot, their mean as a line.

    Args:
        labels: of the rows.
        sides: the values of each row, by the title of the side.
        file: to write.
    """
    figure, axes = panels(len(sides), height=0.32 * len(labels) + 1.4)
    for axis, (title, rows) in zip(axes, sides.items(), strict=True):
        for row, values in enumerate(rows):
            axis.plot(values, [row] * len(values), "o", color=COLOURS[0], alpha=0.6)
            axis.plot([fmean(values)] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=2)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("% of individual fine-tuning")
        axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [])
        axis.set_ylim(len(labels) - 0.5, -0.5)
    save(figure, file)


def legend_above(axes: Any) -> None:
    """Name what is drawn over the axes, where it covers nothing."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize=7, frameon=False)


def save(figure: Any, file: Path) -> None:
    """Write the figure and forget it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)
