"""What a site must remember between two messages, as checked files: one process may serve one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from layerweld.disk import writing
from layerweld.named_tensors import site_tensors, update_tensors, updates_by_site, updates_from
from layerweld.transport.descent_messages import UpdatesBySite
from layerweld.updates import Update


class SiteStore:
    """Merged updates and hidden states of one site in one run, below one folder.

    Every file carries a hash of its tensors and is written under another name first, so a killed
    process leaves either a whole file or none. A file that does not match its hash is treated as
    missing: whatever is missing is asked for again or computed again.

    Args:
        folder: of this run and this site; created when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save_remainder(self, remainder: Mapping[str, Tensor]) -> None:
        """Keep the averaged remainder of full fine-tuning."""
        self._write("remainder", dict(remainder))

    def load_remainder(self) -> dict[str, Tensor] | None:
        """The remainder, or None if it was never received."""
        return self._read("remainder")

    def save_step(self, step: int, updates: Mapping[str, Update]) -> None:
        """Keep the merged updates of one step."""
        self._write(f"step-{step:04d}", update_tensors(updates))

    def load_step(self, step: int) -> dict[str, Update] | None:
        """The merged updates of one step, or None if they were never received."""
        tensors = self._read(f"step-{step:04d}")
        return None if tensors is None else updates_from(tensors)

    def save_updates(self, held: str, updates: UpdatesBySite) -> None:
        """Keep all sites' updates under the hash by which the server asks for them."""
        self._write("updates", site_tensors(updates), prefix=held)

    def load_updates(self, held: str) -> dict[str, dict[str, Update]] | None:
        """All sites' updates with exactly this hash, or None."""
        tensors = self._read("updates", prefix=held)
        return None if tensors is None else updates_by_site(tensors)

    def save_hidden(self, block: int, prefix: str, hidden: list[Tensor]) -> None:
        """Keep the hidden states that enter a block, and forget those of blocks before the last."""
        self._write(
            f"hidden-{block:04d}",
            {f"{i:06d}": states.cpu() for i, states in enumerate(hidden)},
            prefix=prefix,
        )
        for file in self._folder.glob("hidden-*.safetensors"):
            if int(file.stem.split("-")[1]) < block - 1:
                file.unlink(missing_ok=True)

    def load_hidden(self, block: int, prefix: str) -> list[Tensor] | None:
        """The hidden states that enter a block behind exactly this prefix, or None."""
        tensors = self._read(f"hidden-{block:04d}", prefix=prefix)
        return None if tensors is None else [tensors[key] for key in sorted(tensors)]

    def _write(self, name: str, tensors: dict[str, Tensor], prefix: str = "") -> None:
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        metadata = {"digest": _digest(contiguous), "prefix": prefix}
        with writing(self._folder / f"{name}.safetensors") as partial:
            save_file(contiguous, partial, metadata=metadata)

    def _read(self, name: str, prefix: str = "") -> dict[str, Tensor] | None:
        file = self._folder / f"{name}.safetensors"
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return None
        intact = metadata.get("digest") == _digest(tensors) and metadata.get("prefix") == prefix
        return tensors if intact else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
