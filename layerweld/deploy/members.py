"""The sites of a coordinator: keys registered with its SuperLink, and a file about each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layerweld.deploy.coordinator import CONNECTION, Coordinator
from layerweld.deploy.files import write_whole
from layerweld.deploy.flower import ask, flwr
from layerweld.deploy.keys import fingerprint, read_public_key
from layerweld.errors import DeployError
from layerweld.untrusted.documents import read_json
from layerweld.untrusted.files import reading
from layerweld.untrusted.names import SITE_NAME

_NODE = re.compile(r"\bnode (\d+)\b")


@dataclass(frozen=True)
class Member:
    """One registered site.

    Attributes:
        name: what the coordinator calls it.
        key: fingerprint of its public key.
        node: Flower's number for that key.
    """

    name: str
    key: str
    node: str


def registration(key: Path) -> list[str]:
    """The command that registers a public key."""
    return flwr("supernode", "register", str(key), CONNECTION)


def add_member(coordinator: Coordinator, name: str, key: Path) -> Member:
    """Register a site's public key with the running SuperLink.

    Raises:
        DeployError: the name or key is unusable or taken, or the SuperLink is not running.
    """
    if not re.fullmatch(SITE_NAME, name):
        raise DeployError(f"{name!r} cannot name a site; use letters, digits and `._-`")
    public = read_public_key(key)
    known = {member.name: member for member in members(coordinator)}
    if name in known:
        raise DeployError(
            f"{name} is registered already, with key {known[name].key}; "
            f"to replace it, type `layerweld coordinator remove {name}` first"
        )
    added = ask(registration(key.resolve()), coordinator.environment)
    member = Member(name, fingerprint(public), str(added["node-id"]))
    write_whole(coordinator.sites / f"{name}.pub", public)
    write_whole(coordinator.sites / f"{name}.json", json.dumps(vars(member), indent=2).encode())
    return member


def remove_member(coordinator: Coordinator, name: str) -> Member:
    """Withdraw a site's key: its SuperNode can no longer connect.

    Raises:
        DeployError: there is no such site, or the SuperLink is not running.
    """
    known = {member.name: member for member in members(coordinator)}
    if name not in known:
        raise DeployError(
            f"no site {name} is registered; registered are {', '.join(known) or 'none'}"
        )
    ask(flwr("supernode", "unregister", known[name].node, CONNECTION), coordinator.environment)
    for ending in ("json", "pub"):
        (coordinator.sites / f"{name}.{ending}").unlink(missing_ok=True)
    return known[name]


def members(coordinator: Coordinator) -> tuple[Member, ...]:
    """The registered sites, by name."""
    return tuple(_read_member(file) for file in sorted(coordinator.sites.glob("*.json")))


def _read_member(file: Path) -> Member:
    remedy = f"remove it and {file.stem}.pub beside it, and add the site again"
    found = read_json(file, DeployError, remedy)
    with reading(f"{file} does not describe a site", remedy, DeployError):
        if not all(isinstance(value, str) for value in found.values()):
            raise TypeError("its entries should be strings")
        return Member(**found)


def node_states(coordinator: Coordinator) -> dict[str, str]:
    """``online``, ``offline`` or ``registered`` by Flower's number for a key.

    Raises:
        DeployError: the SuperLink does not respond.
    """
    listed = ask(flwr("supernode", "list", CONNECTION), coordinator.environment)
    return {str(node["node-id"]): str(node["status"]) for node in listed["nodes"]}


def naming_nodes(coordinator: Coordinator) -> Callable[[str], str]:
    """A function that puts the registered site's name behind every node's number in a text.

    A run knows its sites by name only once they have said who they are.
    """
    names = {member.node: member.name for member in members(coordinator)}

    def named(text: str) -> str:
        return _NODE.sub(
            lambda node: f"{node[0]} ({names[node[1]]})" if node[1] in names else node[0], text
        )

    return named
