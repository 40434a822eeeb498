"""Agreement with PEFT's ``add_weighted_adapter`` wherever both define the same merge."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import PeftModel

from layerweld.formats.adapters import read_adapter
from layerweld.merging.dare import Dare, DareTies, dropped, seeds_of
from layerweld.merging.lora_averaging import FedIt, FlexLora, Flora
from layerweld.merging.one_round import SiteUpdates
from layerweld.merging.sums import Mean, TaskArithmetic
from layerweld.merging.ties import Ties
from layerweld.updates.update import Update
from tests.random_updates import side_by_side
from tests.tiny_peft import TARGETS, new_model, save_base, train_adapter

NAMES = ("ash", "birch", "cedar")
FULL = 16  # the directions of every layer of the tiny model: PEFT's SVD then loses nothing


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("adapters")
    base = save_base("bert", folder / "base")
    for seed, name in enumerate(NAMES):
        train_adapter(new_model("bert"), folder / name, TARGETS["bert"], seed=seed)
    return folder, base


@pytest.fixture(scope="module")
def sites(adapters: tuple[Any, ...]) -> SiteUpdates:
    folder, base = adapters
    return side_by_side(
        {name: dict(read_adapter(folder / name, base).task_vector.updates) for name in NAMES}
    )


def one_layer(sites: SiteUpdates, layer: Any) -> SiteUpdates:
    return SiteUpdates(sites.samples, {layer: sites.layers[layer]})


def combined(adapters: tuple[Any, ...], weight: float, kind: str, **options: Any) -> dict[Any, Any]:
    """ΔW by layer of PEFT's own combination of the three adapters."""
    folder, _ = adapters
    model = PeftModel.from_pretrained(new_model("bert"), folder / NAMES[0], adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    weights = [weight] * len(NAMES)
    model.add_weighted_adapter(list(NAMES), weights, "merged", combination_type=kind, **options)
    return {
        name.removeprefix("base_model.model.bert."): module.get_delta_weight("merged")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def assert_same(
    merged: Mapping[str, Update] | dict[Any, Update] | dict[Any, Any], expected: dict[Any, Any]
) -> None:
    assert merged.keys() == expected.keys()
    for layer, update in merged.items():
        torch.testing.assert_close(update.dense(), expected[layer], rtol=1e-4, atol=2e-5)


def test_linear_is_fedit_once_its_weights_are_squared(
    adapters: tuple[Any, ...], sites: SiteUpdates
) -> None:
    # PEFT multiplies A and B by √(weight · scaling) each and adds them up. FedIT's mean divides
    # both by N, so 1 / N² is the weight that makes the two the same.
    assert_same(FedIt().merge(sites).updates, combined(adapters, 1 / 9, "linear"))


def test_cat_is_flora_and_the_mean(adapters: tuple[Any, ...], sites: SiteUpdates) -> None:
    expected = combined(adapters, 1 / 3, "cat")
    assert_same(Flora().merge(sites).updates, expected)
    assert_same(Mean().merge(sites).updates, expected)


def test_svd_is_flexlora(adapters: tuple[Any, ...], sites: SiteUpdates) -> None:
    expected = combined(adapters, 1 / 3, "svd", svd_rank=3)
    assert_same(FlexLora().merge(sites).updates, expected)


def test_svd_of_full_rank_is_task_arithmetic(adapters: tuple[Any, ...], sites: SiteUpdates) -> None:
    expected = combined(adapters, 0.3, "svd", svd_rank=FULL)
    assert_same(TaskArithmetic().merge(sites).updates, expected)


def test_ties_svd_of_full_rank_is_ties_layer_by_layer(
    adapters: tuple[Any, ...], sites: SiteUpdates
) -> None:
    # PEFT trims every layer for itself; here, as in the paper, the whole model is trimmed at once.
    # With one layer at a time both are the same.
    expected = combined(adapters, 1.0, "ties_svd", svd_rank=FULL, density=0.3)
    method = Ties(density=0.3)
    merged = {k: method.merge(one_layer(sites, k)).updates[k] for k in sites.layers}
    assert_same(merged, expected)


@pytest.mark.parametrize(
    ("kind", "weight", "method"),
    [("dare_linear_svd", 0.3, Dare(drop=0.4)), ("dare_ties_svd", 1.0, DareTies(drop=0.4))],
)
def test_dare_is_peft_s_once_both_drop_the_same(
    adapters: tuple[Any, ...],
    sites: SiteUpdates,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    weight: float,
    method: Any,
) -> None:
    # PEFT draws from torch's global generator, in its order of layers; here a site's draws have a
    # seed of their own. So PEFT is handed our masks, in the order in which it asks for them.
    masks = []
    for layer in sites.layers:
        of = one_layer(sites, layer)
        d_out, d_in = of.layers[layer]["ash"].shape
        kept = dropped(torch.ones(3, d_out * d_in), 0.4, seeds_of(of, 0)) > 0
        masks += [row.reshape(d_out, d_in).float() for row in kept]
    monkeypatch.setattr(torch, "bernoulli", lambda _: masks.pop(0))
    expected = combined(adapters, weight, kind, svd_rank=FULL, density=0.6)
    merged = {k: method.merge(one_layer(sites, k)).updates[k] for k in sites.layers}
    assert not masks
    assert_same(merged, expected)
