"""Run a model block by block, exactly as its own forward pass would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerweld.errors import PlanError
from layerweld.model.families import CACHES, states_in, taken_apart

Tap = Callable[[Tensor], None]


@dataclass(frozen=True)
class BlockCall:
    """Everything a block was called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class RecordedBatch:
    """One batch of calibration samples, ready to be replayed.

    Attributes:
        entry: hidden states that enter block 0, ``(batch, seq, d_model)``.
        calls: how each block is called. Masks, rotary tables and positions do not depend on hidden
            states, so they stay right when weights change.
        keep: ``(batch, seq)``, False on padding.
    """

    entry: Tensor
    calls: tuple[BlockCall, ...]
    keep: Tensor


class _LastTapReached(Exception):
    """Ends a block once no tap needs the rest of it."""


@torch.no_grad()
def record(
    backbone: nn.Module, blocks: Sequence[nn.Module], batch: Mapping[str, Tensor]
) -> RecordedBatch:
    """Record how the model calls every block, at the cost of its embeddings only.

    Every block is recorded, not only the first: sliding-window and full-attention blocks of one
    model get different masks and different rotary tables. The blocks themselves are not run, since
    they would not compute what the merged model will.

    Raises:
        PlanError: a block was not called, or was given a key-value cache.
    """
    seen: dict[nn.Module, tuple[Tensor, BlockCall]] = {}
    with _passed_over(blocks, seen):
        backbone(**batch)
    if len(seen) != len(blocks):
        raise PlanError(
            f"only {len(seen)} of {len(blocks)} blocks were called; the model skips the others"
        )
    entry = seen[blocks[0]][0]
    calls = tuple(seen[block][1] for block in blocks)
    cached = [k for k in CACHES if calls[0].kwargs.get(k) is not None]
    if cached:
        raise PlanError(f"blocks are given {cached[0]!r}; set config.use_cache = False")
    mask = batch.get("attention_mask")
    keep = torch.ones(entry.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    return RecordedBatch(entry, calls, keep.to(entry.device))


@contextmanager
def _passed_over(
    blocks: Sequence[nn.Module], seen: dict[nn.Module, tuple[Tensor, BlockCall]]
) -> Iterator[None]:
    def stand_in(block: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, others, named = taken_apart(args, kwargs)
            seen[block] = (hidden, BlockCall(others, named))
            return hidden

        return forward

    try:
        for block in blocks:
            block.forward = stand_in(block)  # on the instance: it shadows the class's own
        yield
    finally:
        for block in blocks:
            del block.forward


@torch.no_grad()
def run_block(
    block: nn.Module, hidden: Tensor, call: BlockCall, taps: Sequence[tuple[nn.Module, Tap]] = ()
) -> Tensor:
    """``block``'s output hidden states, ``(batch, seq, d_model)``.

    Args:
        block: the block, with the weights that it has now.
        hidden: ``(batch, seq, d_model)``.
        call: what the block was recorded with.
        taps: called with the input of these layers, ``(batch, seq, d_in)``, on the way.
    """
    with _tapped(taps, hidden):
        return forward_block(block, hidden, call)


def forward_block(block: nn.Module, hidden: Tensor, call: BlockCall) -> Tensor:
    """As :func:`run_block`, with gradients wherever a weight of the block wants one."""
    return states_in(block(hidden, *call.args, **call.kwargs))


@torch.no_grad()
def run_block_until(
    block: nn.Module, hidden: Tensor, call: BlockCall, taps: Sequence[tuple[nn.Module, Tap]]
) -> None:
    """As :func:`run_block`, but ends as soon as every tap was called: nothing after it is run."""
    waiting = len(taps)

    def counted(tap: Tap) -> Tap:
        def listen(inputs: Tensor) -> None:
            nonlocal waiting
            tap(inputs)
            waiting -= 1
            if waiting == 0:
                raise _LastTapReached

        return listen

    with _tapped([(layer, counted(tap)) for layer, tap in taps], hidden):
        try:
            block(hidden, *call.args, **call.kwargs)
        except _LastTapReached:
            return
    raise PlanError(f"{waiting} of {len(taps)} tapped layers did not run in this block")


@contextmanager
def _tapped(taps: Sequence[tuple[nn.Module, Tap]], hidden: Tensor) -> Iterator[None]:
    batch_and_seq = hidden.shape[:2]

    def hook(tap: Tap) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _layer, args: tap(args[0].reshape(*batch_and_seq, -1))

    handles = [layer.register_forward_pre_hook(hook(tap)) for layer, tap in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
