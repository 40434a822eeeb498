"""The same statistics and the same merge on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from layerweld.statistics.covariate_shift import MomentAccumulator, squared_wasserstein
from layerweld.statistics.gram import GramAccumulator
from tests.tiny_peft import new_model
from tests.tiny_sites import make_sites

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("unit_tokens", [True, False])
def test_gram_matrices_agree(unit_tokens: bool) -> None:
    tokens = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    keep = torch.rand(2, 500, generator=torch.Generator().manual_seed(1)) > 0.2
    grams = []
    for device in ("cpu", "cuda"):
        accumulator = GramAccumulator(64, unit_tokens=unit_tokens, device=device)
        accumulator.update(tokens.to(device), keep.to(device))
        grams.append(accumulator.mean().cpu())
    torch.testing.assert_close(*grams, rtol=1e-12, atol=1e-14)  # float64: no TF32 anywhere


def test_covariate_shifts_agree() -> None:
    shifts = []
    for device in ("cpu", "cuda"):
        moments: list[Any] = []
        for seed in range(2):
            tokens = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(seed))
            accumulator = MomentAccumulator(64, device=device)
            accumulator.update(tokens.to(device), torch.ones(2, 500, dtype=torch.bool).to(device))
            moments += accumulator.moments()
        shifts.append(squared_wasserstein(*moments))
    assert shifts[1] == pytest.approx(shifts[0], rel=1e-8)


def test_a_merge_measured_on_a_gpu_is_the_merge(tmp_path: Path) -> None:
    sites = make_sites(tmp_path, ["query", "value", "output.dense"])
    merged = []
    for device in ("cpu", "cuda"):
        settings = sites.settings()
        calibration = settings.calibration.model_copy(update={"device": device})
        settings = settings.model_copy(update={"calibration": calibration})
        output = tmp_path / device
        sites.run_with(settings, output)
        wrapped = PeftModel.from_pretrained(new_model("bert"), output / "adapter")
        modules = [m for m in wrapped.modules() if hasattr(m, "get_delta_weight")]
        merged.append([module.get_delta_weight("default") for module in modules])
    for on_cpu, on_gpu in zip(*merged, strict=True):
        torch.testing.assert_close(on_cpu, on_gpu, rtol=1e-3, atol=1e-4)
