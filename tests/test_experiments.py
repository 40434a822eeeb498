"""What benchmarks are made of: files that parse, tasks that exist, weights that are checked."""

from pathlib import Path

import numpy as np
import pytest

from client.package_images import IMAGE_READERS
from client.package_tasks import TASKS
from client.package_texts import TEXT_READERS
from experiments import backbones
from experiments.benchmark_runs import fine_tuned_otherwise
from experiments.onnx_weights import read_onnx
from layerweld.errors import ConfigError
from layerweld.model.discover import discover_plan
from layerweld.settings.run import RunSettings
from layerweld.settings.sites import package_task, read_run_file
from tests.tiny_encoders import save_image_base
from tests.tiny_peft import save_base

_EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("file", sorted(_EXPERIMENTS.glob("*/*.toml")), ids=lambda f: f.stem)
def test_every_run_file_parses_and_holds_out_rows_at_every_site(file):
    settings, sites = read_run_file(file)
    assert settings.name == file.stem
    assert len(sites) >= 4
    assert all(site.held_out and site.held_out != site.name for site in sites)


@pytest.mark.parametrize(
    ("name", "readers", "fewest"),
    [("text", TEXT_READERS, 8), ("vision", IMAGE_READERS, 6), ("language", TEXT_READERS, 4)],
)
def test_benchmarks_name_tasks_of_their_modality(name, readers, fewest):
    _, sites = read_run_file(_EXPERIMENTS / "benchmarks" / f"{name}.toml")
    tasks = {package_task(site.data) for site in sites}
    assert len(tasks) >= fewest
    assert tasks <= set(readers) <= set(TASKS)


def test_an_onnx_file_is_read_without_its_package(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    packed = b"\x0a\x02\x02\x03"  # dims, packed
    tensor = packed + b"\x10\x01" + _field(8, b"layer.weight") + _field(9, weight.tobytes())
    node = _field(1, b"x") + _field(1, b"layer.weight") + _field(2, b"y") + _field(4, b"MatMul")
    (tmp_path / "model.onnx").write_bytes(_field(7, _field(1, node) + _field(5, tensor)))
    tensors, nodes = read_onnx(tmp_path / "model.onnx")
    assert np.array_equal(tensors["layer.weight"], weight)
    assert nodes == [("MatMul", ("x", "layer.weight"), ("y",))]


def test_weights_other_than_the_pinned_ones_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.onnx").write_bytes(b"not the pinned bytes")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"requirements-benchmarks\.txt pins"):
        backbones._pinned("some_weights", "model.onnx", "0" * 64)


def _field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("text", lambda folder: save_base("bert", folder)),
        ("vision", save_image_base),
        ("language", lambda folder: save_base("llama", folder)),
    ],
)
def test_attention_alone_is_four_layers_a_block_of_each_benchmarks_model(name, model, tmp_path):
    settings = RunSettings(name=name)
    chosen, kind = fine_tuned_otherwise(settings, attention=True, frozen_a=False)
    plan = discover_plan(model(tmp_path / "base").backbone)
    found = [s for s in plan.layer_names if s.endswith(tuple(chosen.finetune.targets.split(",")))]
    assert kind == "-attention"
    assert len(found) == 4 * len(plan.blocks)
