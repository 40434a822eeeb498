"""A merge plan as a table: groups, shapes, and what a round costs."""

from __future__ import annotations

from rich.table import Table

from layerweld.plan import LayerGroup, MergePlan

_RANK = 16


def plan_table(plan: MergePlan) -> Table:
    """One row per layer group, with bytes for a site's LoRA of rank 16 and the server's memory.

    The server's memory is two int64 limbs and a float64 copy of S for the group being solved; the
    sum line gives the largest group's, since one group is in memory at a time.
    """
    table = Table(
        title=f"{len(plan.groups)} layer groups in {len(plan.blocks)} blocks",
        caption=f"plan {plan.digest[:16]} · factored products of a rank-{_RANK} LoRA, float32",
    )
    table.add_column("round", justify="right")
    table.add_column("group", overflow="fold", ratio=1)
    for name in ("shapes", "G", "B, A·G", "server"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, group in enumerate(plan.groups, start=1):
        shapes = "\n".join(f"{layer.d_out} × {group.d_in}" for layer in group.layers)
        cells = (_size(group.gram_bytes), _size(_product_bytes(group)), _size(_server_bytes(group)))
        table.add_row(str(number), group.name, shapes, *cells)
    table.add_section()
    table.add_row(
        "",
        "all rounds, per site",
        "",
        _size(sum(group.gram_bytes for group in plan.groups)),
        _size(sum(_product_bytes(group) for group in plan.groups)),
        _size(max(_server_bytes(group) for group in plan.groups)),
    )
    return table


def _product_bytes(group: LayerGroup) -> int:
    return sum(4 * _RANK * (layer.d_out + group.d_in) for layer in group.layers)


def _server_bytes(group: LayerGroup) -> int:
    return 3 * 8 * group.d_in**2


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
