"""The Chain of Merges, and the methods that are the same rounds with other settings.

Their sums are solved in ``layerweld.statistics``; here is what they are called and read.
"""

from functools import partial
from typing import Annotated

from pydantic import Field

from layerweld.merging.method import CHAIN, Method
from layerweld.settings_table import Settings


class Mats(Settings):
    """MaTS, matching models in their task subspaces (Tam et al. 2024, arXiv:2312.04339)."""

    iterations: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Steps of conjugate gradients from the mean of the updates."""


_method = partial(
    Method, kind=CHAIN, sums=True, tune={"ridge": (0.1, 0.001, 0.3), "shrinkage": (0.9, 0.8)}
)

METHODS = (
    _method(
        "com", "Chain of Merges", "Buzzega et al. 2025, arXiv:2508.21421",
        "(Σ ω_i ΔW_i G_i + λ ΔW_anchor) (Σ ω_i G_i + λ I)⁻¹, group after group behind "
        "what is merged",
        granularity="group",
    ),
    _method(
        "regmean++", "RegMean++", "Nguyen et al. 2025, arXiv:2508.03121",
        "the same, a block at a time", granularity="block",
    ),
    _method(
        "regmean", "RegMean", "Jin et al. 2023, arXiv:2212.09849",
        "the same, the whole model at once, without a chain", granularity="model",
    ),
    _method(
        "jacobi", "Jacobi rounds", "Chen et al. 2025 (IterIS), arXiv:2411.15231",
        "`regmean`, then all groups again behind the last merge, `merge.rounds` in all",
        granularity="jacobi",
    ),
    _method(
        "mats", "MaTS", "Tam et al. 2024, arXiv:2312.04339",
        "`iterations` steps of conjugate gradients on ΔW Σ ω_i G_i = Σ ω_i ΔW_i G_i, from the "
        "mean, without a ridge",
        Mats, granularity="model", stands_for={"ridge": 0.0, "anchor": "mean"},
    ),
)  # fmt: skip
