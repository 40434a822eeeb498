"""The diagonal empirical Fisher information of a site's own model, from its labelled samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client.data.labels import labels_of
from client.state import SiteState
from layerweld.merging.fisher import Fisher, normalised, squared_gradients
from layerweld.model.collect import ReplayableModel
from layerweld.model.linear import updated
from layerweld.transport.fisher import FisherSums


def fisher_sums(state: SiteState, layers: tuple[str, ...]) -> FisherSums:
    """``F`` and ``F ⊙ ΔW`` of the site's own fine-tuned model.

    ``F`` is the mean over the calibration samples of the squared gradient of
    ``log p(label | sample)``, with the site's own head, on the scale of
    :func:`layerweld.merging.fisher.normalised`, and at least ``fisher.floor``. A layer that
    the site did not change has an importance all the same: it speaks for the base model's weights.

    Args:
        state: of the site.
        layers: the layers being merged.
    """
    own = state.adapter.task_vector
    model = ReplayableModel(state.base.backbone, state.plan.restricted_to(layers))
    with state.with_other_params(own.other_params), updated(model.layers, own.updates):
        information = normalised(_mean_squared_gradients(state, model))
    floor = state.settings.table(Fisher).floor
    importance = {layer: values.cpu().clamp(min=floor) for layer, values in information.items()}
    product = {
        layer: values * own.updates[layer].dense()
        if layer in own.updates
        else torch.zeros_like(values)
        for layer, values in importance.items()
    }
    return FisherSums(importance, product)


def _mean_squared_gradients(state: SiteState, model: ReplayableModel) -> dict[str, Tensor]:
    head = state.head.load()
    labels = labels_of(state.data.calibration_samples, head.classes)
    sums: dict[str, Tensor] = {}
    seen = 0
    for batch in state.batches:
        with _watching(model.layers) as seen_by:
            hidden = model.backbone(**batch).last_hidden_state
            logits = head.to(hidden.device)(hidden, batch.get("attention_mask"))
            wanted = labels[seen : seen + len(logits)].to(hidden.device)
            loss = nn.functional.cross_entropy(logits, wanted, reduction="sum")
            names = list(seen_by)
            gradients = torch.autograd.grad(loss, [seen_by[name][1] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            found = squared_gradients(seen_by[name][0].detach(), gradient)
            sums[name] = sums[name] + found if name in sums else found
        seen += len(logits)
    return {name: total / seen for name, total in sums.items()}


@contextmanager
def _watching(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Note each layer's input and output; weights need no gradients, outputs do."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            watched = output if output.requires_grad else output.requires_grad_()
            seen[name] = (inputs[0], watched)
            return watched

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
