"""A merge plan as a table: groups, shapes, and what a round costs."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from layerweld.plan import LayerGroup, MergePlan
from layerweld.statistics.group import ProductForm
from layerweld.transport.statistics import statistics_layout

_RANK = 16


def plan_table(plan: MergePlan) -> Table:
    """One row per layer group, with bytes for a site's LoRA of rank 16 and the server's memory.

    The server's memory is two int64 limbs and a float64 copy of S for the group being solved; the
    sum line gives the largest group's, since one group is in memory at a time.
    """
    table = Table(
        title=f"{len(plan.groups)} layer groups in {len(plan.blocks)} blocks, "
        f"{plan.blocks[0]} to {plan.blocks[-1]}",
        caption=f"plan {plan.digest[:16]} · MiB, with a LoRA of rank {_RANK} as float32 factors",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("round", justify="right")
    table.add_column("block", justify="right")
    table.add_column("layers", overflow="fold", ratio=1)
    for name in ("d_out × d_in", "G", "B, A·G", "server"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, group in enumerate(plan.groups, start=1):
        block = f"{plan.blocks[group.block]}."
        layers = "\n".join(layer.name.removeprefix(block) for layer in group.layers)
        shapes = "\n".join(f"{layer.d_out} × {group.d_in}" for layer in group.layers)
        cells = (*_sent_bytes(group), _server_bytes(group))
        table.add_row(str(number), str(group.block), layers, shapes, *map(_mebibytes, cells))
    table.add_section()
    grams, products = zip(*map(_sent_bytes, plan.groups), strict=True)
    sums = (sum(grams), sum(products), max(map(_server_bytes, plan.groups)))
    table.add_row("", "", "all rounds, per site", "", *map(_mebibytes, sums))
    return table


def _sent_bytes(group: LayerGroup) -> tuple[int, int]:
    """Of the Gram matrix, and of the products."""
    form = ProductForm(dense=False, with_updates=False)
    ranks = dict.fromkeys((layer.name for layer in group.layers), _RANK)
    gram = statistics_layout([group], {}, form).num_bytes
    return gram, statistics_layout([group], ranks, form).num_bytes - gram


def _server_bytes(group: LayerGroup) -> int:
    return 3 * 8 * group.d_in**2


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f}"
