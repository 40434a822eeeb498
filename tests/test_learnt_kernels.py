"""Learnt coefficients: the kernels, against plain torch."""

import pytest
import torch
from torch import nn

from layerweld.merging.adamerging import (
    AdaMerging,
    LayerCoefficients,
    mean_entropy,
    merge_by_layer,
    weighed,
)
from layerweld.merging.descent import Descent
from layerweld.merging.one_round import SiteUpdates
from layerweld.merging.prodistill import EntryCoefficients, ProDistill, squared_distance
from layerweld.merging.registry import METHODS
from layerweld.merging.sums import TaskArithmetic
from layerweld.merging.ties import Ties
from layerweld.model.weighted_layers import additions, weighted
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update
from tests.random_updates import by_site, random_sites, side_by_side


@pytest.fixture(params=["factored", "dense", "one without a layer"])
def sites(request: pytest.FixtureRequest) -> SiteUpdates:
    sites = random_sites(dense=request.param == "dense")
    if request.param == "one without a layer":
        without = by_site(sites)
        del without["birch"]["up"]
        return side_by_side(without)
    return sites


def test_a_descent_taken_up_again_has_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(6)]
    whole = Descent([torch.zeros(3, 2, dtype=torch.float64)], 0.1)
    for gradient in gradients:
        whole.step([gradient])
    first = Descent([torch.zeros(3, 2, dtype=torch.float64)], 0.1)
    for gradient in gradients[:3]:
        first.step([gradient])
    second = Descent([torch.zeros(3, 2, dtype=torch.float64)], 0.1)
    second.restore(first.tensors())
    for gradient in gradients[3:]:
        second.step([gradient])
    assert torch.equal(second.values[0], whole.values[0])


def test_coefficients_go_down_as_in_the_authors_code_and_stay_between_0_and_1() -> None:
    settings = AdaMerging(learning_rate=0.1)
    ours = LayerCoefficients((2, 3), settings)
    theirs = torch.full((2, 3), 0.3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theirs], lr=0.1)
    pull = torch.tensor([[1.0, -1.0, 0.2], [-3.0, 0.0, 2.0]], dtype=torch.float64)
    for round_ in range(20):
        optimiser.zero_grad()
        (theirs.clamp(0, 1) * pull * (round_ + 1)).sum().backward()
        optimiser.step()
        ours.step(pull * (round_ + 1))
    assert torch.equal(ours.values, theirs.detach().clamp(0, 1))
    assert ours.values[0, 0] == 0
    assert ours.values[1, 0] == 1
    assert ours.values[1, 1] == 0.3


def test_coefficients_that_have_not_moved_are_task_arithmetic(sites: SiteUpdates) -> None:
    start = LayerCoefficients((len(sites.sites), len(sites.layers)), AdaMerging())
    merged = merge_by_layer(sites, start.values, tuple(sites.layers)).updates
    for layer, update in TaskArithmetic().merge(sites).updates.items():
        torch.testing.assert_close(merged[layer].dense(), update.dense())
        assert isinstance(merged[layer], type(update))


def test_the_entries_that_agree_have_the_sum_of_which_ties_takes_the_mean(
    sites: SiteUpdates,
) -> None:
    kept = weighed(METHODS["adamerging++"], sites, AdaMerging(density=0.2))
    ties = Ties(density=0.2).merge(sites).updates
    for layer, of in kept.layers.items():
        dense = torch.stack([update.dense() for update in of.values()])
        mean = dense.sum(dim=0) / (dense != 0).sum(dim=0).clamp(min=1)
        torch.testing.assert_close(mean, ties[layer].dense())
        assert bool(((dense >= 0).all(dim=0) | (dense <= 0).all(dim=0)).all())


def test_a_weighted_layer_is_the_merged_layer_and_its_gradient_the_inner_product(
    sites: SiteUpdates,
) -> None:
    torch.manual_seed(0)
    shapes = {layer: next(iter(of.values())).shape for layer, of in sites.layers.items()}
    layers = {name: nn.Linear(d_in, d_out) for name, (d_out, d_in) in shapes.items()}
    by_layer = {name: torch.rand(len(sites.sites), requires_grad=True) for name in sites.layers}
    for name, layer in layers.items():
        inputs, pull = torch.randn(2, 5, shapes[name][1]), torch.randn(2, 5, shapes[name][0])
        with weighted(layers, additions(sites, torch.device("cpu")), by_layer):
            output = layer(inputs)
        update = sum(
            by_layer[name][sites.sites.index(site)].detach() * one.dense()
            for site, one in sites.layers[name].items()
        )
        dense = (layer.weight.detach() + update).requires_grad_()
        expected = nn.functional.linear(inputs, dense, layer.bias)
        torch.testing.assert_close(output, expected)
        (gradient,) = torch.autograd.grad((output * pull).sum(), [by_layer[name]])
        (by_weight,) = torch.autograd.grad((expected * pull).sum(), [dense])
        for site, one in sites.layers[name].items():
            inner = (by_weight * one.dense()).sum()
            torch.testing.assert_close(
                gradient[sites.sites.index(site)], inner, rtol=1e-4, atol=1e-4
            )
        assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.weight, layer.bias))


def test_the_entropy_is_largest_where_the_head_knows_nothing() -> None:
    torch.testing.assert_close(mean_entropy(torch.zeros(3, 4)), torch.tensor(4.0).log())
    assert mean_entropy(torch.tensor([[100.0, 0.0]])) < 1e-6


def test_entry_coefficients_go_down_as_autograd_over_them_would() -> None:
    torch.manual_seed(0)
    updates: dict[str, dict[str, Update]] = {
        "q": {"ash": LowRankUpdate(torch.randn(4, 2), torch.randn(2, 3)),
              "birch": DenseUpdate(torch.randn(4, 3))},
        "o": {"birch": DenseUpdate(torch.randn(3, 4))},
    }  # fmt: skip
    ours = EntryCoefficients(updates, ProDistill(learning_rate=0.05))
    vectors = {k: torch.stack([u.dense() for u in of.values()]) for k, of in updates.items()}
    theirs = {k: torch.full_like(v, 0.3).requires_grad_() for k, v in vectors.items()}
    optimiser = torch.optim.Adam(theirs.values(), lr=0.05)
    target = {k: torch.randn_like(v[0]) for k, v in vectors.items()}
    for _ in range(10):
        optimiser.zero_grad()
        whole = {k: (theirs[k] * vectors[k]).sum(dim=0) for k in vectors}
        sum((whole[k] - target[k]).square().sum() for k in whole).backward()  # type: ignore[union-attr]
        optimiser.step()
        merged = ours.merged
        ours.step({k: 2 * (merged[k].dense() - target[k]).double() for k in vectors})
    for layer, update in ours.merged.items():
        expected = (theirs[layer].detach() * vectors[layer]).sum(dim=0)
        torch.testing.assert_close(update.dense(), expected)


def test_padding_has_no_say_in_the_distance() -> None:
    output, target = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    keep = torch.tensor([[True, True, False]])
    assert squared_distance(output, target, keep) == 4
