from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerweld.settings.merge import MergeSettings
from layerweld.statistics.solve import regularize

seeds = st.integers(0, 2**16)


def spd(d: int, seed: int, tokens: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens or 3 * d, d, dtype=torch.float64, generator=generator)
    return x.T @ x / len(x)


def rows_of(num: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(num, d, dtype=torch.float64, generator=generator)


@given(d=st.integers(1, 12), ridge=st.floats(1e-6, 10), seed=seeds)
def test_solution_is_that_of_the_ridge_normal_equations(d: int, ridge: float, seed: Any) -> None:
    gram, rows = spd(d, seed), rows_of(3, d, seed)
    system = regularize(gram, ridge)
    value = ridge * float(gram.trace()) / d
    expected = rows.numpy() @ np.linalg.inv(gram.numpy() + value * np.eye(d))
    assert system.ridge == pytest.approx(value)
    np.testing.assert_allclose(system.solve(rows).numpy(), expected, rtol=1e-6, atol=1e-9)


@given(d=st.integers(2, 10), seed=seeds, data=st.data())
def test_singular_system_without_ridge_is_the_pseudo_inverse(
    d: int, seed: Any, data: st.DataObject
) -> None:
    assert_pseudo_inverse(d, data.draw(st.integers(1, d - 1)), seed)


# No pivot of these is small, because rounding of size eps / λ of the leading block hides the zero.
@pytest.mark.parametrize(("d", "tokens", "seed"), [(6, 5, 461), (3, 2, 1226), (4, 3, 107)])
def test_a_singular_system_without_a_small_pivot_is_seen_to_be_singular(
    d: int, tokens: int, seed: int
) -> None:
    assert_pseudo_inverse(d, tokens, seed)


def assert_pseudo_inverse(d: int, tokens: int, seed: int) -> None:
    # orthonormal tokens: the spectrum is tokens/tokens = 1 and 0, far from any cut-off
    basis = torch.linalg.qr(rows_of(d, d, seed))[0][:tokens]
    gram, rows = basis.T @ basis, rows_of(3, d, seed + 7)
    system = regularize(gram, 0.0)
    np.testing.assert_allclose(
        system.solve(rows).numpy(), rows.numpy() @ np.linalg.pinv(gram.numpy()), atol=1e-9
    )
    assert system.condition == pytest.approx(1, rel=1e-6)


def test_directions_that_no_token_excites_are_left_at_zero() -> None:
    gram = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64))
    solved = regularize(gram, 0.0).solve(torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(solved, torch.tensor([[0.5, 0.0, 1.0]], dtype=torch.float64))


def test_a_system_that_is_all_zero_has_the_solution_zero() -> None:
    system = regularize(torch.zeros(3, 3, dtype=torch.float64), 0.01)
    assert not system.solve(torch.ones(2, 3, dtype=torch.float64)).any()
    assert system.condition == 1.0


def test_features_of_wildly_different_scales_are_solved_to_full_precision() -> None:
    # Unscaled the condition number is 1e16; scaling to unit diagonal takes it back to that of C.
    scale = torch.logspace(-4, 4, 6, dtype=torch.float64)
    cosine = 0.5 * torch.eye(6, dtype=torch.float64) + 0.5
    gram = cosine * scale * scale[:, None]
    wanted = rows_of(3, 6, 0)
    torch.testing.assert_close(
        regularize(gram, 0.0).solve(wanted @ gram), wanted, rtol=1e-7, atol=0
    )


def spread(d: int, condition: float, seed: int) -> Any:
    """A matrix of that condition number, which no scaling of its features takes back."""
    basis = torch.linalg.qr(rows_of(d, d, seed))[0]
    values = torch.logspace(0, -np.log10(condition), d, dtype=torch.float64)
    gram = (basis * values) @ basis.T
    return (gram + gram.T) / 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("d", [5, 50, 200])
def test_a_condition_of_1e14_is_solved_to_eight_digits_with_the_default_ridge(
    d: int, seed: int
) -> None:
    gram, rows = spread(d, 1e14, seed), rows_of(3, d, seed)
    system = regularize(gram, MergeSettings().ridge)
    solved = system.solve(rows)
    residual = solved @ gram + system.ridge * solved - rows
    assert float(residual.norm() / rows.norm()) <= 1e-8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("d", [5, 50, 200])
def test_a_condition_of_1e14_without_a_ridge_is_solved_where_float32_statistics_say_anything(
    d: int, seed: int
) -> None:
    gram, wanted = spread(d, 1e14, seed), rows_of(3, d, seed)
    system = regularize(gram, 0.0)
    solved = system.solve(wanted @ gram)
    residual = float((solved @ gram - wanted @ gram).norm())
    # Directions are left out whose eigenvalue is below d_in · eps of float32 times the largest, 1.
    assert residual <= d * torch.finfo(torch.float32).eps * float(wanted.norm())
    assert float(solved.norm()) <= 1.001 * float(wanted.norm())


@given(d=st.integers(1, 10), seed=seeds, ridge=st.sampled_from([0.0, 1e-4, 0.1]))
def test_reported_condition_is_a_lower_bound_of_the_scaled_one(
    d: int, seed: Any, ridge: Any
) -> None:
    gram = spd(d, seed, tokens=4 * d)
    system = regularize(gram, ridge)
    matrix = gram + system.ridge * torch.eye(d, dtype=torch.float64)
    scale = matrix.diagonal().rsqrt()
    exact = np.linalg.cond((matrix * scale * scale[:, None]).numpy())
    assert 1 - 1e-9 <= system.condition <= exact * (1 + 1e-6)


def dense_descent(gram: Tensor, target: Tensor, start: Tensor, steps: int) -> Tensor:
    """Textbook conjugate gradients on the flattened ``ΔW``."""
    x, residual = start.clone(), target - start @ gram
    direction = residual.clone()
    for _ in range(steps):
        image = direction @ gram
        step = residual.square().sum() / (direction * image).sum()
        x = x + step * direction
        after = residual - step * image
        direction = after + after.square().sum() / residual.square().sum() * direction
        residual = after
    return x


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_descent_in_factors_takes_the_steps_of_descent_on_the_products(steps: int) -> None:
    torch.manual_seed(0)
    x, left = torch.randn(40, 9).double(), torch.randn(7, 4).double()
    rows, start = torch.randn(4, 9).double(), torch.randn(4, 9).double()
    system = regularize(x.T @ x, 0.0)
    got = left @ system.approach(rows, start, left.T @ left, steps)
    torch.testing.assert_close(got, dense_descent(system.gram, left @ rows, left @ start, steps))


def test_descent_ends_at_the_exact_solution_and_stays_there() -> None:
    torch.manual_seed(0)
    x, left = torch.randn(40, 9).double(), torch.randn(7, 4).double()
    rows = torch.randn(4, 9).double()
    system = regularize(x.T @ x, 0.1)
    exact = system.solve(rows)
    torch.testing.assert_close(
        left @ system.approach(rows, torch.zeros_like(rows), left.T @ left, 1000),
        left @ exact,
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(system.approach(rows, exact, left.T @ left, 5), exact)


def test_descent_leaves_silent_directions_where_they_started() -> None:
    gram = torch.diag(torch.tensor([2.0, 1.0, 0.0])).double()
    start, rows = torch.full((1, 3), 5.0).double(), torch.tensor([[2.0, 3.0, 0.0]]).double()
    one = torch.ones(1, 1).double()
    got = regularize(gram, 0.0).approach(rows, start, one, 10)
    torch.testing.assert_close(got, torch.tensor([[1.0, 3.0, 5.0]]).double())
