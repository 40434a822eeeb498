"""Flower's ``flower-supernode`` for one application, which takes instructions from one side only.

Run as a program, with the SHA-256 of the bundle before Flower's own arguments. A SuperNode reads
the settings in a bundle before anything has checked it, follows redirects, and decompresses what
it is sent. Here a bundle is hashed first. Responses are bounded and come from the coordinator's own
address. A message that no SuperLink would send to this node is dropped with a line in the log.
"""

import hashlib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR
from types import ModuleType
from typing import Any

import httpx
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore import log
from flwr.supercore.constant import TaskType
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_client import FleetHttpClient

LARGEST_ANSWER = 64 * 2**20  # bytes; Flower cuts tensors into pieces of 5 MiB
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_APPLICATION = re.compile(r"[A-Za-z0-9._/-]{1,200}")  # its id, version and hash
_LENGTH = re.compile(r"[0-9]{1,9}")
_LONGEST_QUESTION = 2000  # characters; a message's request goes into the log as it is

_LOOP = "flwr.supernode.start_client_internal"
_CONNECTION = "flwr.supernode.fleet_http_connection"
_COMMAND = "flwr.supernode.cli.flower_supernode"


def accept_only(pinned: str) -> None:
    """From now on a SuperNode in this process opens only the bundle with this SHA-256.

    Raises:
        AttributeError: this version of Flower works in another way; nothing may run.
    """
    loop, command = importlib.import_module(_LOOP), importlib.import_module(_COMMAND)
    _replace(loop, "_init_connection", "http_request_response", _guarded)
    _replace(
        loop,
        "_pull_and_store_message",
        "get_fused_config_from_fab",
        lambda read: lambda bundle, run: _settings(read, pinned, bundle, run),
    )
    _replace(
        command,
        "flower_supernode",
        "start_client_internal",
        lambda start: lambda **options: start(**options | {"runtime_dependency_install": False}),
    )
    _replace(
        importlib.import_module(_CONNECTION),
        "http_request_response",
        "FleetHttpClient",
        lambda _flowers: BoundedClient,
    )


class BoundedClient(FleetHttpClient):
    """Follows no redirect; reads no response of unknown length, or longer than any of Flower's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._client.follow_redirects = False
        self._client.headers["accept-encoding"] = "identity"
        self._client.event_hooks = {"response": [_refuse_unbounded]}


def is_instruction(message: Any, node: int) -> bool:
    """Whether a message is one that a SuperLink sends to this node: new, with plain names."""
    about = message.metadata
    return (
        about.src_node_id == SUPERLINK_NODE_ID
        and about.dst_node_id == node
        and not about.reply_to_message_id
        and message.has_content()
        and math.isfinite(about.ttl)
        and all(_NAME.fullmatch(name) for name in (about.message_type, about.message_id))
        and len(about.group_id) <= _LONGEST_QUESTION
        and about.group_id.isprintable()
    )


def is_plain(run: Any) -> bool:
    """Whether a run belongs to a ServerApp, and its application's names are plain names."""
    names = (run.fab_id, run.fab_version, run.fab_hash)
    return run.primary_task_type == TaskType.SERVER_APP and all(map(_APPLICATION.fullmatch, names))


def _settings(read: Callable[..., Any], pinned: str, bundle: bytes, run: Any) -> Any:
    """The run's settings; none for a bundle that the ClientApp's process will refuse."""
    if hashlib.sha256(bundle).hexdigest() != pinned:
        log(ERROR, "an application that is not this site's was sent; it stays unopened")
        return {}
    return read(bundle, run)


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Flower's connection, with messages and runs checked before they are acted on."""

    @contextmanager
    def connection(*arguments: Any, **options: Any) -> Iterator[Any]:
        with connect(*arguments, **options) as (node, receive, send, get_run, *others):

            def received() -> Any:
                got = receive()
                if got is None or is_instruction(got[0], node):
                    return got
                log(
                    ERROR,
                    "dropped a message that is not an instruction from the SuperLink to this node",
                )
                return None

            def asked_run(run_id: int) -> Any:
                run = get_run(run_id)
                if run.run_id != run_id or not is_plain(run):
                    log(ERROR, "dropped a message of a run that is not this application's")
                    raise RunNotRunningException
                return run

            yield (node, received, send, asked_run, *others)

    return connection


def _refuse_unbounded(response: httpx.Response) -> None:
    length = response.headers.get("content-length", "")
    if "content-encoding" in response.headers or not _LENGTH.fullmatch(length):
        raise httpx.RemoteProtocolError("the coordinator's response does not say how long it is")
    if int(length) > LARGEST_ANSWER:
        raise httpx.RemoteProtocolError(
            f"the coordinator's response has over {LARGEST_ANSWER} bytes"
        )


def _replace(module: ModuleType, user: str, name: str, by: Callable[[Any], Any]) -> None:
    """Replace what one of Flower's functions calls by this name."""
    if name not in inspect.unwrap(getattr(module, user)).__code__.co_names:
        raise AttributeError(f"this Flower does not call {name}: layerweld does not know it")
    setattr(module, name, by(getattr(module, name)))


if __name__ == "__main__":
    accept_only(sys.argv.pop(1))
    importlib.import_module(_COMMAND).flower_supernode()
