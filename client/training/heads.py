"""What stays at a site: the classifier on top of the backbone. It is never merged or sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from layerweld.errors import AdapterError
from layerweld.runtime.disk import writing
from layerweld.untrusted.files import reading
from layerweld.untrusted.tensors import opened_tensors, trained_tensor
from layerweld.untrusted.text import quoted

_NEEDED = (
    "save linear.weight (classes x features) and linear.bias in it, with the class names as a JSON "
    "list under `classes` in the metadata, or let the site fine-tune"
)
_WEIGHTS = ("linear.weight", "linear.bias")


class ClassifierHead(nn.Module):
    """One linear map from the mean hidden state of a sample to its classes.

    The mean is over the real tokens of a text; of an image, over all tokens alike, the class token
    and the patches. Its file holds ``linear.weight`` ``(classes, d_model)``, ``linear.bias``
    ``(classes,)``, and in the metadata ``classes``, the names in that order as a JSON list.
    """

    def __init__(self, d_model: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.linear = nn.Linear(d_model, len(classes))

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits ``(samples, classes)`` from hidden states ``(samples, tokens, d_model)``.

        Args:
            hidden: last hidden states of the backbone.
            attention_mask: ``(samples, tokens)``, zero where a token is padding; None if there is
                no padding.
        """
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], device=hidden.device)
        keep = attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
        logits: Tensor = self.linear(mean)
        return logits

    def save(self, file: Path) -> None:
        """Write weights as safetensors, with the class names as JSON in its metadata.

        Raises:
            StorageError: the file cannot be written.
        """
        weights = {name: w.detach().cpu().contiguous() for name, w in self.state_dict().items()}
        with writing(file) as partial:
            save_file(weights, partial, metadata={"classes": json.dumps(self.classes)})


def load_head(file: Path) -> ClassifierHead:
    """Read back what :meth:`ClassifierHead.save` wrote, in evaluation mode.

    Raises:
        AdapterError: the file is missing or damaged, or lacks something that a head needs.
    """
    if not file.is_file():
        raise AdapterError(
            f"there is no head at {file}; let the site fine-tune, or name its file with `head`"
        )
    with opened_tensors(file, _NEEDED, AdapterError) as opened:
        classes = _classes(file, opened)
        weight, bias = (
            trained_tensor(opened, file, name, AdapterError).float() for name in _WEIGHTS
        )
        if weight.ndim != 2 or not len(weight) == len(classes) == bias.numel() == len(bias):
            raise AdapterError(
                f"{file} is not a head: its weight is {quoted(tuple(weight.shape))} and its bias "
                f"{quoted(tuple(bias.shape))}, for {len(classes)} classes; {_NEEDED}"
            )
    head = ClassifierHead(weight.shape[1], classes)
    head.load_state_dict({"linear.weight": weight, "linear.bias": bias})
    return head.eval().requires_grad_(False)


def _classes(file: Path, opened: Any) -> list[str]:
    problem = f"{file} is not a head: its metadata names no classes"
    with reading(problem, _NEEDED, AdapterError):
        classes = json.loads(opened.metadata()["classes"])
    if not isinstance(classes, list) or not classes or not all(map(_is_name, classes)):
        raise AdapterError(f"{problem} as a list; {_NEEDED}")
    if len({*classes}) < len(classes):
        raise AdapterError(f"{file} is not a head: it names a class twice; {_NEEDED}")
    return classes


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()
