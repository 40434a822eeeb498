"""Every method through the federation: declared, refused in time, run and written out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel
from typer.testing import CliRunner

from layerweld.cli import main as cli
from layerweld.errors import CohortError
from layerweld.formats.adapters import read_fine_tuned
from layerweld.merging.registry import METHODS
from layerweld.merging.ties import Ties
from layerweld.merging.tsv import Tsv
from layerweld.model.base_model import load_base
from layerweld.settings.run import RunSettings
from server.run import run as run_server
from tests.run_methods import ONE_ROUND, TARGETS, by_the_kernel, run_methods, settings_of, written
from tests.tiny_peft import edit_tensors, new_model, train_adapter
from tests.tiny_sites import TinySites, make_labelled_sites, make_sites


@pytest.fixture(scope="module")
def sharing_sites(tmp_path_factory: pytest.TempPathFactory) -> TinySites:
    """Equal ranks, and one A for all, as after FFA-LoRA."""
    sites = make_sites(tmp_path_factory.mktemp("sharing"), TARGETS)
    shared: dict[str, Tensor] = {}
    for seed, node in enumerate(sites.nodes):
        train_adapter(new_model("bert"), node["adapter"], TARGETS, seed=seed)
        edit_tensors(f"{node['adapter']}/adapter_model.safetensors", lambda t: _share(t, shared))
    return sites


def _share(tensors: Any, shared: dict[Any, Any]) -> None:
    for name in [name for name in tensors if "lora_A" in name]:
        tensors[name] = shared.setdefault(name, tensors[name])


@pytest.mark.parametrize("name", ONE_ROUND)
def test_a_run_writes_what_the_method_says(
    sites: TinySites, sharing_sites: TinySites, tmp_path: Path, name: Any
) -> None:
    chosen = sharing_sites if METHODS[name].needs else sites
    results = run_methods(chosen, tmp_path / "out", name)
    expected = by_the_kernel(chosen, RunSettings().of_method(name))
    got = written(chosen, tmp_path / "out")
    for layer, values in got.items():
        wanted = expected[layer].dense() if layer in expected else torch.zeros_like(values)
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "out/model").is_dir() == METHODS[name].dense
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    own = RunSettings().of_method(name).model_dump(by_alias=True)
    assert (manifest["method"], manifest["settings"][name]) == (name, own)
    merged = next(method for method in results.methods if method.name == name)
    assert (merged.rounds, merged.groups, merged.label) == (1, (), METHODS[name].label)


@pytest.mark.parametrize("name", ["dare-ties", "knots-dare-ties", "opcm"])
def test_the_order_of_the_sites_does_not_change_a_bit(
    sites: TinySites, tmp_path: Path, name: str
) -> None:
    first = run_methods(sites, tmp_path / "one", name)
    sites.nodes.reverse()
    second = run_methods(sites, tmp_path / "two", name)
    sites.nodes.reverse()
    assert first.manifest_hash == second.manifest_hash


def test_whole_models_are_merged_by_all_methods_that_need_no_lora(
    full_sites: TinySites, tmp_path: Path
) -> None:
    names = [name for name in ONE_ROUND if not METHODS[name].needs]
    results = run_methods(full_sites, tmp_path / "out", ",".join(["tsv", *names]))
    assert [method.name for method in results.methods][1:] == [n for n in names if n != "tsv"]
    expected = by_the_kernel(full_sites, RunSettings().table(Tsv))
    for layer, values in written(full_sites, tmp_path / "out").items():
        torch.testing.assert_close(values, expected[layer].dense(), rtol=1e-3, atol=1e-5)


def test_task_arithmetic_scales_norms_and_biases_and_others_average_them(
    full_sites: TinySites, tmp_path: Path
) -> None:
    base = load_base(full_sites.base)
    other_params = [
        read_fine_tuned(node["adapter"], base).task_vector.other_params for node in full_sites.nodes
    ]
    name = next(name for name in other_params[0] if "LayerNorm" in name)
    total = sum(other_params[name] for other_params in other_params)
    for method, factor in (("task-arithmetic", 0.3), ("ties", 1 / 3)):
        run_methods(full_sites, tmp_path / method, method)
        merged = AutoModel.from_pretrained(tmp_path / method / "model").get_parameter(name)
        difference = merged - base.backbone.get_parameter(name)
        torch.testing.assert_close(difference, factor * total, rtol=1e-3, atol=1e-6)


def test_averages_weigh_sites_by_their_training_samples_not_by_what_was_drawn(
    sharing_sites: TinySites, tmp_path: Path
) -> None:
    data = Path(sharing_sites.nodes[0]["data"])
    few = data.with_name("few.jsonl")
    few.write_text("".join(f"{line}\n" for line in data.read_text().splitlines()[:6]))
    base, changed = sharing_sites.base, [dict(node) for node in sharing_sites.nodes]
    changed[0]["data"] = str(few)
    mixed = TinySites(base, changed, sharing_sites.folder)
    run_methods(mixed, tmp_path / "out", "flora", **{"calibration.samples": 6})
    whole = load_base(base)
    own = [read_fine_tuned(n["adapter"], whole).task_vector.updates for n in changed]
    for layer, values in written(mixed, tmp_path / "out").items():
        shares = (6 / 42, 18 / 42, 18 / 42)
        expected = sum(
            p * of[layer].dense() for p, of in zip(shares, own, strict=True) if layer in of
        )
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)


def test_a_dense_merge_of_loras_is_compressed_to_an_adapter(
    sites: TinySites, tmp_path: Path
) -> None:
    run_methods(sites, tmp_path / "out", "ties", **{"merge.rank": 4})
    metrics = json.loads((tmp_path / "out/manifest.json").read_text())["metrics"]
    assert 0 < metrics["compression error"] < 1
    exact = by_the_kernel(sites, RunSettings().table(Ties))
    got = written(sites, tmp_path / "out")
    lost = sum(float((got[k] - exact[k].dense()).square().sum()) for k in exact)
    whole = sum(float(exact[k].dense().square().sum()) for k in exact)
    assert metrics["compression error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_what_fedit_loses_is_in_the_report_and_in_the_results(
    sharing_sites: TinySites, tmp_path: Path
) -> None:
    run_methods(sharing_sites, tmp_path / "out", "fedit,flora")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["methods"][1]["metrics"] == {"distance to the mean": 0.0}
    assert {"fedit.weighting", "flora.weighting", "merge.ridge"} <= results["settings"].keys()
    assert not any(key.startswith(("ties.", "lines.")) for key in results["settings"])
    assert "distance to the mean" in (tmp_path / "out/report.html").read_text()


REFUSED = [
    ("fedit", {}, "the same layers and ranks at all sites, and ash, birch, cedar have different"),
    ("fedex-lora", {}, "the same layers and ranks at all sites"),
    ("ffa-lora", {}, "one frozen A at all sites, and ash, birch, cedar have different ones"),
    ("consensus", {"consensus.agreement": 4}, "needs 4 sites or more, and there are 3"),
]


@pytest.mark.parametrize(("name", "entries", "says"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_cannot_work_is_refused_before_any_site_computes(
    sites: TinySites,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: Any,
    entries: Any,
    says: Any,
) -> None:
    settings = settings_of(sites, f"com,{name}", **entries)
    asked: list[str] = []
    grid = sites.grid(settings)
    push = grid.push_messages

    def pushing(messages: Any) -> Any:
        sent = list(messages)
        asked.extend(message.metadata.message_type for message in sent)
        return push(sent)

    monkeypatch.setattr(grid, "push_messages", pushing)
    with pytest.raises(CohortError, match=says):
        run_server(grid, settings, str(sites.base), tmp_path / "out")
    assert set(asked) == {"query.handshake"}


@pytest.mark.parametrize("name", ["core-space", "flora", "flexlora"])
def test_whole_models_are_refused_by_methods_for_loras(
    full_sites: TinySites, tmp_path: Path, name: str
) -> None:
    with pytest.raises(CohortError, match=r"ash brings a whole model.*layerweld methods"):
        run_methods(full_sites, tmp_path / "out", name)


def test_sites_that_freeze_a_fine_tune_for_ffa_lora_which_is_then_the_mean(tmp_path: Path) -> None:
    sites = make_labelled_sites(tmp_path)
    for node in sites.nodes:
        node["adapter"] = node["head"] = ""
        del node["held_out"]
    short = {"finetune.max-steps": 2, "finetune.logger": "none"}
    with pytest.raises(CohortError, match=r"trains its own.*finetune\.freeze-a = true"):
        run_methods(sites, tmp_path / "refused", "ffa-lora", **short)
    for method in ("ffa-lora", "mean"):  # the second finds the adapters trained
        run_methods(sites, tmp_path / method, method, **short | {"finetune.freeze-a": True})
    base = load_base(sites.base)
    averaged, mean = (
        read_fine_tuned(tmp_path / name / "adapter", base).task_vector.updates
        for name in ("ffa-lora", "mean")
    )
    assert averaged.keys() == mean.keys()
    for layer, update in averaged.items():
        assert update.rank == RunSettings().finetune.rank
        assert update.dense().norm() > 0
        torch.testing.assert_close(update.dense(), mean[layer].dense(), rtol=1e-4, atol=1e-6)


def test_the_command_line_lists_methods_and_runs_one_with_its_settings(
    sites: TinySites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runner = CliRunner()
    listed = runner.invoke(cli.app, ["methods"], env={"COLUMNS": "200"})
    assert all(name in listed.output for name in METHODS)
    arguments = ["merge", str(sites.base), "--output", str(tmp_path / "out"), "--max-length", "12"]
    for node in sites.nodes:
        arguments += ["--site", f"{node['name']}={node['adapter']}:{node['data']}"]
    done = runner.invoke(cli.app, [*arguments, "--method", "ties", "--set", "density=0.5"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["settings"]["ties"] == {"density": 0.5, "scaling": 1.0}
