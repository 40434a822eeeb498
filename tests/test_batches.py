"""What is between samples and scores beside the model: batches, heads, accuracy."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil

from client.data.batches import Preprocessor, batches, load_tokenizer
from client.data.samples import make_dataset
from client.training.evaluate import accuracy
from client.training.heads import ClassifierHead, load_head
from layerweld.errors import AdapterError, ConfigError, DataError
from layerweld.model.base_model import BaseModel
from layerweld.settings.run import EvaluateSettings
from tests.tiny_encoders import DATASET

EVALUATE = EvaluateSettings(batch_size=5)


def test_padding_and_batch_size_do_not_change_the_logits(text_base: BaseModel) -> None:
    torch.manual_seed(0)
    head = ClassifierHead(text_base.d_model, DATASET.classes)
    dataset = make_dataset(["warm", "the cold is very blue", "a red"], None)

    def logits(batch_size: int) -> Tensor:
        made = list(batches(dataset, Preprocessor(text_base, 16), batch_size))
        states = [text_base.backbone(**batch).last_hidden_state for batch in made]
        pairs = zip(states, made, strict=True)
        return torch.cat([head(state, batch["attention_mask"]) for state, batch in pairs])

    torch.testing.assert_close(logits(3), logits(1))


def test_batches_of_like_length_hold_every_text_once_and_little_padding(
    text_base: BaseModel,
) -> None:
    texts = ["a " * (1 + (7 * i) % 14) + "b" for i in range(40)]
    found = [*Preprocessor(text_base, 16).by_length(texts, batch_size=6)]
    assert sorted(place for places, _ in found for place in places) == list(range(40))
    for places, batch in found:
        assert len(places) <= 6
        lengths = batch["attention_mask"].sum(dim=1)
        assert lengths.tolist() == [len(texts[place].split()) for place in places]
        assert batch["input_ids"].shape[1] == lengths.max() <= 1.2 * lengths.min()


def test_texts_are_cut_at_the_shorter_of_setting_and_model(text_base: BaseModel) -> None:
    dataset = make_dataset(["a " * 40], None)
    lengths = [
        next(batches(dataset, Preprocessor(text_base, length), 1))["input_ids"].shape[1]
        for length in (4, 99)
    ]
    assert lengths == [4, 16]


def test_a_model_folder_without_a_tokenizer_says_how_to_get_one(
    image_base: BaseModel, text_base: BaseModel, tmp_path: Path
) -> None:
    base = BaseModel(tmp_path, text_base.backbone, "base")
    with pytest.raises(ConfigError, match=r"tokenizer\.save_pretrained"):
        Preprocessor(base, 16)


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", '{"size": "large"}', '{"image_processor_type": "NoneSuch"}'],
)
def test_an_image_processor_that_cannot_be_read_says_how_to_get_one(
    image_base: BaseModel, tmp_path: Path, content: str
) -> None:
    (tmp_path / "config.json").write_bytes((image_base.folder / "config.json").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"image_processor\.save_pretrained"):
        Preprocessor(BaseModel(tmp_path, image_base.backbone, "base"), 16)


def test_a_head_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    head = ClassifierHead(4, ["ä", "b"])
    head.save(tmp_path / "head.safetensors")
    again = load_head(tmp_path / "head.safetensors")
    hidden = torch.randn(2, 3, 4)
    assert again.classes == ("ä", "b")
    assert torch.equal(again(hidden), head(hidden))


def test_a_head_that_is_missing_or_damaged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="let the site fine-tune, or name its file with `head`"):
        load_head(tmp_path / "head.safetensors")
    (tmp_path / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(AdapterError, match=r"is damaged .* let the site fine-tune"):
        load_head(tmp_path / "head.safetensors")


def test_accuracy_matches_classes_by_name_not_by_position(text_base: BaseModel) -> None:
    head = ClassifierHead(text_base.d_model, ["air", *DATASET.classes])
    everything_is_ice = torch.tensor([0.0, 0.0, 99.0])
    head.linear.weight.data.zero_()
    head.linear.bias.data = everything_is_ice
    assert DATASET.labels
    share = DATASET.labels.count(1) / len(DATASET)
    assert accuracy(text_base, head, DATASET, EVALUATE) == (pytest.approx(share), len(DATASET))  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("dataset", "remedy"),
    [
        (make_dataset(["a"], None), r"evaluate\.enabled = false"),
        (make_dataset(["a"], ["steam"]), "train on such samples too"),
    ],
)
def test_samples_that_cannot_be_scored_are_an_error(
    text_base: BaseModel, dataset: Any, remedy: str
) -> None:
    with pytest.raises(DataError, match=remedy):
        accuracy(text_base, ClassifierHead(text_base.d_model, DATASET.classes), dataset, EVALUATE)


def test_a_token_without_an_embedding_is_named_and_never_looked_up(
    text_base: BaseModel, tmp_path: Path
) -> None:
    shutil.copytree(text_base.folder, tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(tmp_path / "base")
    base = BaseModel(tmp_path / "base", text_base.backbone, "base")
    with pytest.raises(ConfigError, match=r"token 11 \('<new>'\), but .* for 11 only; put"):
        Preprocessor(base, 16)(["a red", "the warm red"])


def test_images_one_by_one_are_the_batch_that_the_processor_makes(
    image_base: BaseModel, tmp_path: Path
) -> None:
    shutil.copytree(image_base.folder, tmp_path / "base")
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=28)
    processor.save_pretrained(tmp_path / "base")
    draw = np.random.default_rng(0)
    images = [
        Image.fromarray(draw.integers(0, 255, (30 + 9 * i, 40, 3), dtype=np.uint8))
        for i in range(3)
    ]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    base = BaseModel(tmp_path / "base", image_base.backbone, "base")
    ours = Preprocessor(base, 16)([tmp_path / f"{i}.png" for i in range(3)])["pixel_values"]
    assert torch.equal(ours, processor(images=images, return_tensors="pt")["pixel_values"])
