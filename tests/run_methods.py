"""A method run through a federation of tiny sites, and what its kernel makes of the updates."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from peft import PeftModel
from transformers import AutoModel

from layerweld.formats.adapters import read_fine_tuned
from layerweld.merging.method import UPDATES
from layerweld.merging.registry import METHODS
from layerweld.model.base_model import load_base
from layerweld.model.discover import discover_plan
from layerweld.model.linear import weight_of
from layerweld.report.results import RunResults
from layerweld.settings.run import RunSettings, read_run_settings
from server.run import run as run_server
from tests.dying_server import killed_after
from tests.random_updates import side_by_side
from tests.tiny_peft import new_model
from tests.tiny_sites import TinySites

TARGETS = ["query", "value", "output.dense"]
ONE_ROUND = [name for name, method in METHODS.items() if method.kind is UPDATES]


def settings_of(sites: TinySites, methods: str, **entries: Any) -> RunSettings:
    flat = sites.settings().flat() | {"methods": methods} | entries
    return read_run_settings(flat)


def run_methods(sites: TinySites, output: Path, methods: str, **entries: Any) -> RunResults:
    return sites.run_with(settings_of(sites, methods, **entries), output)


def killed_and_resumed(
    sites: TinySites,
    output: Path,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    methods: str,
    **entries: Any,
) -> RunResults:
    """Kill a run once so many rounds are in the journal, and run it to its end."""
    with killed_after(after, monkeypatch):
        run_methods(sites, output, methods, **entries)
    return run_methods(sites, output, methods, **entries)


def run_forgetting(
    sites: TinySites,
    settings: RunSettings,
    output: Path,
    kind: str,
    at: int,
    forget: Callable[[], Any],
) -> tuple[RunResults, int]:
    """A site loses memory and cache before the reply ``at`` of a kind; how many replies there were.

    Args:
        forget: empties what the site's process has in memory.
    """
    grid, count = sites.grid(settings), 0
    reply = grid._answer

    def forgetting(message: Message) -> Message:
        nonlocal count
        count += message.metadata.message_type == kind
        if message.metadata.message_type == kind and count == at:
            forget()
            shutil.rmtree(sites.folder / "cache/runs", ignore_errors=True)
        return reply(message)

    grid._answer = forgetting  # type: ignore[method-assign]
    return run_server(grid, settings, str(sites.base), output), count


def written(sites: TinySites, output: Path) -> dict[Any, Any]:
    """ΔW of every layer that the run wrote, as PEFT or transformers reads it."""
    if (output / "adapter").is_dir():
        wrapped = PeftModel.from_pretrained(new_model("bert"), output / "adapter")
        return {
            name.removeprefix("base_model.model.bert."): module.get_delta_weight("default")
            for name, module in wrapped.named_modules()
            if hasattr(module, "get_delta_weight")
        }
    base, merged = load_base(sites.base), AutoModel.from_pretrained(output / "model")
    layers = discover_plan(base.backbone).layer_names
    return {
        name: weight_of(merged.get_submodule(name)) - weight_of(base.backbone.get_submodule(name))
        for name in layers
    }


def by_the_kernel(sites: TinySites, method: Any) -> Any:
    base = load_base(sites.base)
    vectors = {
        node["name"]: read_fine_tuned(node["adapter"], base).task_vector.updates
        for node in sites.nodes
    }
    laid_out = side_by_side({name: dict(of) for name, of in vectors.items()})
    in_order = {
        k: laid_out.layers[k]
        for k in discover_plan(base.backbone).layer_names
        if k in laid_out.layers
    }
    return method.merge(type(laid_out)(dict.fromkeys(laid_out.samples, 18), in_order)).updates
