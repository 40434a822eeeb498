"""What stays at a site: the classifier on top of the backbone. It is never merged or sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from layerweld.disk import writing
from layerweld.errors import AdapterError

_NEEDED = (
    "save linear.weight (classes x features) and linear.bias in it, with the class names as a JSON "
    "list under `classes` in the metadata, or let the site fine-tune"
)


class ClassifierHead(nn.Module):
    """One linear map from the mean hidden state of a row to its classes.

    The mean is over the real tokens of a text; of an image, over all tokens alike, the class token
    and the patches. Its file holds ``linear.weight`` ``(classes, d_model)``, ``linear.bias``
    ``(classes,)``, and in the metadata ``classes``, the names in that order as a JSON list.
    """

    def __init__(self, d_model: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.linear = nn.Linear(d_model, len(classes))

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits ``(rows, classes)`` from hidden states ``(rows, tokens, d_model)``.

        Args:
            hidden: last hidden states of the backbone.
            attention_mask: ``(rows, tokens)``, zero where a token is padding; None where there is
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
    try:
        with safe_open(file, framework="pt") as saved:
            classes: list[str] = json.loads(saved.metadata()["classes"])
            weights = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        head = ClassifierHead(weights["linear.weight"].shape[1], classes)
        head.load_state_dict(weights)
    except SafetensorError as error:
        raise AdapterError(f"{file} is damaged ({error}); {_NEEDED}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(
            f"{file} is no head ({type(error).__name__}: {reason}); {_NEEDED}"
        ) from error
    return head.eval().requires_grad_(False)
