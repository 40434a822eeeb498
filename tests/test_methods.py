"""Every method through the federation: declared, refused in time, played and written out."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from layerweld import cli
from layerweld.base_model import load_base
from layerweld.config import RunSettings, read_run_settings
from layerweld.discover import discover_plan
from layerweld.errors import CohortError, ConfigError
from layerweld.launch import app_folder, app_module
from layerweld.linear import weight_of
from layerweld.merging.sums import TaskArithmetic
from layerweld.method_table import defaults_of
from layerweld.methods import METHODS, method_named, methods_of
from layerweld.overrides import with_overrides
from layerweld.task_vectors import read_fine_tuned
from tests.random_updates import side_by_side
from tests.tiny_peft import edit_tensors, new_model, train_adapter
from tests.tiny_sites import TinySites, make_labelled_sites, make_sites, with_whole_models

TARGETS = ["query", "value", "output.dense"]
ONE_ROUND = [name for name, method in METHODS.items() if method.from_updates]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("sites"), TARGETS)


@pytest.fixture(scope="module")
def sharing_sites(tmp_path_factory):
    """Equal ranks, and one A for all, as after FFA-LoRA."""
    sites = make_sites(tmp_path_factory.mktemp("sharing"), TARGETS)
    shared = {}
    for seed, node in enumerate(sites.nodes):
        train_adapter(new_model("bert"), node["adapter"], TARGETS, seed=seed)
        edit_tensors(f"{node['adapter']}/adapter_model.safetensors", lambda t: _share(t, shared))
    return sites


def _share(tensors, shared):
    for name in [name for name in tensors if "lora_A" in name]:
        tensors[name] = shared.setdefault(name, tensors[name])


@pytest.fixture(scope="module")
def full_sites(tmp_path_factory):
    """Three sites that fine-tuned the whole model."""
    return with_whole_models(make_sites(tmp_path_factory.mktemp("full"), TARGETS))


def settings_of(sites, methods, **entries):
    flat = sites.settings().flat() | {"methods": methods} | entries
    return read_run_settings(flat)


def play(sites, output, methods, **entries):
    settings = settings_of(sites, methods, **entries)
    return app_module("server.run").play(sites.grid(settings), settings, str(sites.base), output)


def written(sites, output):
    """ΔW of every layer that the run wrote, as PEFT or transformers reads it."""
    if (output / "adapter").is_dir():
        wrapped = PeftModel.from_pretrained(new_model("bert"), output / "adapter")
        return {
            name.removeprefix("base_model.model.bert."): module.get_delta_weight("default")
            for name, module in wrapped.named_modules()
            if hasattr(module, "get_delta_weight")
        }
    base, merged = load_base(sites.base), AutoModel.from_pretrained(output / "model")
    layers = discover_plan(base.backbone).layer_names
    return {
        name: weight_of(merged.get_submodule(name)) - weight_of(base.backbone.get_submodule(name))
        for name in layers
    }


def by_the_kernel(sites, method):
    base = load_base(sites.base)
    vectors = {
        node["name"]: read_fine_tuned(node["adapter"], base).task_vector.updates
        for node in sites.nodes
    }
    laid_out = side_by_side({name: dict(of) for name, of in vectors.items()})
    in_order = {
        k: laid_out.layers[k]
        for k in discover_plan(base.backbone).layer_names
        if k in laid_out.layers
    }
    return method.merge(type(laid_out)(dict.fromkeys(laid_out.samples, 18), in_order)).updates


@pytest.mark.parametrize("name", ONE_ROUND)
def test_a_run_writes_what_the_method_says(sites, sharing_sites, tmp_path, name):
    chosen = sharing_sites if METHODS[name].needs else sites
    results = play(chosen, tmp_path / "out", name)
    expected = by_the_kernel(chosen, RunSettings().of_method(name))
    got = written(chosen, tmp_path / "out")
    for layer, values in got.items():
        wanted = expected[layer].dense() if layer in expected else torch.zeros_like(values)
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    own = RunSettings().of_method(name).model_dump(by_alias=True)
    assert (manifest["method"], manifest["settings"][name]) == (name, own)
    merged = next(method for method in results.methods if method.name == name)
    assert (merged.rounds, merged.groups, merged.label) == (1, (), METHODS[name].label)


@pytest.mark.parametrize("name", ["dare-ties", "knots-dare-ties", "opcm"])
def test_the_order_of_the_sites_does_not_change_a_bit(sites, tmp_path, name):
    first = play(sites, tmp_path / "one", name)
    sites.nodes.reverse()
    second = play(sites, tmp_path / "two", name)
    sites.nodes.reverse()
    assert first.manifest_hash == second.manifest_hash


def test_whole_models_are_merged_by_all_methods_that_need_no_lora(full_sites, tmp_path):
    names = [name for name in ONE_ROUND if not METHODS[name].needs]
    results = play(full_sites, tmp_path / "out", ",".join(["tsv", *names]))
    assert [method.name for method in results.methods][1:] == [n for n in names if n != "tsv"]
    expected = by_the_kernel(full_sites, RunSettings().tsv)
    for layer, values in written(full_sites, tmp_path / "out").items():
        torch.testing.assert_close(values, expected[layer].dense(), rtol=1e-3, atol=1e-5)


def test_task_arithmetic_scales_norms_and_biases_and_others_average_them(full_sites, tmp_path):
    base = load_base(full_sites.base)
    remainders = [
        read_fine_tuned(node["adapter"], base).task_vector.remainder for node in full_sites.nodes
    ]
    name = next(name for name in remainders[0] if "LayerNorm" in name)
    total = sum(remainder[name] for remainder in remainders)
    for method, factor in (("task-arithmetic", 0.3), ("ties", 1 / 3)):
        play(full_sites, tmp_path / method, method)
        merged = AutoModel.from_pretrained(tmp_path / method / "model").get_parameter(name)
        difference = merged - base.backbone.get_parameter(name)
        torch.testing.assert_close(difference, factor * total, rtol=1e-3, atol=1e-6)


def test_lines_scales_a_merge_from_block_to_block(sites, tmp_path):
    play(sites, tmp_path / "plain", "mean")
    play(sites, tmp_path / "scaled", "mean+lines", **{"lines.slope": 0.5})
    figures = json.loads((tmp_path / "scaled/manifest.json").read_text())["figures"]
    assert figures["scale of the first block"] == pytest.approx(1)  # of the mean it is ‖Σ‖/N‖mean‖
    plain, scaled = written(sites, tmp_path / "plain"), written(sites, tmp_path / "scaled")
    for layer, values in plain.items():
        factor = 1.5 if "layer.1." in layer else 1.0
        torch.testing.assert_close(scaled[layer], factor * values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "task-arithmetic"])
def test_lines_takes_the_place_of_a_methods_own_scaling(sites, tmp_path, name):
    """α is ``‖Σ ΔW‖₁ / (N ‖ΔW_M‖₁)`` of the merge without λ, as the authors' code has it."""
    play(sites, tmp_path / "out", f"{name}+lines", **{f"{name}.scaling": 0.1, "lines.slope": 0.5})
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


def test_averages_weigh_sites_by_their_training_rows_not_by_what_was_drawn(sharing_sites, tmp_path):
    rows = Path(sharing_sites.nodes[0]["data"])
    few = rows.with_name("few.jsonl")
    few.write_text("".join(f"{line}\n" for line in rows.read_text().splitlines()[:6]))
    base, changed = sharing_sites.base, [dict(node) for node in sharing_sites.nodes]
    changed[0]["data"] = str(few)
    mixed = TinySites(base, changed, sharing_sites.folder)
    play(mixed, tmp_path / "out", "flora", **{"calibration.samples": 6})
    base = load_base(base)
    own = [read_fine_tuned(n["adapter"], base).task_vector.updates for n in changed]
    for layer, values in written(mixed, tmp_path / "out").items():
        shares = (6 / 42, 18 / 42, 18 / 42)
        expected = sum(
            p * of[layer].dense() for p, of in zip(shares, own, strict=True) if layer in of
        )
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)


RAW = {"merge.normalization": "none", "merge.importance": "uniform", "merge.ridge": 1e-3}


def test_regmean_measures_each_site_in_its_own_model_with_its_own_norms(full_sites, tmp_path):
    layer = "encoder.layer.1.attention.self.query"
    play(full_sites, tmp_path / "out", "regmean", **RAW)
    base, grams, updates = load_base(full_sites.base), [], []
    for node in full_sites.nodes:
        own = AutoModel.from_pretrained(node["adapter"]).eval()
        grams.append(gram_of(own, full_sites, node, layer))
        updates.append(read_fine_tuned(node["adapter"], base).task_vector.updates[layer])
    got = written(full_sites, tmp_path / "out")[layer]
    torch.testing.assert_close(got, slow_regmean(grams, updates), rtol=1e-3, atol=1e-4)


def test_regmean_measures_behind_blocks_that_no_adapter_touches(tmp_path):
    layer = "encoder.layer.1.attention.self.query"
    sites = make_sites(tmp_path / "sites", ["layer.1.attention.self.query"])
    play(sites, tmp_path / "out", "regmean", **RAW)
    base, grams, updates = load_base(sites.base), [], []
    for node in sites.nodes:
        own = read_fine_tuned(node["adapter"], base).task_vector.updates
        assert list(own) == [layer]  # and so its inputs are the base model's
        grams.append(gram_of(base.backbone, sites, node, layer))
        updates.append(own[layer])
    got = written(sites, tmp_path / "out")[layer]
    torch.testing.assert_close(got, slow_regmean(grams, updates), rtol=1e-3, atol=1e-4)


def slow_regmean(grams, updates, ridge=1e-3):
    products = sum(u.dense().double() @ gram for u, gram in zip(updates, grams, strict=True))
    system = sum(grams)
    system = system + ridge * system.trace() / len(system) * torch.eye(len(system)).double()
    return torch.linalg.solve(system, products.T).T.float()


def gram_of(model, sites, node, layer):
    """Mean Gram matrix of a layer's inputs at the real tokens, a row at a time."""
    tokenizer, seen = AutoTokenizer.from_pretrained(sites.base), []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    for line in Path(node["data"]).read_text().splitlines():
        text = json.loads(line)["text"]
        model(**tokenizer(text, truncation=True, max_length=12, return_tensors="pt"))
    hook.remove()
    tokens = torch.cat([inputs[0] for inputs in seen]).detach().double()
    return tokens.T @ tokens / len(tokens)


def test_lines_scales_norms_and_biases_with_their_block(full_sites, tmp_path):
    play(full_sites, tmp_path / "plain", "mean")
    play(full_sites, tmp_path / "scaled", "mean+lines")
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


def test_a_dense_merge_of_loras_is_compressed_to_an_adapter(sites, tmp_path):
    play(sites, tmp_path / "out", "ties", **{"merge.rank": 4})
    figures = json.loads((tmp_path / "out/manifest.json").read_text())["figures"]
    assert 0 < figures["compression error"] < 1
    exact = by_the_kernel(sites, RunSettings().ties)
    got = written(sites, tmp_path / "out")
    lost = sum(float((got[k] - exact[k].dense()).square().sum()) for k in exact)
    whole = sum(float(exact[k].dense().square().sum()) for k in exact)
    assert figures["compression error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_what_fedit_loses_is_in_the_report_and_in_the_results(sharing_sites, tmp_path):
    play(sharing_sites, tmp_path / "out", "fedit,flora")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["methods"][1]["figures"] == {"distance to the mean": 0.0}
    assert {"fedit.weighting", "flora.weighting", "merge.ridge"} <= results["settings"].keys()
    assert not any(key.startswith(("ties.", "lines.")) for key in results["settings"])
    assert "distance to the mean" in (tmp_path / "out/report.html").read_text()


def test_mats_descends_from_the_mean_to_regmean(sites, tmp_path):
    calibrated = {"merge.importance": "uniform"}
    for name, entries in {
        "regmean": {"merge.ridge": 1e-5, "merge.anchor": "mean"},  # LayerNorm leaves S singular
        "mats": {"merge.iterations": 500},
        "short": {"merge.iterations": 1},
        "dense": {"merge.iterations": 1, "merge.products": "dense"},
    }.items():
        play(sites, tmp_path / name, name if name == "regmean" else "mats", **calibrated | entries)
    exact, far, near = (written(sites, tmp_path / name) for name in ("regmean", "mats", "short"))
    dense = written(sites, tmp_path / "dense")
    means = by_the_kernel(sites, RunSettings().mean)
    for layer, values in exact.items():
        assert (far[layer] - values).norm() < 0.05 * values.norm()
        whole = (means[layer].dense() - values).norm()
        assert (near[layer] - values).norm() < whole
        torch.testing.assert_close(dense[layer], near[layer], rtol=1e-3, atol=1e-4)


REFUSED = [
    ("fedit", {}, "birch adapted other layers than ash, or with other ranks"),
    ("fedex-lora", {}, "other ranks"),
    ("ffa-lora", {}, "birch has another than ash"),
    ("consensus", {"consensus.agreement": 4}, "needs 4 sites or more, and there are 3"),
]


@pytest.mark.parametrize(("name", "entries", "says"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_cannot_work_is_refused_before_any_site_computes(
    sites, tmp_path, monkeypatch, name, entries, says
):
    settings = settings_of(sites, f"com,{name}", **entries)
    grid, asked = sites.grid(settings), []
    push = grid.push_messages
    monkeypatch.setattr(
        grid,
        "push_messages",
        lambda messages: push(asked.append(m.metadata.message_type) or m for m in messages),
    )
    with pytest.raises(CohortError, match=says):
        app_module("server.run").play(grid, settings, str(sites.base), tmp_path / "out")
    assert set(asked) == {"query.handshake"}


@pytest.mark.parametrize("name", ["core-space", "flora", "flexlora"])
def test_whole_models_are_refused_by_methods_for_loras(full_sites, tmp_path, name):
    with pytest.raises(CohortError, match=r"ash brings a whole model.*layerweld methods"):
        play(full_sites, tmp_path / "out", name)


def test_an_unknown_method_and_an_unknown_setting_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"'tie'; known: chain, com, .*ties"):
        methods_of(RunSettings(methods="tie"))
    with pytest.raises(ConfigError, match=r"'ties.densty'; known here: density, scaling"):
        with_overrides(RunSettings(), "ties", ["densty=0.1"])
    with pytest.raises(ConfigError, match=r"ties.density = 2.0: .*less than or equal to 1"):
        with_overrides(RunSettings(), "ties", ["density=2.0"])
    with pytest.raises(ConfigError, match=r"'dare-ties.dorp'; known here: drop, scaling, seed"):
        with_overrides(RunSettings(), "dare-ties", ["dorp=0.1"])
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        with_overrides(RunSettings(), "ties", ["density"])


def test_a_misplaced_setting_of_lines_is_shown_its_place():
    with pytest.raises(ConfigError, match=r"'ties.slope'; known here: density, .*, lines.slope$"):
        with_overrides(RunSettings(), "ties+lines", ["slope=0.3"])
    assert with_overrides(RunSettings(), "ties+lines", ["lines.slope=0.3"]).lines.slope == 0.3


def test_lines_cannot_follow_a_chain():
    with pytest.raises(ConfigError, match="com does not send"):
        method_named("com+lines", RunSettings())
    assert method_named("regmean++", RunSettings()).name == "regmean++"


@pytest.mark.parametrize(
    ("method", "entries"),
    [
        ("ties", ["merge.ridge=0.5"]),
        ("ties", ["tsv.scaling=2.0"]),
        ("ties", ["lines.slope=0.3"]),
        ("com", ["granularity=block"]),
        ("com", ["rounds=3"]),
        ("chain", ["merge.rounds=3"]),
        ("regmean", ["iterations=5"]),
        ("mats", ["ridge=0.5"]),
    ],
)
def test_a_setting_that_the_method_does_not_read_is_an_error(method, entries):
    key = entries[0].partition("=")[0]
    with pytest.raises(ConfigError, match=rf"--set {key} has no effect on .*leave it out"):
        with_overrides(RunSettings(), method, entries)


@pytest.mark.parametrize(
    ("method", "entries"),
    [
        ("ties", ["merge.rank=4", "calibration.samples=9", "evaluate.batch_size=8"]),
        ("com", ["granularity=group", "max_share=0.5"]),
        ("jacobi", ["rounds=3"]),
        ("chain", ["granularity=jacobi", "rounds=3"]),
        ("chain", ["solver=gradients", "iterations=5"]),
        ("mats", ["iterations=5"]),
        ("adamerging++", ["seed=3"]),
        ("ties, com", ["density=0.5", "merge.ridge=0.1"]),
    ],
)
def test_what_a_method_reads_may_be_set(method, entries):
    assert with_overrides(RunSettings(), method, entries) != RunSettings()


@pytest.mark.parametrize(
    "entries", [["ridge=0.5", "merge.ridge=1"], ["max-share=1", "max_share=1"]]
)
def test_a_setting_that_is_given_twice_is_an_error(entries):
    with pytest.raises(ConfigError, match=r"--set .* and --set .* are the same setting"):
        with_overrides(RunSettings(), "com", entries)


def test_overrides_go_to_the_methods_table_unless_they_name_one():
    settings = with_overrides(
        RunSettings(), "core-space+lines", ["inner=ties", "isotropic=true", "lines.slope=0.2"]
    )
    assert (settings.core_space.inner, settings.core_space.isotropic) == ("ties", True)
    assert settings.lines.slope == 0.2
    assert with_overrides(RunSettings(), "com", ["ridge=0.5"]).merge.ridge == 0.5


def test_the_app_declares_every_setting_of_every_method_with_its_default():
    app = tomllib.loads((app_folder() / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    declared = app["config"]
    defaults = RunSettings()
    flat = {f"{t}.{k}" for t, of in declared.items() if isinstance(of, dict) for k in of}
    assert flat == {key for key in defaults.flat() if "." in key}
    for name in ONE_ROUND:
        own = defaults.of_method(name).model_dump(by_alias=True)
        assert declared.get(name, {}) == own, name
    for table in ("lines", "fisher"):
        assert declared[table] == getattr(defaults, table).model_dump(by_alias=True)


def test_the_documentation_has_a_row_for_every_method_with_its_defaults():
    text = (app_folder() / "docs/methods.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert rows.keys() == METHODS.keys()
    for name, method in METHODS.items():
        assert f"| {defaults_of(method)} |" in rows[name], name
        assert ("| Σ |" in rows[name]) == method.sums, name
        assert rows[name].endswith(f"| {method.source} |"), name


def test_sites_that_freeze_a_fine_tune_for_ffa_lora_which_is_then_the_mean(tmp_path):
    sites = make_labelled_sites(tmp_path)
    for node in sites.nodes:
        node["adapter"] = node["head"] = ""
        del node["held_out"]
    short = {"finetune.max-steps": 2, "finetune.logger": "none"}
    with pytest.raises(CohortError, match=r"trains one of its own.*finetune\.freeze-a = true"):
        play(sites, tmp_path / "refused", "ffa-lora", **short)
    for method in ("ffa-lora", "mean"):  # the second finds the adapters trained
        play(sites, tmp_path / method, method, **short | {"finetune.freeze-a": True})
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


def test_the_command_line_lists_methods_and_plays_one_with_its_settings(
    sites, tmp_path, monkeypatch
):
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
