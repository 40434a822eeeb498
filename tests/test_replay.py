"""A model run block by block from its recorded calls is the model itself, to the bit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from layerweld.errors import PlanError
from layerweld.model.discover import discover_plan
from layerweld.model.replay import BlockCall, RecordedBatch, record, run_block, run_block_until
from tests.tiny_models import EVERY_MODEL, make_batch, new_backbone


def blocks_of(backbone: Any) -> list[Any]:
    return [backbone.get_submodule(name) for name in discover_plan(backbone).blocks]


def output_of_last_block(backbone: Any, blocks: list[Any], batch: dict[Any, Any]) -> Any:
    """What the model's own forward pass hands on from its last block."""
    seen = []
    handle = blocks[-1].register_forward_hook(lambda _m, _args, output: seen.append(output))
    with torch.inference_mode():
        backbone(**batch)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def replayed(
    blocks: list[Any], recording: RecordedBatch, calls: list[BlockCall] | None | None = None
) -> Tensor:
    hidden = recording.entry
    for block, call in zip(blocks, calls or recording.calls, strict=True):
        hidden = run_block(block, hidden, call)
    return hidden


def differences(
    backbone: Any,
    recording: RecordedBatch,
    blocks: list[Any],
    batch: dict[Any, Any],
    calls: list[BlockCall] | None = None,
) -> Any:
    expected = output_of_last_block(backbone, blocks, batch)
    return (replayed(blocks, recording, calls) - expected)[recording.keep].abs().max()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", EVERY_MODEL)
def test_replay_is_the_forward_pass(name: Any, side: str) -> None:
    backbone = new_backbone(name)
    blocks, batch = blocks_of(backbone), make_batch(backbone, side=side)
    recording = record(backbone, blocks, batch)
    assert differences(backbone, recording, blocks, batch) == 0


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_a_recording_outlives_the_weights_it_was_made_with(name: Any) -> None:
    backbone = new_backbone(name)
    blocks, batch = blocks_of(backbone), make_batch(backbone)
    recording = record(backbone, blocks, batch)
    for block in blocks:
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert differences(backbone, recording, blocks, batch) == 0


def test_the_first_blocks_call_does_not_do_for_all_blocks() -> None:
    # Why every block is recorded: Gemma 3 alternates sliding windows and full attention.
    backbone = new_backbone("gemma3")
    blocks, batch = blocks_of(backbone), make_batch(backbone, padded=False)
    recording = record(backbone, blocks, batch)
    first_for_all = [recording.calls[0]] * len(blocks)
    assert differences(backbone, recording, blocks, batch, first_for_all) > 1e-3


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_recording_runs_no_layer_of_any_block(name: Any) -> None:
    backbone = new_backbone(name)
    blocks, called = blocks_of(backbone), []
    for block in blocks:
        for module in block.modules():
            if module is not block:
                module.register_forward_pre_hook(lambda m, _args: called.append(m))
    record(backbone, blocks, make_batch(backbone))
    assert called == []


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_padding_is_what_the_tokenizer_says(name: Any) -> None:
    backbone = new_backbone(name)
    batch = make_batch(backbone)
    recording = record(backbone, blocks_of(backbone), batch)
    mask = batch.get("attention_mask")
    expected = torch.ones_like(recording.keep) if mask is None else mask.bool()
    assert torch.equal(recording.keep, expected)


def test_blocks_are_themselves_again_when_recording_fails() -> None:
    backbone = new_backbone("llama")
    blocks = blocks_of(backbone)
    with pytest.raises(IndexError):
        record(backbone, blocks, {"input_ids": torch.tensor([[10**6]])})
    assert not any("forward" in vars(block) for block in blocks)


def test_a_cache_is_refused_with_the_way_out() -> None:
    backbone = new_backbone("llama")
    backbone.config.use_cache = True
    with pytest.raises(PlanError, match=r"config\.use_cache = False"):
        record(backbone, blocks_of(backbone), make_batch(backbone))


@contextmanager
def listed_when_run(layers: dict[str, Any]) -> Iterator[list[Any]]:
    """Names of the layers that have run to their end, in order."""
    finished = []

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _args, _output: finished.append(name)

    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    yield finished
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_a_step_ends_at_its_groups_input(name: Any) -> None:
    backbone = new_backbone(name)
    plan = discover_plan(backbone)
    blocks, batch = blocks_of(backbone), make_batch(backbone)
    recording = record(backbone, blocks, batch)
    layers = {n: backbone.get_submodule(n) for n in plan.layer_names}
    for position, group in enumerate(plan.groups_of_block(0)):
        inputs: list[Any] = []
        tap = (layers[group.layers[0].name], inputs.append)
        with listed_when_run(layers) as finished:
            run_block_until(blocks[0], recording.entry, recording.calls[0], [tap])
        before = [s.name for g in plan.groups_of_block(0)[:position] for s in g.layers]
        assert finished == before
        assert inputs[0].shape == (*recording.keep.shape, group.d_in)


def test_a_tap_that_is_never_reached_is_an_error() -> None:
    backbone = new_backbone("bert")
    blocks = blocks_of(backbone)
    recording = record(backbone, blocks, make_batch(backbone))
    elsewhere = blocks[1].output.dense
    with pytest.raises(PlanError, match="1 of 1 tapped layers did not run"):
        run_block_until(blocks[0], recording.entry, recording.calls[0], [(elsewhere, print)])
    assert not elsewhere._forward_pre_hooks


def test_a_tap_hears_what_the_layer_reads_and_goes_away_afterwards() -> None:
    backbone = new_backbone("bert")
    blocks = blocks_of(backbone)
    recording = record(backbone, blocks, make_batch(backbone))
    heard: list[Any] = []
    layer = blocks[0].attention.self.query
    run_block(blocks[0], recording.entry, recording.calls[0], [(layer, heard.append)])
    assert torch.equal(heard[0], recording.entry)
    assert not layer._forward_pre_hooks


def test_a_call_keeps_what_it_was_called_with() -> None:
    backbone = new_backbone("llama")
    recording = record(backbone, blocks_of(backbone), make_batch(backbone))
    assert all(isinstance(call, BlockCall) for call in recording.calls)
    assert all("hidden_states" not in call.kwargs for call in recording.calls)
