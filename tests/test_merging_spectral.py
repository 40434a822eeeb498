"""Methods that work on singular vectors, against dense numpy written from the papers' formulas."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from layerweld.merging.core_space import CoreSpace
from layerweld.merging.dare import seeds_of
from layerweld.merging.dc import DcMerge
from layerweld.merging.isotropic import IsoC, IsoCts
from layerweld.merging.knots import KnotsDareTies, KnotsTies
from layerweld.merging.one_round import SiteUpdates
from layerweld.merging.opcm import Opcm
from layerweld.merging.spectral import norm, relative_distance, truncated
from layerweld.merging.sums import TaskArithmetic
from layerweld.merging.tsv import Tsv
from layerweld.merging.wudi import Wudi
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests.random_updates import by_site, dense, random_sites, relative, side_by_side
from tests.test_merging_entries import elected_mean, slow_ties

TOLERANCE = 2e-5  # factors are float32 and nearly parallel ones are pulled apart
# The sites' ranks fit into their share of the directions, so that nothing arbitrary is kept.
RANKS = (2, 3, 1)


def svd(matrix: NDArray[Any]) -> tuple[Any, ...]:
    """Thin, without what is rounding."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    kept = s > 1e-6 * s[0]
    return u[:, kept], s[kept], vt[kept]


def polar(matrix: NDArray[Any]) -> Any:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def each_layer(slow: Callable[..., Any]) -> Callable[..., dict[Any, Any]]:
    return lambda sites: {layer: slow(updates) for layer, updates in dense(sites).items()}


def parts(updates: Any) -> list[Any]:
    share = min(updates[0].shape) // len(updates)
    return [(u[:, :share], s[:share], vt[:share]) for u, s, vt in map(svd, updates)]


def joint(found: list[Any]) -> tuple[Any, ...]:
    return (
        polar(np.hstack([u for u, _, _ in found])),
        np.concatenate([s for _, s, _ in found]),
        polar(np.vstack([vt for _, _, vt in found])),
    )


def slow_tsv(updates: Any) -> Any:
    u, s, vt = joint(parts(updates))
    return u @ np.diag(s) @ vt


def slow_iso_c(updates: Any) -> Any:
    u, s, vt = svd(sum(updates))
    return s.mean() * u @ vt


def slow_iso_cts(updates: Any, common: float = 0.8) -> Any:
    u, s, vt = svd(sum(updates))
    n, rank = len(updates), len(s)
    own = round((rank - int(rank * common)) / n)
    k = rank - own * n
    found = []
    for update in updates:
        ui, si, vti = np.linalg.svd(update - u[:, :k] @ u[:, :k].T @ update, full_matrices=False)
        found.append((ui[:, :own], si[:own], vti[:own]))
    u, s, vt = joint([*found, (u[:, :k], s[:k], vt[:k])])
    return s.mean() * u @ vt


def slow_wudi(updates: Any, ridge: float = 0.01) -> Any:
    grams = [w.T @ w / np.sum(w**2) for w in updates]
    d_in = updates[0].shape[1]
    system = sum(grams) + ridge * len(updates) / d_in * np.eye(d_in)
    return sum(w @ g for w, g in zip(updates, grams, strict=True)) @ np.linalg.inv(system)


def slow_dc(updates: Any, density: float = 0.001) -> Any:
    found = parts(updates)
    u, _, vt = joint(found)
    cores = [u.T @ (ui * si.mean()) @ vti @ vt.T for ui, si, vti in found]
    k = len(cores[0])
    count = max(1, int(density * k * k))
    rows = []
    for core in cores:
        least = np.sort(np.abs(core).ravel())[-count]
        rows.append(np.where(np.abs(core) >= least, core, 0).ravel())
    merged = elected_mean(np.stack(rows)).reshape(k, k)
    mask, at = np.zeros((k, k)), 0
    for _, si, _ in found:
        mask[at : at + len(si), at : at + len(si)] = 1
        at += len(si)
    return u @ (merged * mask) @ vt


def slow_opcm(sites: SiteUpdates, threshold: float = 0.5) -> dict[Any, Any]:
    layers, merged = dense(sites), {}
    for layer, updates in layers.items():
        total = updates[0]
        for update in updates[1:]:
            s = svd(total)[1]
            block = np.argmax(np.cumsum(s) / s.sum() > threshold)
            full_u, full_v = np.linalg.svd(total)[0], np.linalg.svd(total)[2].T
            core = full_u.T @ update @ full_v
            core[np.arange(len(s)), np.arange(len(s))] = 0
            core[:block, :block] = 0
            total = total + full_u @ core @ full_v.T
        merged[layer] = total
    norms = [
        np.sqrt(sum(np.sum(updates[i] ** 2) for updates in layers.values()))
        for i in range(len(sites.sites))
    ]
    size = np.sqrt(sum(np.sum(m**2) for m in merged.values()))
    return {layer: m * np.mean(norms) / size for layer, m in merged.items()}


def slow_knots(sites: SiteUpdates, merge_rows: Callable[..., Any]) -> dict[Any, Any]:
    bases, rows = {}, []
    layers = dense(sites)
    for layer, updates in layers.items():
        bases[layer] = svd(np.hstack(updates))[0]
    for i in range(len(sites.sites)):
        rows.append(np.concatenate([(bases[k].T @ layers[k][i]).ravel() for k in layers]))
    merged, at, result = merge_rows(np.stack(rows)), 0, {}
    for layer, updates in layers.items():
        k, d_in = bases[layer].shape[1], updates[0].shape[1]
        result[layer] = bases[layer] @ merged[at : at + k * d_in].reshape(k, d_in)
        at += k * d_in
    return result


def slow_core(sites: SiteUpdates, merge_cores: Callable[..., Any]) -> dict[Any, Any]:
    result = {}
    for layer, of in sites.layers.items():
        outputs = svd(np.hstack([u.left.double().numpy() for u in of.values()]))[0]  # type: ignore[attr-defined]
        inputs = svd(np.vstack([u.right.double().numpy() for u in of.values()]))[2]  # type: ignore[attr-defined]
        merged = merge_cores([outputs.T @ w @ inputs.T for w in dense(sites)[layer]])
        result[layer] = outputs @ merged @ inputs
    return result


def ties_in_core(cores: Any, density: float = 0.1) -> NDArray[Any]:
    rows = np.stack([core.ravel() for core in cores])
    return slow_ties(rows, density).reshape(cores[0].shape)


CASES = {
    "tsv": (Tsv(), each_layer(slow_tsv)),
    "iso-c": (IsoC(scaling=1.3), each_layer(lambda u: 1.3 * slow_iso_c(u))),
    "iso-cts": (IsoCts(), each_layer(slow_iso_cts)),
    "iso-cts, half": (IsoCts(common=0.5), each_layer(lambda u: slow_iso_cts(u, 0.5))),
    "wudi": (Wudi(), each_layer(slow_wudi)),
    "dc-merge": (DcMerge(), each_layer(slow_dc)),
    "dc-merge, more": (DcMerge(density=0.2), each_layer(lambda u: slow_dc(u, 0.2))),
    "opcm": (Opcm(), slow_opcm),
    "knots-ties": (KnotsTies(), lambda s: slow_knots(s, lambda r: 0.6 * slow_ties(r, 0.2))),
    "core-space tsv": (CoreSpace(inner="tsv"), lambda s: slow_core(s, slow_tsv)),
    "core-space ties": (CoreSpace(inner="ties"), lambda s: slow_core(s, ties_in_core)),
}


@pytest.mark.parametrize("name", CASES)
def test_factored_merges_are_what_dense_formulas_say(name: Any) -> None:
    method, slow = CASES[name]
    sites = random_sites(3, seed=1, ranks=RANKS)
    merged = method.merge(sites)
    assert relative(merged, slow(sites)) < TOLERANCE
    assert all(isinstance(update, LowRankUpdate) for update in merged.updates.values())


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("core-space")])
def test_dense_merges_are_what_dense_formulas_say(name: Any) -> None:
    method, slow = CASES[name]
    sites = random_sites(3, seed=2, dense=True)
    merged = method.merge(sites)
    assert relative(merged, slow(sites)) < TOLERANCE
    assert all(isinstance(update, DenseUpdate) for update in merged.updates.values())


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("core-space")])
def test_factors_and_their_products_merge_to_the_same(name: Any) -> None:
    method, _ = CASES[name]
    sites = random_sites(3, seed=4, ranks=RANKS)
    products = {
        site: {layer: DenseUpdate(u.left.double() @ u.right.double()) for layer, u in of.items()}
        for site, of in by_site(sites).items()
    }
    expected = {
        layer: update.dense().double().numpy()
        for layer, update in method.merge(side_by_side(products)).updates.items()
    }
    assert relative(method.merge(sites), expected) < TOLERANCE


def test_knots_dare_ties_drops_in_the_shared_basis() -> None:
    sites = random_sites(3, seed=1, ranks=RANKS)
    method = KnotsDareTies(drop=0.5, seed=3)

    def slow(rows: Any) -> NDArray[Any]:
        masks = [
            torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(seed)).numpy() >= 0.5
            for seed in seeds_of(sites, 3)
        ]
        return 0.7 * elected_mean(rows * np.stack(masks) / 0.5)

    merged = method.merge(sites)
    again = method.merge(sites)
    assert all(
        torch.equal(merged.updates[k].dense(), again.updates[k].dense()) for k in merged.updates
    )
    assert relative(merged, slow_knots(sites, slow)) < TOLERANCE


@pytest.mark.parametrize(
    ("inner", "outside"),
    [("task-arithmetic", TaskArithmetic(scaling=0.3)), ("tsv", Tsv(scaling=0.3))],
)
def test_what_turns_with_the_basis_is_the_same_in_core_space(inner: Any, outside: Any) -> None:
    sites = random_sites(3, ranks=(2, 2, 2))
    got = CoreSpace(inner=inner, scaling=0.3).merge(sites)
    expected = outside.merge(sites).updates
    assert relative(got, {k: u.dense().double().numpy() for k, u in expected.items()}) < TOLERANCE


ALONE = [
    Tsv(),
    Opcm(),
    Wudi(ridge=1e-9),
    KnotsTies(density=1.0, scaling=1.0),
    KnotsDareTies(drop=0.0, scaling=1.0),
]
CORE = [CoreSpace(density=1.0), CoreSpace(inner="tsv")]


@pytest.mark.parametrize(
    ("method", "form"),
    [(m, "factored") for m in ALONE + CORE] + [(m, "dense") for m in ALONE],
    ids=str,
)
def test_one_site_alone_is_given_back(method: Any, form: Any) -> None:
    sites = random_sites(1, ranks=(3,), dense=form == "dense")
    expected = {layer: rows[0] for layer, rows in dense(sites).items()}
    assert relative(method.merge(sites), expected) < 1e-4


def test_sites_that_agree_are_given_back_by_wudi() -> None:
    one = by_site(random_sites(1, ranks=(3,)))["ash"]
    merged = Wudi(ridge=1e-9).merge(side_by_side({name: one for name in "abc"}))
    expected = {layer: update.dense().double().numpy() for layer, update in one.items()}
    assert relative(merged, expected) < 1e-4


def test_orthogonal_sites_do_not_disturb_each_other_in_tsv() -> None:
    eye = torch.eye(12)
    sites = {
        "a": {"q": LowRankUpdate(eye[:, :2] * 3, eye[:2, :10])},
        "b": {"q": LowRankUpdate(eye[:, 2:4] * 2, eye[2:4, :10])},
    }
    merged = Tsv().merge(side_by_side(sites)).updates["q"].dense()
    torch.testing.assert_close(merged, sites["a"]["q"].dense() + sites["b"]["q"].dense())


def test_isotropic_merges_have_one_singular_value() -> None:
    for method in (IsoC(), IsoCts()):
        values = method.merge(random_sites(3)).updates["up"].spectrum().values
        torch.testing.assert_close(values, values.mean().expand(len(values)), rtol=1e-5, atol=0)


def test_opcm_depends_on_the_order_of_the_names_and_says_so() -> None:
    sites = by_site(random_sites(3))
    renamed = dict(zip(("cedar", "birch", "ash"), sites.values(), strict=True))
    one = Opcm().merge(side_by_side(sites)).updates
    other = Opcm().merge(side_by_side(renamed)).updates
    assert relative_distance(list(one.values()), list(other.values())) > 1e-3
    assert "Sequential" in (Opcm.__doc__ or "")


def test_no_order_of_the_dicts_decides_what_a_sequential_method_makes() -> None:
    sites = random_sites(3)
    turned = SiteUpdates(
        dict(reversed(sites.samples.items())),  # type: ignore[call-overload]
        {layer: dict(reversed(of.items())) for layer, of in sites.layers.items()},  # type: ignore[call-overload]
    )
    assert turned.sites == sites.sites == ("ash", "birch", "cedar")
    assert [list(of) for of in turned.layers.values()] == [list(sites.sites)] * 3
    one, other = Opcm().merge(sites).updates, Opcm().merge(turned).updates
    assert all(torch.equal(one[layer].dense(), other[layer].dense()) for layer in one)


def test_a_site_that_brings_an_update_and_no_samples_is_named() -> None:
    sites = random_sites(2)
    with pytest.raises(ValueError, match=r"'birch' has an update of 'q', but no samples"):
        SiteUpdates({"ash": 10}, sites.layers)


def test_all_directions_of_the_merge_can_be_closed_to_later_sites() -> None:
    one, other = (random_sites(1, seed=seed, dense=True).layers["q"]["ash"] for seed in (0, 1))
    inside = one.spectrum()
    merged = Opcm(threshold=1.0).merge(side_by_side({"a": {"q": one}, "b": {"q": other}}))
    dense_merge = merged.updates["q"].dense().double()
    left, right = inside.left[:, :9], inside.right[:9]  # the last one is a matter of rounding
    there, before = left.T @ dense_merge @ right.T, left.T @ one.dense().double() @ right.T
    torch.testing.assert_close(there / there[0, 0], before / before[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name != "opcm"])
def test_other_names_for_the_sites_change_nothing(name: Any) -> None:
    method, _ = CASES[name]
    sites = by_site(random_sites(3, seed=1, ranks=RANKS))
    renamed = dict(zip(("cedar", "birch", "ash"), sites.values(), strict=True))
    one = method.merge(side_by_side(sites)).updates
    other = method.merge(side_by_side(renamed)).updates
    assert relative_distance(list(one.values()), list(other.values())) < 1e-4


def test_truncation_is_the_best_of_its_rank() -> None:
    update = random_sites(1, ranks=(3,)).layers["q"]["ash"]
    values = np.linalg.svd(update.dense().double().numpy(), compute_uv=False)
    kept = truncated(update, 2)
    assert kept.rank == 2
    assert relative_distance([kept], [update]) == pytest.approx(
        values[2] / np.linalg.norm(values), rel=1e-4
    )
    assert norm([update]) == pytest.approx(np.linalg.norm(values), rel=1e-6)
