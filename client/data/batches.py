"""From samples to the model's input tensors: tokenising, padding, resizing. Without labels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.data.images import read_image
from client.data.samples import Dataset
from layerweld.errors import ConfigError
from layerweld.model.base_model import BaseModel, tokenizer_files
from layerweld.model.families import image_size
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import reading
from layerweld.untrusted.text import quoted

_TOKENISED_AT_ONCE = 4096  # texts: bounds what is in memory
_LARGEST_SIDE = 4096  # pixels of an image that goes into a model; 224 to 1024 are usual
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessor:
    """Texts or image files to a batch of model inputs, by the base model's own files.

    Texts are cut at ``max_length`` tokens (or at what the model can take, if that is less) and
    padded on the right to the longest of the batch. Images go through the folder's image
    processor; without one they are squashed to the configured size and normalised as for ImageNet.
    """

    def __init__(self, base: BaseModel, max_length: int, prompt_end: str = "") -> None:
        """Load the tokenizer or image processor from the base model's folder.

        Args:
            base: the model to prepare inputs for.
            max_length: tokens of a text, those of ``prompt_end`` included.
            prompt_end: put after every text, and never cut.

        Raises:
            ConfigError: the folder has no tokenizer, or one that cannot pad; or its image
                processor cannot be read; or texts cannot be continued.
        """
        self._base = base
        self._accepted = set(inspect.signature(base.backbone.forward).parameters)
        if base.reads_images:
            self._processor = _load_image_processor(base.folder)
        else:
            self._tokenizer = load_tokenizer(base.folder)
            self._end = _end_tokens(self._tokenizer, prompt_end)
            longest = min(max_length, _longest_input(base, self._tokenizer))
            self._max_length = longest - len(self._end)
            if self._max_length < 1:
                raise ConfigError(
                    f"`calibration.prompt-end` has {len(self._end)} tokens, which leaves none of "
                    f"{longest} for the text; raise the `max-length` settings"
                )

    def __call__(self, inputs: Sequence[str] | Sequence[Path]) -> dict[str, Tensor]:
        """``pixel_values`` of shape ``(samples, channels, height, width)``; or ``input_ids``.

        With ``input_ids`` come ``attention_mask`` and anything else that the tokenizer makes and
        the model takes, each ``(samples, tokens)``.
        """
        if self._base.reads_images:
            return {"pixel_values": self._pixels([Path(file) for file in inputs])}
        return self._padded(self._encoded(inputs))

    def by_length(
        self, inputs: Sequence[str] | Sequence[Path], batch_size: int
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Batches of at most ``batch_size`` texts of similar length, with places in ``inputs``.

        A fifth of what a batch of mixed lengths computes is padding. Images come in order.
        """
        if self._base.reads_images:
            for start in range(0, len(inputs), batch_size):
                places = [*range(start, min(start + batch_size, len(inputs)))]
                yield places, self(inputs[start : start + batch_size])
            return
        by_characters = sorted(range(len(inputs)), key=lambda place: len(str(inputs[place])))
        for start in range(0, len(inputs), _TOKENISED_AT_ONCE):
            window = by_characters[start : start + _TOKENISED_AT_ONCE]
            encoded = self._encoded([str(inputs[place]) for place in window])
            for places in _alike([len(ids) for ids in encoded["input_ids"]], batch_size):
                picked = {
                    key: [values[place] for place in places] for key, values in encoded.items()
                }
                yield [window[place] for place in places], self._padded(picked)

    def _encoded(self, texts: Sequence[str] | Sequence[Path]) -> Any:
        """The tokenizer's output for each text, cut and not yet padded, by name."""
        with self._tokenising():
            encoded = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)
            if self._end:
                return {"input_ids": [ids + self._end for ids in encoded["input_ids"]]}
            return encoded

    def _padded(self, encoded: Any) -> dict[str, Tensor]:
        with self._tokenising():
            padded = self._tokenizer.pad(encoded, padding="longest", return_tensors="pt")
            self._refuse_unknown(padded["input_ids"])
        return {key: value for key, value in padded.items() if key in self._accepted}

    def _tokenising(self) -> AbstractContextManager[None]:
        problem = f"the tokenizer in {self._base.folder} fails on a text"
        return reading(problem, "put the base model's own one there", ConfigError)

    def _refuse_unknown(self, tokens: Tensor) -> None:
        """Refuse a token without an embedding: torch's error is obscure, and a GPU has none."""
        embeddings: Any = self._base.backbone.get_input_embeddings()
        known = len(embeddings.weight)
        if tokens.numel() and tokens.max() >= known:
            unknown = int(tokens.max())
            raise ConfigError(
                f"the tokenizer in {self._base.folder} makes token {unknown} "
                f"({quoted(self._tokenizer.convert_ids_to_tokens(unknown))}), but the base model "
                f"has embeddings for {known} only; put the base model's own tokenizer there, or "
                f"save the model with `resize_token_embeddings({unknown + 1})` done"
            )

    def _pixels(self, files: Sequence[Path]) -> Tensor:
        """Pixels of a batch, decoded one image at a time, so that large ones do not add up."""
        return torch.cat([self._prepared(file)[None] for file in files])

    def _prepared(self, file: Path) -> Tensor:
        image = read_image(file)
        if self._processor is None:
            config: Any = self._base.backbone.config
            return _squashed(image, *image_size(config))
        problem = f"the image processor in {self._base.folder} cannot prepare {file}"
        with reading(problem, "check its settings, or remove that image", ConfigError):
            made = self._processor(images=[image], return_tensors="pt")["pixel_values"]
            pixels: Tensor = made[0]
        return pixels


def batches(
    dataset: Dataset, preprocess: Preprocessor, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """All samples as model inputs, in order, ``batch_size`` at a time; the last may be fewer."""
    for start in range(0, len(dataset), batch_size):
        yield preprocess(dataset.inputs[start : start + batch_size])


def _alike(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of similar lengths: a batch's longest is at most a fifth longer than its shortest."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) == batch_size or lengths[place] > 1.2 * lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, padding and cutting on the right.

    Raises:
        ConfigError: there is none, or it cannot pad.
    """
    from transformers import AutoTokenizer

    tokenizer_files(folder)
    problem = f"{folder} has no readable tokenizer"
    with reading(problem, "put one there with `tokenizer.save_pretrained(…)`", ConfigError):
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,  # the default asks at the terminal
            padding_side="right",
            truncation_side="right",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"the tokenizer in {folder} has neither a pad token nor an end token: texts of "
            f"different lengths cannot share a batch; set `tokenizer.pad_token` and save it again"
        )
    return tokenizer


def refuse_closed_texts(tokenizer: Any) -> None:
    """Refuse a tokenizer that closes texts: a closed text cannot be continued.

    Raises:
        ConfigError: the tokenizer closes texts, as those of encoders do.
    """
    if tokenizer("a")["input_ids"][-1] != tokenizer("a", add_special_tokens=False)["input_ids"][-1]:
        raise ConfigError(
            "`calibration.prompt-end` is for causal language models; this base model's tokenizer "
            "closes every text with a token of its own: leave it empty"
        )


def _end_tokens(tokenizer: Any, prompt_end: str) -> list[int]:
    if not prompt_end:
        return []
    refuse_closed_texts(tokenizer)
    tokens: list[int] = tokenizer(prompt_end, add_special_tokens=False)["input_ids"]
    return tokens


def _longest_input(base: BaseModel, tokenizer: Any) -> int:
    config: Any = base.backbone.config
    own: Any = tokenizer.model_max_length
    if isinstance(own, bool) or not isinstance(own, int | float) or not own >= 1:
        raise ConfigError(
            f"{base.folder}: the tokenizer's `model_max_length` is {quoted(own)}; it should be a "
            f"number of tokens"
        )
    positions: int = getattr(config, "max_position_embeddings", int(own))
    return min(positions, int(own))


def _load_image_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    _refuse_large(file)
    problem = f"{folder} has no readable image processor"
    with reading(problem, "put one there with `image_processor.save_pretrained(…)`", ConfigError):
        # Pillow's backend gives the same pixels whether or not a site has torchvision.
        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )


def _refuse_large(file: Path) -> None:
    """Bound what a processor scales an image to: the image itself may be a few bytes."""
    sizes = read_json(file, ConfigError, "save it again with `image_processor.save_pretrained(…)`")
    for key in ("size", "crop_size", "pad_size"):
        found = sizes.get(key)
        for value in found.values() if isinstance(found, dict) else (found,):
            if isinstance(value, int | float) and value > _LARGEST_SIDE:
                raise ConfigError(
                    f"{file}: `{key}` = {quoted(found)} is more than {_LARGEST_SIDE} pixels; "
                    f"correct it"
                )


def _squashed(image: Any, height: int, width: int) -> Tensor:
    """An image at the model's size, its channels normalised."""
    from PIL import Image

    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)
    normalised = (pixels - torch.tensor(_IMAGENET_MEAN)) / torch.tensor(_IMAGENET_STD)
    return normalised.permute(2, 0, 1)
