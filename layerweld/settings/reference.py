"""What is made from the settings and the methods, for the files of a checkout.

``python -m layerweld.settings.reference`` writes all of it: the tables of ``docs/settings.md`` and
``docs/methods.md``, and what ``pyproject.toml`` declares to Flower.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from layerweld.merging.method import Method
from layerweld.merging.registry import METHODS
from layerweld.settings.facts import about, defaults_of, facts_of
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import SiteEntry
from layerweld.settings_table import Settings

CHECKOUT = Path(__file__).parents[2]
_HEADER = "| key | default | values | meaning |\n| --- | --- | --- | --- |"
_COLUMNS = ("name", "merge", "needs", "of LoRAs", "Σ", "settings", "source")


def documents() -> Mapping[Path, str]:
    """The text of each file, by its path in a checkout; what is written by hand stays."""
    sections = {
        "methods that use samples": [m for m in METHODS.values() if m.kind.data != "none"],
        "methods that use updates": [m for m in METHODS.values() if m.kind.data == "none"],
    }
    files = ("docs/settings.md", "docs/methods.md", "pyproject.toml")
    settings, methods, app = ((CHECKOUT / one).read_text(encoding="utf-8") for one in files)
    for name, section in sections.items():
        methods = _refilled(methods, name, _table(section))
    return {
        Path("docs/settings.md"): _refilled(settings, "settings", settings_tables()),
        Path("docs/methods.md"): methods,
        Path("pyproject.toml"): _refilled(app, "run configuration", _declared(tomllib.loads(app))),
    }


def _refilled(text: str, name: str, content: str) -> str:
    """The text with other lines between those that say ``begin NAME`` and ``end NAME``."""
    lines = rf"(?s)(begin {name}[^\n]*\n).*?([^\n]*end {name})"
    return re.sub(lines, lambda found: found[1] + content + found[2], text, count=1)


def _table(methods: Iterable[Method]) -> str:
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_row(method) for method in methods)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows).replace("|  |", "| |")


def _row(method: Method) -> tuple[str, ...]:
    return (
        f"`{method.name}`",
        method.formula.replace("|", r"\|"),
        ", ".join(method.needs),
        "dense" if method.dense else "LoRA",
        "Σ" if method.sums else "",
        defaults_of(method),
        method.source,
    )


def _declared(project: Mapping[str, Any]) -> str:
    """Every key that a run may override: with the demo's value, which stands there, or a default.

    Flower lets a run override no other key. The tables of methods have their defaults.
    """
    own = {method.table for method in METHODS.values()}
    config: dict[str, Any] = {}
    demo = project["tool"]["flwr"]["app"]["config"]
    for key, default in RunSettings().flat().items():
        table, _, entry = key.rpartition(".")
        there = demo.get(table, {}) if table else demo
        value = default if table in own else there.get(entry, default)
        (config.setdefault(table, {}) if table else config)[entry] = value
    return tomli_w.dumps({"tool": {"flwr": {"app": {"config": config}}}})


def settings_tables() -> str:
    """A heading and a table for each TOML table, in Markdown."""
    parts = [_part("Top level", RunSettings)]
    for field in RunSettings.model_fields.values():
        if isinstance(field.default, Settings) and type(field.default).model_fields:
            parts.append(_part(f"`[{field.alias}]`", type(field.default)))
    return "\n\n".join([*parts, _part("`[[sites]]`", SiteEntry)]) + "\n"


def _part(title: str, table: type[Settings]) -> str:
    return "\n".join([f"## {title}\n", f"{about(table)}\n", _HEADER, *_rows(table)])


def _rows(table: type[Settings]) -> Iterator[str]:
    for facts in facts_of(table):
        meaning = facts.meaning.replace("|", r"\|")
        default = f"`{facts.default}`" if facts.default else "required"
        yield f"| `{facts.key}` | {default} | {facts.values} | {meaning} |"


def main() -> None:
    """Write them."""
    for file, text in documents().items():
        (CHECKOUT / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
