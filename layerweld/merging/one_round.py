"""What a method of one round gets and gives. Pure tensor code: no models, no files, no network."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from layerweld.settings_table import Settings
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update, all_low_rank


@dataclass(frozen=True)
class SiteUpdates:
    """The updates of all sites, side by side.

    However they are given, sites are kept in the order of their names. Every method takes them in
    that order, so no result depends on who replied first.

    Attributes:
        samples: training samples by site.
        layers: ``ΔW`` by layer in forward order, then by site. A site that did not change a layer
            is absent there.

    Raises:
        ValueError: a site has an update and no samples.
    """

    samples: Mapping[str, int]
    layers: Mapping[str, Mapping[str, Update]]

    def __post_init__(self) -> None:
        for layer, by_site in self.layers.items():
            for site in by_site:
                if site not in self.samples:
                    raise ValueError(f"{site!r} has an update of {layer!r}, but no samples")
        in_order = {layer: dict(sorted(by_site.items())) for layer, by_site in self.layers.items()}
        object.__setattr__(self, "samples", dict(sorted(self.samples.items())))
        object.__setattr__(self, "layers", in_order)

    @staticmethod
    def side_by_side(
        samples: Mapping[str, int],
        by_site: Mapping[str, Mapping[str, Update]],
        layers: Sequence[str],
    ) -> "SiteUpdates":
        """The updates of each site, laid side by side in these layers that any site changed."""
        by_layer = {
            layer: {site: own[layer] for site, own in by_site.items() if layer in own}
            for layer in layers
        }
        return SiteUpdates(samples, {layer: own for layer, own in by_layer.items() if own})

    @property
    def sites(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self.samples)

    def shares(self, *, by_samples: bool) -> dict[str, float]:
        """Each site's share of the whole: by its training samples, or the same for all.

        Nobody can check how many samples a site says that it has. So among three sites or more no
        number buys more than half of the whole. The others then share the rest by their samples.
        """
        counts = self.samples if by_samples else dict.fromkeys(self.samples, 1)
        most = max(counts, key=counts.__getitem__)
        rest = sum(counts.values()) - counts[most]
        if len(counts) > 2 and 0 < rest < counts[most]:
            return {s: 0.5 if s == most else 0.5 * n / rest for s, n in counts.items()}
        return {site: count / (counts[most] + rest) for site, count in counts.items()}


@dataclass(frozen=True)
class Merge:
    """What a method made of the sites' updates.

    Attributes:
        updates: the merged ``ΔW``, float32, by layer.
        metrics: what the method has to say about itself on this input, by a name for humans.
    """

    updates: Mapping[str, Update]
    metrics: Mapping[str, float] = field(default_factory=dict)


class MergeMethod(Settings):
    """The settings of one method, and what it computes from them. Values, as all settings are."""

    averages_factors: ClassVar[bool] = False
    """Whether ``A`` and ``B`` are averaged apart, so that the size of each counts."""

    @property
    def fewest_sites(self) -> int:
        """With fewer sites the method has no meaning."""
        return 1

    def unscaled(self) -> "MergeMethod":
        """The same without its λ, for whom something else scales the merge."""
        has_scaling = "scaling" in type(self).model_fields
        return self.model_copy(update={"scaling": 1.0}) if has_scaling else self

    def other_params_scale(self, num_sites: int) -> float:
        """Factor on the mean of what fine-tuning changed outside of the linear layers."""
        return 1.0

    @abstractmethod
    def merge(self, sites: SiteUpdates) -> Merge:
        """One merged update per layer that at least one site changed."""


def layer_by_layer(sites: SiteUpdates, kernel: Callable[[Sequence[Update]], Update]) -> Merge:
    """Apply a kernel to each layer's updates, of the sites that changed it, in order of names."""
    return Merge(
        {layer: kernel(list(changed(by_site).values())) for layer, by_site in sites.layers.items()}
    )


def changed(updates: Mapping[str, Update]) -> Mapping[str, Update]:
    """One layer's updates without those that are zero, as of a LoRA that was never trained.

    A zero has no directions; a kernel that gave it any would give arbitrary ones a say. Where all
    are zero they are all kept.
    """
    return {site: update for site, update in updates.items() if not update.is_zero} or updates


def entry_by_entry(
    sites: SiteUpdates,
    kernel: Callable[[Float[Tensor, "sites entries"]], Float[Tensor, " entries"]],
) -> Merge:
    """Apply a kernel to whole task vectors, one row a site, and cut its result into layers again.

    For methods that choose entries over the whole model or that know no layers. Everything is
    dense and in float32: sites x parameters of the merged layers, a few times over. A layer that a
    site did not change is zero there.
    """
    merged = kernel(_task_vectors(sites))
    return Merge(_by_layer(merged, _shapes(sites)))


def low_rank(updates: Mapping[str, Update]) -> dict[str, LowRankUpdate]:
    """One layer's updates, of which every one must be factored.

    Raises:
        ValueError: one is dense.
    """
    dense = next((site for site, update in updates.items() if not update.is_low_rank), None)
    if dense is not None:
        raise ValueError(f"the method works on LoRA factors, and {dense!r} has a dense update")
    return {site: update.factored() for site, update in updates.items()}


def site_by_site(
    sites: SiteUpdates,
    kernel: Callable[[Float[Tensor, "sites entries"]], Float[Tensor, "sites entries"]],
) -> SiteUpdates:
    """As :func:`entry_by_entry`, for a kernel that changes task vectors and does not merge them."""
    changed = kernel(_task_vectors(sites))
    shapes = _shapes(sites)
    of_site = {site: _by_layer(row, shapes) for site, row in zip(sites.sites, changed, strict=True)}
    layers = {layer: {site: of_site[site][layer] for site in sites.sites} for layer in shapes}
    return SiteUpdates(sites.samples, layers)


def in_kind(
    updates: Sequence[Update], left: Float[Tensor, "d_out k"], right: Float[Tensor, "k d_in"]
) -> Update:
    """``left @ right`` in float32: factored if all updates are, dense if one of them is."""
    merged = LowRankUpdate(left, right)
    return (merged if all_low_rank(updates) else DenseUpdate(merged.dense())).float32()


def _shapes(sites: SiteUpdates) -> dict[str, tuple[int, int]]:
    return {layer: next(iter(by_site.values())).shape for layer, by_site in sites.layers.items()}


def _task_vectors(sites: SiteUpdates) -> Float[Tensor, "sites entries"]:
    shapes = _shapes(sites)
    rows = [
        torch.cat([_entries(sites.layers[layer].get(site), shapes[layer]) for layer in shapes])
        for site in sites.sites
    ]
    return torch.stack(rows)


def _by_layer(
    entries: Float[Tensor, " entries"], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Update]:
    sizes = [d_out * d_in for d_out, d_in in shapes.values()]
    parts = zip(shapes.items(), entries.split(sizes), strict=True)
    return {layer: DenseUpdate(part.reshape(shape)) for (layer, shape), part in parts}


def _entries(update: Update | None, shape: tuple[int, int]) -> Tensor:
    if update is None:
        return torch.zeros(shape[0] * shape[1])
    return update.dense().float().flatten()
