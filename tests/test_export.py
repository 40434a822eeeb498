import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from layerweld.errors import OutputError, StorageError
from layerweld.formats.adapters import read_adapter
from layerweld.formats.checkpoint import read_checkpoint
from layerweld.formats.export import write_adapter, write_model
from layerweld.merging.registry import METHODS
from layerweld.model.base_model import BaseModel, load_base
from layerweld.model.linear import linear_layers, updated, weight_of
from layerweld.report.model_card import write_model_card
from layerweld.report.results import MethodResult, RunResults, Score, SiteSummary
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests.tiny_peft import TARGETS, edit_config, hidden_states, new_model, save_base


def random_updates(base: Any, ranks: tuple[Any, ...] = (3, 1, 5)) -> dict[str, LowRankUpdate]:
    """One factored update per layer of the backbone; the ranks take turns."""
    generator = torch.Generator().manual_seed(4)
    updates = {}
    for index, (name, layer) in enumerate(linear_layers(base.backbone).items()):
        d_out, d_in = weight_of(layer).shape
        rank = ranks[index % len(ranks)]
        left = 0.2 * torch.randn(d_out, rank, generator=generator)
        updates[name] = LowRankUpdate(left, torch.randn(rank, d_in, generator=generator))
    return updates


def with_updates(base: Any, updates: dict[str, LowRankUpdate]) -> Any:
    with updated(linear_layers(base.backbone), updates):
        return hidden_states(base.backbone)


@contextmanager
def no_word_from_peft() -> Iterator[None]:
    """PEFT only warns of missing keys, unknown keys and patterns that match nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def contents(folder: Path) -> dict[Any, Any]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("ranks", [(4,), (3, 1, 5)], ids=["one-rank", "three-ranks"])
@pytest.mark.parametrize("family", TARGETS)
def test_peft_loads_the_adapter_as_the_base_model_with_the_updates(
    family: Any, ranks: tuple[int, ...], bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases[family]
    updates = random_updates(base, ranks)
    write_adapter(tmp_path / "merged", updates, base, prefix="")
    with no_word_from_peft():
        model = PeftModel.from_pretrained(
            AutoModel.from_pretrained(base.folder), tmp_path / "merged"
        )
    ours = with_updates(base, updates)
    torch.testing.assert_close(hidden_states(model.eval()), ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, hidden_states(base.backbone), atol=1e-2)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_with_a_prefix_it_loads_onto_the_class_that_the_sites_trained(
    family: str, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases[family]
    updates = random_updates(base)
    write_adapter(tmp_path / "merged", updates, base, prefix=base.prefix)
    with no_word_from_peft():
        model = PeftModel.from_pretrained(new_model(family), tmp_path / "merged").eval()
    inner = hidden_states(model.base_model.model.base_model)
    torch.testing.assert_close(inner, with_updates(base, updates), rtol=1e-5, atol=1e-5)


def test_the_task_that_all_sites_name_lets_peft_find_the_class_by_itself(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases["llama"]
    updates = random_updates(base)
    write_adapter(tmp_path / "merged", updates, base, prefix=base.prefix, task="CAUSAL_LM")
    edit_config(tmp_path / "merged", base_model_name_or_path=str(base.folder))
    with no_word_from_peft():
        model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    inner = hidden_states(model.base_model.model.base_model)
    torch.testing.assert_close(inner, with_updates(base, updates), rtol=1e-5, atol=1e-5)
    assert read_adapter(tmp_path / "merged", base).task == "CAUSAL_LM"


def test_a_task_whose_head_peft_would_look_for_is_not_kept(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    write_adapter(tmp_path / "merged", random_updates(bases["bert"]), bases["bert"], prefix="bert.")
    edit_config(tmp_path / "merged", task_type="SEQ_CLS")
    assert read_adapter(tmp_path / "merged", bases["bert"]).task == ""


@pytest.mark.parametrize("family", TARGETS)
def test_reading_what_was_written_gives_the_same_factors(
    family: Any, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases[family]
    updates = random_updates(base)
    write_adapter(tmp_path / "merged", updates, base, prefix=base.prefix)
    adapter = read_adapter(tmp_path / "merged", base)
    assert adapter.prefix == base.prefix
    assert set(adapter.task_vector.updates) == set(updates)
    for name, update in adapter.task_vector.updates.items():
        assert torch.equal(update.left, updates[name].left)  # type: ignore[attr-defined]
        assert torch.equal(update.right, updates[name].right)  # type: ignore[attr-defined]


def test_a_subset_of_the_layers_stays_a_subset(bases: dict[str, BaseModel], tmp_path: Path) -> None:
    base = bases["llama"]
    every = random_updates(base)
    updates = {name: every[name] for name in list(every)[3:5]}
    write_adapter(tmp_path / "merged", updates, base, prefix="")
    assert set(read_adapter(tmp_path / "merged", base).task_vector.updates) == set(updates)


def test_layers_that_share_a_factor_are_written_each_with_its_own(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    shared = torch.randn(2, 16)
    names = [f"layers.0.self_attn.{name}_proj" for name in ("k", "v")]
    updates = {name: LowRankUpdate(torch.randn(8, 2), shared) for name in names}
    write_adapter(tmp_path / "merged", updates, bases["llama"], prefix="")
    tensors = load_file(tmp_path / "merged" / "adapter_model.safetensors")
    assert len(tensors) == 4


def test_the_order_of_the_updates_does_not_change_a_byte(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    updates = random_updates(bases["bert"])
    backwards = dict(reversed(updates.items()))
    write_adapter(tmp_path / "one" / "merged", updates, bases["bert"], prefix="bert.")
    write_adapter(tmp_path / "two" / "merged", backwards, bases["bert"], prefix="bert.")
    assert contents(tmp_path / "one" / "merged") == contents(tmp_path / "two" / "merged")


def test_neither_the_hash_seed_nor_a_path_gets_into_the_configuration(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases["llama"]
    write_adapter(tmp_path / "merged", random_updates(base), base, prefix="")
    text = (tmp_path / "merged" / "adapter_config.json").read_text()
    names = json.loads(text)["target_modules"]
    assert names == sorted(names)  # PEFT itself writes a set, in the order of this process
    assert str(tmp_path.parent) not in text
    assert json.loads(text)["base_model_name_or_path"] == base.folder.name


@pytest.mark.parametrize("updates", [{}, {"layers.0.mlp.up_proj": 0}])
def test_an_adapter_without_a_column_is_our_own_mistake(
    updates: Any, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    empty = {n: LowRankUpdate(torch.zeros(24, r), torch.zeros(r, 16)) for n, r in updates.items()}
    with pytest.raises(ValueError, match="rank 1 or more"):
        write_adapter(tmp_path / "merged", empty, bases["llama"], prefix="")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("keep me")
    for write in (write_adapter, write_model):
        with pytest.raises(OutputError, match="give another name, or remove it first"):
            write(tmp_path, random_updates(bases["bert"]), *last_arguments(write, bases["bert"]))
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def last_arguments(write: Callable[..., None], base: Any) -> tuple[Any, ...]:
    return (base, "") if write is write_adapter else ({}, base)


def test_an_empty_folder_and_the_rest_of_a_killed_run_are_in_nobodys_way(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged.partial" / "half.safetensors").write_bytes(b"x")
    write_adapter(tmp_path / "merged", random_updates(bases["bert"]), bases["bert"], prefix="")
    assert [file.name for file in tmp_path.iterdir()] == ["merged"]
    assert set(contents(tmp_path / "merged")) == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_place_that_cannot_be_written_is_a_storage_error(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="merged cannot be written"):
        write_adapter(
            tmp_path / "file" / "merged", random_updates(bases["bert"]), bases["bert"], prefix=""
        )


@pytest.mark.parametrize("family", TARGETS)
def test_the_written_model_is_the_base_model_with_the_updates(
    family: Any, bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases[family]
    before = base.fingerprint
    updates = random_updates(base)
    write_model(tmp_path / "merged", updates, {}, base)
    merged = AutoModel.from_pretrained(tmp_path / "merged").eval()
    expected = with_updates(base, updates)
    torch.testing.assert_close(hidden_states(merged), expected, rtol=1e-5, atol=1e-5)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert load_base(base.folder).fingerprint == before


def test_the_other_params_and_dense_updates_come_back_from_the_written_model(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    base = bases["gpt2"]
    updates = {"h.1.mlp.c_fc": DenseUpdate(torch.randn(64, 16))}
    other_params = {"h.0.ln_1.bias": torch.randn(16), "wte.weight": torch.randn(40, 16)}
    write_model(tmp_path / "merged", updates, other_params, base)
    vector = read_checkpoint(tmp_path / "merged", base)
    assert set(vector.updates) == set(updates)
    torch.testing.assert_close(
        vector.updates["h.1.mlp.c_fc"].dense(), updates["h.1.mlp.c_fc"].dense()
    )
    assert set(vector.other_params) == set(other_params)
    for name, difference in other_params.items():
        torch.testing.assert_close(vector.other_params[name], difference)


def test_the_written_model_is_the_same_to_the_byte_each_time(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    updates = random_updates(bases["bert"])
    write_model(tmp_path / "one", updates, {}, bases["bert"])
    write_model(tmp_path / "two", updates, {}, bases["bert"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_pooler_goes_along_only_if_the_base_model_has_one(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    write_model(tmp_path / "with", {}, {}, bases["bert"])
    assert "pooler.dense.weight" in load_file(tmp_path / "with" / "model.safetensors")
    bases["bert"].backbone.save_pretrained(tmp_path / "base")
    write_model(tmp_path / "without", {}, {}, load_base(tmp_path / "base"))
    assert "pooler.dense.weight" not in load_file(tmp_path / "without" / "model.safetensors")


def test_the_tokenizer_goes_along(bases: dict[str, BaseModel], tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    (base.folder / "vocab.txt").write_text("[PAD]\n")
    (base.folder / "notes.txt").write_text("private")
    write_model(tmp_path / "merged", {}, {}, base)
    files = {"config.json", "model.safetensors", "vocab.txt"}
    assert set(contents(tmp_path / "merged")) == files


COM = METHODS["com"]
CARD = RunResults(
    name="card",
    base="tiny-bert",
    sites=(SiteSummary("north", 40, 512, "lora", 4), SiteSummary("a|b", 10, 99, "lora", 4)),
    methods=(
        MethodResult("individual", "own", 0, 0.0, 0, 0, {"north": Score(0.95, 20)}),
        MethodResult("com", "merged", 8, 1.0, 0, 0,
                     {"north": Score(0.91, 20), "a|b": Score(0.5, 20)}),
    ),
    chosen="com",
    form="adapter",
    settings={"merge.granularity": "group", "merge.ridge": 0.01, "name": "card"},
    manifest_hash="",
    versions={},
)  # fmt: skip


def test_the_card_says_what_it_is_where_it_came_from_and_what_to_know(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    write_adapter(folder, random_updates(bases["bert"]), bases["bert"], prefix="")
    write_model_card(folder, CARD, COM)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.tags == ["federated", "lora", "merge"]
    assert card.data.base_model == "tiny-bert"
    for line in (
        "| north | 40 | 512 |",
        r"| a\|b | 10 | 99 |",
        "| `merge.ridge` | 0.01 |",
        "| north | 0.9100 | 0.9500 |",
        'PeftModel.from_pretrained(base, "adapter")',
        "by Chain of Merges (Buzzega et al. 2025, arXiv:2508.21421), from statistics",
        "not anonymous",
        "heads are not included",
        "arXiv:2508.21421",
    ):
        assert line in card.text


def test_the_card_of_a_model_and_of_a_head_class_say_how_to_load_them(
    bases: dict[str, BaseModel], tmp_path: Path
) -> None:
    tmp_path.joinpath("model").mkdir()
    write_model_card(tmp_path / "model", replace(CARD, form="model"), COM)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert 'AutoModel.from_pretrained("model")' in card.text
    write_adapter(tmp_path / "a", random_updates(bases["bert"]), bases["bert"], prefix="bert.")
    write_model_card(tmp_path / "a", replace(CARD, methods=(), prefix="bert."), COM)
    text = (tmp_path / "a" / "README.md").read_text()
    assert "begin with `bert.`" in text
    assert "## Scores" not in text


def test_the_card_of_a_merge_without_statistics_claims_none(tmp_path: Path) -> None:
    tmp_path.joinpath("model").mkdir()
    write_model_card(tmp_path / "model", replace(CARD, form="model"), METHODS["ties"])
    text = (tmp_path / "model" / "README.md").read_text()
    assert "by TIES (Yadav et al. 2023, arXiv:2306.01708), from their updates" in text
    assert "Gram" not in text


def test_the_same_facts_give_the_same_card(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "merged").mkdir(parents=True)
        write_model_card(tmp_path / name / "merged", CARD, COM)
    assert contents(tmp_path / "one" / "merged") == contents(tmp_path / "two" / "merged")
