"""Held-out accuracy of a site's head on the backbone as it is."""

from __future__ import annotations

import torch
from torchmetrics.classification import MulticlassAccuracy

from client.data.batches import Preprocessor
from client.data.labels import labels_of
from client.data.samples import Dataset
from client.training.heads import ClassifierHead
from client.training.label_words import LabelWordHead
from layerweld.model.base_model import BaseModel
from layerweld.settings.run import EvaluateSettings


@torch.inference_mode()
def accuracy(
    base: BaseModel,
    head: ClassifierHead | LabelWordHead,
    dataset: Dataset,
    settings: EvaluateSettings,
    prompt_end: str = "",
) -> tuple[float, int]:
    """Share of samples whose class the head finds, and the number of samples.

    Args:
        base: its backbone is used as it is; to evaluate a merge, call this within
            :func:`layerweld.model.linear.updated`.
        head: the site's own.
        dataset: labelled samples that were not trained on.
        settings: batch size and length.
        prompt_end: put after every text.

    Raises:
        DataError: the samples have no labels, or one of a class that the head does not know.
    """
    device = next(base.backbone.parameters()).device
    labels = labels_of(dataset, head.classes).to(device)
    head = head.to(device).eval()
    metric = MulticlassAccuracy(len(head.classes), average="micro").to(device)
    preprocess = Preprocessor(base, settings.max_length, prompt_end)
    for places, batch in preprocess.by_length(dataset.inputs, settings.batch_size):
        inputs = {key: value.to(device) for key, value in batch.items()}
        hidden = base.backbone(**inputs).last_hidden_state
        logits = head(hidden, inputs.get("attention_mask"))
        metric.update(logits, labels[places])
    return float(metric.compute()), len(dataset)
