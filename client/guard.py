"""The site's app with a wall around it: an error's text stays at the site, a hung message ends."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.filesize import decimal

from client.handlers.reply_log import note_reply
from layerweld.errors import AdapterLostError
from layerweld.runtime.incidents import raises_here, record_incident

if TYPE_CHECKING:
    from client.site import SiteRun
    from layerweld.settings.run import RunSettings
    from layerweld.settings.sites import SiteEntry

Handler = Callable[["SiteRun", RecordDict], RecordDict]
"""Gets the site in its run and a message's content; gives the content of the reply."""


class SiteApp(ClientApp):
    """Replies to every message: with what a handler returns, or with an incident's code and number.

    Flower itself would send the text of an exception to the coordinator, and print it there. In
    the process of the person who started the run (``layerweld.runtime.incidents.raising_here``)
    errors are raised as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[str, Handler] = {}

    def handles(self, message_type: str) -> Callable[[Handler], Handler]:
        """Let the decorated function reply to messages of a type."""

        def register(handler: Handler) -> Handler:
            self._handlers[message_type] = handler
            return handler

        return register

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle one message; only what is not an ``Exception`` gets out."""
        from client.site import cache_folder, site_of_node
        from layerweld.runtime.disk import user_cache
        from layerweld.settings.run import read_run_settings

        logs, started = None, time.monotonic()
        try:
            settings = read_run_settings(context.run_config)
            site = site_of_node(context.node_config, settings)
            logs = cache_folder(site, settings) / "logs"
            reply = Message(self._alone(site, settings, message, context), reply_to=message)
            sent = f"sent {_size(reply.content)}"
        except Exception as error:
            # Where errors are raised, a lost adapter is none: the site is asked to train it again.
            if raises_here() and not isinstance(error, AdapterLostError):
                raise
            logs = logs or user_cache() / "logs"  # a site that names its cache may have no home
            incident = record_incident(error, logs)
            reply = Message(Error(int(incident.code), str(incident)), reply_to=message)
            sent = f"failed, {incident}"
        if not raises_here():
            requested = message.metadata.group_id or message.metadata.message_type
            note_reply(logs, requested, sent, time.monotonic() - started)
        return reply

    def _alone(
        self, site: SiteEntry, settings: RunSettings, message: Message, context: Context
    ) -> RecordDict:
        """One message of a run at a time in a site's cache, and none for longer than its time.

        Runs do not share files, but for adapters that sites train.
        """
        from client.site import SiteRun
        from layerweld.runtime.disk import holding_lock
        from layerweld.transport.arrays import require_sendable
        from layerweld.transport.identity import identity_of, with_identity
        from layerweld.untrusted.names import below

        kind, requested = message.metadata.message_type, identity_of(message.content)
        at = SiteRun(site, settings, requested.run)
        handler = self._handlers[kind]
        name = site.name if kind == "train.finetune" else f"{site.name}-{at.run}"
        watched = bool(context.node_config.get("watchdog")) and not raises_here()
        guard = watchdog(message.metadata.ttl, at.cache / "logs") if watched else nullcontext()
        with (
            guard,
            holding_lock(below(at.cache, "locks", f"{name}.lock"), f"{at.cache}, as {site.name}"),
        ):
            reply = handler(at, message.content)
        require_sendable(reply)
        return with_identity(reply, replace(requested, node=str(context.node_id), site=site.name))


@contextmanager
def watchdog(seconds: float, folder: Path) -> Iterator[None]:
    """End this process, whatever it hangs in, if the body takes longer.

    The stacks of all threads go into ``folder/hung.log`` first. The clock runs in a thread that
    needs no interpreter lock, so it also ends a process that hangs inside of native code. Flower
    then tells the coordinator that the app crashed, and the node is free for the next message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "hung.log").open("a", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _size(content: RecordDict) -> str:
    from layerweld.transport.arrays import num_bytes  # with torch, which the handler has loaded

    return decimal(num_bytes(content))
