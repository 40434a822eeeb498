"""Flower's ``flwr-clientapp`` for one application only: any other bundle is refused unread.

Run as a program, with the SHA-256 of the bundle before Flower's own arguments. It stands in for
``flwr-clientapp`` on the search path of a site's SuperNode. Flower would run whatever bundle the
coordinator sends; here the bundle's bytes are hashed before anything of it is unpacked.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

from flwr.clientapp.client_app import LoadClientAppError
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

_INSTALL = "install_from_fab"  # the name by which Flower's runner unpacks a bundle


class ForeignApplicationError(LoadClientAppError):
    """The coordinator sent another application than the one this site has installed.

    Flower reports it with a code of its own, and keeps the text to itself.
    """


def refuse_others(pinned: str) -> None:
    """From now on Flower unpacks only the bundle with this SHA-256.

    Raises:
        AttributeError: this version of Flower unpacks bundles in another way; nothing may run.
    """
    install = getattr(run_clientapp, _INSTALL)

    def install_pinned(bundle: bytes, *arguments: Any, **options: Any) -> Path:
        sent = hashlib.sha256(bundle).hexdigest()
        if sent != pinned:
            raise ForeignApplicationError(
                f"this site runs application {pinned[:12]} only, and was sent {sent[:12]}: install "
                f"the same layerweld at the coordinator and at the site"
            )
        unpacked: Path = install(bundle, *arguments, **options)
        return unpacked

    setattr(run_clientapp, _INSTALL, install_pinned)


if __name__ == "__main__":
    refuse_others(sys.argv.pop(1))
    flwr_clientapp()
