"""A causal language model as a classifier: the class is the word that it continues with.

Nothing is trained but the adapter: a site needs no head of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.data.batches import load_tokenizer, refuse_closed_texts
from layerweld.errors import ConfigError
from layerweld.model.base_model import BaseModel
from layerweld.untrusted.tensors import opened_tensors


class LabelWordHead(nn.Module):
    """Scores of one word per class after the last real token, by the model's own output layer.

    Args:
        words: ``(classes, d_model)``, the output embedding of each class's word.
        classes: names, in the order of the words.
    """

    words: Tensor

    def __init__(self, words: Tensor, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.register_buffer("words", words)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits ``(samples, classes)`` from hidden states ``(samples, tokens, d_model)``.

        Args:
            hidden: last hidden states of the backbone, after its last norm.
            attention_mask: ``(samples, tokens)``, zero where a token is padding, on the right;
                None if there is no padding.
        """
        if attention_mask is None:
            last = hidden[:, -1]
        else:
            rows = torch.arange(len(hidden), device=hidden.device)
            last = hidden[rows, attention_mask.sum(dim=1) - 1]
        return last @ self.words.T.to(last)


def label_word_head(base: BaseModel, classes: Sequence[str]) -> LabelWordHead:
    """The head that reads each class's first token, with a space before it.

    Raises:
        ConfigError: the model is not a causal language model with its output layer, or two classes
            begin with the same token, which may be the one for unknown words.
    """
    tokenizer = load_tokenizer(base.folder)
    refuse_closed_texts(tokenizer)
    tokens = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in classes]
    words = _output_rows(base, tokens).detach().clone()
    _refuse_alike(tokens, classes, tokenizer.unk_token_id)
    return LabelWordHead(words, classes)


def _refuse_alike(tokens: Sequence[int], classes: Sequence[str], unknown: int | None) -> None:
    alike: dict[int, list[str]] = {}
    for token, name in zip(tokens, classes, strict=True):
        alike.setdefault(token, []).append(name)
    for token, names in alike.items():
        if len(names) > 1:
            why = (
                "are words unknown to the tokenizer"
                if token == unknown
                else "begin with the same token"
            )
            raise ConfigError(
                f"classes {' and '.join(map(repr, names))} {why}, so the model's next word cannot "
                f"tell them apart; rename them in the data, or leave `calibration.prompt-end` "
                f"empty to train a head"
            )


def _output_rows(base: BaseModel, tokens: Sequence[int]) -> Tensor:
    """Rows of the output layer in float32; of the input embedding if the two are tied."""
    if base.backbone.config.tie_word_embeddings:
        embeddings: Tensor = base.backbone.get_input_embeddings().weight
        return embeddings[list(tokens)].float()
    for file in sorted(base.folder.glob("*.safetensors")):
        with opened_tensors(file, "copy or save the model again", ConfigError) as opened:
            if "lm_head.weight" in opened.keys():  # noqa: SIM118
                rows = opened.get_slice("lm_head.weight")
                return torch.cat([rows[token : token + 1] for token in tokens]).float()
    raise ConfigError(
        f"{base.folder} has no lm_head.weight: `calibration.prompt-end` is for causal language "
        f"models, saved with their output layer"
    )
