from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, GPT2Model, LlamaForCausalLM

from layerweld.errors import AdapterError
from layerweld.formats.adapters import read_fine_tuned
from layerweld.formats.checkpoint import read_checkpoint
from layerweld.model.base_model import BaseModel
from layerweld.model.linear import linear_layers, updated
from layerweld.updates.update import DenseUpdate
from tests.tiny_peft import TARGETS, edit_config, edit_tensors, hidden_states

HEAD_CLASSES = {
    "bert": BertForSequenceClassification,
    "llama": LlamaForCausalLM,
    "gpt2": GPT2Model,
}


def train_fully(base: Any, folder: Path, only: str = "") -> Any:
    """Write the base model, head and all, with the parameters named ``*only*`` moved; return it."""
    head_class = HEAD_CLASSES[base.backbone.config.model_type]
    model = head_class.from_pretrained(base.folder).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def folder(bases: dict[str, BaseModel], tmp_path: Path) -> Path:
    """The base model of BERT once more, with one layer changed."""
    train_fully(bases["bert"], tmp_path / "model", only="layer.1.output.dense.weight")
    return tmp_path / "model"


@pytest.mark.parametrize("family", TARGETS)
def test_base_plus_task_vector_is_the_fine_tuned_model(
    family: Any, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    tuned = train_fully(bases[family], tmp_path)
    vector = read_checkpoint(tmp_path, bases[family])
    backbone = deepcopy(bases[family].backbone)
    parameters = dict(backbone.named_parameters())
    for name, difference in vector.other_params.items():
        parameters[name].data.add_(difference)
    with updated(linear_layers(backbone), vector.updates):
        ours = hidden_states(backbone)
    torch.testing.assert_close(ours, hidden_states(tuned.base_model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", TARGETS)
def test_each_parameter_is_in_the_updates_or_in_the_other_params_but_not_in_both(
    family: Any, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    train_fully(bases[family], tmp_path)
    vector = read_checkpoint(tmp_path, bases[family])
    layers = linear_layers(bases[family].backbone)
    assert set(vector.updates) == set(layers)
    names = {name for name, _ in bases[family].backbone.named_parameters()}
    assert set(vector.other_params) == names - {f"{layer}.weight" for layer in layers}
    assert {t.dtype for t in vector.other_params.values()} == {torch.float32}


def test_what_did_not_change_is_left_out(folder: Path, bases: dict[str, BaseModel]) -> None:
    vector = read_checkpoint(folder, bases["bert"])
    assert set(vector.updates) == {"encoder.layer.1.output.dense"}
    assert not vector.other_params


def test_transposed_layers_are_turned_to_the_layout_of_linear_ones(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    train_fully(bases["gpt2"], tmp_path, only="c_attn.weight")
    update = read_checkpoint(tmp_path, bases["gpt2"]).updates["h.0.attn.c_attn"]
    assert isinstance(update, DenseUpdate)
    assert update.shape == (48, 16)


def test_a_model_has_no_prefix_and_no_ranks(folder: Path, bases: dict[str, BaseModel]) -> None:
    tuned = read_fine_tuned(folder, bases["bert"])
    assert (tuned.prefix, dict(tuned.ranks)) == ("", {})
    assert tuned.digest == read_fine_tuned(folder, bases["bert"]).digest


def test_a_missing_pooler_is_no_fault_because_no_block_reads_it(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    edit_tensors(folder / "model.safetensors", lambda t: t.pop("bert.pooler.dense.weight"))
    assert read_checkpoint(folder, bases["bert"]).updates


def test_an_untrained_model_is_refused(bases: dict[str, BaseModel]) -> None:
    with pytest.raises(AdapterError, match="is this the base model itself"):
        read_checkpoint(bases["bert"].folder, bases["bert"])


def test_a_model_of_which_only_the_head_was_trained_is_refused(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    train_fully(bases["bert"], tmp_path, only="classifier")
    with pytest.raises(AdapterError, match="was its backbone trained"):
        read_checkpoint(tmp_path, bases["bert"])


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(
    value: Any, folder: Path, bases: dict[str, BaseModel]
) -> None:
    edit_tensors(folder / "model.safetensors", lambda t: t[QUERY][0, :1].fill_(value))
    with pytest.raises(AdapterError, match=r"query\.weight.*lower learning rate"):
        read_checkpoint(folder, bases["bert"])


def test_weights_that_transformers_would_make_up_are_refused(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    edit_tensors(folder / "model.safetensors", lambda t: t.pop(QUERY))
    with pytest.raises(AdapterError, match=r"query\.weight.*save the whole model"):
        read_checkpoint(folder, bases["bert"])


@pytest.mark.parametrize(
    ("entries", "remedy"),
    [
        ({"model_type": "roberta"}, "`model_type`.*the same base model"),
        ({"num_hidden_layers": 3}, "`num_hidden_layers` is 3, but 2"),
        ({"num_attention_heads": 2}, "`num_attention_heads`.*the same base model"),
        ({"vocab_size": 41}, "`vocab_size` is 41, but 40"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"model\.dequantize\(\)"),
        ({"layer_norm_eps": "small"}, "save it again"),
    ],
)
def test_another_architecture_is_refused_by_its_setting(
    entries: dict[str, str] | dict[str, int] | dict[str, dict[str, str]],
    remedy: str,
    folder: Path,
    bases: dict[str, BaseModel],
) -> None:
    edit_config(folder, **entries)
    with pytest.raises(AdapterError, match=remedy) as caught:
        read_checkpoint(folder, bases["bert"])
    assert "\n" not in str(caught.value)


def test_another_family_is_refused(bases: dict[str, BaseModel], tmp_path: Path) -> None:
    train_fully(bases["llama"], tmp_path)
    with pytest.raises(AdapterError, match="only models fine-tuned from the same base model"):
        read_checkpoint(tmp_path, bases["bert"])


def test_a_weight_of_another_shape_is_refused(folder: Path, bases: dict[str, BaseModel]) -> None:
    edit_tensors(folder / "model.safetensors", lambda t: t.update({QUERY: torch.ones(15, 16)}))
    with pytest.raises(AdapterError, match="save it again"):
        read_checkpoint(folder, bases["bert"])


def test_a_file_that_was_cut_short_names_its_folder(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(AdapterError, match=f"{file} is damaged.*save the model again"):
        read_checkpoint(folder, bases["bert"])


def test_pickled_weights_are_never_opened(folder: Path, bases: dict[str, BaseModel]) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(AdapterError, match=r"convert it where you trust it: .*save_pretrained"):
        read_checkpoint(folder, bases["bert"])


@pytest.mark.parametrize("text", ["{", ""])
def test_an_unreadable_configuration_is_refused(
    text: str, folder: Path, bases: dict[str, BaseModel]
) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"config\.json cannot be read"):
        read_checkpoint(folder, bases["bert"])
