"""What a site holds, as a digest that tells nobody else what it is."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from client.site import cache_folder
from client.state import SiteState

_SECRET = "holdings.key"


def digest_of_holdings(state: SiteState) -> str:
    """HMAC-SHA256 over the site's rows, held-out rows and head, in hex.

    The same as long as the site keeps its files and its cache; another one means that what a run or
    a comparison found before does not hold any more.

    Raises:
        StorageError: the key cannot be kept.
    """
    held_out = state.data.held_out
    parts = [
        state.data.rows.digest.encode(),
        held_out.digest.encode() if held_out else b"",
        b"" if state.must_fine_tune or not state.has_head else state.decides_head,
    ]
    key = _key(cache_folder(state.site, state.settings) / _SECRET)
    return hmac.digest(key, b"\n".join(parts), "sha256").hex()


def _key(file: Path) -> bytes:
    """The site's own; drawn when it is first needed, and whoever comes second takes the first's."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.touch(mode=0o600)
        partial.write_bytes(secrets.token_bytes(32))
        try:
            os.link(partial, file)
        except FileExistsError:
            pass  # another process drew it meanwhile
        finally:
            partial.unlink()
    return file.read_bytes()
