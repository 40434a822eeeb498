"""Plain lines on the terminal: what was done, and the commands behind it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from layerweld.deploy.environment import SWITCHES
from layerweld.runtime.terminal import console


def say(line: str) -> None:
    """Print one line as it is: no markup, no colours, no line breaks."""
    console.print(line, highlight=False, soft_wrap=True)


def print_commands(environment: Mapping[str, str], *commands: Sequence[str]) -> None:
    """Print Flower's commands for a shell, after the environment that they need."""
    names = (*SWITCHES, "FLWR_HOME", "PATH")
    say("export " + shlex.join(f"{name}={environment[name]}" for name in names))
    for command in commands:
        say(shlex.join(command))
