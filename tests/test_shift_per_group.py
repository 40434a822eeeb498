"""The covariate shift at a site: of the inputs that the whole models read, a block at a time."""

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from client.handlers.measure import shift_per_group
from client.site import site_of_node
from client.state import SiteState
from layerweld.formats.adapters import read_fine_tuned
from layerweld.model import collect
from layerweld.model.linear import shifted, updated
from layerweld.plan import MergePlan
from layerweld.runtime.incidents import raising_here
from layerweld.statistics.covariate_shift import MomentAccumulator, squared_wasserstein
from layerweld.transport.model import ModelToMeasure
from layerweld.updates.update import Update
from tests.tiny_sites import BERT_LAYERS, TinySites, make_sites, with_whole_models

IN_BLOCK_1 = [f"encoder.layer.1.{of}" for of in ("intermediate.dense", "output.dense")]


@pytest.fixture(scope="module", params=["LoRA", "LoRA behind a block without", "whole models"])
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    adapted = IN_BLOCK_1 if request.param.endswith("without") else BERT_LAYERS
    made = make_sites(tmp_path_factory.mktemp("sites"), adapted)
    return with_whole_models(made) if request.param == "whole models" else made


@pytest.fixture
def site(sites: TinySites) -> SiteState:
    settings = sites.settings()
    with raising_here():
        site = site_of_node(sites.nodes[0], settings)
    return SiteState(site, settings, "run")


@pytest.fixture
def merged(sites: TinySites, site: SiteState) -> ModelToMeasure:
    """Another site's fine-tuning stands for a merge."""
    other = read_fine_tuned(sites.nodes[1]["adapter"], site.base).task_vector
    layers = tuple(name for name in site.plan.layer_names if name in other.updates)
    return ModelToMeasure("run", "merged", layers, other.updates, other.other_params)


def moments_of_all(
    site: SiteState,
    plan: MergePlan,
    updates: Mapping[str, Update],
    other_params: Mapping[str, Tensor],
) -> dict[Any, Any]:
    """Of every group at once, in plain forward passes of the whole model."""
    layers = {shape.name: site.base.backbone.get_submodule(shape.name) for shape in shapes_of(plan)}
    found = {group.name: MomentAccumulator(group.d_in) for group in plan.groups}
    with ExitStack() as stack:
        stack.enter_context(shifted(site.base.backbone, other_params))
        stack.enter_context(updated(layers, updates))
        for batch in site.batches:
            keep = batch["attention_mask"].bool()
            hooks = [
                layers[group.layers[0].name].register_forward_pre_hook(
                    lambda _m, args, keep=keep, heard=found[group.name]: heard.update(args[0], keep)
                )
                for group in plan.groups
            ]
            with torch.no_grad():
                site.base.backbone(**batch)
            for hook in hooks:
                hook.remove()
    return {name: accumulator.moments() for name, accumulator in found.items()}


def shapes_of(plan: MergePlan) -> list[Any]:
    return [shape for group in plan.groups for shape in group.layers]


def test_it_is_that_of_the_whole_models_to_the_bit(site: SiteState, merged: ModelToMeasure) -> None:
    own, plan = site.adapter.task_vector, site.plan.restricted_to(merged.layers)
    there = moments_of_all(site, plan, merged.updates, merged.other_params)
    here = moments_of_all(site, plan, own.updates, own.other_params)
    expected = {name: squared_wasserstein(*there[name], *here[name]) for name in there}
    assert shift_per_group(site, merged) == expected
    assert max(expected.values()) > 1e-4


def test_the_base_model_is_left_as_it_was(site: SiteState, merged: ModelToMeasure) -> None:
    before = {name: values.clone() for name, values in site.base.backbone.state_dict().items()}
    shift_per_group(site, merged)
    after = site.base.backbone.state_dict()
    assert all(torch.equal(values, after[name]) for name, values in before.items())


def test_no_more_than_one_block_of_both_models_is_accumulated_at_a_time(
    site: SiteState, merged: ModelToMeasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[MomentAccumulator] = weakref.WeakSet()
    most = [0]

    class Counted(MomentAccumulator):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            alive.add(self)
            most[0] = max(most[0], len(alive))

    monkeypatch.setattr(collect, "MomentAccumulator", Counted)
    shifts = shift_per_group(site, merged)
    plan = site.plan.restricted_to(merged.layers)
    assert most[0] == 2 * max(len(plan.groups_of_block(block)) for block in range(2))
    assert len(shifts) == len(plan.groups)
    assert not alive
