"""A site that answers to somebody else: no setting of a run reads, writes or singles out more."""

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from client.handlers.finetune import training_settings
from client.site import cache_folder, forget_run, site_of_node
from client.state import SiteState
from client.training.finetune import LabelledRows
from layerweld.errors import CohortError, ConfigError, DataError, RefusedReplyError
from layerweld.merging.adamerging import AdaMerging
from layerweld.runtime.incidents import Code, raising_here
from layerweld.settings.run import RunSettings, read_run_settings
from layerweld.settings.sites import LEAST_SAMPLES
from layerweld.settings_table import Settings
from layerweld.statistics.group import ProductForm
from layerweld.transport.identity import encode_plain
from layerweld.transport.statistics import StatisticsRequest
from layerweld.transport.step_context import StepContext
from layerweld.untrusted.names import below
from tests.stub_sites import incident_of
from tests.tiny_sites import make_labelled_sites, read_samples, write_samples

LEAST = 5
SECRET = "MRN 123456"
WORDS = (
    "", "secret", "text", "label", "..", "../../../tmp/x", "/etc/passwd", "/proc/self/environ",
    "a/b", "a\\b", "nul\0byte", "line\nbreak", "\x1b[2J", "\u202etxt", "\ud800", "wandb",
    "mlflow", "cuda:99", "meta", "x" * 100_000, "http://collector.example/", "~root",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 16, 17, 18, -1, 2**31, 2**63, 10**30)
SHARES = (0.0, 1e-9, 0.01, 0.05, 0.06, 0.5, 0.94, 0.999, 1.0, -1.0, 1e300, float("inf"))


def fields() -> Iterator[tuple[Any, ...]]:
    """Key, and kind, of every setting of a run."""
    for name, about in RunSettings.model_fields.items():
        table = type(getattr(RunSettings(), name))
        inner = table.model_fields.items() if issubclass(table, Settings) else [("", about)]
        for _, entry in inner:
            key = about.alias if entry is about else f"{about.alias}.{entry.alias}"
            yield key, entry.annotation


def hostile_values(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Literal:
        return (*get_args(kind), "../x")
    return {str: WORDS, int: NUMBERS, float: SHARES, bool: (True, False)}[kind]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """A site's own configuration: eighteen samples with a column that is nobody's business."""
    made = make_labelled_sites(tmp_path_factory.mktemp("site"))
    own = made.nodes[0]
    samples = enumerate(read_samples(own["data"]))
    # No two samples are equal, so that it can be told which of them are used.
    different = [s | {"text": f"{s['text']} w{i}", "secret": SECRET} for i, s in samples]
    write_samples(own["data"], different)
    paths = {"base": str(made.base), "cache": str(made.folder / "own-cache")}
    return own | paths | {"min-samples": LEAST}


def settings_with(**changed: Any) -> RunSettings:
    usual = {"calibration.batch-size": 4, "calibration.max-length": 32, "calibration.threads": 1}
    return read_run_settings(RunSettings().flat() | usual | changed)


@dataclass
class Chosen:
    """The sets of samples that runs have brought a site to use."""

    work: set[frozenset[Any]] = field(default_factory=set)
    held_out: set[frozenset[Any]] = field(default_factory=set)
    refused: int = 0

    def note(self, state: SiteState) -> None:
        for where, choose in (
            (self.work, lambda: state.data.calibration_samples),
            (self.work, lambda: state.data.training_samples.dataset),
            (self.work, lambda: state.data.drawn(state.settings.table(AdaMerging).samples, 7)),
            (self.held_out, lambda: state.data.evaluation_samples),
        ):
            try:
                dataset = choose()
            except (CohortError, ConfigError):  # too few samples, or no such device
                self.refused += 1
                continue
            if dataset is not None and len(dataset):
                where.add(frozenset(dataset.inputs))
                assert SECRET not in " ".join((*dataset.inputs, *dataset.classes))

    def note_batches(self, state: SiteState) -> None:
        """The samples of each optimiser step of fine-tuning."""
        try:
            parcels = state.data.training_samples
        except (CohortError, ConfigError):
            self.refused += 1
            return
        seed, size = state.settings.calibration.seed, state.settings.finetune.batch_size
        loader = LabelledRows(parcels, lambda texts: {"texts": texts}, size, seed)  # type: ignore[arg-type]
        self.work |= {frozenset(batch["texts"]) for batch in loader.train_dataloader()}


def assert_nobody_stands_alone(sets: set[Any]) -> None:
    """Neither in a set, nor in what two sets have or have not in common."""
    assert all(len(samples) >= LEAST for samples in sets)
    for one, other in combinations(sets, 2):
        for part in (one - other, other - one, one & other):
            assert not part or len(part) >= LEAST


def test_no_setting_of_a_run_makes_a_site_obey_more_than_its_own_configuration(
    node: dict[Any, Any],
) -> None:
    tried, chosen = 0, Chosen()
    own = site_of_node(node, settings_with())
    for key, kind in fields():
        for value in hostile_values(kind):
            tried += 1
            try:
                settings = settings_with(**{key: value})
            except ConfigError:
                continue
            site = site_of_node(node, settings)
            assert site == own
            state = SiteState(site, settings, "0" * 16)
            chosen.note(state)
            if key.startswith(("finetune", "calibration")):
                chosen.note_batches(state)
            assert state.site.base == node["base"]
            assert cache_folder(site, settings) == Path(node["cache"])
            assert state.files.adapter_folder == Path(node["adapter"])
            assert training_settings(state).logger == "tensorboard"
    assert tried > 900
    assert chosen.refused
    assert len(chosen.work) > 3
    assert_nobody_stands_alone(chosen.work)
    assert_nobody_stands_alone(chosen.held_out)


def test_pairs_of_settings_do_not_single_out_samples_either(node: dict[Any, Any]) -> None:
    rng, chosen = random.Random(0), Chosen()
    keys = {
        "calibration.samples": range(20), "calibration.seed": range(50),
        "calibration.validation": (0.0, 0.05, 0.06, 0.1, 0.2, 0.5, 0.9), "adamerging.samples":
        range(1, 20), "evaluate.samples": range(20), "evaluate.split": ("held-out", "validation"),
        "finetune.batch-size": range(1, 20),
    }  # fmt: skip
    for _ in range(300):
        settings = settings_with(**{key: rng.choice(values) for key, values in keys.items()})
        state = SiteState(site_of_node(node, settings), settings, "0" * 16)
        chosen.note(state)
        chosen.note_batches(state)
    assert_nobody_stands_alone(chosen.work)
    assert_nobody_stands_alone(chosen.held_out)


OPENED: list[tuple[str, str]] = []
_watching = [False]


@cache
def watch_files() -> None:
    """From now on files that Python opens are noted, while somebody wants to know."""

    def hook(event: Any, arguments: Any) -> None:
        if _watching[0] and event == "open" and isinstance(arguments[0], str | bytes):
            path, mode, flags = os.fsdecode(arguments[0]), *arguments[1:]  # type: ignore[misc]
            writes = any(c in (mode or "") for c in "wax+") or (flags or 0) & 3  # type: ignore[has-type]
            OPENED.append((str(Path(path).absolute()), "w" if writes else "r"))  # type: ignore[has-type]

    sys.addaudithook(hook)


@pytest.fixture
def opened() -> Iterator[list[tuple[str, str]]]:
    watch_files()
    OPENED.clear()
    _watching[0] = True
    yield OPENED
    _watching[0] = False


def ask(
    node: dict[Any, Any],
    settings: RunSettings,
    kind: str = "query.handshake",
    content: RecordDict | None = None,
) -> Message:
    context = Context(1, 1, node, RecordDict(), dict(settings.flat()))
    message = Message(content or encode_plain(kind, "0" * 16), 1, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return client_app(message, context)


HOSTILE_RUNS = [
    {},
    {"base": "/etc", "cache": "/tmp/elsewhere", "output": "/tmp/elsewhere", "sites": "/etc/passwd"},
    {"calibration.text-column": "secret", "calibration.label-column": "secret"},
    {"finetune.logger": "wandb", "finetune.max-steps": 1, "finetune.batch-size": 1},
    {"methods": "../../../tmp/elsewhere", "name": "a..b"},
]


@pytest.mark.parametrize("hostile", HOSTILE_RUNS)
def test_nothing_is_written_outside_of_the_sites_cache_and_nothing_foreign_is_read(
    node: dict[Any, Any],
    hostile: Any,
    opened: list[tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nobody"))
    settings = settings_with(**{"finetune.max-steps": 2, "finetune.accelerator": "cpu"} | hostile)
    trains = {k: v for k, v in node.items() if k not in ("adapter", "held_out")}
    trains["cache"] = str(tmp_path / "cache")
    assert ask(trains, settings, "train.finetune").has_content()
    assert ask(node, settings).has_content()
    allowed = (str(tmp_path / "cache"), node["cache"], "/dev/", "/proc/self/", "/sys/")
    wrote = {path for path, how in opened if how == "w" and not path.startswith(allowed)}
    assert not wrote
    assert any(how == "w" for _, how in opened)
    assert not {path for path, _ in opened if path in ("/etc/passwd", "/tmp/elsewhere")}
    assert not Path("/tmp/elsewhere").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_fewer_samples_than_the_least_are_not_trained_or_evaluated_on(node: dict[Any, Any]) -> None:
    trains = {k: v for k, v in node.items() if k != "adapter"} | {"min-samples": 19}
    for own in (trains, node | {"min-samples": 19}):
        assert incident_of(ask(own, settings_with())).code is Code.COHORT
    few = settings_with(**{"evaluate.samples": LEAST - 1})
    assert incident_of(ask(node, few)).code is Code.COHORT
    off = settings_with(**{"evaluate.samples": LEAST - 1, "evaluate.enabled": False})
    assert ask(node, off).has_content()


def test_a_site_that_says_little_has_careful_defaults_and_not_the_runs(
    node: dict[Any, Any],
) -> None:
    bare = {key: node[key] for key in ("name", "data", "base")}
    settings = settings_with(
        cache="/tmp/elsewhere", **{"calibration.text-column": "secret", "finetune.logger": "wandb"}
    )
    site = site_of_node(bare, settings)
    assert (site.text_column, site.label_column, site.logger) == ("text", "label", "tensorboard")
    assert site.min_samples == LEAST_SAMPLES
    assert site.cache.endswith("layerweld")
    with pytest.raises(ConfigError, match="no `base`"):
        site_of_node({k: node[k] for k in ("name", "data")}, settings_with(base=node["base"]))


def test_who_runs_sites_of_their_own_decides_for_them(node: dict[Any, Any]) -> None:
    bare = {key: node[key] for key in ("name", "data")}
    settings = settings_with(**{"calibration.text-column": "secret"}, base=node["base"])
    with raising_here():
        site = site_of_node(bare, settings)
    assert (site.text_column, site.base, site.min_samples) == ("", "", 1)


HOSTILE_NAMES = [word for word in WORDS if word not in ("secret", "text", "label", "wandb",
                 "mlflow", "meta")]  # fmt: skip


@pytest.mark.parametrize("name", [n for n in HOSTILE_NAMES if len(n) < 99] + ["x" * 201, ".hidden"])
def test_a_name_from_outside_never_leaves_its_folder(
    node: dict[Any, Any], name: Any, tmp_path: Path
) -> None:
    settings = settings_with()
    state = SiteState(site_of_node(node, settings), settings, "0" * 16)
    with pytest.raises(RefusedReplyError):
        below(tmp_path, "runs", name)
    with pytest.raises(RefusedReplyError):
        state.store(name)
    with pytest.raises(RefusedReplyError):
        forget_run([node], settings, name)


@pytest.mark.parametrize("step", [-1, 10**6, -(10**30)])
def test_a_step_that_no_schedule_has_is_refused(node: dict[Any, Any], step: int) -> None:
    from client.handlers.statistics import reply_to

    settings = settings_with()
    state = SiteState(site_of_node(node, settings), settings, "0" * 16)
    context = StepContext("0" * 16, "com", step, state.plan.layer_names, "", "", False)
    asked = StatisticsRequest(context, ProductForm(dense=False, with_updates=False))
    with pytest.raises(RefusedReplyError, match="is none of them"):
        reply_to(state, asked)


def test_every_number_of_a_runs_settings_has_two_ends_and_every_text_a_longest() -> None:
    for key, kind in fields():
        endless = {int: (10**30, -(10**30)), float: (1e30, -1e30, float("inf"), float("nan"))}
        for value in endless.get(kind, ()):
            with pytest.raises(ConfigError):
                settings_with(**{key: value})
        if kind is str:
            with pytest.raises(ConfigError):
                settings_with(**{key: "x" * 100_000})


def test_samples_that_cannot_be_read_are_no_way_to_another_column(node: dict[Any, Any]) -> None:
    settings = settings_with(**{"calibration.max-unreadable": 1.0})
    site = site_of_node(node | {"text-column": "absent"}, settings)
    with pytest.raises(DataError, match="no column 'absent'"):
        _ = SiteState(site, settings, "0" * 16).data.dataset
