"""All that one site knows in one run: its model, rows, adapter and recorded calibration batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path

from torch import Tensor

from client.batches import Preprocessor, batches
from client.data import Rows, draw, read_rows, set_aside
from client.heads import ClassifierHead, load_head
from client.label_words import LabelWordHead, label_word_head
from client.package_tasks import Split, package_rows
from client.site import cache_folder
from client.store import SiteStore
from layerweld.adapters import Adapter
from layerweld.base_model import BaseModel, device_named, load_base
from layerweld.collect import ReplayableModel
from layerweld.config import RunSettings
from layerweld.demo import base_folder
from layerweld.discover import discover_plan
from layerweld.errors import AdapterError, CohortError, ConfigError
from layerweld.linear import shifted
from layerweld.plan import MergePlan
from layerweld.replay import RecordedBatch
from layerweld.sites import HEAD, SiteEntry, package_task
from layerweld.task_vectors import read_fine_tuned

_TRAINING_ROWS = 1500
_HELD_OUT_ROWS = 250


@lru_cache(maxsize=2)
def _loaded(folder: Path, device: str) -> tuple[BaseModel, MergePlan]:
    """Sites of one process share one base model: they put updates in place and take them out."""
    base = load_base(folder)
    plan = discover_plan(base.backbone)
    base.backbone.to(device_named(device))
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

    @property
    def rows(self) -> Rows:
        """The site's rows, to fine-tune and to calibrate on."""
        return self._split[0]

    @cached_property
    def held_out(self) -> Rows | None:
        """Labelled rows to evaluate on, if the site has any."""
        rows = self._split[1] if self._validates else self._held_out
        samples, seed = self.settings.evaluate.samples, self.settings.calibration.seed
        return None if rows is None else draw(rows, samples, seed)

    @cached_property
    def _split(self) -> tuple[Rows, Rows]:
        """The rows to work with, and those set aside to choose settings on."""
        calibration = self.settings.calibration
        return set_aside(self._all_rows, calibration.validation, calibration.seed)

    @property
    def _validates(self) -> bool:
        return self.settings.evaluate.rows == "validation"

    @cached_property
    def _all_rows(self) -> Rows:
        if task := package_task(self.site.data):
            return self._package_rows(task, held_out=False)
        return self._file_rows(self.site.data)

    @cached_property
    def _held_out(self) -> Rows | None:
        if not self.site.held_out:
            return None
        if task := package_task(self.site.held_out):
            return self._package_rows(task, held_out=True)
        return self._file_rows(self.site.held_out)

    def _file_rows(self, source: str) -> Rows:
        """Rows of a file of the site's, whose columns may have names of their own."""
        own = {"text_column": self.site.text_column, "label_column": self.site.label_column}
        named = {column: name for column, name in own.items() if name}
        settings = self.settings.calibration.model_copy(update=named)
        return read_rows(Path(source), settings, reads_images=self.base.reads_images)

    @cached_property
    def calibration_rows(self) -> Rows:
        """The rows that statistics are taken over."""
        calibration = self.settings.calibration
        return self.drawn(self.rows, calibration.samples, calibration.seed)

    def drawn(self, rows: Rows, samples: int, seed: int) -> Rows:
        """That many of the rows, or all, for something that will leave the site.

        Raises:
            CohortError: they are fewer than the site's own policy allows.
        """
        chosen = draw(rows, samples, seed)
        if len(chosen) < self.site.min_rows:
            raise CohortError(
                f"{len(chosen)} rows would be measured, and the site's min-rows is "
                f"{self.site.min_rows}: the run must ask for more (calibration.samples, "
                f"adamerging.rows), or the site must have more"
            )
        return chosen

    @property
    def adapter_folder(self) -> Path:
        """The site's own folder, or where its fine-tuning is kept, by what decides its result."""
        if self.site.adapter:
            return Path(self.site.adapter).expanduser()
        finetune = self.settings.finetune
        decides = finetune.model_dump_json(exclude={"logger", "accelerator", "devices"})
        seed = self.settings.calibration.seed
        about = f"{self.base.fingerprint} {self.rows.digest} {decides} {seed}"
        about += self.settings.calibration.prompt_end
        key = hashlib.sha256(about.encode()).hexdigest()[:16]
        folder = cache_folder(self.site, self.settings) / "adapters" / f"{self.site.name}-{key}"
        return folder / "adapter"

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
            ConfigError: the classes have no label words that tell them apart.
        """
        if not self.settings.calibration.prompt_end:
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
            return self.rows.classes
        return self.head.classes if self.has_head else ()

    @property
    def decides_head(self) -> bytes:
        """What the head's answers depend on: its file, or the prompt's end and the label words."""
        prompt_end = self.settings.calibration.prompt_end
        if not prompt_end:
            return self.head_file.read_bytes()
        return "\n".join([prompt_end, *self._classes]).encode()

    @property
    def _classes(self) -> Sequence[str]:
        held_out = self.held_out.classes if self.held_out else ()
        return self.rows.classes or held_out

    @property
    def must_fine_tune(self) -> bool:
        """Whether the site has data but no adapter yet."""
        return not self.site.adapter and not self.adapter_folder.is_dir()

    @cached_property
    def adapter(self) -> Adapter:
        """What fine-tuning added to the base model.

        Raises:
            AdapterError: there is none, or it cannot be read.
            PlanError: it changes a linear layer outside of the model's blocks.
        """
        if not self.adapter_folder.is_dir():
            raise AdapterError(f"{self.adapter_folder} does not exist; {self.site.name} needs it")
        adapter = read_fine_tuned(self.adapter_folder, self.base)
        self.plan.restricted_to(adapter.task_vector.updates)
        return adapter

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
        return self.model_inputs(self.calibration_rows)

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
            model: the base model; the caller has put the remainder in place, or not.
            shifted_embeddings: whether it has: the two recordings are kept apart.
        """
        if shifted_embeddings not in self._recordings:
            self._recordings[shifted_embeddings] = model.record(self.batches)
        return self._recordings[shifted_embeddings]

    def store(self, method: str) -> SiteStore:
        """Files of this run, site and method; another adapter or other rows get other files."""
        decides = f"{self.base.fingerprint} {self.calibration_rows.digest} {self.adapter.digest}"
        key = hashlib.sha256(decides.encode()).hexdigest()[:16]
        folder = cache_folder(self.site, self.settings) / "runs" / self.run / method
        return SiteStore(folder / f"{self.site.name}-{key}")

    def with_remainder(self, remainder: dict[str, Tensor]) -> AbstractContextManager[None]:
        """Run with norms, biases and embeddings as full fine-tuning (or its average) left them."""
        return shifted(self.base.backbone, remainder)

    @property
    def _loaded(self) -> tuple[BaseModel, MergePlan]:
        return _loaded(self._base_folder, self.settings.calibration.device)

    @property
    def _base_folder(self) -> Path:
        chosen = self.site.base or self.settings.base
        return Path(chosen).expanduser() if chosen else base_folder()

    def _package_rows(self, task: str, *, held_out: bool) -> Rows:
        samples = _HELD_OUT_ROWS if held_out else _TRAINING_ROWS
        split: Split = "test" if held_out else "train"
        seed = self.settings.calibration.seed
        return package_rows(task, split, samples, seed)


def fine_tune_site(state: SiteState, on_step: Callable[[int, int], None] | None = None) -> None:
    """Train the site's adapter where it has none yet."""
    from client.finetune import fine_tune

    if state.must_fine_tune:
        fine_tune(
            state.base,
            state.targets,
            state.rows,
            state.settings.finetune,
            state.settings.calibration.seed,
            state.adapter_folder.parent,
            on_step,
            state.settings.calibration.prompt_end,
        )
