"""The ways in which LoRAs are averaged in federated fine-tuning, and what each loses."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerweld.merging.core_space import CoreSpace
from layerweld.merging.do_merging import DoMerging
from layerweld.merging.lora_averaging import ERROR, FedEx, FedIt, FfaLora, FlexLora, Flora
from layerweld.merging.one_round import SiteUpdates
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests.random_updates import by_site, dense, random_sites, relative, side_by_side

SAMPLES = {"ash": 10, "birch": 40, "cedar": 50}
SHARES = (0.1, 0.4, 0.5)


def weighted_sites(ranks: tuple[int, int, int] = (2, 2, 2)) -> SiteUpdates:
    return side_by_side(by_site(random_sites(3, ranks=ranks)), SAMPLES)


def sharing_sites() -> SiteUpdates:
    """The same A at every site."""
    sites = by_site(weighted_sites())
    shared = sites["ash"]
    return side_by_side(
        {
            site: {k: LowRankUpdate(update.left, shared[k].right) for k, update in of.items()}
            for site, of in sites.items()
        },
        SAMPLES,
    )


def mean(sites: SiteUpdates, shares: tuple[float, float, float] = SHARES) -> dict[Any, Any]:
    return {
        layer: sum(p * update for p, update in zip(shares, updates, strict=True))
        for layer, updates in dense(sites).items()
    }


def apart(sites: SiteUpdates, shares: tuple[float, float, float] = SHARES) -> dict[str, Any]:
    result = {}
    for layer, of in sites.layers.items():
        pairs: Any = list(zip(shares, of.values(), strict=True))
        left = sum(p * update.left.double().numpy() for p, update in pairs)
        right = sum(p * update.right.double().numpy() for p, update in pairs)
        result[layer] = left @ right
    return result


def cut_to(matrix: Any, rank: int) -> Any:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def distance(one: dict[Any, Any], other: dict[Any, Any]) -> Any:
    lost = sum(np.sum((one[k] - other[k]) ** 2) for k in other)
    return np.sqrt(lost / sum(np.sum(m**2) for m in other.values()))


def test_fedit_averages_factors_and_says_how_far_that_is_from_the_mean() -> None:
    sites = weighted_sites()
    merged = FedIt().merge(sites)
    assert relative(merged, apart(sites)) < 1e-5
    assert merged.updates["q"].rank == 2
    assert merged.metrics[ERROR] == pytest.approx(distance(apart(sites), mean(sites)), rel=1e-4)
    assert merged.metrics[ERROR] > 0.1


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 2, 3)])
def test_flora_is_the_weighted_mean_whatever_the_ranks(ranks: tuple[int, int, int]) -> None:
    sites = weighted_sites(ranks)
    merged = Flora().merge(sites)
    assert relative(merged, mean(sites)) < 1e-5
    assert merged.updates["q"].rank == sum(ranks)
    assert merged.metrics[ERROR] == 0


def test_fedex_is_the_mean_and_says_how_much_of_it_is_residual() -> None:
    sites = weighted_sites()
    merged = FedEx().merge(sites)
    third = (1 / 3,) * 3
    assert relative(merged, mean(sites, third)) < 1e-5
    expected = distance(apart(sites, third), mean(sites, third))
    assert merged.metrics["residual in the mean"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_flexlora_is_the_mean_cut_to_its_rank(rank: int) -> None:
    sites = weighted_sites((1, 2, 3))
    merged = FlexLora(rank=rank).merge(sites)
    expected = {layer: cut_to(matrix, rank or 3) for layer, matrix in mean(sites).items()}
    assert relative(merged, expected) < 1e-5
    assert merged.updates["up"].rank == (rank or 3)
    assert merged.metrics[ERROR] == pytest.approx(distance(expected, mean(sites)), rel=1e-4)


def test_ffa_lora_is_the_mean_at_one_sites_rank_where_a_is_shared() -> None:
    sites = sharing_sites()
    merged = FfaLora().merge(sites)
    assert relative(merged, mean(sites)) < 1e-5
    assert merged.updates["q"].rank == 2
    assert torch.equal(merged.updates["q"].right, sites.layers["q"]["ash"].right)  # type: ignore[attr-defined]


def test_fedit_is_exact_where_a_is_shared() -> None:
    assert FedIt().merge(sharing_sites()).metrics[ERROR] < 1e-6


@pytest.mark.parametrize("method", [FedIt(), Flora(), FedEx(), FlexLora(), FfaLora()], ids=str)
def test_one_site_and_sites_that_agree_are_given_back(method: Any) -> None:
    one = by_site(random_sites(1))["ash"]
    expected = {layer: update.dense().double().numpy() for layer, update in one.items()}
    for names in (("ash",), ("ash", "birch", "cedar")):
        merged = method.merge(side_by_side(dict.fromkeys(names, one)))
        assert relative(merged, expected) < 1e-5
        assert merged.metrics[ERROR] < 1e-5


def test_samples_or_sites_decide_the_weights() -> None:
    sites = weighted_sites()
    assert relative(Flora(weighting="uniform").merge(sites), mean(sites, (1 / 3,) * 3)) < 1e-5
    assert relative(FedEx(weighting="samples").merge(sites), mean(sites)) < 1e-5


@given(
    st.lists(st.integers(1, 10**6), min_size=3, max_size=6), st.integers(1, 2**63 - 1), st.data()
)
def test_no_number_of_samples_that_a_site_claims_buys_more_than_half(
    counts: Any, claimed: Any, data: Any
) -> None:
    liar = data.draw(st.integers(0, len(counts) - 1))
    said = {f"site-{i}": claimed if i == liar else n for i, n in enumerate(counts)}
    shares = SiteUpdates(said, {}).shares(by_samples=True)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares.values()) <= 0.5
    total = sum(said.values())
    if 2 * max(said.values()) <= total:
        assert shares == {site: n / total for site, n in said.items()}


@pytest.mark.parametrize("method", [FedIt(), Flora(), CoreSpace(), DoMerging()], ids=str)
def test_methods_that_work_on_factors_refuse_a_dense_update_by_name(method: Any) -> None:
    sites = by_site(random_sites(2))
    sites["birch"]["q"] = DenseUpdate(sites["birch"]["q"].dense())
    with pytest.raises(ValueError, match="'birch' has a dense update"):
        method.merge(side_by_side(sites))


def test_ffa_lora_refuses_sites_with_an_a_of_their_own() -> None:
    with pytest.raises(ValueError, match="those of 'q' differ"):
        FfaLora().merge(random_sites(2, ranks=(2, 2)))
