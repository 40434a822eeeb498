"""The model card beside a merge: what it is, where it came from, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from huggingface_hub import ModelCard, ModelCardData

from layerweld.settings.run import Scalar
from layerweld.untrusted.text import markdown, markdown_code, shown

_CITATION = """\
```bibtex
@article{buzzega2025rethinking,
  title   = {Rethinking Layer-wise Model Merging through Chain of Merges},
  author  = {Buzzega, Pietro and Salami, Riccardo and Porrello, Angelo and Calderara, Simone},
  journal = {arXiv preprint arXiv:2508.21421},
  year    = {2025}
}
```"""

_ABOUT_STATISTICS = """\
- **Statistics are not anonymous.** Instead of data, the sites sent second moments of layer inputs
  or of gradients. The counts of single tokens can be read off Gram matrices of a language model's
  first layers.
"""

_ABOUT_UPDATES = """\
- **Updates are not anonymous.** Instead of data, the sites sent what fine-tuning added to the
  model. That can hold traces of single samples.
"""

_ABOUT_GRADIENTS = """\
- **Updates and gradients are not anonymous.** Instead of data, the sites sent what fine-tuning
  added to the model, and gradients over their samples. Both can hold traces of single samples. With
  AdaMerging every site also received the updates of all others.
"""

Sent = Literal["statistics", "updates", "updates and gradients"]
"""What the sites sent, and the merge was made from."""

_ABOUT: Mapping[Sent, str] = {
    "statistics": _ABOUT_STATISTICS,
    "updates": _ABOUT_UPDATES,
    "updates and gradients": _ABOUT_GRADIENTS,
}
_SOURCES: Mapping[Sent, str] = {
    "statistics": "statistics that the sites computed on their data",
    "updates": "their updates",
    "updates and gradients": "their updates, and gradients that they computed on their data",
}

_TO_KNOW = """\
- **Task heads are not included.** They stay at the sites. Put your own on top.
- The merge is for this base model only, with the weights that all sites started from."""


_CLASSES = {"CAUSAL_LM": "AutoModelForCausalLM"}
"""Class by :data:`layerweld.formats.lora_config.TASKS`, where the task determines it."""


class Participant(Protocol):
    """What the card says about a site: one row of its table of sites."""

    @property
    def name(self) -> str:
        """The site's name in the run."""

    @property
    def samples(self) -> int:
        """Calibration samples."""

    @property
    def tokens(self) -> int:
        """Calibration tokens, without padding."""


def write_model_card(
    folder: Path,
    *,
    base_name: str,
    sites: Sequence[Participant],
    settings: Mapping[str, Scalar],
    scores: Mapping[str, Mapping[str, float]],
    method: str,
    sent: Sent,
    prefix: str = "",
    task: str = "",
    missing: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write ``README.md`` into the folder of a merge; the same facts give the same bytes.

    Args:
        folder: an adapter folder or a model folder; the card says how to load what it finds.
        base_name: name of the base model, not a path on this machine.
        sites: who took part.
        settings: what decided the result, by dotted name; pass no paths.
        scores: per site, the score of each method or model; may be empty.
        method: the merge method and its paper, for humans.
        sent: what the sites sent.
        prefix: as given to :func:`layerweld.formats.export.write_adapter`.
        task: likewise.
        missing: for each site that was lost on the way, the layer groups that lack it.
    """
    adapter = (folder / "adapter_config.json").is_file()
    base_name = shown(base_name)
    data = ModelCardData(
        base_model=base_name,
        library_name="peft" if adapter else "transformers",
        tags=["federated", "lora", "merge"],
    )
    sections = {
        f"Merge of {len(sites)} sites on {markdown(base_name)}": _summary(
            base_name, adapter, method, sent
        ),
        "How to load it": _how_to_load(folder.name, base_name, adapter, prefix, task),
        "Sites": _table(
            ("site", "samples", "tokens"), ((s.name, s.samples, s.tokens) for s in sites)
        ),
        "Sites that were lost": _missing(missing) if missing else "",
        "Scores": _scores(scores) if scores else "",
        "Settings": _table(("setting", "value"), settings.items(), code=True),
        "What to know": _ABOUT[sent] + _TO_KNOW,
        "Citation": _CITATION,
    }
    first = next(iter(sections))
    body = "\n\n".join(
        f"{'#' if title == first else '##'} {title}\n\n{text}"
        for title, text in sections.items()
        if text
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / "README.md")


def _missing(missing: Mapping[str, Sequence[str]]) -> str:
    rows = [(site, len(groups), ", ".join(groups)) for site, groups in missing.items()]
    return (
        f"These sites failed on the way, and the run continued without them. The groups below "
        f"know nothing of their tasks.\n\n{_table(('site', 'groups without it', 'which'), rows)}"
    )


def _summary(base_name: str, adapter: bool, method: str, sent: Sent) -> str:
    what = "A LoRA adapter" if adapter else "A model"
    return (
        f"{what} for the tasks of several sites. Each of them fine-tuned "
        f"`{markdown_code(base_name)}` on its own data. layerweld merged them by {method}, from "
        f"{_SOURCES[sent]}. The data never left the sites."
    )


def _how_to_load(name: str, base_name: str, adapter: bool, prefix: str, task: str) -> str:
    code, which = loading(name, base_name, adapter=adapter, prefix=prefix, task=task)
    return f"{_python(code)}\n\n{which}" if which else _python(code)


def loading(
    name: str, base_name: str, *, adapter: bool, prefix: str, task: str = ""
) -> tuple[list[str], str]:
    """Lines of Python that load a merge, and what to know about them.

    Args:
        name: folder of the merge.
        base_name: folder of the base model.
        adapter: whether the merge is an adapter; else it is a whole model.
        prefix: what the names of an adapter's layers begin with, by the class that was trained.
        task: PEFT's task type, if it is known.
    """
    if not adapter:
        load = f"model = AutoModel.from_pretrained({_quoted(name)})"
        return ["from transformers import AutoModel", "", load], ""
    begin = markdown_code(prefix)
    model_class = _CLASSES.get(task, "AutoModelForX") if prefix else "AutoModel"
    lines = [
        "from peft import PeftModel",
        f"from transformers import {model_class}",
        "",
        f"base = {model_class}.from_pretrained({_quoted(base_name)})",
        f"model = PeftModel.from_pretrained(base, {_quoted(name)})",
    ]
    if prefix and task in _CLASSES:
        return (
            lines,
            f"Its layer names begin with `{begin}`, as in the class that the sites trained.",
        )
    which = (
        f"`AutoModelForX` stands for the class that the sites trained, such as "
        f"`AutoModelForCausalLM` or `AutoModelForSequenceClassification`; its layer names begin "
        f"with `{begin}`."
        if prefix
        else "The names are those of the model without a head."
    )
    return lines, f"{which} If PEFT warns of missing adapter keys, the class is wrong."


def _python(lines: Iterable[str]) -> str:
    return "\n".join(("```python", *lines, "```"))


def _scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    columns = sorted({column for row in scores.values() for column in row})
    head = ("site", *map(markdown, columns))
    rows = (
        (site, *(f"{row[column]:.4f}" if column in row else "" for column in columns))
        for site, row in scores.items()
    )
    return _table(head, rows)


def _quoted(text: str) -> str:
    """As a string in Python: a quote in a name must not end it."""
    return json.dumps(shown(text), ensure_ascii=False)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], *, code: bool = False) -> str:
    """A Markdown table; with ``code`` its first column is code."""
    lines = [[markdown(cell, 2000) for cell in row] for row in rows]
    if code:
        lines = [[f"`{markdown_code(line[0])}`", *line[1:]] for line in lines]
    lines = [[*head], ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
