"""What a site must remember between two messages, as checked files: one process may serve one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from layerweld.errors import StorageError
from layerweld.runtime.disk import writing
from layerweld.transport.coefficients import UpdatesBySite
from layerweld.untrusted.names import below
from layerweld.untrusted.tensors import opened_tensors
from layerweld.updates.named_tensors import (
    extend_by_tensors,
    site_tensors,
    update_tensors,
    updates_by_site,
    updates_from,
)
from layerweld.updates.update import Update


@dataclass(frozen=True)
class StepHashes:
    """A step's place in the chain of hashes.

    Attributes:
        first: before anything was merged: of the plan, the settings and the other parameters.
        before: of everything merged before the step.
        after: of everything merged, the step included.
    """

    first: str
    before: str
    after: str


@dataclass(frozen=True)
class MergedStep:
    """One step as it was merged: the updates by layer, and what they are hashed to."""

    hashes: StepHashes
    updates: Mapping[str, Update]


class SiteStore:
    """Merged updates and hidden states of one site in one run, below one folder.

    Every file carries a hash of its tensors and is written under another name first, so a killed
    process leaves either a whole file or none. A file that does not match its hash is treated as
    missing: whatever is missing is asked for again or computed again. A step's hash is the chain's
    own: it ends in what the next step begins with.

    Args:
        folder: of this run and this site; created when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save_other_params(self, other_params: Mapping[str, Tensor]) -> None:
        """Keep the averaged other parameters of full fine-tuning."""
        self._write_hashed("other_params", dict(other_params))

    def load_other_params(self) -> dict[str, Tensor] | None:
        """The other parameters, or None if it was never received."""
        return self._read_hashed("other_params")

    def save_step(self, index: int, step: MergedStep) -> None:
        """Keep one step, which the caller has found to be what was merged."""
        self._write(_step(index), update_tensors(step.updates), asdict(step.hashes))

    def step_hashes(self, index: int) -> StepHashes | None:
        """What a step's file says of its place, or None; its updates are not read.

        They may be damaged, and so may this: only :meth:`load_step` proves it.
        """
        opened = self._open(_step(index), with_tensors=False)
        return None if opened is None else _hashes(opened[1])

    def load_step(self, index: int, after: str) -> MergedStep | None:
        """The step that ends in exactly this hash, or None.

        All that is returned is proven by ``after``: the updates, and the hash before them.
        """
        opened = self._open(_step(index))
        if opened is None:
            return None
        tensors, metadata = opened
        hashes = _hashes(metadata)
        if hashes is None or hashes.after != after:
            return None
        intact = extend_by_tensors(hashes.before, tensors) == after
        return MergedStep(hashes, updates_from(tensors)) if intact else None

    def save_updates(self, held: str, updates: UpdatesBySite) -> None:
        """Keep all sites' updates under the hash by which the server asks for them."""
        self._write_hashed("updates", site_tensors(updates), chain_digest=held)

    def load_updates(self, held: str) -> dict[str, dict[str, Update]] | None:
        """All sites' updates with exactly this hash, or None."""
        tensors = self._read_hashed("updates", chain_digest=held)
        return None if tensors is None else updates_by_site(tensors)

    def save_hidden(self, block: int, chain_digest: str, hidden: list[Tensor]) -> None:
        """Keep the hidden states that enter a block, and forget those of blocks before the last."""
        self._write_hashed(
            f"hidden-{block:04d}",
            {f"{i:06d}": states.cpu() for i, states in enumerate(hidden)},
            chain_digest=chain_digest,
        )
        for file in self._folder.glob("hidden-*.safetensors"):
            if int(file.stem.split("-")[1]) < block - 1:
                file.unlink(missing_ok=True)

    def load_hidden(self, block: int, chain_digest: str) -> list[Tensor] | None:
        """The hidden states that enter a block behind exactly this chain digest, or None."""
        tensors = self._read_hashed(f"hidden-{block:04d}", chain_digest=chain_digest)
        return None if tensors is None else [tensors[key] for key in sorted(tensors)]

    def _write_hashed(
        self, name: str, tensors: Mapping[str, Tensor], chain_digest: str = ""
    ) -> None:
        self._write(name, tensors, {"digest": _digest(tensors), "chain_digest": chain_digest})

    def _read_hashed(self, name: str, chain_digest: str = "") -> dict[str, Tensor] | None:
        opened = self._open(name)
        if opened is None:
            return None
        tensors, metadata = opened
        intact = (
            metadata.get("digest") == _digest(tensors)
            and metadata.get("chain_digest") == chain_digest
        )
        return tensors if intact else None

    def _write(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        with writing(self._file(name)) as partial:
            save_file(contiguous, partial, metadata=metadata)

    def _open(
        self, name: str, *, with_tensors: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        file = self._file(name)
        if not file.is_file():
            return None
        try:
            with opened_tensors(file, "it is made again", StorageError) as opened:
                keys = opened.keys() if with_tensors else ()
                return {key: opened.get_tensor(key) for key in keys}, opened.metadata() or {}
        except StorageError:
            return None

    def _file(self, name: str) -> Path:
        return below(self._folder, f"{name}.safetensors")


def _step(index: int) -> str:
    return f"step-{index:04d}"


def _hashes(metadata: Mapping[str, str]) -> StepHashes | None:
    """None where a file was written by an older version, or its header is damaged."""
    names = [field.name for field in fields(StepHashes)]
    return StepHashes(*(metadata[k] for k in names)) if {*names} <= {*metadata} else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
