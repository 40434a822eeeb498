"""Updates go into a model and come out again without a trace."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from layerweld.model.linear import linear_layers, shifted, updated, weight_of
from layerweld.updates.update import DenseUpdate, LowRankUpdate


def two_layers() -> Any:
    torch.manual_seed(0)
    return nn.ModuleDict({"up": nn.Linear(4, 6), "down": Conv1D(4, 6)}).requires_grad_(False)


def updates() -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "up": LowRankUpdate(
            torch.randn(6, 2, generator=generator), torch.randn(2, 4, generator=generator)
        ),
        "down": DenseUpdate(torch.randn(4, 6, generator=generator)),
    }


def test_both_kinds_of_layers_are_found_and_read_the_same_way_round() -> None:
    model = two_layers()
    assert list(linear_layers(model)) == ["up", "down"]
    assert weight_of(model["up"]).shape == (6, 4)
    assert weight_of(model["down"]).shape == (4, 6)


def test_inside_a_layer_computes_with_its_update_and_afterwards_without() -> None:
    model, x = two_layers(), torch.randn(3, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with updated(linear_layers(model), updates()):
        up = model["up"](x)
        down = model["down"](up)
    expected_up = x @ (before["up.weight"] + updates()["up"].dense()).T + before["up.bias"]
    torch.testing.assert_close(up, expected_up)
    whole = before["down.weight"] + updates()["down"].dense().T
    torch.testing.assert_close(down, expected_up @ whole + before["down.bias"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_error_inside_leaves_no_update_behind() -> None:
    model = two_layers()
    before = model["up"].weight.clone()
    with (
        pytest.raises(ZeroDivisionError),
        updated(linear_layers(model), updates()),
        shifted(model, {"up.bias": torch.ones(6)}),
    ):
        _ = 1 / 0
    assert torch.equal(model["up"].weight, before)
    assert not torch.equal(model["up"].bias, torch.ones(6))


def test_a_small_update_survives_a_bfloat16_layer() -> None:
    # 1e-3 of a weight is below bfloat16's 2⁻⁸: the sum must be formed in float32.
    layer = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    small = DenseUpdate(1e-3 * layer.weight.float())
    with updated({"layer": layer}, {"layer": small}):
        gained = layer.weight - small.weight / 1e-3
    torch.testing.assert_close(gained, small.weight, rtol=1e-3, atol=1e-9)
    assert layer.weight.dtype == torch.bfloat16


def test_other_parameters_are_shifted_and_put_back() -> None:
    model = two_layers()
    before = model["up"].bias.clone()
    with shifted(model, {"up.bias": torch.full((6,), 2.0)}):
        torch.testing.assert_close(model["up"].bias, before + 2)
    assert torch.equal(model["up"].bias, before)
