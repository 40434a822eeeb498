"""Call Flower's command line, and read its output as JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from layerweld.deploy.environment import program
from layerweld.errors import DeployError

_TIMEOUT = 120  # seconds; importing Flower alone takes ten on a loaded machine

_UNREACHABLE = "SuperLink connection configuration"  # Flower's own advice is about its own files


def flwr(*arguments: str) -> list[str]:
    """The command ``flwr …`` with output as JSON."""
    return [program("flwr"), *arguments, "--format", "json"]


def ask(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run ``flwr … --format json``.

    Raises:
        DeployError: it failed, reported a failure, or took longer than two minutes.
    """
    done = _run(command, environment)
    try:
        printed: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        printed = {}
    if done.returncode or not printed.get("success"):
        cause = printed.get("error-message") or _last_line(done.stderr) or _last_line(done.stdout)
        if _UNREACHABLE in cause:
            raise DeployError("no SuperLink responds: is `layerweld coordinator up` running?")
        raise DeployError(f"`flwr {shlex.join(command[1:-2])}` failed: {' '.join(cause.split())}")
    return printed


def show_log(run_id: str, connection: str, environment: Mapping[str, str]) -> str:
    """What a run has logged so far; empty if the SuperLink cannot be reached now."""
    try:
        return _run([program("flwr"), "log", run_id, connection, "--show"], environment).stdout
    except DeployError:
        return ""


def _run(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeployError(
            f"`{shlex.join(command)}` did not end within {_TIMEOUT} s; is the machine "
            f"overloaded, or the SuperLink stuck?"
        ) from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
