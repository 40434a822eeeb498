"""The model card beside a merge: what it is, where it came from, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import ModelCard, ModelCardData

from layerweld.merging.method import UPDATES, Method
from layerweld.report.results import MethodResult, RunResults, Score
from layerweld.report.scores import REFERENCES
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

Sent = Literal["statistics", "updates", "updates and gradients"]
"""What the sites sent, and the merge was made from."""

_ABOUT: Mapping[Sent, str] = {
    "statistics": """\
- **Statistics are not anonymous.** Instead of data, the sites sent second moments of layer inputs
  or of gradients. The counts of single tokens can be read off Gram matrices of a language model's
  first layers.
""",
    "updates": """\
- **Updates are not anonymous.** Instead of data, the sites sent what fine-tuning added to the
  model. That can hold traces of single samples.
""",
    "updates and gradients": """\
- **Updates and gradients are not anonymous.** Instead of data, the sites sent what fine-tuning
  added to the model, and gradients over their samples. Both can hold traces of single samples. With
  AdaMerging every site also received the updates of all others.
""",
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


def write_model_card(folder: Path, results: RunResults, method: Method) -> None:
    """Write ``README.md`` into the folder of a merge; the same results give the same bytes.

    Args:
        folder: an adapter folder or a model folder.
        results: of the run.
        method: the one whose merge is in the folder.
    """
    base_name = shown(results.base)
    data = ModelCardData(
        base_model=base_name,
        library_name="peft" if results.form == "adapter" else "transformers",
        tags=["federated", "lora", "merge"],
    )
    title = f"# Merge of {len(results.sites)} sites on {markdown(base_name)}"
    sections = (
        f"## {heading}\n\n{text}" for heading, text in _sections(results, method).items() if text
    )
    body = "\n\n".join((title, _summary(results, method), *sections))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / "README.md")


def _sections(results: RunResults, method: Method) -> dict[str, str]:
    """Texts by their headings; empty where there is nothing to say."""
    code, explanation = loading(results)
    sites = ((site.name, site.samples, site.tokens) for site in results.sites)
    tables = (*method.tables, "calibration")
    settings = ((k, v) for k, v in results.settings.items() if k.partition(".")[0] in tables)
    return {
        "How to load it": "\n".join(("```python", *code, "```", "", explanation)).rstrip(),
        "Sites": _table(("site", "samples", "tokens"), sites),
        "Sites that were lost": _lost(results.method(results.chosen)),
        "Scores": _scores(results),
        "Settings": _table(("setting", "value"), settings, code=True),
        "What to know": _ABOUT[_sent(method)] + _TO_KNOW,
        "Citation": _CITATION,
    }


def _sent(method: Method) -> Sent:
    if method.kind.learns:
        return "updates and gradients"
    return "updates" if method.kind is UPDATES else "statistics"


def _summary(results: RunResults, method: Method) -> str:
    what = "A LoRA adapter" if results.form == "adapter" else "A model"
    return (
        f"{what} for the tasks of several sites. Each of them fine-tuned "
        f"`{markdown_code(shown(results.base))}` on its own data. layerweld merged them by "
        f"{method.label} ({method.source}), from {_SOURCES[_sent(method)]}. The data never left "
        f"the sites."
    )


def _lost(merge: MethodResult | None) -> str:
    """Of each site that was lost on the way, the layer groups that lack it."""
    if merge is None or not merge.lost:
        return ""
    lacking = {
        site: [group.name for group in merge.groups if site in group.lost] for site in merge.lost
    }
    rows = [(site, len(groups), ", ".join(groups)) for site, groups in lacking.items()]
    return (
        f"These sites failed on the way, and the run continued without them. The groups below know "
        f"nothing of their tasks.\n\n{_table(('site', 'groups without it', 'which'), rows)}"
    )


def loading(results: RunResults) -> tuple[list[str], str]:
    """Lines of Python that load the merge, and what to know about them; that may be empty."""
    name = results.form
    if name == "model":
        load = f"model = AutoModel.from_pretrained({_quoted(name)})"
        return ["from transformers import AutoModel", "", load], ""
    known = _CLASSES.get(results.task, "AutoModelForX")
    model_class = known if results.prefix else "AutoModel"
    lines = [
        "from peft import PeftModel",
        f"from transformers import {model_class}",
        "",
        f"base = {model_class}.from_pretrained({_quoted(results.base)})",
        f"model = PeftModel.from_pretrained(base, {_quoted(name)})",
    ]
    return lines, _class_to_load(results)


def _class_to_load(results: RunResults) -> str:
    begin = markdown_code(results.prefix)
    if begin and results.task in _CLASSES:
        return f"Its layer names begin with `{begin}`, as in the class that the sites trained."
    which = (
        f"`AutoModelForX` stands for the class that the sites trained, such as "
        f"`AutoModelForCausalLM` or `AutoModelForSequenceClassification`; its layer names begin "
        f"with `{begin}`."
        if begin
        else "The names are those of the model without a head."
    )
    return f"{which} If PEFT warns of missing adapter keys, the class is wrong."


def _scores(results: RunResults) -> str:
    """Accuracy by site, of the references and of the merge that was written out."""
    shown_methods = {
        method.label: method.scores
        for method in results.methods
        if method.scores and method.name in (*REFERENCES, results.chosen)
    }
    if not shown_methods:
        return ""
    columns = sorted(shown_methods)
    sites = dict.fromkeys(site for scores in shown_methods.values() for site in scores)
    rows = (
        (site, *(_score_text(shown_methods[column].get(site)) for column in columns))
        for site in sites
    )
    return _table(("site", *map(markdown, columns)), rows)


def _score_text(score: Score | None) -> str:
    return "" if score is None else f"{score.accuracy:.4f}"


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
