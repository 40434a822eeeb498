"""What is made from the settings and the methods, for the files of a checkout.

``python -m layerweld.settings.reference`` writes all of it: ``docs/settings.md``, the tables of
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
_INTRODUCTION = r"""# Settings

Made from the code by `python -m layerweld.settings.reference`; a test compares both. What the
methods compute is in [methods.md](methods.md).

## Where they are written

- **In the file of `layerweld simulate` and `layerweld compare`**: TOML, with a `[[sites]]` table
  for each site.
- **In `run.toml` of a coordinator's folder**: the same, without `[[sites]]`. Sites come with
  their keys.
- **After `--set` of `layerweld merge`**: `--set density=0.1` is a key of the chosen method's
  table, `--set calibration.threads=1` one of another table.
- **In `flwr run . --run-config "merge.ridge=0.1"`**: text is quoted once more,
  `"methods='ties'"`.

A key that is not written has the default of this page. Only `flwr run .` begins with the values in
`[tool.flwr.app.config]` of `pyproject.toml`. Those are the demo's and differ from the defaults:
fewer calibration samples, shorter texts, less training. Every key is there, because Flower
overrides declared keys only.

An unknown key or an impossible value is refused before anything runs, and the message says what is
possible. `base` and the sites' paths are relative to the file that names them. `base` is a folder,
never a name on a hub.

## An example: a decoder without heads

With `calibration.prompt-end` a causal language model is a classifier. It reads a sample's text and
then `prompt-end`; the class is the label that it most likely continues with. So labels are words
(`"sports"`, not `3`), and no two may begin with the same token. Sites train no head, and need no
head beside an adapter that they bring.

```toml
base = "models/qwen"
methods = "chain,task-arithmetic"

[calibration]
samples = 200
max-length = 96            # tokens, those of prompt-end included
prompt-end = "\nTopic:"    # {"text": "The striker scored twice.", "label": "sports"}

[finetune]
targets = "q_proj,v_proj"
max-length = 96

[evaluate]
max-length = 96

[[sites]]
name = "north"
data = "north/train.jsonl"
held-out = "north/test.jsonl"

[[sites]]
name = "south"
data = "south/train.jsonl"
held-out = "south/test.jsonl"
```
"""
_HEADER = "| key | default | values | meaning |\n| --- | --- | --- | --- |"
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


def settings_page() -> str:
    """The whole page, in Markdown: an introduction, and a table for each TOML table."""
    parts = [_INTRODUCTION, _part("Top level", RunSettings)]
    for field in RunSettings.model_fields.values():
        if isinstance(field.default, Settings) and type(field.default).model_fields:
            parts.append(_part(f"`[{field.alias}]`", type(field.default)))
    parts.append(_part("`[[sites]]`", SiteEntry))
    return "\n".join(parts)


def _part(title: str, table: type[Settings]) -> str:
    return "\n".join([f"## {title}\n", f"{about(table)}\n", _HEADER, *_rows(table), ""])


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
