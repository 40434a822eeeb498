"""LiNeS: scale a merge by depth, little in the first blocks and fully in the last. Tensors only."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from layerweld.merging.one_round import Merge, SiteUpdates
from layerweld.merging.spectral import summed
from layerweld.settings_table import NonNegative, Settings
from layerweld.updates.update import Update


class Lines(Settings):
    """LiNeS, a step after any method (Wang et al. 2025, arXiv:2410.17146).

    It replaces the method's own λ.
    """

    slope: NonNegative = 0.5
    """β: what the last block is scaled by, more than the first. The authors search 0 to 1."""

    def start(self, merge: Merge, sites: SiteUpdates) -> float:
        """α, the first block's scale: ``‖Σ ΔW_i‖₁ / (N ‖ΔW_M‖₁)``; 0 for a merge that is zero."""
        size = _sizes(merge.updates.values())
        sums = _sizes(summed(list(by_site.values())) for by_site in sites.layers.values())
        return sums / (len(sites.sites) * size) if size > 0 else 0.0

    def scale(self, start: float, block: int, blocks: int) -> float:
        """``α + β · block / (blocks - 1)``."""
        return start + self.slope * block / max(1, blocks - 1)

    def scaled_other_params(
        self, other_params: Mapping[str, Tensor], start: float, blocks: Sequence[str]
    ) -> dict[str, Tensor]:
        """Scale norms and biases by their block; what lies outside of blocks as the first one.

        Args:
            other_params: by parameter name.
            start: α.
            blocks: module names of the blocks, in forward order.
        """
        scales = {f"{name}.": self.scale(start, i, len(blocks)) for i, name in enumerate(blocks)}
        return {
            name: values * next((s for b, s in scales.items() if name.startswith(b)), start)
            for name, values in other_params.items()
        }

    def scaled(self, merge: Merge, start: float, block_of: Mapping[str, int], blocks: int) -> Merge:
        """Scale every layer by its block.

        Args:
            merge: of any method.
            start: α.
            block_of: index of the block that a layer lies in.
            blocks: how many blocks the model has.
        """
        updates = {
            layer: update * self.scale(start, block_of[layer], blocks)
            for layer, update in merge.updates.items()
        }
        return Merge(updates, {**merge.metrics, "scale of the first block": start})


def _sizes(updates: Iterable[Update]) -> float:
    """Sum of the absolute values of all entries, one dense layer at a time."""
    return sum(float(update.dense().double().abs().sum()) for update in updates)
