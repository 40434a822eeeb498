"""Local fine-tuning, on models so small that it takes seconds."""

import hashlib
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark.structures import MarkDecorator
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2Model,
)

from client.data.parcels import in_parcels
from client.data.samples import Dataset, make_dataset, read_dataset
from client.training.evaluate import accuracy
from client.training.finetune import fine_tune
from client.training.heads import ClassifierHead, load_head
from layerweld.errors import ConfigError, DataError, OutputError
from layerweld.model.base_model import BaseModel, load_base
from layerweld.model.linear import linear_layers
from layerweld.settings.run import CalibrationSettings, EvaluateSettings, FinetuneSettings
from tests.tiny_encoders import (
    DATASET,
    TEXTS,
    WORDS,
    save_model,
    save_tokenizer,
)

SETTINGS = FinetuneSettings(
    rank=2, epochs=8, batch_size=8, learning_rate=2e-2, accelerator="cpu", logger="none"
)
pytestmark = pytest.mark.usefixtures("one_thread")

EVALUATE = EvaluateSettings(batch_size=5)


def needs(extra: str) -> MarkDecorator:
    reason = f"needs pip install 'layerweld[{extra}]'"
    return pytest.mark.skipif(find_spec(extra) is None, reason=reason)


def adaptable(base: BaseModel) -> list[Any]:
    return [name for name in linear_layers(base.backbone) if "layer" in name]


def trained(
    base: BaseModel,
    folder: Path,
    dataset: Dataset = DATASET,
    settings: FinetuneSettings = SETTINGS,
    seed: int = 0,
    **options: Any,
) -> Path:
    fine_tune(base, adaptable(base), in_parcels(dataset, 1), settings, seed, folder, **options)
    return folder


def adapted(base: BaseModel, folder: Path) -> BaseModel:
    """The site's own model: what PEFT makes of the saved adapter on a fresh base model."""
    model = PeftModel.from_pretrained(load_base(base.folder).backbone, folder / "adapter")
    return BaseModel(base.folder, model.merge_and_unload(), base.name)


def bytes_below(folder: Path) -> dict[Any, Any]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def test_training_separates_what_can_be_separated(text_base: BaseModel, tmp_path: Path) -> None:
    folder = trained(text_base, tmp_path / "site")
    untrained = ClassifierHead(text_base.d_model, DATASET.classes)
    before, _ = accuracy(text_base, untrained, DATASET, EVALUATE)
    after, count = accuracy(
        adapted(text_base, folder), load_head(folder / "head.safetensors"), DATASET, EVALUATE
    )
    assert count == len(DATASET)
    assert before <= 0.75 < 0.95 < after


def test_the_base_model_is_left_as_it_was(text_base: BaseModel, tmp_path: Path) -> None:
    modules = [type(module) for module in text_base.backbone.modules()]
    before = load_base(text_base.folder).fingerprint
    trained(text_base, tmp_path / "site", settings=SETTINGS.model_copy(update={"max_steps": 3}))
    assert BaseModel(text_base.folder, text_base.backbone, text_base.name).fingerprint == before
    assert [type(module) for module in text_base.backbone.modules()] == modules
    assert not any(module.training for module in text_base.backbone.modules())
    assert not any(p.requires_grad or p.grad is not None for p in text_base.backbone.parameters())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    text_base: BaseModel, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 4, "dropout": 0.1})
    folders = [
        trained(text_base, tmp_path / str(i), settings=settings, seed=seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (bytes_below(folder) for folder in folders)
    assert first == again
    weights = "adapter/adapter_model.safetensors"
    assert first[weights] != other[weights]


def test_lora_dropout_is_active_and_the_base_models_own_is_not(
    text_base: BaseModel, tmp_path: Path
) -> None:
    weights = []
    for own, lora in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5)):
        base = load_base(text_base.folder)
        for module in base.backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = own
        settings = SETTINGS.model_copy(update={"max_steps": 4, "dropout": lora})
        folder = trained(base, tmp_path / f"{own}-{lora}", settings=settings)
        weights.append(bytes_below(folder)["head.safetensors"])
    plain, with_own, with_lora = weights
    assert plain == with_own != with_lora


def test_the_callers_random_numbers_and_switches_are_left_alone(
    text_base: BaseModel, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(text_base, tmp_path / "site", settings=SETTINGS.model_copy(update={"max_steps": 1}))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_the_chosen_layers_are_adapted(text_base: BaseModel, tmp_path: Path) -> None:
    chosen = [name for name in adaptable(text_base) if "layer.1" in name and "query" in name]
    settings = SETTINGS.model_copy(update={"max_steps": 1})
    fine_tune(text_base, chosen, in_parcels(DATASET, 1), settings, 0, tmp_path / "site")
    model = PeftModel.from_pretrained(
        load_base(text_base.folder).backbone, tmp_path / "site" / "adapter"
    )
    assert list(model.targeted_module_names) == chosen


def test_a_frozen_a_is_the_same_whatever_the_samples_and_b_is_trained(
    text_base: BaseModel, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"freeze_a": True})
    assert DATASET.labels
    others = make_dataset(
        DATASET.inputs[::-1], [DATASET.classes[label] for label in DATASET.labels]
    )
    found = {}
    for name, dataset in (("one", DATASET), ("other", others)):
        fine_tune(
            text_base, adaptable(text_base), in_parcels(dataset, 1), settings, 0, tmp_path / name
        )
        found[name] = load_file(tmp_path / name / "adapter/adapter_model.safetensors")
    for key, values in found["one"].items():
        assert torch.equal(values, found["other"][key]) == ("lora_A" in key), key
        assert values.any()


def test_a_single_step_is_a_step(text_base: BaseModel, tmp_path: Path) -> None:
    trained(text_base, tmp_path / "site", settings=SETTINGS.model_copy(update={"max_steps": 1}))
    weights = load_file(tmp_path / "site/adapter/adapter_model.safetensors")
    assert any(bool(values.any()) for name, values in weights.items() if "lora_B" in name)


def test_progress_counts_to_the_last_step(text_base: BaseModel, tmp_path: Path) -> None:
    seen = []
    settings = SETTINGS.model_copy(update={"epochs": 2})
    trained(
        text_base,
        tmp_path / "site",
        settings=settings,
        on_step=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(step, 8) for step in range(1, 9)]  # 2 epochs of 32 samples, 8 at a time


def test_a_conv1d_model_without_a_pad_token_is_trained(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "gpt2", eos_token="[END]", unk_token="[UNK]")
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=len(WORDS), n_positions=16)
    base = save_model(GPT2Model, config, tmp_path / "gpt2")
    targets = list(linear_layers(base.backbone))
    settings = SETTINGS.model_copy(update={"max_steps": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fine_tune(base, targets, in_parcels(DATASET, 1), settings, 0, tmp_path / "site")
    model = PeftModel.from_pretrained(base.backbone, tmp_path / "site" / "adapter")
    assert set(model.targeted_module_names) == set(targets)


def test_images_work_end_to_end(image_base: BaseModel, tmp_path: Path) -> None:
    for i in range(8):
        for name, colour in {"dark": (10 * i, 9, 0), "light": (255 - 10 * i, 220, 240)}.items():
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30 + i, 40), colour).save(tmp_path / "images" / name / f"{i}.png")
    dataset = read_dataset(tmp_path / "images", CalibrationSettings(), reads_images=True)
    folder = trained(image_base, tmp_path / "site", dataset=dataset)
    head = load_head(folder / "head.safetensors")
    assert accuracy(adapted(image_base, folder), head, dataset, EVALUATE) == (1.0, 16)


@pytest.mark.parametrize(
    ("logger", "file"),
    [
        ("csv", "metrics.csv"),
        ("tensorboard", "events*"),
        pytest.param("mlflow", "mlflow.db", marks=needs("mlflow")),
        pytest.param("wandb", "wandb/offline-run-*", marks=needs("wandb")),
    ],
)
def test_training_curves_lie_beside_a_result_that_they_do_not_change(
    text_base: BaseModel, tmp_path: Path, logger: str, file: str
) -> None:
    settings = SETTINGS.model_copy(update={"logger": logger, "epochs": 3})  # 12 steps, 10 to a log
    with_curves = trained(text_base, tmp_path / "with" / "site", settings=settings)
    without = trained(
        text_base, tmp_path / "site", settings=settings.model_copy(update={"logger": "none"})
    )
    assert sorted(path.name for path in with_curves.parent.iterdir()) == ["logs", "site"]
    assert len(list((with_curves.parent / "logs" / "site").glob(file))) == 1
    assert bytes_below(with_curves) == bytes_below(without)


def test_training_says_nothing(
    text_base: BaseModel,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings(record=True) as announced:
        warnings.simplefilter("always")
        trained(text_base, tmp_path / "site", settings=SETTINGS.model_copy(update={"epochs": 1}))
    output = capfd.readouterr()
    assert (output.out, output.err, announced) == ("", "", [])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_interrupted_run_leaves_no_result_and_does_not_block_the_next(
    text_base: BaseModel, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(text_base, tmp_path / "site", on_step=interrupt)
    assert not (tmp_path / "site").exists()
    (tmp_path / "site.partial").mkdir()
    (tmp_path / "site.partial" / "head.safetensors").write_text("half")
    trained(text_base, tmp_path / "site", settings=SETTINGS.model_copy(update={"max_steps": 1}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


def test_samples_without_labels_cannot_be_trained_on(text_base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`calibration\.label-column`, or bring an adapter"):
        trained(text_base, tmp_path / "site", dataset=make_dataset(TEXTS, None))


def test_a_single_class_cannot_be_trained_on(text_base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="add samples of another class"):
        trained(text_base, tmp_path / "site", dataset=make_dataset(["a", "is"], ["x", "x"], ["y"]))


@pytest.mark.parametrize("targets", [[], ["encoder.layer.9.query"]])
def test_targets_that_are_no_layers_are_refused(
    text_base: BaseModel, tmp_path: Path, targets: Any
) -> None:
    with pytest.raises(ConfigError, match=r"`finetune\.targets`"):
        fine_tune(text_base, targets, in_parcels(DATASET, 1), SETTINGS, 0, tmp_path / "site")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param(
            "accelerator",
            "cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one"),
        ),
        ("accelerator", "nonsense"),
        ("accelerator", "tpu"),
        ("precision", "nonsense"),
        ("precision", "transformer-engine"),
    ],
)
def test_an_accelerator_or_precision_that_is_not_there_is_refused(
    text_base: BaseModel, tmp_path: Path, setting: str, value: str
) -> None:
    settings = SETTINGS.model_copy(update={setting: value})
    with pytest.raises(ConfigError, match=rf"finetune\.{setting} = '{value}'.*`auto`.*always work"):
        trained(text_base, tmp_path / "site", settings=settings)
    assert not (tmp_path / "site").exists()


def test_an_earlier_result_is_not_overwritten(text_base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="remove it to fine-tune again"):
        trained(text_base, tmp_path)
