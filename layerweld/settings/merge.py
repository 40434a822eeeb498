"""How statistics are normalised, weighted and solved. Knows no other table and no kernel."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from layerweld.settings_table import Granularity, NonNegative, Rank, Rounds, Settings

Normalization = Literal["token", "feature", "trace", "none"]
Importance = Literal["off-diagonal", "uniform"]
Anchor = Literal["base", "mean"]


class MergeSettings(Settings):
    """How statistics are normalised, weighted and solved."""

    granularity: Granularity = "group"
    """What one round solves: a layer group (CoM), a block (RegMean++), the whole model without a
    chain (RegMean), or the whole model again in each of ``rounds`` rounds (Jacobi)."""
    rounds: Rounds = 2
    """Rounds of ``granularity = "jacobi"``; nothing else reads it."""
    normalization: Normalization = "token"
    """Token vectors to unit norm (tr G = 1), features to unit norm (diag G = 1), the whole matrix
    to unit trace, or none (mean over tokens)."""
    importance: Importance = "off-diagonal"
    """Weight of a site in a group: Σ_{p<q}|G_pq| (eq. 6 of the paper), or the same for all."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Factor on the off-diagonal of G: 1 leaves it as it is, 0 keeps the diagonal only."""
    ridge: NonNegative = 0.01
    """λ as a fraction of mean(diag S)."""
    anchor: Anchor = "base"
    """Where the ridge pulls to: no update at all, or the mean of the updates."""
    rank: Rank = 0
    """Rank that each merged update is compressed to, in the metric of S; for methods without
    statistics, in that of the weights. 0 keeps it exact."""
    products: Literal["auto", "dense"] = "auto"
    """Send ``B`` and ``A G`` if a site has LoRA factors, or always the dense ``ΔW G``."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest share of Σ ω_i tr G_i that one site may have in a group; what is above is taken off
    the site's weight. 1 means no cap. With ``normalization = "none"`` a site that scales its
    activations by c weighs c⁴ as much. Only a cap, or a uniform importance, bounds it there."""
    max_weight: Annotated[float, Field(ge=0, le=1e9)] = 3.0
    """Largest ω_i tr G_i of a site in a group, in units of the median site's (the lower of the two
    middle ones); what is above is taken off the site's weight. Half of the sites cannot move that
    median. 0 means no cap."""
    max_size: Annotated[float, Field(ge=1, le=1e9)] = 30.0
    """How many times as large as the median of the other sites' the update of a site may be. This
    holds for a layer group, for a layer, and for what changed outside the layers. A site with a
    larger one is refused by name."""
    influence: bool = True
    """Solve every group again without each site. Report how far that moves the merge, and which
    sites pull against the others. It costs the server one more factorisation and 4 d_in² bytes per
    site and group, and the sites nothing."""
    covariate_shift: Literal["off", "first", "all"] = "off"
    """Let each site measure eq. 8 per group and send that one number: for no merge, for the one
    that is written out, or for every method that has groups."""
