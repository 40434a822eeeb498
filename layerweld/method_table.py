"""All merge methods as a table: what each needs, what leaves a site, and its settings."""

from __future__ import annotations

from rich.table import Table

from layerweld.config import RunSettings
from layerweld.methods import METHODS, Method


def method_table() -> Table:
    """One row per method, in the order of :data:`layerweld.methods.METHODS`."""
    table = Table(
        title=f"{len(METHODS)} merge methods",
        caption=(
            "Sum: the server needs sums over the sites only. `NAME+lines` scales the result of a "
            "method of one round by depth. Settings are `NAME.key` in a run, `--set key=value` in "
            "`merge`."
        ),
    )
    table.add_column("name", no_wrap=True)
    for head in ("method", "rounds", "a site sends", "sum", "rows", "needs", "settings", "source"):
        table.add_column(head)
    for method in METHODS.values():
        table.add_row(*_cells(method))
    return table


def _cells(method: Method) -> tuple[str, ...]:
    return (
        method.name,
        method.label,
        method.rounds,
        method.sends,
        "yes" if method.sums else "no",
        method.data,
        ", ".join(method.needs) or "–",
        defaults_of(method),
        method.source,
    )


def defaults_of(method: Method) -> str:
    """The method's own settings with their defaults; ``merge.*`` for a chain."""
    if method.granularity:
        return "merge.*"
    entries = RunSettings().of_method(method.table).model_dump(by_alias=True)
    return ", ".join(f"{key}={str(value).lower()}" for key, value in entries.items()) or "–"
