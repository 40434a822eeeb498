"""What a site measures: real tokens only, behind the right prefix, at the promised cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from client import state
from client.site import site_of_node
from layerweld.model.collect import ReplayableModel, collect
from layerweld.model.discover import discover_plan
from layerweld.model.linear import weight_of
from layerweld.model.schedule import schedule
from layerweld.plan import MergePlan
from layerweld.runtime.incidents import raising_here
from layerweld.settings.merge import MergeSettings
from layerweld.statistics.group import GroupStatistics, ProductForm
from layerweld.updates.update import LowRankUpdate
from server.run import run as run_server
from tests.tiny_models import DECODERS, ENCODERS, EVERY_MODEL, make_batch, new_backbone
from tests.tiny_sites import make_sites

FORM = ProductForm(dense=False, with_updates=False)
TARGETS = ["query", "key", "value", "output.dense", "intermediate.dense"]


def replayable(name: str) -> ReplayableModel:
    backbone = new_backbone(name)
    return ReplayableModel(backbone, discover_plan(backbone))


def first_step(
    model: ReplayableModel, batches: list[Any], updates: dict[Any, Any], **merge: Any
) -> tuple[GroupStatistics, ...]:
    """Statistics of the whole model in one step, with the site's own updates in place."""
    settings = MergeSettings(granularity="model", **merge)
    (step,) = schedule(model.plan, settings)
    recording = model.record(batches)
    hidden = [batch.entry for batch in recording]
    return collect(model, recording, hidden, step, {}, updates, settings, FORM)


def random_updates(plan: MergePlan) -> dict[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        shape.name: LowRankUpdate(
            0.3 * torch.randn(shape.d_out, 2, generator=generator),
            torch.randn(2, group.d_in, generator=generator),
        )
        for group in plan.groups
        for shape in group.layers
    }


def cut(batch: dict[Any, Any], row: int) -> dict[Any, Any]:
    """One row of a right-padded batch without its padding."""
    length = int(batch["attention_mask"][row].sum())
    return {key: value[row : row + 1, :length] for key, value in batch.items()}


@pytest.mark.parametrize("name", sorted(ENCODERS | DECODERS))
def test_padding_never_reaches_the_statistics(name: Any) -> None:
    model = replayable(name)
    updates = random_updates(model.plan)
    batch = make_batch(model.backbone)
    padded = first_step(model, [batch], updates, normalization="none")
    alone = first_step(model, [cut(batch, row) for row in range(3)], updates, normalization="none")
    for one, other in zip(padded, alone, strict=True):
        assert one.num_tokens == other.num_tokens == int(batch["attention_mask"].sum())
        torch.testing.assert_close(one.gram, other.gram, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_inputs_are_those_of_the_model_with_its_updates(name: Any) -> None:
    model = replayable(name)
    updates = random_updates(model.plan)
    batch = make_batch(model.backbone, padded=False)
    statistics = {s.group: s for s in first_step(model, [batch], updates, normalization="none")}
    for layer, update in updates.items():
        weight_of(model.layers[layer]).add_(update.dense())
    for group in model.plan.groups:
        heard: list[Any] = []
        layer = model.layers[group.layers[0].name]
        hook = layer.register_forward_pre_hook(lambda _m, args, heard=heard: heard.append(args[0]))
        with torch.inference_mode():
            model.backbone(**batch)
        hook.remove()
        tokens = heard[0].reshape(-1, group.d_in).double()
        gram = (tokens.T @ tokens / len(tokens)).float()
        torch.testing.assert_close(statistics[group.name].gram, gram, rtol=1e-4, atol=1e-5)


@contextmanager
def counted_products() -> Iterator[list[int]]:
    """Multiplications in linear layers on batches of more than one row, in a list's only entry."""
    count = [0]

    def add(module: Any, args: Any, output: Any) -> None:
        if isinstance(module, nn.Linear) and len(output) > 1:
            count[0] += output.numel() * args[0].shape[-1]

    hook = register_module_forward_hook(add)
    yield count
    hook.remove()


@pytest.mark.parametrize(("granularity", "passes"), [("group", 3.0), ("block", 2.0)])
def test_a_chain_costs_under_so_many_passes_over_the_model(
    tmp_path: Path, granularity: str, passes: float
) -> None:
    sites = make_sites(tmp_path, TARGETS)
    settings = sites.settings(granularity=granularity)
    grid = sites.grid(settings)
    with counted_products() as chain:
        run_server(grid, settings, str(sites.base), tmp_path / "out")
    with counted_products() as once:
        for node in sites.nodes:
            with raising_here():
                entry = site_of_node(node, settings)
            site = state.SiteState(entry, settings, "count")
            for batch in site.batches:
                with torch.inference_mode():
                    site.base.backbone(**batch)
    assert 1.0 < chain[0] / once[0] < passes
