"""LiNeS as a step after a method: scales by depth, norms and biases too, in place of its λ."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from layerweld.errors import ConfigError
from layerweld.merging.sums import TaskArithmetic
from layerweld.model.base_model import load_base
from layerweld.settings.methods import method_named
from layerweld.settings.overrides import with_overrides
from layerweld.settings.run import RunSettings
from tests.run_methods import by_the_kernel, run_methods, written
from tests.tiny_sites import TinySites


def test_lines_scales_a_merge_from_block_to_block(sites: TinySites, tmp_path: Path) -> None:
    run_methods(sites, tmp_path / "plain", "mean")
    run_methods(sites, tmp_path / "scaled", "mean+lines", **{"lines.slope": 0.5})
    metrics = json.loads((tmp_path / "scaled/manifest.json").read_text())["metrics"]
    assert metrics["scale of the first block"] == pytest.approx(1)  # of the mean it is ‖Σ‖/N‖mean‖
    plain, scaled = written(sites, tmp_path / "plain"), written(sites, tmp_path / "scaled")
    for layer, values in plain.items():
        factor = 1.5 if "layer.1." in layer else 1.0
        torch.testing.assert_close(scaled[layer], factor * values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "task-arithmetic"])
def test_lines_takes_the_place_of_a_methods_own_scaling(
    sites: TinySites, tmp_path: Path, name: str
) -> None:
    """α is ``‖Σ ΔW‖₁ / (N ‖ΔW_M‖₁)`` of the merge without λ, as the authors' code has it."""
    run_methods(
        sites, tmp_path / "out", f"{name}+lines", **{f"{name}.scaling": 0.1, "lines.slope": 0.5}
    )
    unscaled = RunSettings().of_method(name).model_copy(update={"scaling": 1.0})
    merged = {k: u.dense() for k, u in by_the_kernel(sites, unscaled).items()}
    sums = {k: u.dense() for k, u in by_the_kernel(sites, TaskArithmetic(scaling=1.0)).items()}
    start = (
        sum(x.abs().sum() for x in sums.values()) / 3 / sum(x.abs().sum() for x in merged.values())
    )
    for layer, values in written(sites, tmp_path / "out").items():
        if layer in merged:
            factor = start + (0.5 if "layer.1." in layer else 0.0)
            torch.testing.assert_close(values, factor * merged[layer], rtol=1e-3, atol=1e-5)


def test_lines_scales_norms_and_biases_with_their_block(
    full_sites: TinySites, tmp_path: Path
) -> None:
    run_methods(full_sites, tmp_path / "plain", "mean")
    run_methods(full_sites, tmp_path / "scaled", "mean+lines")
    base = load_base(full_sites.base).backbone
    plain, scaled = (AutoModel.from_pretrained(tmp_path / n / "model") for n in ("plain", "scaled"))
    for name, factor in (
        ("embeddings.LayerNorm.bias", 1.0),
        ("encoder.layer.0.output.LayerNorm.bias", 1.0),
        ("encoder.layer.1.output.LayerNorm.bias", 1.5),
    ):
        start = base.get_parameter(name)
        once, twice = plain.get_parameter(name) - start, scaled.get_parameter(name) - start
        torch.testing.assert_close(twice, factor * once, rtol=1e-3, atol=1e-6)


def test_a_setting_of_lines_needs_no_table_and_is_listed_with_those_of_the_method() -> None:
    with pytest.raises(ConfigError, match=r"'ties.slop'; known here: density, .*lines.slope"):
        with_overrides(RunSettings(), "ties+lines", ["slop=0.3"])
    for key in ("lines.slope", "slope"):
        assert with_overrides(RunSettings(), "ties+lines", [f"{key}=0.3"]).lines.slope == 0.3


def test_lines_cannot_follow_a_chain() -> None:
    with pytest.raises(ConfigError, match="com does not send"):
        method_named("com+lines", RunSettings())
    assert method_named("regmean++", RunSettings()).name == "regmean++"
