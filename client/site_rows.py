"""Which of a site's rows are for what: to work with, to take statistics over, to evaluate on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from client.data import Rows, draw, read_rows, set_aside
from client.package_tasks import Split, package_rows
from layerweld.config import RunSettings
from layerweld.errors import CohortError
from layerweld.sites import SiteEntry, package_task

_PACKAGE_ROWS: dict[Split, int] = {"train": 1500, "test": 250}
"""How many a task out of an installed package has here."""


class SiteRows:
    """One site's rows in one run, read when they are first asked for.

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
    def rows(self) -> Rows:
        """What the site fine-tunes and calibrates on."""
        return self._divided[0]

    @cached_property
    def held_out(self) -> Rows | None:
        """Labelled rows to evaluate on, if the site has any."""
        evaluate = self._settings.evaluate
        rows = self._divided[1] if evaluate.rows == "validation" else self._all_held_out
        seed = self._settings.calibration.seed
        return None if rows is None else draw(rows, evaluate.samples, seed)

    @cached_property
    def calibration_rows(self) -> Rows:
        """The rows that statistics are taken over.

        Raises:
            CohortError: they are fewer than the site's own policy allows.
        """
        calibration = self._settings.calibration
        return self.drawn(self.rows, calibration.samples, calibration.seed)

    def drawn(self, rows: Rows, samples: int, seed: int) -> Rows:
        """That many of the rows, or all, for something that will leave the site.

        Raises:
            CohortError: they are fewer than the site's own policy allows.
        """
        chosen = draw(rows, samples, seed)
        if len(chosen) < self._site.min_rows:
            raise CohortError(
                f"{len(chosen)} rows would be measured, and the site's min-rows is "
                f"{self._site.min_rows}: the run must ask for more (calibration.samples, "
                f"adamerging.rows), or the site must have more"
            )
        return chosen

    @cached_property
    def _divided(self) -> tuple[Rows, Rows]:
        """The rows to work with, and those set aside to choose settings on."""
        calibration = self._settings.calibration
        return set_aside(
            self._read(self._site.data, "train"), calibration.validation, calibration.seed
        )

    @cached_property
    def _all_held_out(self) -> Rows | None:
        return self._read(self._site.held_out, "test") if self._site.held_out else None

    def _read(self, source: str, split: Split) -> Rows:
        calibration = self._settings.calibration
        if task := package_task(source):
            return package_rows(task, split, _PACKAGE_ROWS[split], calibration.seed)
        own = {"text_column": self._site.text_column, "label_column": self._site.label_column}
        named = {column: name for column, name in own.items() if name}
        calibration = calibration.model_copy(update=named)
        return read_rows(Path(source), calibration, reads_images=self._reads_images)
