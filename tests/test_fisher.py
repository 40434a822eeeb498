"""Fisher averaging: gradients one sample at a time, and the federation that adds them up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from client.training.heads import ClassifierHead, load_head
from layerweld.errors import CohortError
from layerweld.formats.adapters import read_fine_tuned
from layerweld.merging.fisher import FisherPool, normalised
from layerweld.model.base_model import load_base
from layerweld.model.linear import linear_layers, updated, weight_of
from layerweld.updates.update import Update
from tests.run_methods import run_methods
from tests.tiny_sites import TinySites, make_sites, read_samples, write_samples

CLASSES = ("no", "yes")


@pytest.fixture(scope="module")
def labelled_sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    """Three sites whose samples have labels; one head serves all of them."""
    sites = make_sites(tmp_path_factory.mktemp("labelled"), ["query", "output.dense"])
    for node in sites.nodes:
        samples = enumerate(read_samples(node["data"]))
        write_samples(node["data"], [s | {"label": CLASSES[i % 2]} for i, s in samples])
    torch.manual_seed(0)
    ClassifierHead(16, CLASSES).save(sites.folder / "head.safetensors")
    return sites


def one_sample_at_a_time(
    sites: TinySites, node: dict[str, str]
) -> tuple[dict[str, Tensor], Mapping[str, Update]]:
    """The mean squared gradient of each adapted weight, by plain backpropagation."""
    base = load_base(sites.base)
    head = load_head(sites.folder / "head.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(sites.base)
    own = read_fine_tuned(node["adapter"], base).task_vector.updates
    layers: dict[str, Any] = linear_layers(base.backbone)
    samples = read_samples(node["data"])
    sums = {name: torch.zeros(update.shape) for name, update in own.items()}
    with updated(layers, own):
        for name in own:
            layers[name].weight.requires_grad_()
        for sample in samples:
            inputs = tokenizer(sample["text"], truncation=True, max_length=12, return_tensors="pt")
            hidden = base.backbone(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).last_hidden_state
            target = torch.tensor([CLASSES.index(sample["label"])])
            loss = nn.functional.cross_entropy(head(hidden), target)
            gradients = torch.autograd.grad(loss, [layers[name].weight for name in own])
            for name, gradient in zip(own, gradients, strict=True):
                sums[name] += gradient.square() / len(samples)
        for name in own:
            layers[name].weight.requires_grad_(False)
    return sums, own


def test_the_merge_weighs_every_entry_by_its_squared_gradients(
    labelled_sites: TinySites, tmp_path: Path
) -> None:
    run_methods(labelled_sites, tmp_path / "out", "fisher")
    importance: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    for node in labelled_sites.nodes:
        fisher, own = one_sample_at_a_time(labelled_sites, node)
        size = torch.cat([values.flatten() for values in fisher.values()]).square().mean().sqrt()
        for layer, values in fisher.items():
            floored = (values / size).clamp(min=1e-6)
            importance[layer] = importance.get(layer, 0) + floored
            products[layer] = products.get(layer, 0) + floored * own[layer].dense()
    base, merged = load_base(labelled_sites.base), AutoModel.from_pretrained(tmp_path / "out/model")
    for layer, values in importance.items():
        got = weight_of(merged.get_submodule(layer)) - weight_of(base.backbone.get_submodule(layer))
        expected = products[layer] / values
        assert (got - expected).norm() < 1e-3 * expected.norm(), layer


def test_the_order_of_the_sites_does_not_change_a_bit(
    labelled_sites: TinySites, tmp_path: Path
) -> None:
    first = run_methods(labelled_sites, tmp_path / "one", "fisher")
    labelled_sites.nodes.reverse()
    second = run_methods(labelled_sites, tmp_path / "two", "fisher")
    labelled_sites.nodes.reverse()
    assert first.manifest_hash == second.manifest_hash


def test_sites_without_labels_are_refused_in_the_handshake(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, ["query"])
    with pytest.raises(
        CohortError, match="fisher: it needs labelled samples and a head at every site"
    ):
        run_methods(sites, tmp_path / "out", "fisher")


def test_a_site_alone_is_given_back_and_equal_importance_gives_the_mean() -> None:
    one, other, even = torch.rand(3, 2), torch.rand(3, 2), torch.full((3, 2), 0.5)
    alone = FisherPool({"q": (3, 2)})
    alone.add("q", even, even * one)
    torch.testing.assert_close(alone.merged()["q"].dense(), one)
    both = FisherPool({"q": (3, 2)})
    both.add("q", even, even * one)
    both.add("q", even, even * other)
    torch.testing.assert_close(both.merged()["q"].dense(), (one + other) / 2)


@pytest.mark.parametrize("broken", [-1.0, float("nan"), float("inf")])
def test_what_no_square_can_be_is_refused(broken: Any) -> None:
    pool = FisherPool({"q": (3, 2)})
    with pytest.raises(ValueError, match=r"negative|not finite"):
        pool.add("q", torch.full((3, 2), broken), torch.zeros(3, 2))


def test_a_site_that_fits_its_samples_well_has_as_much_to_say_as_one_that_does_not() -> None:
    unsure = {"q": torch.rand(3, 2), "up": torch.rand(4, 3)}
    fitted = {layer: 1e-8 * values for layer, values in unsure.items()}
    for layer, values in normalised(fitted).items():
        torch.testing.assert_close(values, normalised(unsure)[layer])
    whole = torch.cat([values.flatten() for values in normalised(unsure).values()])
    assert float(whole.square().mean()) == pytest.approx(1)
    assert not normalised({"q": torch.zeros(3, 2)})["q"].any()
