"""The site's app with a wall around it: an error's text stays at the site, a hung message ends."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from rich.filesize import decimal

from client.handlers.answers_log import note_answer
from layerweld.errors import AdapterLostError
from layerweld.runtime.incidents import Incident, raises_here, record_incident


class SiteApp(ClientApp):
    """Answers every message: with what a handler returns, or with an incident's code and number.

    Flower itself would send the text of an exception to the coordinator, and print it there. In
    the process of the person who started the run (``layerweld.runtime.incidents.raising_here``)
    errors are raised as they are.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle one message; only what is no ``Exception`` gets out."""
        if raises_here():
            try:
                return self._alone(message, context)
            except AdapterLostError as error:  # no failure: the site is asked to train it again
                return _failed(message, record_incident(error, _logs(context)))
        logs, started = _logs(context), time.monotonic()
        try:
            reply = self._alone(message, context)
            answered = _size(reply)
        except Exception as error:  # noqa: BLE001  # whatever it is, its text must not leave
            incident = record_incident(error, logs)
            reply = _failed(message, incident)
            answered = f"failed, {incident}"
        asked = message.metadata.group_id or message.metadata.message_type
        note_answer(logs, asked, answered, time.monotonic() - started)
        return reply

    def _alone(self, message: Message, context: Context) -> Message:
        """One message of a run at a time in a site's cache, and none for longer than its time.

        Runs do not share files, but for adapters that sites train.
        """
        from layerweld.runtime.disk import only_here
        from layerweld.transport.arrays import require_sendable
        from layerweld.transport.identity import identity_of, with_identity
        from layerweld.untrusted.names import below

        cache, site = _cache_and_name(context)
        asked, requested = message.metadata, identity_of(message.content)
        name = site if asked.message_type == "train.finetune" else f"{site}-{requested.run}"
        watched = bool(context.node_config.get("watchdog")) and not raises_here()
        guard = watchdog(asked.ttl, cache / "logs") if watched else nullcontext()
        with guard, only_here(below(cache, "locks", f"{name}.lock"), f"{cache}, as {site}"):
            reply = super().__call__(message, context)
        require_sendable(reply.content)
        identity = replace(requested, node=str(context.node_id), site=site)
        reply.content = with_identity(reply.content, identity)
        return reply


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


def _failed(message: Message, incident: Incident) -> Message:
    return Message(Error(int(incident.code), str(incident)), reply_to=message)


def _size(reply: Message) -> str:
    from layerweld.transport.arrays import num_bytes  # with torch, which the handler has loaded

    return f"sent {decimal(num_bytes(reply.content))}"


def _cache_and_name(context: Context) -> tuple[Path, str]:
    """The site's cache folder and name.

    Raises:
        ConfigError: the run's settings or the node configuration are wrong.
    """
    from client.site import cache_folder, site_of_node
    from layerweld.settings.run import read_run_settings

    settings = read_run_settings(context.run_config)
    site = site_of_node(context.node_config, settings)
    return cache_folder(site, settings), site.name


def _logs(context: Context) -> Path:
    """Where incidents are written, also if nothing else about the site can be read."""
    from layerweld.errors import LayerweldError
    from layerweld.runtime.disk import user_cache

    try:
        return _cache_and_name(context)[0] / "logs"
    except LayerweldError:
        return user_cache() / "logs"
