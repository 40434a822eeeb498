"""Which of a site's samples are for what: to work with, to take statistics over, to evaluate on.

A run's settings say how many and draw them; the site says how few are too few, and which samples
stay together (:mod:`client.data.parcels`).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from client.data.parcels import Parcels, in_parcels
from client.data.samples import Dataset, read_dataset
from layerweld.errors import CohortError
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import SiteEntry


class SiteSamples:
    """One site's samples in one run, read when they are first asked for.

    Args:
        site: where its files lie, and what their columns are called.
        settings: of the run.
        reads_images: whether the model's input is pixels.
    """

    def __init__(self, site: SiteEntry, settings: RunSettings, *, reads_images: bool) -> None:
        self._site = site
        self._settings = settings
        self._reads_images = reads_images

    @property
    def dataset(self) -> Dataset:
        """What the site fine-tunes and calibrates on."""
        return self._divided[0].dataset

    @cached_property
    def training_samples(self) -> Parcels:
        """What an adapter is trained on, a batch of whole parcels a step.

        Raises:
            CohortError: they are fewer than the site's own policy allows.
        """
        self._require(len(self.dataset), "trained on", "calibration.validation")
        return self._divided[0]

    @property
    def held_out(self) -> Dataset | None:
        """Labelled samples to evaluate on, if the site has any; perhaps too few of them."""
        return None if self._held_out is None else self._held_out.dataset

    @property
    def evaluation_samples(self) -> Dataset | None:
        """As :attr:`held_out`, for an accuracy that will leave the site.

        Raises:
            CohortError: they are fewer than the site's own policy allows.
        """
        if self._held_out is not None and len(self._held_out):
            drawn = len(self._held_out)
            asked = min(self._settings.evaluate.samples or drawn, drawn)
            self._require(asked, "evaluated on", "evaluate.samples, calibration.validation")
        return self.held_out

    @property
    def calibration_samples(self) -> Dataset:
        """The samples that statistics are taken over.

        Raises:
            CohortError: they are fewer than the site's own policy allows.
        """
        return self._calibration.dataset

    def drawn(self, samples: int, seed: int) -> Dataset:
        """Some of the samples that statistics are taken over, for what will leave the site.

        Args:
            samples: about how many; 0 for all.
            seed: of the draw.

        Raises:
            CohortError: they are fewer than the site's own policy allows.
        """
        self._require(samples or self._site.min_samples, "measured", "adamerging.samples")
        return self._calibration.draw(samples, seed).dataset

    @cached_property
    def _calibration(self) -> Parcels:
        calibration, (work, _) = self._settings.calibration, self._divided
        asked = min(calibration.samples or len(work), len(work))
        self._require(asked, "measured", "calibration.samples, calibration.validation")
        return work.draw(calibration.samples, calibration.seed)

    @cached_property
    def _held_out(self) -> Parcels | None:
        evaluate = self._settings.evaluate
        parcels = self._divided[1] if evaluate.split == "validation" else self._all_held_out
        seed = self._settings.calibration.seed
        return None if parcels is None else parcels.draw(evaluate.samples, seed)

    def _require(self, samples: int, what: str, keys: str) -> None:
        least = self._site.min_samples
        if samples < least:
            raise CohortError(
                f"{samples} samples would be {what}, and the site's min-samples is {least}: the "
                f"run must ask for more ({keys}), or the site must have more"
            )

    @cached_property
    def _divided(self) -> tuple[Parcels, Parcels]:
        """The samples to work with, and those set aside to choose settings on."""
        calibration = self._settings.calibration
        dataset = self._read(self._site.data)
        return in_parcels(dataset, self._site.min_samples).set_aside(
            calibration.validation, calibration.seed
        )

    @cached_property
    def _all_held_out(self) -> Parcels | None:
        if not self._site.held_out:
            return None
        return in_parcels(self._read(self._site.held_out), self._site.min_samples)

    def _read(self, source: str) -> Dataset:
        calibration = self._settings.calibration
        own = {"text_column": self._site.text_column, "label_column": self._site.label_column}
        named = {column: name for column, name in own.items() if name}
        calibration = calibration.model_copy(update=named)
        return read_dataset(Path(source), calibration, reads_images=self._reads_images)
