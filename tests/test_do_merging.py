"""DO-Merging against autograd, and what it does to sites that agree or do not meet."""

from typing import Any

import numpy as np
import torch

from layerweld.merging.do_merging import DoMerging, by_size_and_direction, pulled_apart
from layerweld.updates.update import LowRankUpdate
from tests.random_updates import by_site, dense, random_sites, relative, side_by_side


def by_autograd(factors: list[Any], steps: int, rate: float, loyalty: Any) -> list[Any]:
    scale = float(np.linalg.norm(np.vstack(factors), 2)) ** 2
    start = [torch.from_numpy(factor) for factor in factors]
    moved = [factor.clone().requires_grad_() for factor in start]
    for _ in range(steps):
        loss = sum(
            (x @ y.T).square().sum() / 2
            for i, x in enumerate(moved)
            for j, y in enumerate(moved)
            if i != j
        )
        loss = loss + loyalty * scale * sum(
            (x - x0).square().sum() for x, x0 in zip(moved, start, strict=True)
        )
        gradients = torch.autograd.grad(loss, moved)
        moved = [
            (x - rate / scale * g).detach().requires_grad_()
            for x, g in zip(moved, gradients, strict=True)
        ]
    return [x.detach().numpy() for x in moved]


def slow(updates: list[Any]) -> Any:
    lefts = by_autograd([u.left.double().numpy().T for u in updates], 20, 0.1, 0.1)
    rights = by_autograd([u.right.double().numpy() for u in updates], 20, 0.1, 0.1)
    products = [left.T @ right for left, right in zip(lefts, rights, strict=True)]
    merged = np.zeros_like(products[0])
    for column in range(merged.shape[1]):
        vectors = [product[:, column] for product in products]
        lengths = [np.linalg.norm(vector) for vector in vectors]
        directions = [vector / length for vector, length in zip(vectors, lengths, strict=True)]
        merged[:, column] = np.mean(lengths) * np.mean(directions, axis=0)
    return merged


def test_the_merge_is_what_autograd_and_a_loop_over_columns_say() -> None:
    sites = random_sites(3, seed=6)
    expected = {layer: slow(list(of.values())) for layer, of in sites.layers.items()}
    assert relative(DoMerging().merge(sites), expected) < 1e-6


def test_descent_makes_factors_more_orthogonal() -> None:
    factors = [u.right.double() for u in random_sites(3).layers["up"].values()]  # type: ignore[attr-defined]
    moved = pulled_apart(factors)
    assert float((moved[0] @ moved[1].T).norm()) < 0.7 * float((factors[0] @ factors[1].T).norm())


def test_one_site_alone_is_given_back() -> None:
    sites = random_sites(1)
    expected = {layer: rows[0] for layer, rows in dense(sites).items()}
    assert relative(DoMerging().merge(sites), expected) < 1e-6


def test_sites_that_agree_keep_their_directions() -> None:
    one = by_site(random_sites(1, ranks=(1,)))["ash"]
    merged = DoMerging().merge(side_by_side({name: one for name in "abc"})).updates["q"].dense()
    whole = one["q"].dense()
    assert torch.cosine_similarity(merged.flatten(), whole.flatten(), dim=0) > 1 - 1e-6
    averaged = by_size_and_direction([whole.double()] * 3)
    torch.testing.assert_close(averaged.float(), whole)


def test_sites_that_do_not_meet_are_not_moved() -> None:
    eye = torch.eye(6).double()
    moved = pulled_apart([eye[:2], eye[2:5]])
    torch.testing.assert_close(torch.cat(moved), eye[:5])


def test_a_large_site_does_not_turn_the_direction() -> None:
    small, large = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.0], [9.0]]).double()
    merged = by_size_and_direction([small, large])
    torch.testing.assert_close(merged, torch.tensor([[2.5], [2.5]]).double())


def test_zero_updates_stay_zero() -> None:
    zero = LowRankUpdate(torch.zeros(4, 2), torch.zeros(2, 3))
    merged = DoMerging().merge(side_by_side({"a": {"q": zero}, "b": {"q": zero}}))
    assert not merged.updates["q"].dense().any()
