"""Where a site's adapter and head lie: as it says, or where its own fine-tuning is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from client.site import SiteRun
from layerweld.errors import AdapterLostError
from layerweld.runtime.sealed import is_whole
from layerweld.settings.sites import HEAD
from layerweld.untrusted.names import below


class SiteFiles:
    """The files of one site in one run.

    Args:
        at: the site and the run.
        trained_from: gives the digests of base model and samples, which are read for it. Only the
            name of a folder that the site trains in needs them.
    """

    def __init__(self, at: SiteRun, trained_from: Callable[[], tuple[str, str]]) -> None:
        self._at = at
        self._trained_from = trained_from

    @property
    def adapter_folder(self) -> Path:
        """The site's own folder, or where its fine-tuning is kept, by what decides its result."""
        site, settings = self._at.site, self._at.settings
        if site.adapter:
            return Path(site.adapter).expanduser()
        finetune = settings.finetune.model_dump_json(exclude={"logger", "accelerator"})
        seed, prompt_end = settings.calibration.seed, settings.calibration.prompt_end
        base, samples = self._trained_from()
        decides = f"{base} {samples} {finetune} {seed}{prompt_end}"
        key = hashlib.sha256(decides.encode()).hexdigest()[:16]
        return below(self._at.cache, "adapters", f"{site.name}-{key}", "adapter")

    @property
    def head_file(self) -> Path:
        """Where the task head lies: as named, or beside the adapter. It never leaves the site."""
        named = self._at.site.head
        return Path(named).expanduser() if named else self.adapter_folder.parent / HEAD

    @property
    def must_fine_tune(self) -> bool:
        """Whether the site has data but no adapter yet, or not any more."""
        return not self._at.site.adapter and not is_whole(self.adapter_folder.parent)

    def require_trained(self) -> None:
        """Refuse to go on without what the site has trained itself.

        Raises:
            AdapterLostError: it is missing or damaged. The coordinator then has it trained again.
        """
        if self.must_fine_tune:
            raise AdapterLostError(
                f"{self.adapter_folder.parent}, which {self._at.site.name} has trained, is missing "
                f"or damaged"
            )
