"""All that one site knows in one run: its model, rows, adapter and recorded calibration batches."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path

from torch import Tensor

from client.data.batches import Preprocessor, batches
from client.data.samples import Rows
from client.data.site_samples import SiteRows
from client.site import cache_folder
from client.store import SiteStore
from client.training.heads import ClassifierHead, load_head
from client.training.label_words import LabelWordHead, label_word_head
from layerweld.errors import AdapterError, AdapterLostError, ConfigError
from layerweld.formats.adapters import Adapter
from layerweld.formats.task_vectors import read_fine_tuned
from layerweld.model.base_model import BaseModel, device_named, load_base
from layerweld.model.collect import ReplayableModel
from layerweld.model.discover import discover_plan
from layerweld.model.linear import shifted
from layerweld.model.replay import RecordedBatch
from layerweld.plan import MergePlan
from layerweld.runtime.sealed import is_whole
from layerweld.settings.run import FinetuneSettings, RunSettings
from layerweld.settings.sites import HEAD, SiteEntry
from layerweld.untrusted.files import contents
from layerweld.untrusted.names import below

_LARGEST_HEAD = 2**30  # bytes


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
        self.run = run
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
    def data(self) -> SiteRows:
        """The site's rows: to work with, to take statistics over, and to evaluate on."""
        return SiteRows(self.site, self.settings, reads_images=self.base.reads_images)

    @property
    def adapter_folder(self) -> Path:
        """The site's own folder, or where its fine-tuning is kept, by what decides its result."""
        if self.site.adapter:
            return Path(self.site.adapter).expanduser()
        finetune = self.settings.finetune
        decides = finetune.model_dump_json(exclude={"logger", "accelerator"})
        seed = self.settings.calibration.seed
        about = f"{self.base.fingerprint} {self.data.rows.digest} {decides} {seed}"
        about += self.settings.calibration.prompt_end
        key = hashlib.sha256(about.encode()).hexdigest()[:16]
        cache = cache_folder(self.site, self.settings)
        return below(cache, "adapters", f"{self.site.name}-{key}", "adapter")

    @property
    def head_file(self) -> Path:
        """Where the task head lies: as named, or beside the adapter. It never leaves the site."""
        named = self.site.head
        return Path(named).expanduser() if named else self.adapter_folder.parent / HEAD

    @property
    def has_head(self) -> bool:
        """Whether the site can classify, now or once it is fine-tuned."""
        knows_words = bool(self.settings.calibration.prompt_end)
        return knows_words or self.must_fine_tune or self.head_file.is_file()

    @property
    def head(self) -> ClassifierHead | LabelWordHead:
        """The site's own head, or the label words of its rows.

        Raises:
            AdapterError: there is no head file, or a damaged one.
            AdapterLostError: as :attr:`adapter`; a head is trained with it.
            ConfigError: the classes have no label words that tell them apart.
        """
        if not self.settings.calibration.prompt_end:
            self.require_trained(needed=not self.site.head)
            return load_head(self.head_file)
        return label_word_head(self.base, self._classes)

    @property
    def classes(self) -> Sequence[str]:
        """What the site's head tells apart, or will once it is trained; empty without a head.

        Raises:
            AdapterError: the head file is damaged.
            ConfigError: the classes have no label words that tell them apart.
        """
        if self.settings.calibration.prompt_end:
            # Words stand for classes, so without classes they are no head.
            return self.head.classes if self._classes else ()
        if self.must_fine_tune:
            return self.data.rows.classes
        return self.head.classes if self.has_head else ()

    @property
    def decides_head(self) -> bytes:
        """What the head's answers depend on: its file, or the prompt's end and the label words."""
        prompt_end = self.settings.calibration.prompt_end
        if not prompt_end:
            self.require_trained(needed=not self.site.head)
            return contents(self.head_file, AdapterError, _LARGEST_HEAD)
        return "\n".join([prompt_end, *self._classes]).encode()

    @property
    def _classes(self) -> Sequence[str]:
        held_out = self.data.held_out.classes if self.data.held_out else ()
        return self.data.rows.classes or held_out

    @property
    def must_fine_tune(self) -> bool:
        """Whether the site has data but no adapter yet, or not any more."""
        return not self.site.adapter and not is_whole(self.adapter_folder.parent)

    def require_trained(self, *, needed: bool = True) -> None:
        """Refuse to go on without what the site has trained itself.

        Raises:
            AdapterLostError: it is missing or damaged. The coordinator then has it trained again.
        """
        if needed and self.must_fine_tune:
            raise AdapterLostError(
                f"{self.adapter_folder.parent}, which {self.site.name} has trained, is missing or "
                f"damaged"
            )

    @cached_property
    def adapter(self) -> Adapter:
        """What fine-tuning added to the base model.

        Raises:
            AdapterError: there is none, or it cannot be read.
            AdapterLostError: the site trained it itself, and it is missing or damaged.
            PlanError: it changes a linear layer outside of the model's blocks.
        """
        self.require_trained()
        if not self.adapter_folder.is_dir():
            raise AdapterError(f"{self.adapter_folder} does not exist; {self.site.name} needs it")
        adapter = read_fine_tuned(self.adapter_folder, self.base)
        self.plan.restricted_to(adapter.task_vector.updates)
        return adapter

    @property
    def finetune(self) -> FinetuneSettings:
        """How the run wants an adapter trained; where its curves go is the site's own affair."""
        finetune = self.settings.finetune
        return finetune.model_copy(update={"logger": self.site.logger or finetune.logger})

    @property
    def targets(self) -> tuple[str, ...]:
        """Layers that fine-tuning adapts, by ``finetune.targets``."""
        wanted = self.settings.finetune.targets
        if wanted == "all-linear":
            return self.plan.layer_names
        suffixes = tuple(suffix.strip() for suffix in wanted.split(","))
        chosen = [n for n in self.plan.layer_names if n.endswith(suffixes)]
        if not chosen:
            raise ConfigError(
                f"finetune.targets = {wanted!r} fits no layer; the model has, for example, "
                f"{', '.join(self.plan.layer_names[:3])}"
            )
        return tuple(chosen)

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        """The calibration rows as model inputs, on the model's device."""
        return self.model_inputs(self.data.calibration_rows)

    def model_inputs(self, rows: Rows) -> list[dict[str, Tensor]]:
        """Rows as model inputs, in order, a batch at a time, on the model's device."""
        calibration = self.settings.calibration
        device = device_named(calibration.device)
        return [
            {name: tensor.to(device) for name, tensor in batch.items()}
            for batch in batches(rows, self._preprocess, calibration.batch_size)
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
        """Files of this run, site and method; another adapter or other rows get other files."""
        decides = (
            f"{self.base.fingerprint} {self.data.calibration_rows.digest} {self.adapter.digest}"
        )
        key = hashlib.sha256(decides.encode()).hexdigest()[:16]
        cache = cache_folder(self.site, self.settings)
        return SiteStore(below(cache, "runs", self.run, method, f"{self.site.name}-{key}"))

    def with_other_params(self, other_params: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Run with norms, biases and embeddings as full fine-tuning (or its average) left them."""
        return shifted(self.base.backbone, other_params)

    @property
    def _loaded(self) -> tuple[BaseModel, MergePlan]:
        return _loaded(self._base_folder, self.settings.calibration.device)

    @property
    def _base_folder(self) -> Path:
        return Path(self.site.base or self.settings.require_base()).expanduser()


def fine_tune_site(state: SiteState, on_step: Callable[[int, int], None] | None = None) -> None:
    """Train the site's adapter where it has none yet, or not all of it any more."""
    from client.training.finetune import fine_tune

    if state.must_fine_tune:
        state.__dict__.pop("adapter", None)  # what it was before it was lost proves nothing
        shutil.rmtree(state.adapter_folder.parent, ignore_errors=True)
        fine_tune(
            state.base,
            state.targets,
            state.data.training_rows,
            state.finetune,
            state.settings.calibration.seed,
            state.adapter_folder.parent,
            on_step,
            state.settings.calibration.prompt_end,
        )
