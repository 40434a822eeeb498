"""Set-up for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test needs the network

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

if TYPE_CHECKING:  # pytest hooks kernels after this file: nothing of the project may come in before
    from layerweld.model.base_model import BaseModel
    from tests.faulty_grid import Clock
    from tests.tiny_sites import TinySites

# No deadline: a process's first torch call may take 300 ms.
settings.register_profile("layerweld", deadline=None, max_examples=30)
settings.load_profile("layerweld")

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower >= 1.41 builds messages only inside a task; give every test a fake one."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads on a 4 x 4 matrix wait for each other a hundred times longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    """Waiting sites take no time; what the poll says of them is not printed."""
    from strategies import notices, poll
    from tests.faulty_grid import Clock

    clock = Clock()
    monkeypatch.setattr(poll, "time", clock)
    monkeypatch.setattr(notices, "log", lambda _level, _text: None)
    return clock


@pytest.fixture(scope="module")
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "TinySites":
    """Three sites that adapted the layers that the test module names in ``TARGETS``."""
    from tests.tiny_sites import make_sites

    targets = getattr(request.module, "TARGETS", ["query", "value"])
    return make_sites(tmp_path_factory.mktemp("sites"), targets)


@pytest.fixture(scope="module")
def bert_sites(tmp_path_factory: pytest.TempPathFactory) -> "TinySites":
    """Three sites that adapted all layers."""
    from tests.tiny_sites import BERT_LAYERS, make_sites

    return make_sites(tmp_path_factory.mktemp("bert"), BERT_LAYERS)


@pytest.fixture(scope="module")
def full_sites(tmp_path_factory: pytest.TempPathFactory) -> "TinySites":
    """Three sites that fine-tuned the whole model."""
    from tests.tiny_sites import make_sites, with_whole_models

    return with_whole_models(make_sites(tmp_path_factory.mktemp("full"), ["query"]))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, BaseModel]":
    """A base model of each family."""
    from tests.tiny_peft import TARGETS, save_base

    return {family: save_base(family, tmp_path_factory.mktemp(family)) for family in TARGETS}


@pytest.fixture(scope="module")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> "BaseModel":
    from tests.tiny_encoders import save_text_base

    return save_text_base(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def image_base(tmp_path_factory: pytest.TempPathFactory) -> "BaseModel":
    from tests.tiny_encoders import save_image_base

    return save_image_base(tmp_path_factory.mktemp("images"))
