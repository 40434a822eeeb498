"""Random updates of several sites, and what dense float64 implementations need of them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerweld.merging.one_round import Merge, SiteUpdates
from layerweld.updates.update import DenseUpdate, LowRankUpdate

SHAPES = {"q": (12, 10), "up": (17, 10), "down": (9, 14)}
NAMES = ("ash", "birch", "cedar", "dogwood")


def random_sites(
    count: int = 3,
    seed: int = 0,
    *,
    ranks: tuple[int, ...] = (2, 3, 1, 2),
    dense: bool = False,
    shapes: dict[str, tuple[int, int]] = SHAPES,
) -> SiteUpdates:
    """Sites of different ranks (dense: full-rank updates), of sizes as fine-tuning leaves them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: Any) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def update(d_out: int, d_in: int, rank: int) -> DenseUpdate | LowRankUpdate:
        if dense:
            return DenseUpdate(0.1 * random(d_out, d_in))
        return LowRankUpdate(0.1 * random(d_out, rank), random(rank, d_in))

    names = NAMES[:count]
    by_site = {
        name: {layer: update(*shape, rank) for layer, shape in shapes.items()}
        for name, rank in zip(names, ranks, strict=False)
    }
    return side_by_side(by_site)


def side_by_side(by_site: Any, samples: dict[str, int] | None = None) -> SiteUpdates:
    """As the strategy lays replies out: layers first, sites in the order of their names."""
    names = sorted(by_site)
    layers = {layer: None for site in by_site.values() for layer in site}
    return SiteUpdates(
        samples or {name: 10 for name in names},
        {
            layer: {name: by_site[name][layer] for name in names if layer in by_site[name]}
            for layer in layers
        },
    )


def by_site(sites: SiteUpdates) -> dict[Any, Any]:
    return {
        name: {layer: of[name] for layer, of in sites.layers.items() if name in of}
        for name in sites.sites
    }


def dense(sites: Any) -> dict[Any, Any]:
    """By layer, the list of the sites' updates as numpy float64."""
    return {
        layer: [update.dense().double().numpy() for update in of.values()]
        for layer, of in sites.layers.items()
    }


def vectors(sites: SiteUpdates) -> NDArray[Any]:
    """One row per site: all layers flattened, one after the other."""
    return np.stack(
        [
            np.concatenate([a.ravel() for a in rows])
            for rows in zip(*dense(sites).values(), strict=True)
        ]
    )


def cut(vector: NDArray[Any], shapes: dict[str, tuple[int, int]] = SHAPES) -> dict[Any, Any]:
    """The inverse of the flattening of :func:`vectors`."""
    parts, at = {}, 0
    for layer, (rows, columns) in shapes.items():
        parts[layer] = vector[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
    return parts


def relative(merge: Merge, expected: dict[Any, Any] | dict[str, NDArray[Any]]) -> float:
    """The largest relative Frobenius error over the layers."""
    assert merge.updates.keys() == expected.keys()
    return max(
        float(
            np.linalg.norm(merge.updates[layer].dense().double().numpy() - array)  # type: ignore[operator]
            / max(np.linalg.norm(array), 1e-30)
        )
        for layer, array in expected.items()
    )
