"""The plan of every kind of model, found by running it once."""

from typing import Any

import pytest
import torch

from layerweld.errors import PlanError
from layerweld.model.discover import discover_plan
from layerweld.model.families import probe_inputs
from tests.tiny_models import EVERY_MODEL, UNSUPPORTED, new_backbone

# Groups of one block, in the order in which it calls them: names inside the block, d_in, d_out.
GATED = [
    ("self_attn.{q_proj,k_proj,v_proj}", 16, (16, 8, 8)),
    ("self_attn.o_proj", 16, (16,)),
    ("mlp.{gate_proj,up_proj}", 16, (24, 24)),
    ("mlp.down_proj", 24, (16,)),
]
BERT = [
    ("attention.self.{query,key,value}", 16, (16, 16, 16)),
    ("attention.output.dense", 16, (16,)),
    ("intermediate.dense", 16, (24,)),
    ("output.dense", 24, (16,)),
]
VIT = [
    ("attention.{q_proj,k_proj,v_proj}", 16, (16, 16, 16)),
    ("attention.o_proj", 16, (16,)),
    ("mlp.fc1", 16, (24,)),
    ("mlp.fc2", 24, (16,)),
]
EXPECTED = {
    "bert": BERT,
    "roberta": BERT,
    "llama": GATED,
    "qwen3": GATED,
    "gemma3": GATED,
    "mistral": GATED,
    "vit": VIT,
    "dinov2": [*VIT[:2], ("mlp.fc1", 16, (32,)), ("mlp.fc2", 32, (16,))],
    "clip": [
        ("self_attn.{q_proj,k_proj,v_proj}", 16, (16, 16, 16)),
        ("self_attn.out_proj", 16, (16,)),
        *VIT[2:],
    ],
    "gpt2": [  # Conv1D, which stores (d_in, d_out)
        ("attn.c_attn", 16, (48,)),
        ("attn.c_proj", 16, (16,)),
        ("mlp.c_fc", 16, (64,)),
        ("mlp.c_proj", 64, (16,)),
    ],
    "phi3": [  # fused qkv, and fused gate and up; two of four heads for keys and values
        ("self_attn.qkv_proj", 16, (32,)),
        ("self_attn.o_proj", 16, (16,)),
        ("mlp.gate_up_proj", 16, (48,)),
        ("mlp.down_proj", 24, (16,)),
    ],
    "gpt-neox": [
        ("attention.query_key_value", 16, (48,)),
        ("attention.dense", 16, (16,)),
        ("mlp.dense_h_to_4h", 16, (24,)),
        ("mlp.dense_4h_to_h", 24, (16,)),
    ],
}


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_groups_are_the_layers_that_read_the_same_input_in_calling_order(name: Any) -> None:
    plan = discover_plan(new_backbone(name))
    for block, path in enumerate(plan.blocks):
        found = [
            (group.name.removeprefix(f"{path}."), group.d_in, tuple(s.d_out for s in group.layers))
            for group in plan.groups_of_block(block)
        ]
        assert found == EXPECTED[name]
    assert [group.block for group in plan.groups] == sorted(group.block for group in plan.groups)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_digest_depends_on_the_architecture_and_not_on_the_weights(name: Any) -> None:
    backbone = new_backbone(name)
    plan = discover_plan(backbone)
    for parameter in backbone.parameters():
        parameter.mul_(1.5)
    assert discover_plan(backbone).digest == plan.digest


def test_other_architectures_have_other_digests() -> None:
    digests = {name: discover_plan(new_backbone(name)).digest for name in EVERY_MODEL}
    alike = [{"bert", "roberta"}, {"llama", "qwen3", "mistral"}]  # the same names and sizes
    kinds = {frozenset(n for n in digests if digests[n] == d) for d in digests.values()}
    assert all(len(kind) == 1 or any(kind <= group for group in alike) for kind in kinds)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_nothing_of_the_probing_stays_in_the_model(name: Any) -> None:
    backbone = new_backbone(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    discover_plan(backbone)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in backbone.modules())
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_no_hook_stays_when_the_forward_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = new_backbone("bert")
    monkeypatch.setattr(
        backbone.encoder.layer[1], "forward", lambda *_args, **_kwargs: 1 / 0, raising=False
    )
    with pytest.raises(ZeroDivisionError):
        discover_plan(backbone)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    ("name", "says"),
    [("t5", "encoder-decoder"), ("albert", "no list of blocks")],  # ALBERT shares one block
)
def test_what_has_not_one_stack_of_blocks_is_refused(name: str, says: str) -> None:
    assert name in UNSUPPORTED
    with pytest.raises(PlanError, match=says):
        discover_plan(new_backbone(name))


def test_a_layer_used_twice_is_refused() -> None:
    backbone = new_backbone("bert")
    attention = backbone.encoder.layer[0].attention.self
    attention.value = attention.key  # one module under two names
    with pytest.raises(PlanError, match="more than once"):
        discover_plan(backbone)


def test_a_plan_can_be_cut_down_to_what_was_fine_tuned() -> None:
    plan = discover_plan(new_backbone("llama"))
    layers = {"layers.1.self_attn.v_proj", "layers.0.mlp.down_proj", "layers.1.self_attn.q_proj"}
    small = plan.restricted_to(layers)
    assert [tuple(s.name for s in group.layers) for group in small.groups] == [
        ("layers.0.mlp.down_proj",),
        ("layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"),
    ]
    assert small.blocks == plan.blocks
    assert small.digest != plan.digest
    with pytest.raises(PlanError, match=r"lm_head.*target_modules inside `layers\.0`"):
        plan.restricted_to({"lm_head"})


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_the_probe_is_one_row(name: Any) -> None:
    backbone = new_backbone(name)
    assert all(len(tensor) == 1 for tensor in probe_inputs(backbone).values())
