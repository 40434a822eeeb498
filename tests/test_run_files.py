"""Run files of one's own sites: what is missing, shared or unusable is said, and by whose name."""

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from layerweld.cli import main as cli
from layerweld.errors import ConfigError, DataError
from tests.tiny_sites import TinySites, make_labelled_sites, read_samples, write_samples


@pytest.fixture
def sites(tmp_path: Path) -> TinySites:
    return make_labelled_sites(tmp_path)


def simulate(sites: TinySites, folder: Path, *, base: bool = True) -> str:
    """Run a run file of these sites."""
    lines = [f'cache = "{sites.folder / "cache"}"', *([f'base = "{sites.base}"'] if base else [])]
    lines += ["[calibration]", "max-length = 12", "batch-size = 8", "threads = 1"]
    for node in sites.nodes:
        entries = {key.replace("_", "-"): value for key, value in node.items()}
        lines += ["[[sites]]", *(f'{key} = "{value}"' for key, value in entries.items())]
    (folder / "run.toml").write_text("\n".join(lines))
    arguments = ["simulate", str(folder / "run.toml"), "--output", str(folder / "out")]
    result = CliRunner().invoke(cli.app, arguments)
    if result.exception:
        raise result.exception
    return result.output


def accuracies(folder: Path) -> dict[Any, Any]:
    results = json.loads((folder / "out/results.json").read_text())
    return {method["name"]: method["scores"] for method in results["methods"]}


def test_sites_that_cannot_be_evaluated_at_are_named(sites: TinySites, tmp_path: Path) -> None:
    del sites.nodes[1]["held_out"]
    said = " ".join(simulate(sites, tmp_path).split())
    assert "warning: no accuracy will be measured, since birch cannot" in said
    assert accuracies(tmp_path) == {"com": {}}
    page = (tmp_path / "out/report.html").read_text()
    assert "where every site has labelled" in page


def test_a_file_without_a_base_model_is_not_run_on_another(
    sites: TinySites, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml names no base model; set `base`"):
        simulate(sites, tmp_path, base=False)


def test_one_head_beside_two_adapters_is_nobodys_until_it_is_named(
    sites: TinySites, tmp_path: Path
) -> None:
    shared = tmp_path / "adapters"
    shared.mkdir()
    for node in sites.nodes:
        own = Path(node["adapter"])
        own.rename(shared / node["name"])
        node["adapter"] = str(shared / node["name"])
    shutil.copy(tmp_path / "ash-site/head.safetensors", shared)
    with pytest.raises(
        ConfigError, match=r"is beside the adapters of both ash and birch; .*`head`"
    ):
        simulate(sites, tmp_path)
    for node in sites.nodes:
        node["head"] = str(tmp_path / f"{node['name']}-site/head.safetensors")
    simulate(sites, tmp_path)
    assert list(accuracies(tmp_path)["com"]) == ["ash", "birch", "cedar"]


def test_a_site_may_call_its_columns_otherwise_and_the_merge_is_the_same(
    sites: TinySites, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    simulate(sites, tmp_path)
    node = sites.nodes[1]
    own = [{"body": s["text"], "class": s["label"]} for s in read_samples(node["data"])]
    write_samples(again / "body.jsonl", own)
    node |= dict.fromkeys(("data", "held_out"), str(again / "body.jsonl"))
    node |= {"text_column": "body", "label_column": "class"}
    simulate(sites, again)
    made = "out/adapter/adapter_model.safetensors"
    assert (again / made).read_bytes() == (tmp_path / made).read_bytes()
    assert accuracies(again) == accuracies(tmp_path)


def test_an_error_at_a_site_has_its_name_and_what_it_was_asked(
    sites: TinySites, tmp_path: Path
) -> None:
    Path(sites.nodes[2]["data"]).write_text("")
    with pytest.raises(DataError) as raised:
        simulate(sites, tmp_path)
    assert raised.value.__notes__ == ["at site cedar, in the handshake"]


def test_the_report_and_the_card_load_a_merge_in_the_same_way(
    sites: TinySites, tmp_path: Path
) -> None:
    simulate(sites, tmp_path)
    card = (tmp_path / "out/adapter/README.md").read_text()
    code = card.partition("```python\n")[2].partition("\n```")[0]
    assert code.startswith("from peft import PeftModel")
    assert code in html.unescape((tmp_path / "out/report.html").read_text())
