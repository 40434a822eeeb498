"""Random updates of several sites, and what dense float64 implementations need of them."""

import numpy as np
import torch

from layerweld.merging.one_round import SiteUpdates
from layerweld.updates.update import DenseUpdate, LowRankUpdate

SHAPES = {"q": (12, 10), "up": (17, 10), "down": (9, 14)}
NAMES = ("ash", "birch", "cedar", "dogwood")


def random_sites(count=3, seed=0, *, ranks=(2, 3, 1, 2), dense=False, shapes=SHAPES):
    """Sites of different ranks (dense: full-rank updates), of sizes as fine-tuning leaves them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    def update(d_out, d_in, rank):
        if dense:
            return DenseUpdate(0.1 * random(d_out, d_in))
        return LowRankUpdate(0.1 * random(d_out, rank), random(rank, d_in))

    names = NAMES[:count]
    by_site = {
        name: {layer: update(*shape, rank) for layer, shape in shapes.items()}
        for name, rank in zip(names, ranks, strict=False)
    }
    return side_by_side(by_site)


def side_by_side(by_site, samples=None):
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


def by_site(sites):
    return {
        name: {layer: of[name] for layer, of in sites.layers.items() if name in of}
        for name in sites.sites
    }


def dense(sites):
    """By layer, the list of the sites' updates as numpy float64."""
    return {
        layer: [update.dense().double().numpy() for update in of.values()]
        for layer, of in sites.layers.items()
    }


def vectors(sites):
    """One row per site: all layers flattened, one after the other."""
    return np.stack(
        [
            np.concatenate([a.ravel() for a in rows])
            for rows in zip(*dense(sites).values(), strict=True)
        ]
    )


def cut(vector, shapes=SHAPES):
    """The inverse of the flattening of :func:`vectors`."""
    parts, at = {}, 0
    for layer, (rows, columns) in shapes.items():
        parts[layer] = vector[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
    return parts


def relative(merge, expected):
    """The largest relative Frobenius error over the layers."""
    assert merge.updates.keys() == expected.keys()
    return max(
        float(
            np.linalg.norm(merge.updates[layer].dense().double().numpy() - array)
            / max(np.linalg.norm(array), 1e-30)
        )
        for layer, array in expected.items()
    )
