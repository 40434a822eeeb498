"""Two runs are compared by what they merged, up to a tolerance, and by where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerweld.errors import DifferentMergeError, OutputError
from layerweld.formats.same_runs import environment_differences, layer_differences, require_within
from tests.tiny_sites import make_sites, with_whole_models
from tests.typed_commands import lw

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["adapter", "model"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    sites = make_sites(folder, ["query", "value"])
    if request.param == "model":
        sites = with_whole_models(sites)
    sites.run(folder / "out")
    return folder / "out"


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "other")
    return tmp_path / "other"


def change(folder: Path, by: Callable[..., Any]) -> None:
    """Change one tensor of what a run merged."""
    file = next(folder.glob("*/*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = by(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_run_and_its_copy_have_equal_bits(run: Path, other: Path) -> None:
    said = lw("compare-runs", run, other).output
    assert "layers: equal bits" in said
    assert "another machine" not in said


def test_what_rounding_explains_is_equal_within_the_tolerance(run: Path, other: Path) -> None:
    change(other, lambda tensor: tensor * (1 + 1e-5))
    said = lw("compare-runs", run, other).output
    assert "layers: equal within 0.001" in said
    worst = max(found.relative for found in layer_differences(run, other))
    assert worst == pytest.approx(1e-5, rel=0.02)


def test_more_than_that_is_an_error_that_names_the_layer(run: Path, other: Path) -> None:
    change(other, lambda tensor: tensor * 1.01)
    with pytest.raises(DifferentMergeError, match=r"differs by 0\.0099? of its size"):
        lw("compare-runs", run, other)
    lw("compare-runs", run, other, "--tolerance", 0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_equal_to_nothing(run: Path, other: Path, value: Any) -> None:
    change(other, lambda tensor: torch.full_like(tensor, value))
    for pair in ((run, other), (other, run)):
        with pytest.raises(DifferentMergeError):
            require_within(layer_differences(*pair), 1e9)


def test_another_basis_of_the_same_product_is_no_difference(tmp_path: Path) -> None:
    sites = make_sites(tmp_path / "s", ["query", "value"])
    sites.run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b/adapter/adapter_model.safetensors"
    tensors = load_file(file)
    for name in [n for n in tensors if ".lora_A." in n]:
        turned, _ = torch.linalg.qr(torch.randn(len(tensors[name]), len(tensors[name])))
        partner = name.replace("lora_A", "lora_B")
        tensors[name] = turned.T @ tensors[name]
        tensors[partner] = tensors[partner] @ turned
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)
    found = layer_differences(tmp_path / "a", tmp_path / "b")
    assert 0 < max(one.relative for one in found) < 1e-5


def test_what_differs_in_the_machines_is_named(run: Path, other: Path) -> None:
    file = other / "environment.json"
    about = json.loads(file.read_text())
    about["coordinator"]["cpu"] = "another\x1b[2J"
    about["sites"]["birch"].append("$MKL_CBWR=AVX2")
    file.write_text(json.dumps(about))
    assert [line.partition(":")[0] for line in environment_differences(run, other)] == [
        "birch, $MKL_CBWR", "coordinator, cpu",
    ]  # fmt: skip
    said = lw("compare-runs", run, other).output
    assert "birch, $MKL_CBWR: not set and AVX2" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("spoil", ["missing", "damaged", "cut", "no environment", "other layers"])
def test_what_cannot_be_compared_is_named(run: Path, other: Path, spoil: str) -> None:
    file = next(other.glob("*/*.safetensors"))
    if spoil == "missing":
        file.unlink()
    elif spoil == "damaged":
        file.write_bytes(b"x" * 100)
    elif spoil == "cut":
        change(other, lambda tensor: tensor[:-1].contiguous())
    elif spoil == "no environment":
        (other / "environment.json").write_text("[]")
    else:
        save_file({"nobody.lora_A.weight": torch.ones(2, 2)}, file)
    with pytest.raises(OutputError, match=r"other|shape"):
        lw("compare-runs", run, other)
