"""Isotropic merging: the sum of the updates with all its singular values the same. Tensors only."""

from collections.abc import Sequence

from jaxtyping import Float64
from torch import Tensor

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, in_kind, layer_by_layer
from layerweld.merging.spectral import summed
from layerweld.merging.tsv import decorrelated
from layerweld.settings_table import NonZeroShare, Positive
from layerweld.updates.spectrum import NEGLIGIBLE, Spectrum
from layerweld.updates.update import Update


def iso_c(updates: Sequence[Update], scaling: float) -> Update:
    """``λ s̄ U Vᵀ`` of ``U S Vᵀ = Σ ΔW_i``, with ``s̄`` the mean of the singular values."""
    return _flat(updates, summed(updates).spectrum(), scaling)


def iso_cts(updates: Sequence[Update], common: float, scaling: float) -> Update:
    """As :func:`iso_c`, but part of the space is kept for what only single sites do.

    Of the sum's ``R`` directions the weakest ``(1 - common) R`` are replaced, the same number for
    each site, by the leading ones of what the site's update does outside of the common ones.
    """
    total, sites = summed(updates).spectrum(), len(updates)
    rank = len(total.values)
    own = round((rank - int(rank * common)) / sites)
    shared = total.leading(rank - own * sites)
    outside = [_own_directions(update, shared.left).leading(own) for update in updates]
    parts = [*outside, shared]
    if not any(len(part.values) for part in parts):  # every update is zero, whatever its factors
        return iso_c(updates, scaling)
    return _flat(updates, decorrelated(parts), scaling)


def _own_directions(update: Update, basis: Float64[Tensor, "d_out k"]) -> Spectrum:
    """The part of an update outside of a basis, without what is only rounding."""
    outside = update.float64().map_columns(lambda columns: columns - basis @ (basis.T @ columns))
    largest, own = update.spectrum().values[0], outside.spectrum()
    return own.leading(int((own.values > NEGLIGIBLE * largest).sum()))


def _flat(updates: Sequence[Update], whole: Spectrum, scaling: float) -> Update:
    """All directions equally strong: as strong as they were on average."""
    return in_kind(updates, scaling * float(whole.values.mean()) * whole.left, whole.right)


class IsoC(MergeMethod):
    """Iso-C, isotropic merging in common subspace (Marczak et al. 2025, arXiv:2502.04959)."""

    scaling: Positive = 1.0
    """λ on the merged update. The authors search for it; 1 to 1.5 was theirs."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """Needs nothing but the sum."""
        return layer_by_layer(sites, lambda updates: iso_c(updates, self.scaling))


class IsoCts(MergeMethod):
    """Iso-CTS, isotropic merging in common and task-specific subspaces (Marczak et al. 2025)."""

    common: NonZeroShare = 0.8
    """Share of the directions that the sum keeps."""
    scaling: Positive = 1.0
    """λ on the merged update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """From the factors where there are factors."""
        return layer_by_layer(sites, lambda updates: iso_cts(updates, self.common, self.scaling))


METHODS = (
    Method(
        "iso-c", "Iso-C", "Marczak et al. 2025, arXiv:2502.04959",
        "λ s̄ U Vᵀ of Σ ΔW_i, s̄ the mean singular value", IsoC, sums=True,
        tune={"scaling": (0.6, 1.5, 0.4, 0.8, 1.2)},
    ),
    Method(
        "iso-cts", "Iso-CTS", "Marczak et al. 2025, arXiv:2502.04959",
        "as `iso-c`, the weakest directions replaced by each site's leading ones outside of "
        "the rest",
        IsoCts, tune={"scaling": (0.6, 1.5, 0.4), "common": (0.6, 0.9)},
    ),
)  # fmt: skip
