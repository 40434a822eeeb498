"""Methods that choose entries of whole task vectors, against loops in numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from layerweld.merging.consensus import Consensus
from layerweld.merging.dare import Dare, DareTies, dropped, seeds_of
from layerweld.merging.localize import LocalizeAndStitch
from layerweld.merging.pcb import Pcb
from layerweld.merging.sums import Mean, TaskArithmetic
from layerweld.merging.ties import Ties
from layerweld.updates.update import LowRankUpdate
from tests.random_updates import by_site, cut, dense, random_sites, relative, side_by_side, vectors

TOLERANCE = 1e-6


def largest(row: Any, count: int) -> Any:
    """The row with all but its ``count`` largest magnitudes set to zero."""
    kept = np.argsort(-np.abs(row), kind="stable")[:count]
    result = np.zeros_like(row)
    result[kept] = row[kept]
    return result


def elected_mean(rows: NDArray[Any]) -> NDArray[Any]:
    merged = np.zeros(rows.shape[1])
    for entry in range(rows.shape[1]):
        column = rows[:, entry]
        sign = np.sign(column.sum())
        agreeing = [value for value in column if value != 0 and np.sign(value) == sign]
        merged[entry] = np.mean(agreeing) if agreeing else 0.0
    return merged


def slow_ties(rows: NDArray[Any], density: float) -> NDArray[Any]:
    return elected_mean(np.stack([largest(row, int(density * len(row))) for row in rows]))


def slow_consensus(rows: Any, scale: float, agreement: int) -> NDArray[Any]:
    total = rows.sum(axis=0)
    votes = [np.abs(row) >= scale * np.abs(total - row) for row in rows]
    return np.where(np.sum(votes, axis=0) >= agreement, total, 0.0)


def slow_stitch(rows: Any, density: float) -> Any:
    kept = np.stack([largest(row, int(density * len(row))) for row in rows])
    counts = np.maximum((kept != 0).sum(axis=0), 1)
    return kept.sum(axis=0) / counts


def slow_pcb(rows: NDArray[Any], density: float) -> Any:
    n, d = rows.shape

    def unit(row: Any) -> Any:
        return (row - row.min()) / (row.max() - row.min())

    def between(row: Any, low: int, high: int) -> Any:
        ordered = np.sort(row)
        return np.clip(row, ordered[low], ordered[high])

    weights, clipped = [], []
    for row in rows:
        size = between(np.abs(row), int(d * 1e-4), int(d * (1 - 1e-4) - 1))
        score = np.exp(n * unit(size) ** 2) * np.tanh(row * rows.sum(axis=0))
        weights.append(unit(between(score, int(d * (1 - density)), d - 1)))
        clipped.append(np.sign(row) * size)
    return np.sum(np.multiply(clipped, weights), axis=0) / np.maximum(
        np.sum(weights, axis=0), 1e-12
    )


CASES = {
    "ties": (Ties(density=0.3, scaling=0.7), lambda r: 0.7 * slow_ties(r, 0.3)),
    "ties, all kept": (Ties(density=1.0), lambda r: slow_ties(r, 1.0)),
    "consensus": (Consensus(scaling=0.4), lambda r: 0.4 * slow_consensus(r, 0.4, 2)),
    "localize-and-stitch": (LocalizeAndStitch(), lambda r: slow_stitch(r, 0.05)),
    "pcb": (Pcb(), lambda r: 1.2 * slow_pcb(r, 0.05)),
    "task-arithmetic": (TaskArithmetic(), lambda r: 0.3 * r.sum(axis=0)),
    "mean": (Mean(), lambda r: r.mean(axis=0)),
}


@pytest.mark.parametrize("form", ["factored", "dense"])
@pytest.mark.parametrize("name", CASES)
def test_entry_methods_are_what_the_loops_say(name: Any, form: str) -> None:
    method, slow = CASES[name]
    sites = random_sites(4, seed=3, dense=form == "dense")
    assert relative(method.merge(sites), cut(slow(vectors(sites)))) < TOLERANCE


def test_trimming_compares_entries_of_all_layers() -> None:
    sites = by_site(random_sites(2))
    for name, updates in sites.items():
        sites[name] = updates | {"q": updates["q"] * 1e-4}
    merged = Ties(density=0.2).merge(side_by_side(sites)).updates
    assert not merged["q"].dense().any()
    assert merged["up"].dense().any()


def test_dare_is_what_its_own_masks_say() -> None:
    sites = random_sites(3)
    rows, drop = torch.from_numpy(vectors(sites)).float(), 0.6
    kept = dropped(torch.ones_like(rows), drop, seeds_of(sites, 5)).double().numpy()
    assert set(np.unique(kept).round(5)) == {0.0, 2.5}
    masked = vectors(sites) * kept
    got = Dare(drop=drop, scaling=0.5, seed=5).merge(sites)
    assert relative(got, cut(0.5 * masked.sum(axis=0))) < TOLERANCE
    got = DareTies(drop=drop, scaling=0.5, seed=5).merge(sites)
    assert relative(got, cut(0.5 * elected_mean(masked))) < TOLERANCE


def test_dare_keeps_the_expected_value_and_drops_the_expected_share() -> None:
    kept = dropped(torch.ones(2, 200_000), 0.9, [1, 2])
    assert abs(float(kept.mean()) - 1) < 0.02
    assert abs(float((kept == 0).float().mean()) - 0.9) < 0.005
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("method", [Dare(), DareTies()], ids=["dare", "dare-ties"])
def test_a_seed_repeats_to_the_bit_and_another_does_not(method: Any) -> None:
    sites = random_sites(3)
    once, again = method.merge(sites).updates, method.merge(sites).updates
    other = method.model_copy(update={"seed": 1}).merge(sites).updates
    assert all(torch.equal(once[layer].dense(), again[layer].dense()) for layer in once)
    assert any(not torch.equal(once[layer].dense(), other[layer].dense()) for layer in once)


def test_a_site_draws_the_same_masks_whoever_else_takes_part() -> None:
    three, two = random_sites(3), random_sites(2)
    assert seeds_of(three, 0)[:2] == seeds_of(two, 0)


@pytest.mark.parametrize(
    "method",
    [Ties(density=1.0), DareTies(drop=0.0), LocalizeAndStitch(density=1.0), Mean()],
    ids=lambda m: type(m).__name__,
)
def test_one_site_alone_is_given_back(method: Any) -> None:
    sites = random_sites(1)
    expected = {layer: rows[0] for layer, rows in dense(sites).items()}
    assert relative(method.merge(sites), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("method", "factor"),
    [(Ties(density=1.0), 1), (DareTies(drop=0.0), 1), (LocalizeAndStitch(density=1.0), 1),
     (Mean(), 1), (TaskArithmetic(), 0.9), (Consensus(), 0.9)],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_sites_that_agree_are_given_back_up_to_the_scaling(method: Any, factor: float) -> None:
    one = by_site(random_sites(1))["ash"]
    merged = method.merge(side_by_side({name: one for name in "abc"}))
    expected = {layer: factor * update.dense().double().numpy() for layer, update in one.items()}
    assert relative(merged, expected) < TOLERANCE


def test_pcb_is_finite_however_many_sites_there_are() -> None:
    one = by_site(random_sites(1))["ash"]
    many = {
        f"site-{i}": {layer: update * (1 + 0.01 * i) for layer, update in one.items()}
        for i in range(120)
    }
    sites = side_by_side(many)
    assert relative(Pcb().merge(sites), cut(1.2 * slow_pcb(vectors(sites), 0.05))) < 1e-3


def test_four_sites_that_agree_leave_nothing_to_consensus_at_its_default() -> None:
    one = by_site(random_sites(1))["ash"]
    merged = Consensus().merge(side_by_side({name: one for name in "abcd"})).updates
    assert not any(update.dense().any() for update in merged.values())


def test_consensus_needs_as_many_sites_as_must_agree() -> None:
    assert Consensus(agreement=3).fewest_sites == 3
    assert Ties().fewest_sites == 1


def test_a_layer_that_one_site_left_alone_is_zero_there() -> None:
    sites = by_site(random_sites(2))
    del sites["birch"]["up"]
    merged = Mean().merge(side_by_side(sites)).updates
    torch.testing.assert_close(merged["up"].dense(), 0.5 * sites["ash"]["up"].dense())
    merged = Ties(density=1.0).merge(side_by_side(sites)).updates
    torch.testing.assert_close(merged["up"].dense(), sites["ash"]["up"].dense())


def test_the_mean_of_loras_stays_factored() -> None:
    update = Mean().merge(random_sites(3)).updates["q"]
    assert isinstance(update, LowRankUpdate)
    assert update.rank == 6
