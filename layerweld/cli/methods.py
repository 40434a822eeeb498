"""All merge methods as a table, or one at length: what it needs and sends, and what may be set."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from layerweld.merging.method import CHAIN, SENT, Method
from layerweld.merging.registry import METHODS
from layerweld.settings.facts import defaults_of, facts_of
from layerweld.settings.methods import reads, sent_by
from layerweld.settings.run import RunSettings
from layerweld.settings_table import Settings
from layerweld.transport.uploads import IN_THE_HANDSHAKE

_SAMPLES = {"none": "", "unlabelled": "samples", "labelled": "labelled samples"}
_DATA = {
    "none": "no samples",
    "unlabelled": "calibration samples without labels",
    "labelled": "labelled calibration samples",
}
_NEEDS = {
    "LoRA": "a LoRA adapter at every site",
    "equal ranks": "the same rank at every site",
    "shared A": "the same, frozen A at every site",
    "labels": "labelled calibration samples",
    "head": "a head at every site",
}
_GOES_TO = {
    False: "the server alone",
    True: "ΔW to the server and to every other site, the rest to the server alone",
}
_BESIDES = (
    IN_THE_HANDSHAKE,
    "of whole models, what changed in norms, biases and embeddings",
    "if all sites can evaluate, accuracies and the number of held-out samples",
)
_BESIDES_OF_CHAINS = {
    "merge.anchor": 'with merge.anchor = "mean" ΔW itself, of a LoRA as A',
    "merge.covariate-shift": "with merge.covariate-shift one number a layer group",
}
_ROUNDS = {
    "1": "one",
    "groups": "one per layer group",
    "blocks": "one per block",
    "setting": "as many as its settings say",
}


def method_details(method: Method) -> Group:
    """What :func:`method_table` has in a row, in words, and its settings."""
    title = Text(f"{method.label}, {method.source}", style="bold")
    return Group(title, _about(method), _settings(method))


def _about(method: Method) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    needs = [_DATA[method.kind.data], *(_NEEDS[need] for need in method.needs)]
    server = "sums over the sites" if method.sums else "what every single site sends"
    table.add_row("merge", method.formula.replace("`", ""))
    table.add_row("needs", "; ".join(dict.fromkeys(needs)))
    table.add_row("rounds", _ROUNDS[method.rounds])
    sent = sent_by(method, RunSettings())
    table.add_row("leaves a site", "\n".join(SENT[quantity] for quantity in sent))
    table.add_row("goes to", _GOES_TO[method.kind.shares])
    table.add_row("besides", "\n".join(_besides(method)))
    table.add_row("server needs", server)
    table.add_row(
        "try it",
        f"layerweld merge BASE --site NAME=ADAPTER:DATA … --output merged --method {method.name}",
    )
    return table


def _besides(method: Method) -> Iterator[str]:
    yield from _BESIDES
    if method.kind is CHAIN:
        for key, what in _BESIDES_OF_CHAINS.items():
            if reads(method, key, RunSettings()):
                yield what


def _settings(method: Method) -> Table:
    table = Table(title="Settings", title_justify="left")
    for column in ("key", "default", "values", "meaning"):
        table.add_column(column, no_wrap=column == "key", ratio=1 if column == "meaning" else None)
    defaults = RunSettings()
    for name in dict.fromkeys((*method.tables, "merge")):
        of: type[Settings] = type(getattr(defaults, name.replace("-", "_")))
        for facts in facts_of(of):
            if facts.key == "granularity":
                continue  # it is what the name of a chain stands for
            if reads(method, f"{name}.{facts.key}", defaults):
                cells = (f"{name}.{facts.key}", facts.default, facts.values, facts.meaning)
                table.add_row(*(Text(cell.replace("`", "")) for cell in cells))
    return table


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
