"""What is made from the settings and the methods, for the files of a checkout.

``python -m layerweld.settings.reference`` writes all of it: ``docs/settings.md``, the tables of
``docs/methods.md``, and what ``pyproject.toml`` declares to Flower.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from layerweld.merging.method import Method
from layerweld.merging.registry import METHODS
from layerweld.settings.facts import defaults_of
from layerweld.settings.page import settings_page
from layerweld.settings.run import RunSettings

CHECKOUT = Path(__file__).parents[2]
_COLUMNS = ("name", "merge", "needs", "of LoRAs", "Σ", "settings", "source")


def documents() -> Mapping[Path, str]:
    """The text of each file, by its path in a checkout; what is written by hand stays."""
    sections = {
        "methods that use samples": [m for m in METHODS.values() if m.kind.data != "none"],
        "methods that use updates": [m for m in METHODS.values() if m.kind.data == "none"],
    }
    methods = (CHECKOUT / "docs/methods.md").read_text(encoding="utf-8")
    app = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    for name, section in sections.items():
        methods = _refilled(methods, name, _table(section))
    return {
        Path("docs/settings.md"): settings_page(),
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


def main() -> None:
    """Write them."""
    for file, text in documents().items():
        (CHECKOUT / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
