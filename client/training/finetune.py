"""Local LoRA fine-tuning. Knows Lightning and PEFT; knows nothing of Flower or of merging."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler
from torchmetrics.classification import MulticlassAccuracy

from client.data.batches import Preprocessor
from client.data.labels import check_trainable
from client.data.parcels import Parcels
from client.data.samples import Dataset
from client.training.heads import ClassifierHead
from client.training.label_words import LabelWordHead, label_word_head
from client.training.logger import training_logger
from layerweld.errors import ConfigError, OutputError
from layerweld.model.base_model import BaseModel
from layerweld.model.linear import is_transposed, linear_layers
from layerweld.runtime.disk import new_folder
from layerweld.runtime.sealed import seal
from layerweld.settings.run import FinetuneSettings

OnStep = Callable[[int, int], None]
_WARMUP_SHARE = 0.1  # of all steps


class LoraFineTuner(L.LightningModule):
    """Cross-entropy training of a LoRA adapter and of the head on top of it."""

    def __init__(
        self, model: nn.Module, head: ClassifierHead | LabelWordHead, learning_rate: float
    ) -> None:
        """Take over a PEFT model, whose adapter is all of it that requires gradients."""
        super().__init__()
        self.model = model
        self.head = head
        self.learning_rate = learning_rate
        self.accuracy = MulticlassAccuracy(len(head.classes), average="micro")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, which carries its own ``labels``."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        hidden = self.model(**inputs).last_hidden_state
        logits = self.head(hidden, inputs.get("attention_mask"))
        loss = nn.functional.cross_entropy(logits, batch["labels"])
        self.accuracy(logits, batch["labels"])
        self.log("train/loss", loss)
        self.log("train/accuracy", self.accuracy)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; the rate rises over the first tenth of the steps, then falls to zero."""
        from transformers import get_linear_schedule_with_warmup

        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(_WARMUP_SHARE * steps)  # none where steps are few: its first has no rate
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LabelledRows(L.LightningDataModule):
    """A site's training samples, shuffled anew in each epoch, the same way for the same seed."""

    def __init__(
        self, parcels: Parcels, preprocess: Preprocessor, batch_size: int, seed: int
    ) -> None:
        """Hold the samples; they are tokenised or decoded when their batch is due."""
        super().__init__()
        self._parcels = parcels
        self._dataset = parcels.dataset
        self._labels = torch.tensor(parcels.dataset.labels)
        self._preprocess = preprocess
        self._batch_size = batch_size
        self._seed = seed

    def train_dataloader(self) -> DataLoader[int]:
        """Batches of model inputs with ``labels``."""
        indices: Any = range(len(self._dataset))
        generator = torch.Generator().manual_seed(self._seed)
        return DataLoader(
            indices,
            batch_sampler=_WholeParcels(self._parcels, self._batch_size, generator),
            generator=generator,
            collate_fn=self._collate,
        )

    def _collate(self, indices: list[int]) -> dict[str, Tensor]:
        inputs: Any = [self._dataset.inputs[i] for i in indices]
        return {**self._preprocess(inputs), "labels": self._labels[indices]}


class _WholeParcels(Sampler[list[int]]):
    """Batches of whole parcels: no step shows what a single sample would have it learn."""

    def __init__(self, parcels: Parcels, batch_size: int, generator: torch.Generator) -> None:
        self._parcels = parcels
        order = RandomSampler(range(len(parcels.places)), generator=generator)
        self._numbers = BatchSampler(order, parcels.together(batch_size), drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        return (self._parcels.places_of(numbers) for numbers in self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class _Progress(L.Callback):
    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._on_step(trainer.global_step, int(trainer.estimated_stepping_batches))


def fine_tune(
    base: BaseModel,
    targets: Sequence[str],
    parcels: Parcels,
    settings: FinetuneSettings,
    seed: int,
    folder: Path,
    on_step: OnStep | None = None,
    prompt_end: str = "",
) -> None:
    """Train a LoRA and a head on a site's samples, and write both.

    The folder holds ``adapter`` (as PEFT saves it), ``head.safetensors``, which label words do
    without, and the hashes of all; it appears complete or not at all. Training curves go to
    ``logs`` beside it. The base model is left exactly as it was: a copy is trained. The same seed
    and number of threads give the same bytes on one machine.

    Args:
        base: the model to adapt.
        targets: names in the backbone of the layers to adapt.
        parcels: labelled samples.
        settings: rank, steps, learning rate and whereon to train.
        seed: of the initial weights, of dropout and of the order of the samples.
        folder: folder to create.
        on_step: called after each optimiser step with the steps done and all steps.
        prompt_end: put after every text; with it classes are label words.

    Raises:
        ConfigError: no target is given, or one is not a linear layer of the base model; or the
            machine lacks the accelerator or precision; or the training curves have nowhere to go.
        DataError: the samples have no labels, or only one class.
        OutputError: the folder exists already.
        StorageError: the folder cannot be written.
    """
    dataset = parcels.dataset
    _check(base, targets, dataset, folder)
    with _quiet(), _reproducible(seed):
        model = _with_lora(base, targets, settings)
        head = (
            label_word_head(base, dataset.classes)
            if prompt_end
            else ClassifierHead(base.d_model, dataset.classes)
        )
        tuner = LoraFineTuner(model, head, settings.learning_rate)
        preprocess = Preprocessor(base, settings.max_length, prompt_end)
        data = LabelledRows(parcels, preprocess, settings.batch_size, seed)
        with training_logger(settings.logger, folder.parent / "logs" / folder.name) as logger:
            _trainer(settings, folder, logger, on_step).fit(tuner, datamodule=data)
        _write(tuner.cpu().float(), folder)


def _check(base: BaseModel, targets: Sequence[str], dataset: Dataset, folder: Path) -> None:
    unknown = sorted(set(targets) - set(linear_layers(base.backbone)))
    if unknown or not targets:
        what = f"{unknown[0]!r} is not a linear layer of" if unknown else "no layer is chosen in"
        raise ConfigError(f"{what} the model in {base.folder}; change `finetune.targets`")
    check_trainable(dataset)
    if folder.exists():
        raise OutputError(f"{folder} exists already; remove it to fine-tune again")


def _with_lora(base: BaseModel, targets: Sequence[str], settings: FinetuneSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    layers = linear_layers(base.backbone)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        fan_in_fan_out=any(is_transposed(layers[name]) for name in targets),
    )
    # The backbone keeps its evaluation mode, so of all dropout only LoRA's own is active: with the
    # base model's on top, a hundred steps learnt no more and generalised no better.
    model = get_peft_model(copy.deepcopy(base.backbone), config)
    if settings.freeze_a:
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
    return model


def _trainer(
    settings: FinetuneSettings, folder: Path, logger: Logger | bool, on_step: OnStep | None
) -> L.Trainer:
    precision: Any = settings.precision
    try:
        return L.Trainer(
            accelerator=settings.accelerator,
            devices=1,  # for each more, Lightning runs the whole command again, into one folder
            precision=precision,
            max_epochs=settings.epochs,
            max_steps=settings.max_steps,
            logger=logger,
            log_every_n_steps=10,
            callbacks=[_Progress(on_step)] if on_step else [],
            deterministic="warn",  # an error would forbid GPUs some backbones' attention altogether
            default_root_dir=folder.parent,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"finetune.accelerator = {settings.accelerator!r}, finetune.precision = "
            f"{settings.precision!r}: {reason}; `auto` and `32-true` always work"
        ) from error


def _write(tuner: LoraFineTuner, folder: Path) -> None:
    model: Any = tuner.model
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set has another order each time
    with new_folder(folder) as partial:
        model.save_pretrained(partial / "adapter", save_embedding_layers=False)
        if isinstance(tuner.head, ClassifierHead):
            tuner.head.save(partial / "head.safetensors")
        seal(partial)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's banners and tips and libraries' deprecations; all other warnings stay."""
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for advice in (PossibleUserWarning, FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", advice)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """With torch's generators at ``seed``; on the way out they and its switches are as before."""
    switches = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(switches, warn_only=warn_only)
