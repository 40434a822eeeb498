import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from peft.utils.other import get_pattern_key

from layerweld.errors import AdapterError
from layerweld.formats.adapters import digest_of, read_adapter, read_fine_tuned
from layerweld.formats.lora_config import _REFUSED
from layerweld.model.base_model import BaseModel
from layerweld.model.linear import linear_layers, updated
from layerweld.updates.task_vector import TaskVector
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests.tiny_peft import (
    TARGETS,
    edit_config,
    edit_tensors,
    hidden_states,
    lora_modules,
    new_model,
    train_adapter,
)

BERT_QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    targets = ["query", "attention.self.value"]
    train_adapter(new_model("bert"), folder, targets, task_type="SEQ_CLS")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "adapter")


def weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def tensor_name(factor: str, layer: str = BERT_QUERY) -> str:
    return f"base_model.model.bert.{layer}.lora_{factor}.weight"


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"query": 2, "q_proj": 1, "c_attn": 4, r"^.*1\..*value": 5},
        "alpha_pattern": {"value": 7, "down_proj": 2, r"h\.1\.mlp\.c_fc": 9, "layer.1.output": 3},
    },
    "rank-stabilised-patterns": {
        "use_rslora": True,
        "rank_pattern": {"self.query": 4, "k_proj": 6, "c_proj": 2},
    },
    "some-layers": {"layers_to_transform": [1], "layers_pattern": ["layer", "layers", "h"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", TARGETS)
def test_updates_are_what_peft_would_add_to_the_weights(
    family: Any, variant: Any, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    wrapped = train_adapter(
        new_model(family),
        tmp_path,
        TARGETS[family],
        fan_in_fan_out=family == "gpt2",
        exclude_modules=["bert.pooler.dense"],
        **VARIANTS[variant],
    )
    adapter = read_adapter(tmp_path, bases[family])
    expected = lora_modules(wrapped)
    updates = adapter.task_vector.updates
    assert {adapter.prefix + name for name in updates} == set(expected)
    for name, update in updates.items():
        module = expected[adapter.prefix + name]
        added = module.get_delta_weight("default")
        torch.testing.assert_close(update.dense(), added.T if family == "gpt2" else added)
        assert adapter.ranks[name] == update.rank == module.r["default"]


def test_the_pattern_rule_takes_the_first_key_that_ends_the_name() -> None:
    assert get_pattern_key(["b.c", "c"], "a.b.c") == "b.c"
    assert get_pattern_key(["bc"], "a.b.c") == "a.b.c"


@pytest.mark.parametrize("family", TARGETS)
def test_the_base_model_with_the_updates_is_the_model_of_the_site(
    family: Any, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    wrapped = train_adapter(
        new_model(family), tmp_path, TARGETS[family], exclude_modules=["bert.pooler.dense"]
    )
    site = wrapped.merge_and_unload()
    base = bases[family]
    adapter = read_adapter(tmp_path, base)
    with updated(linear_layers(base.backbone), adapter.task_vector.updates):
        ours = hidden_states(base.backbone)
    torch.testing.assert_close(ours, hidden_states(site.base_model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "prefix"), [("bert", "bert."), ("llama", "model."), ("gpt2", "")]
)
def test_the_prefix_of_a_head_class_is_found_and_stripped(
    family: str, prefix: str, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    model = new_model(family)
    train_adapter(model, tmp_path, TARGETS[family], exclude_modules=["bert.pooler.dense"])
    adapter = read_adapter(tmp_path, bases[family])
    assert adapter.prefix == prefix
    assert set(adapter.task_vector.updates) <= set(linear_layers(bases[family].backbone))


def test_an_adapter_of_the_backbone_alone_has_no_prefix(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    train_adapter(new_model("llama").model, tmp_path, ["q_proj"])
    assert read_adapter(tmp_path, bases["llama"]).prefix == ""


def test_all_linear_reads_every_layer_of_the_backbone(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    train_adapter(new_model("llama"), tmp_path, "all-linear", task_type="CAUSAL_LM")
    updates = read_adapter(tmp_path, bases["llama"]).task_vector.updates
    assert set(updates) == set(linear_layers(bases["llama"].backbone))
    edit_config(tmp_path, target_modules="all-linear")
    assert set(read_adapter(tmp_path, bases["llama"]).task_vector.updates) == set(updates)


def test_factors_are_float32_and_the_head_stays_at_the_site(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    def halve(tensors: Any) -> None:
        assert any("classifier" in name for name in tensors)
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    edit_tensors(weights(folder), halve)
    task_vector = read_adapter(folder, bases["bert"]).task_vector
    assert {u.left.dtype for u in task_vector.updates.values()} == {torch.float32}  # type: ignore[attr-defined]
    assert len(task_vector.updates) == 4
    assert not task_vector.other_params
    assert task_vector.is_low_rank


def test_the_digest_is_of_what_was_learnt_and_not_of_how_it_was_written(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    before = read_adapter(folder, bases["bert"]).digest
    config = json.loads((folder / "adapter_config.json").read_text())
    edit_config(folder, target_modules=config["target_modules"][::-1], lora_dropout=0.5)
    assert read_adapter(folder, bases["bert"]).digest == before
    edit_config(folder, lora_alpha=6)
    assert read_adapter(folder, bases["bert"]).digest != before


def test_the_digest_tells_factors_dense_updates_and_other_params_apart() -> None:
    eye = torch.eye(2)
    vectors = [
        TaskVector({"a": LowRankUpdate(eye, eye)}),
        TaskVector({"a": DenseUpdate(eye)}),
        TaskVector({}, {"a": eye}),
        TaskVector({}, {"a": torch.tensor(1.0)}),
    ]
    assert len({digest_of(vector) for vector in vectors}) == 4


REFUSED_VALUES = {
    "use_dora": True,
    "lora_bias": True,
    "trainable_token_indices": [1],
    "target_parameters": ["experts.weight"],
    "kasa_config": {"beta": 1e-4},
    "use_bdlora": {"nblocks": 2},
    "layer_replication": [[0, 2]],
    "alora_invocation_tokens": [3],
    "use_qalora": True,
    "monteclora_config": {"num_samples": 2},
    "arrow_config": {"top_k": 1},
    "megatron_config": {"x": 1},
    "some_later_variant": True,
}


@pytest.mark.parametrize("setting", REFUSED_VALUES)
def test_a_variant_that_changes_the_mathematics_is_refused_by_name(
    setting: Any, folder: Path, bases: dict[str, BaseModel]
) -> None:
    edit_config(folder, **{setting: REFUSED_VALUES[setting]})
    with pytest.raises(AdapterError, match=rf"`{setting}`.*instead") as caught:
        read_adapter(folder, bases["bert"])
    assert "\n" not in str(caught.value)


def test_every_refused_variant_has_a_test() -> None:
    assert set(_REFUSED) < set(REFUSED_VALUES)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_initialisation_that_changes_the_base_is_refused(
    start: str, folder: Path, bases: dict[str, BaseModel]
) -> None:
    edit_config(folder, init_lora_weights=start)
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
        read_adapter(folder, bases["bert"])


@pytest.mark.parametrize(
    ("entries", "remedy"),
    [
        ({"bias": "lora_only"}, "`bias`.*merge_and_unload"),
        ({"r": 0}, "'r' = 0 should be a whole number"),
        ({"r": 4}, "`r` and `rank_pattern`"),
        ({"rank_pattern": {"query": "2"}}, "'query' = '2' should be"),
        ({"lora_alpha": None}, "'lora_alpha' = None should be a number"),
        ({"alpha_pattern": {"(": 2}}, r"correct adapter_config\.json"),
        ({"target_modules": None}, "save_pretrained"),
        ({"target_modules": "all-linear"}, "incomplete: save the adapter again"),
        ({"target_modules": ["query"]}, "PEFT would not load it"),
        ({"layers_pattern": "layer"}, "contradicts itself .*layers_to_transform"),
        ({"modules_to_save": []}, "classifier.*neither a LoRA factor nor part of a head"),
        ({"lora_alpha": 0}, "was it trained"),
    ],
)
def test_a_configuration_that_does_not_fit_says_what_to_do(
    entries: Any, remedy: str, folder: Path, bases: dict[str, BaseModel]
) -> None:
    edit_config(folder, **entries)
    with pytest.raises(AdapterError, match=remedy):
        read_adapter(folder, bases["bert"])


def add(name: str, shape: int | tuple[int, int] = (2, 2)) -> Callable[..., Any]:
    return lambda tensors: tensors.update({f"base_model.model.{name}": torch.ones(shape)})


def fill(name: str, value: float) -> Callable[..., Any]:
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


TENSOR_FAULTS = {
    "embedding": (add("bert.embeddings.word_embeddings.lora_embedding_A"), "LoRA on an embedding"),
    "dora": (add("bert.x.lora_magnitude_vector"), "DoRA magnitude.*merge_and_unload"),
    "norm": (add("bert.embeddings.LayerNorm.weight", 16), "inside the backbone.*merge_and_unload"),
    "unknown": (add("bert.something"), "neither a LoRA factor nor"),
    "pooler": (add("bert.pooler.dense.lora_A.weight"), "exclude_modules"),
    "no-b": (lambda tensors: tensors.pop(tensor_name("B")), "no lora_B; the file is incomplete"),
    "no-a": (lambda tensors: tensors.pop(tensor_name("A")), "no lora_A; the file is incomplete"),
    "nan": (fill(tensor_name("B"), float("nan")), r"query\.lora_B.*lower learning rate"),
    "infinity": (fill(tensor_name("A"), float("inf")), r"query\.lora_A.*lower learning rate"),
    "untrained": (
        lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name],
        "was it trained",
    ),
    "wide": (
        lambda tensors: tensors.update({tensor_name("A"): torch.ones(3, 17)}),
        r"\(3, 17\).*\(3, 16\).*this base model",
    ),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_a_tensor_that_does_not_fit_is_named_with_the_way_out(
    fault: Any, folder: Path, bases: dict[str, BaseModel]
) -> None:
    change, remedy = TENSOR_FAULTS[fault]
    edit_tensors(weights(folder), change)
    with pytest.raises(AdapterError, match=remedy) as caught:
        read_adapter(folder, bases["bert"])
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base_model_is_refused(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    with pytest.raises(AdapterError, match="check that the site started from this base model"):
        read_adapter(folder, bases["llama"])


def test_a_missing_pair_is_refused(folder: Path, bases: dict[str, BaseModel]) -> None:
    def drop(tensors: Any) -> None:
        del tensors[tensor_name("A")], tensors[tensor_name("B")]

    edit_tensors(weights(folder), drop)
    with pytest.raises(AdapterError, match=r"query.*`target_modules`.*incomplete"):
        read_adapter(folder, bases["bert"])


@pytest.mark.parametrize("kept", [0, 5, 300, 2000])
def test_a_file_that_was_cut_short_names_its_folder(
    kept: int, folder: Path, bases: dict[str, BaseModel]
) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:kept])
    with pytest.raises(AdapterError, match=f"{folder}.*copy or save the adapter again"):
        read_adapter(folder, bases["bert"])


def test_pickled_weights_are_never_opened(folder: Path, bases: dict[str, BaseModel]) -> None:
    weights(folder).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"convert it where you trust it: .*save_pretrained"):
        read_adapter(folder, bases["bert"])
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        read_adapter(folder, bases["bert"])


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff", ""])
def test_an_unreadable_configuration_is_refused(
    text: str, folder: Path, bases: dict[str, BaseModel]
) -> None:
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match="save the adapter again"):
        read_adapter(folder, bases["bert"])


def test_another_peft_method_is_refused_by_name(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    config = IA3Config(target_modules=["query"], feedforward_modules=[])
    get_peft_model(new_model("bert"), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"'IA3'.*merge_and_unload"):
        read_adapter(tmp_path, bases["bert"])


def test_the_name_of_the_base_model_is_information_only(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    edit_config(folder, base_model_name_or_path="/nowhere/else", revision="v2")
    read_adapter(folder, bases["bert"])


def test_a_folder_that_is_neither_adapter_nor_model_is_refused(
    tmp_path: Path, bases: dict[str, BaseModel]
) -> None:
    with pytest.raises(AdapterError, match=r"folder that `save_pretrained` wrote"):
        read_fine_tuned(tmp_path / "nothing", bases["bert"])


def test_an_adapter_is_told_from_a_model_by_its_configuration(
    folder: Path, bases: dict[str, BaseModel]
) -> None:
    expected = read_adapter(folder, bases["bert"])
    assert read_fine_tuned(str(folder), bases["bert"]).digest == expected.digest
