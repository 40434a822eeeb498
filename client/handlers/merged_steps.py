"""Steps that were merged before: kept as files, and proven by their hashes before they are used."""

from __future__ import annotations

from collections.abc import Mapping

from client.store import MergedStep, SiteStore, StepHashes
from layerweld.updates.named_tensors import extend_digest
from layerweld.updates.update import Update


class LacksMerged(Exception):
    """The site must be sent what was merged from a step on (-1: the other parameters too)."""

    def __init__(self, first: int) -> None:
        super().__init__(first)
        self.first = first


class MergedSteps:
    """The steps that another one is measured behind.

    Files are read from the last one backwards, and only as far as something is computed from them:
    the hash of all steps proves the last one and the hash before it, which proves the one before.
    Read from the first one on, every request would cost as much as all steps before it.

    Args:
        needs: indices of the steps.
        first: the hash before anything was merged.
        received: updates by step, as a message brought them; of use are the last ones without a
            gap.
        store: has the others.

    Attributes:
        kept: the steps that the store must have.
        digest: the hash after the last step, by what the kept ones say that they end in; nothing
            is proven before the caller has compared it.

    Raises:
        LacksMerged: the last of the kept steps is not there.
    """

    def __init__(
        self,
        needs: range,
        first: str,
        received: Mapping[int, Mapping[str, Update]],
        store: SiteStore,
    ) -> None:
        self._needs = needs
        self._first = first
        self._store = store
        self._merged: dict[int, MergedStep] = {}
        self.kept = _before(received, needs)
        self.digest = self._end_of_kept()
        for index in range(self.kept.stop, needs.stop):
            after = extend_digest(self.digest, received[index])
            hashes = StepHashes(first, self.digest, after)
            self._merged[index] = MergedStep(hashes, received[index])
            self.digest = after

    def save_received(self) -> None:
        """Keep the steps that a message brought, once the digest is what the server has."""
        for index in range(self.kept.stop, self._needs.stop):
            self._store.save_step(index, self._merged[index])

    def updates_since(self, begin: int) -> dict[str, Update]:
        """The updates of this step and all later ones, by layer.

        Raises:
            LacksMerged: one of them is missing or damaged.
        """
        self._read_back_to(begin)
        steps = (self._merged[index] for index in range(begin, self._needs.stop))
        return {layer: update for step in steps for layer, update in step.updates.items()}

    def hash_before(self, index: int) -> str:
        """The hash over everything merged before a step.

        Raises:
            LacksMerged: the step or a later one is missing or damaged.
        """
        if index == self._needs.stop:
            return self.digest
        self._read_back_to(index)
        return self._merged[index].hashes.before

    def lacking(self) -> LacksMerged:
        """From where on the kept steps are not what was merged; reads all of them to find out."""
        before = self._first
        for index in self.kept:
            hashes = self._store.step_hashes(index)
            if hashes is None or self._store.load_step(index, hashes.after) is None:
                return LacksMerged(index)
            if (hashes.first, hashes.before) != (self._first, before):
                return LacksMerged(index or -1)  # before step 0 other parameters may differ
            before = hashes.after
        return LacksMerged(-1)

    def _end_of_kept(self) -> str:
        if not self.kept:
            return self._first
        hashes = self._store.step_hashes(self.kept[-1])
        if hashes is None or hashes.first != self._first:
            raise self.lacking()
        return hashes.after

    def _read_back_to(self, begin: int) -> None:
        for index in reversed(range(begin, min(self._merged, default=self._needs.stop))):
            step = self._store.load_step(index, self.hash_before(index + 1))
            if step is None:
                raise self.lacking()
            self._merged[index] = step


def _before(received: Mapping[int, object], needs: range) -> range:
    """The needed steps before those that came as the last ones."""
    end = needs.stop
    while end > needs.start and end - 1 in received:
        end -= 1
    return range(needs.start, end)
