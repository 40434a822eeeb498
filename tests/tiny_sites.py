"""A tiny federation on disk: a random base model, and sites with an adapter and samples each."""

import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from client.app import app as client_app
from client.training.heads import ClassifierHead
from layerweld.model.base_model import load_base
from layerweld.report.results import RunResults
from layerweld.settings.run import RunSettings, validate_settings
from server.in_process import InProcessGrid
from server.run import run as run_server
from tests.tiny_peft import new_model, save_base, train_adapter

BERT_LAYERS = ["query", "key", "value", "output.dense", "intermediate.dense"]
"""All linear layers of a tiny BERT's blocks."""

_WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(30))]


@dataclass(frozen=True)
class TinySites:
    """Folders of a federation of three sites."""

    base: Path
    nodes: list[dict[str, Any]]
    folder: Path

    def settings(self, **merge: Any) -> RunSettings:
        return validate_settings(
            {
                "base": str(self.base),
                "cache": str(self.folder / "cache"),
                "min-sites": len(self.nodes),
                "merge": merge,
                "calibration": {"batch-size": 4, "max-length": 12, "threads": 1},
            }
        )

    def run(self, output: Path, **merge: Any) -> RunResults:
        """Run the chain in this process; what it came to."""
        return self.run_with(self.settings(**merge), output)

    def run_with(self, settings: RunSettings, output: Path) -> RunResults:
        return run_server(self.grid(settings), settings, str(self.base), output)

    def on_their_own(self, caches: Path) -> "TinySites":
        """The same sites as they are in deployment, where no run says where their things lie."""
        nodes = [
            node | {"base": str(self.base), "cache": str(caches / node["name"]), "min-samples": 1}
            for node in self.nodes
        ]
        return replace(self, nodes=nodes)

    def grid(self, settings: RunSettings) -> InProcessGrid:
        return InProcessGrid(client_app, self.nodes, settings)


def make_sites(
    folder: Path, targets: list[str], family: str = "bert", blocks: int = 2
) -> TinySites:
    base = folder / "base"
    save_base(family, base, blocks)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(base)
    nodes = []
    for number, name in enumerate(("ash", "birch", "cedar")):
        train_adapter(new_model(family, blocks), folder / name, targets, seed=number, r=2 + number)
        data = folder / f"{name}.jsonl"
        write_samples(data, _samples(number))
        nodes.append({"name": name, "adapter": str(folder / name), "data": str(data)})
    return TinySites(base, nodes, folder)


def make_labelled_sites(folder: Path) -> TinySites:
    """Three sites with adapters of unequal rank, labelled samples and a head each."""
    made = make_sites(folder, ["query", "value"])
    for seed, node in enumerate(made.nodes):
        own = made.folder / f"{node['name']}-site"
        own.mkdir()
        (made.folder / node["name"]).rename(own / "adapter")
        rng, data = random.Random(seed), str(own / "data.jsonl")
        write_samples(data, [s | {"label": rng.choice("ab")} for s in read_samples(node["data"])])
        ClassifierHead(16, "ab").save(own / "head.safetensors")
        node |= {"adapter": str(own / "adapter"), "data": data, "held_out": data}
    return made


def with_whole_models(made: TinySites, count: int = 3) -> TinySites:
    """The first sites with models of which every parameter is fine-tuned, in place of adapters."""
    for seed, node in enumerate(made.nodes[:count]):
        tuned = load_base(made.base).backbone
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        shutil.rmtree(node["adapter"])
        tuned.save_pretrained(node["adapter"])
    return made


def read_samples(file: str | Path) -> list[dict[str, Any]]:
    """The samples of a file of JSON lines."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def write_samples(file: str | Path, samples: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines."""
    Path(file).write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def _samples(seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    own = _WORDS[2 + 8 * seed : 14 + 8 * seed]
    return [{"text": " ".join(rng.choices(own, k=rng.randint(2, 14)))} for _ in range(18)]
