"""Which labels samples must have, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from client.data.samples import Dataset
from layerweld.errors import DataError


def labels_of(dataset: Dataset, classes: Sequence[str]) -> torch.Tensor:
    """Labels of held-out samples, as positions among a head's classes.

    Raises:
        DataError: there are none, or one that the head does not know.
    """
    if dataset.labels is None or not len(dataset):
        raise DataError(
            "the held-out samples have no labels to compare with; name their column in "
            "`calibration.label-column`, or set `evaluate.enabled = false`"
        )
    unknown = sorted({dataset.classes[i] for i in dataset.labels} - set(classes))
    if unknown:
        raise DataError(
            f"held-out samples are labelled {unknown[0]!r}, which the head was not trained on "
            f"(it knows {', '.join(classes)}); remove these samples, or train on such samples too"
        )
    position = {name: i for i, name in enumerate(classes)}
    return torch.tensor([position[dataset.classes[label]] for label in dataset.labels])


def check_trainable(dataset: Dataset) -> None:
    """Refuse samples that nothing can be learnt from.

    Raises:
        DataError: they have no labels, or all the same.
    """
    if dataset.labels is None:
        raise DataError(
            "the site's samples have no labels to fine-tune on; name their column in "
            "`calibration.label-column`, or bring an adapter"
        )
    if len(set(dataset.labels)) < 2:
        raise DataError(
            f"all {len(dataset)} samples are labelled {dataset.classes[dataset.labels[0]]!r}: "
            f"there is nothing to tell apart; add samples of another class, or bring an adapter"
        )
