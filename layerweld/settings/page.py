"""``docs/settings.md`` from the settings themselves: keys, defaults, values and what they mean."""

from __future__ import annotations

from collections.abc import Iterator

from layerweld.settings.facts import about, facts_of
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import SiteEntry
from layerweld.settings_table import Settings

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
