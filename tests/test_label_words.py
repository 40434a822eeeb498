"""A causal language model that classifies by its next word, behind a prompt that is never cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from client.data.batches import Preprocessor, load_tokenizer
from client.data.parcels import in_parcels
from client.data.samples import make_dataset
from client.handlers.finetune import fine_tune_site
from client.handlers.fisher import fisher_sums
from client.handlers.measure import held_out_accuracy
from client.site import cache_folder
from client.state import SiteState
from client.training.evaluate import accuracy
from client.training.finetune import fine_tune
from client.training.label_words import LabelWordHead, label_word_head
from layerweld.errors import ConfigError
from layerweld.model.base_model import BaseModel, load_base
from layerweld.settings.run import EvaluateSettings, FinetuneSettings, validate_settings
from layerweld.settings.sites import SiteEntry
from layerweld.transport.model import ModelToMeasure
from tests.tiny_sites import write_samples

WORDS = ["[PAD]", "[UNK]", "is", "red", "warm", "blue", "cold", "very", "fire", "ice", "Kind"]
TEXTS = [f"{b} is very {c}" for c in ("warm", "cold") for b in WORDS[2:] * 2]
DATASET = make_dataset(TEXTS, ["fire" if "warm" in text else "ice" for text in TEXTS])
END = " Kind"
SETTINGS = FinetuneSettings(
    rank=4, epochs=6, batch_size=6, learning_rate=2e-2, accelerator="cpu", logger="none"
)
EVALUATE = EvaluateSettings(batch_size=5)

pytestmark = pytest.mark.usefixtures("one_thread")


def saved_llama(folder: Path, **config: Any) -> BaseModel:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    llama = LlamaConfig(vocab_size=len(WORDS), **sizes, **heads, **config)
    LlamaForCausalLM(llama).save_pretrained(folder)
    return load_base(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return saved_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=request.param)


def test_its_scores_are_those_of_the_language_model(base: BaseModel) -> None:
    whole = LlamaForCausalLM.from_pretrained(base.folder, dtype=torch.float32).eval()
    batch = Preprocessor(base, 16, END)(["red is warm", "blue"])
    head = label_word_head(base, ("fire", "ice"))
    with torch.inference_mode():
        hidden = base.backbone(**batch).last_hidden_state
        found = head(hidden, batch["attention_mask"])
        last = batch["attention_mask"].sum(dim=1) - 1
        logits = whole(**batch).logits[torch.arange(2), last]
    torch.testing.assert_close(found, logits[:, [WORDS.index("fire"), WORDS.index("ice")]])


def test_the_end_of_the_prompt_is_never_cut(base: BaseModel) -> None:
    batch = Preprocessor(base, 3, END)(["red is very warm", "blue"])
    assert batch["input_ids"][0].tolist() == [WORDS.index(w) for w in ("red", "is", "Kind")]
    assert batch["input_ids"][1].tolist() == [WORDS.index(w) for w in ("blue", "Kind", "[PAD]")]


def test_an_end_that_leaves_no_room_is_refused(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match="leaves none of 1"):
        Preprocessor(base, 1, END)


def test_classes_that_begin_alike_are_named(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match=r"'fire' and 'fire red' begin with the same token"):
        label_word_head(base, ("fire", "fire red"))


def test_classes_whose_words_the_tokenizer_does_not_know_are_named(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match=r"'snow' and 'rain' are words unknown to the token"):
        label_word_head(base, ("fire", "snow", "rain"))
    assert label_word_head(base, ("fire", "snow")).classes == ("fire", "snow")


@pytest.mark.parametrize("classes", [("fire", "ice"), ("fire", "fire red"), ("snow", "rain")])
@pytest.mark.parametrize("closes", [True, False])
def test_a_model_that_does_not_go_on_is_refused_before_its_words(
    base: BaseModel, tmp_path: Path, classes: tuple[str, str], closes: bool
) -> None:
    tokenizer = load_tokenizer(base.folder)
    load_base(base.folder).backbone.save_pretrained(tmp_path)
    words = tokenizer.backend_tokenizer
    if closes:
        words.post_processor = TemplateProcessing(single="$A [PAD]", special_tokens=[("[PAD]", 0)])
    elif base.backbone.config.tie_word_embeddings:
        # Its embeddings are its output layer: nothing tells it from a model that goes on.
        pytest.skip("tied: the output layer is there")
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"`calibration.prompt-end` is for causal language"):
        label_word_head(load_base(tmp_path), classes)


def test_training_moves_the_next_word_and_writes_no_head(base: BaseModel, tmp_path: Path) -> None:
    targets = [f"layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"]
    head = label_word_head(base, DATASET.classes)
    before, _ = accuracy(base, head, DATASET, EVALUATE, END)
    fine_tune(base, targets, in_parcels(DATASET, 1), SETTINGS, 0, tmp_path / "site", prompt_end=END)
    model = PeftModel.from_pretrained(load_base(base.folder).backbone, tmp_path / "site/adapter")
    adapted = BaseModel(base.folder, model.merge_and_unload(), "base")
    after, count = accuracy(adapted, head, DATASET, EVALUATE, END)
    assert count == len(DATASET)
    assert before <= 0.8 < 0.95 < after
    assert {file.name for file in (tmp_path / "site").iterdir()} == {"adapter", "hashes.json"}


def test_a_site_with_label_words_evaluates_without_a_head_file(
    base: BaseModel, tmp_path: Path
) -> None:
    assert DATASET.labels
    records = [
        {"text": t, "label": DATASET.classes[k]} for t, k in zip(TEXTS, DATASET.labels, strict=True)
    ]
    write_samples(tmp_path / "data.jsonl", records)
    settings = validate_settings(
        {
            "base": str(base.folder),
            "cache": str(tmp_path / "cache"),
            "calibration": {"prompt-end": END, "threads": 1},
            "finetune": SETTINGS.model_copy(update={"max_steps": 3}).model_dump(by_alias=True),
        }
    )
    data = str(tmp_path / "data.jsonl")
    state = SiteState(SiteEntry(name="a", data=data, held_out=data), settings, "run")
    fine_tune_site(state)
    assert not state.files.must_fine_tune
    assert state.head.exists
    assert isinstance(state.head.load(), LabelWordHead)
    assert state.batches[0]["input_ids"][0, -1] in (0, WORDS.index("Kind"))
    layers = tuple(state.adapter.task_vector.updates)
    for kind in ("base", "individual"):
        _, samples = held_out_accuracy(state, ModelToMeasure("run", kind, layers))
        assert samples == len(TEXTS)
    assert all(bool((sums >= 0).all()) for sums in fisher_sums(state, layers).importance.values())
    assert cache_folder(state.site, settings) in state.files.adapter_folder.parents


def test_a_tokenizer_that_closes_texts_is_refused(base: BaseModel, tmp_path: Path) -> None:
    tokenizer = Preprocessor(base, 8)._tokenizer
    folder = tmp_path / "closing"
    load_base(base.folder).backbone.save_pretrained(folder)
    closing = tokenizer.backend_tokenizer
    closing.post_processor = TemplateProcessing(single="$A [PAD]", special_tokens=[("[PAD]", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=closing, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    with pytest.raises(ConfigError, match="closes every text"):
        Preprocessor(load_base(folder), 8, END)
