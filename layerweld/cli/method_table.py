"""All merge methods as a table: what each needs, what leaves a site, and its settings."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from layerweld.merging.method import Method
from layerweld.merging.registry import METHODS
from layerweld.settings.facts import defaults_of
from layerweld.settings.methods import sent_by
from layerweld.settings.run import RunSettings

_SAMPLES = {"none": "", "unlabelled": "samples", "labelled": "labelled samples"}


def method_table() -> Table:
    """One row per method, in the order of :data:`layerweld.settings.methods.METHODS`."""
    table = Table(
        title=f"{len(METHODS)} merge methods",
        show_lines=True,
        caption=(
            "n: token counts. Σ: sums over the sites are all that the server needs. NAME+lines "
            "lets LiNeS scale, by depth, what a method made of updates. A setting is NAME.key in a "
            "run, and --set key=value in `layerweld merge`."
        ),
        caption_justify="left",
    )
    table.add_column("name", no_wrap=True)
    table.add_column("rounds")
    table.add_column("sends")
    table.add_column("Σ")
    table.add_column("needs")
    table.add_column("settings, source", ratio=1, overflow="fold")
    for method in METHODS.values():
        table.add_row(*_cells(method))
    return table


def _cells(method: Method) -> tuple[str | Text, ...]:
    needs = [_SAMPLES[method.kind.data], *method.needs]
    return (
        Text.assemble(f"{method.name}\n", (method.label, "dim")),
        method.rounds,
        _sends(method),
        "Σ" if method.sums else "",
        "\n".join(need for need in needs if need) or "–",
        Text.assemble(f"{defaults_of(method)}\n", (method.source, "dim")),
    )


def _sends(method: Method) -> str:
    sent = ", ".join(sent_by(method, RunSettings()))
    return f"{sent}\nΔW to all sites" if method.kind.shares else sent
