"""Sites that share directions, agree or changed nothing: no arbitrary vector gets a say."""

from typing import Any

import pytest
import torch

from layerweld.merging.spectral import relative_distance
from layerweld.merging.tsv import Tsv
from layerweld.updates.spectrum import spectrum_of
from layerweld.updates.update import LowRankUpdate
from tests.random_updates import by_site, random_sites, relative, side_by_side
from tests.test_merging_spectral import CASES, RANKS


# OPCM ends in the mean norm of all sites, in which a zero counts as one.
@pytest.mark.parametrize("name", [name for name in CASES if name != "opcm"])
def test_a_site_whose_adapter_was_never_trained_has_no_say(name: Any) -> None:
    method, _ = CASES[name]
    sites = by_site(random_sites(3, ranks=RANKS))
    sites["cedar"] = {
        layer: LowRankUpdate(torch.zeros_like(update.left), update.right)
        for layer, update in sites["cedar"].items()
    }
    with_it = method.merge(side_by_side(sites)).updates
    expected = method.merge(side_by_side({k: sites[k] for k in ("ash", "birch")})).updates
    assert relative_distance(list(with_it.values()), list(expected.values())) < 1e-6


ARBITRARY = ("tsv", "iso-cts", "dc-merge", "dc-merge, more")


def one_frozen_a(seed: int = 0) -> dict[Any, Any]:
    """Three sites of rank 3 that share ``A``, and so the rows of every update."""
    sites = by_site(random_sites(3, seed=seed, ranks=(3, 3, 3)))
    return {
        site: {
            layer: LowRankUpdate(update.left, sites["ash"][layer].right)
            for layer, update in updates.items()
        }
        for site, updates in sites.items()
    }


@pytest.mark.parametrize("name", ARBITRARY)
def test_nothing_outside_of_what_the_sites_share_gets_into_a_merge(name: Any) -> None:
    sites = one_frozen_a()
    merged = CASES[name][0].merge(side_by_side(sites)).updates
    for layer, update in merged.items():
        inside = spectrum_of(sites["ash"][layer].right.double()).right
        dense_update = update.dense().double()
        outside = dense_update - dense_update @ inside.T @ inside
        assert outside.norm() < 1e-5 * dense_update.norm(), layer


@pytest.mark.parametrize("name", ARBITRARY)
def test_names_decide_nothing_where_sites_share_directions(name: Any) -> None:
    sites = one_frozen_a()
    renamed = dict(zip(("cedar", "ash", "birch"), sites.values(), strict=True))
    one, other = (CASES[name][0].merge(side_by_side(s)).updates for s in (sites, renamed))
    assert relative_distance(list(one.values()), list(other.values())) < 1e-5


def test_sites_that_agree_are_given_back_by_tsv() -> None:
    one = by_site(random_sites(1, ranks=(3,)))["ash"]
    merged = Tsv().merge(side_by_side(dict.fromkeys(("ash", "birch", "cedar"), one)))
    expected = {layer: update.dense().double().numpy() for layer, update in one.items()}
    assert relative(merged, expected) < 1e-5
