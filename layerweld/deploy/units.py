"""systemd units: they start a coordinator or a site at boot, and again after a crash."""

from __future__ import annotations

import getpass
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from layerweld.deploy.environment import SWITCHES


def unit(description: str, arguments: Sequence[str], folder: Path) -> str:
    """The text of a service that runs ``layerweld …`` for ever.

    Args:
        description: one line for ``systemctl status``.
        arguments: of layerweld.
        folder: the only one that the service may write to.
    """
    command = _literal(shlex.join([sys.executable, "-m", "layerweld", *arguments]))
    place = _literal(str(folder))
    switches = "\n".join(f"Environment={name}={value}" for name, value in SWITCHES.items())
    return f"""[Unit]
Description={description}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
User={getpass.getuser()}
WorkingDirectory={place}
ExecStart={command}
{switches}
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=60
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths="{place}"
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def _literal(text: str) -> str:
    """Escape systemd's specifiers: %h would be a home folder."""
    return text.replace("%", "%%")


def how_to_install(file: Path) -> str:
    """The two commands, for a person who may become root."""
    return (
        f"sudo cp {shlex.quote(str(file))} /etc/systemd/system/ && "
        f"sudo systemctl enable --now {shlex.quote(file.name)}"
    )
