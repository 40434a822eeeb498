"""A federation whose sites train their own adapters, and lose parts of their caches meanwhile."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message

from client import state as site_states
from client.app import app as client_app
from client.site import cache_folder, site_of_node
from layerweld.settings.run import RunSettings, validate_settings
from layerweld.settings.sites import SiteEntry
from server import in_process
from server.in_process import InProcessGrid
from tests.faulty_grid import from_the_superlink
from tests.tiny_sites import TinySites, make_sites, read_samples, write_samples

through_the_wire = in_process._through_the_wire
PARTS = {
    "all": ("",),
    "trained": ("adapters",),
    "adapter": ("adapters/*/adapter",),
    "head": ("adapters/*/head.safetensors",),
    "record": ("adapters/*/hashes.json",),
    "runs": ("runs",),
    "scores": ("scores",),
}


def make_training_sites(folder: Path) -> TinySites:
    """Three sites with labelled samples, and nothing else."""
    made = make_sites(folder, ["query", "value"])
    for seed, node in enumerate(made.nodes):
        drawn = random.Random(seed)
        samples = read_samples(node["data"])
        write_samples(node["data"], [s | {"label": drawn.choice("ab")} for s in samples])
        del node["adapter"]
        node |= {"held_out": node["data"]}
    return made.on_their_own(folder / "caches")


def training_settings(sites: TinySites, methods: str = "chain", **more: Any) -> RunSettings:
    finetune = {"rank": 2, "max-steps": 3, "accelerator": "cpu", "logger": "none"}
    settings = sites.settings().model_dump(by_alias=True)
    tables = {
        "methods": methods,
        "finetune": settings["finetune"] | finetune | {"targets": "query,value"},
        "merge": settings["merge"] | {"covariate-shift": "all"},
    }
    return validate_settings(settings | tables | more)


def damage(file: Path) -> None:
    """One bit of a file is another one, as a bad sector gives it back."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose(site: SiteEntry, settings: RunSettings, part: Any) -> None:
    """Delete or damage what a site has kept, or a part of it."""
    if part == "a bit":
        for file in cache_folder(site, settings).glob("adapters/*/adapter/*.safetensors"):
            damage(file)
        return
    cache = cache_folder(site, settings)
    for pattern in PARTS[part]:
        for path in list(cache.glob(pattern)) if pattern else [cache]:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)


class LosingGrid(InProcessGrid):
    """Every message is handled as in deployment: by a process that remembers nothing.

    Args:
        loses: given the number of a message, its request and its site, the part that the site
            loses before it is handled; an empty text for nothing, ``moved`` for everything and
            the node's number too.
    """

    def __init__(
        self, nodes: list[dict[str, str]], settings: RunSettings, loses: Callable[..., Any]
    ) -> None:
        super().__init__(client_app, nodes, settings)
        self._settings, self._loses = settings, loses
        self._next_node = 100
        self.asked: list[str] = []
        self.lost: list[tuple[str, str]] = []

    def get_node_ids(self) -> list[Any]:
        return list(self._contexts)

    def _answer(self, message: Message) -> Message:
        site_states.site_state.cache_clear()
        node, request = message.metadata.dst_node_id, message.metadata.message_type
        if node not in self._contexts:
            return from_the_superlink(message, 5)
        context = self._contexts[node]
        site = site_of_node(context.node_config, self._settings)
        part = self._loses(len(self.asked), request, site.name)
        self.asked.append(request)
        if part:
            self.lost.append((request, part))
            lose(site, self._settings, "all" if part == "moved" else part)
        if part == "moved":
            self._next_node += 1
            context.__dict__["node_id"] = self._next_node
            self._contexts[self._next_node] = self._contexts.pop(node)
            return from_the_superlink(message, 5)
        return through_the_wire(self._app(message, context))
