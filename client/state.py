"""All that one site has loaded in one run: model, samples, adapter, recorded batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path

from torch import Tensor

from client.data.batches import Preprocessor, batches
from client.data.samples import Dataset
from client.data.site_samples import SiteSamples
from client.files import SiteFiles
from client.site import SiteRun
from client.store import SiteStore
from client.training.own_head import OwnHead
from layerweld.errors import AdapterError
from layerweld.formats.adapters import Adapter, read_fine_tuned
from layerweld.model.base_model import BaseModel, device_named, load_base
from layerweld.model.collect import ReplayableModel
from layerweld.model.discover import discover_plan
from layerweld.model.linear import shifted
from layerweld.model.replay import RecordedBatch
from layerweld.plan import MergePlan
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import SiteEntry
from layerweld.untrusted.names import below


@lru_cache(maxsize=2)
def _loaded(folder: Path, device: str) -> tuple[BaseModel, MergePlan]:
    """Sites of one process share one base model: they put updates in place and take them out."""
    wanted = device_named(device)  # before the minutes that a large model takes
    base = load_base(folder)
    plan = discover_plan(base.backbone)
    base.backbone.to(wanted)
    return base, plan


@lru_cache(maxsize=16)
def site_state(site: SiteEntry, settings: RunSettings, run: str) -> SiteState:
    """The state of one site in one run; built once per process, rebuilt in the next one."""
    return SiteState(site, settings, run)


class SiteState:
    """One site in one run. Everything is read when it is first asked for.

    Args:
        site: who it is and where its things lie.
        settings: of the run.
        run: identifies the run; files are kept below it.
    """

    def __init__(self, site: SiteEntry, settings: RunSettings, run: str) -> None:
        self.site = site
        self.settings = settings
        self._at = SiteRun(site, settings, run)
        self._recordings: dict[bool, list[RecordedBatch]] = {}

    @cached_property
    def base(self) -> BaseModel:
        """The base model."""
        return self._loaded[0]

    @cached_property
    def plan(self) -> MergePlan:
        """The merge plan of the whole model."""
        return self._loaded[1]

    @cached_property
    def data(self) -> SiteSamples:
        """The site's samples: to work with, to take statistics over, and to evaluate on."""
        return SiteSamples(self.site, self.settings, reads_images=self.base.reads_images)

    @cached_property
    def files(self) -> SiteFiles:
        """Where its adapter and head lie."""
        return SiteFiles(self._at, lambda: (self.base.fingerprint, self.data.dataset.digest))

    @cached_property
    def head(self) -> OwnHead:
        """What the site classifies with."""
        return OwnHead(self._at, self.base, self.data, self.files)

    @cached_property
    def adapter(self) -> Adapter:
        """What fine-tuning added to the base model.

        Raises:
            AdapterError: there is none, or it cannot be read.
            AdapterLostError: the site trained it itself, and it is missing or damaged.
            PlanError: it changes a linear layer outside of the model's blocks.
        """
        self.files.require_trained()
        folder = self.files.adapter_folder
        if not folder.is_dir():
            raise AdapterError(f"{folder} does not exist; {self.site.name} needs it")
        adapter = read_fine_tuned(folder, self.base)
        self.plan.restricted_to(adapter.task_vector.updates)
        return adapter

    def forget_adapter(self) -> None:
        """Read it again when it is next asked for."""
        self.__dict__.pop("adapter", None)

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """The calibration samples as model inputs, on the model's device."""
        return self.model_inputs(self.data.calibration_samples)

    def model_inputs(self, dataset: Dataset) -> list[dict[str, Tensor]]:
        """Samples as model inputs, in order, a batch at a time, on the model's device."""
        calibration = self.settings.calibration
        device = device_named(calibration.device)
        return [
            {name: tensor.to(device) for name, tensor in batch.items()}
            for batch in batches(dataset, self._preprocess, calibration.batch_size)
        ]

    @cached_property
    def _preprocess(self) -> Preprocessor:
        calibration = self.settings.calibration
        return Preprocessor(self.base, calibration.max_length, calibration.prompt_end)

    def recording(self, model: ReplayableModel, *, shifted_embeddings: bool) -> list[RecordedBatch]:
        """The recorded calibration batches, as the embeddings in place now see them.

        Args:
            model: the base model; the caller has put the other parameters in place, or not.
            shifted_embeddings: whether it has: the two recordings are kept apart.
        """
        if shifted_embeddings not in self._recordings:
            self._recordings[shifted_embeddings] = model.record(self.batches)
        return self._recordings[shifted_embeddings]

    def store(self, method: str) -> SiteStore:
        """Files of this run, site and method; another adapter or other samples get other files."""
        decides = (
            f"{self.base.fingerprint} {self.data.calibration_samples.digest} {self.adapter.digest}"
        )
        key = hashlib.sha256(decides.encode()).hexdigest()[:16]
        return SiteStore(below(self._at.folder, method, f"{self.site.name}-{key}"))

    def with_other_params(self, other_params: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Run with norms, biases and embeddings as full fine-tuning (or its average) left them."""
        return shifted(self.base.backbone, other_params)

    @property
    def _loaded(self) -> tuple[BaseModel, MergePlan]:
        folder = Path(self.site.base or self.settings.require_base()).expanduser()
        return _loaded(folder, self.settings.calibration.device)
