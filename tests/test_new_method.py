"""The recipe for a new merge method, followed: one file, and its place in the registry."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_sites import make_sites

ROOT = Path(__file__).parents[1]
FIRST = '''"""The update of the site whose name comes first."""

from layerweld.merging.method import Method
from layerweld.merging.one_round import Merge, MergeMethod, SiteUpdates, layer_by_layer
from layerweld.settings_table import Positive


class First(MergeMethod):
    """The first site's update (an example)."""

    scaling: Positive = 0.5
    """λ on the update."""

    def merge(self, sites: SiteUpdates) -> Merge:
        """In each layer, of the sites that changed it."""
        return layer_by_layer(sites, lambda updates: updates[0] * self.scaling)


METHODS = (Method("first", "First site", "an example", "λ ΔW_1", First, tune={"scaling": (1.0,)}),)
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout to which a method was added as the recipe says."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("layerweld", "server", "client", "strategies", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "layerweld/merging/first.py").write_text(FIRST)
    registry = copy / "layerweld/merging/registry.py"
    text = registry.read_text()
    for after, with_it in {
        "    fisher,\n": "    fisher,\n    first,\n",
        "sums, ties,": "sums, ties, first,",
    }.items():
        assert text.count(after) == 1
        text = text.replace(after, with_it)
    registry.write_text(text)
    run(copy, "layerweld.settings.reference")
    return copy


def run(checkout: Path, module: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "160"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=checkout, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_documents_have_it(checkout: Path) -> None:
    for file, line in {
        "docs/methods.md": "| `first` | λ ΔW_1 | | LoRA | | scaling=0.5 | an example |",
        "docs/settings.md": "## `[first]`",
        "pyproject.toml": "[tool.flwr.app.config.first]\nscaling = 0.5\n",
    }.items():
        before, after = ((root / file).read_text() for root in (ROOT, checkout))
        assert line not in before
        assert line in after


def test_the_command_line_knows_it_and_merges_with_it(checkout: Path, tmp_path: Path) -> None:
    shown = run(checkout, "layerweld", "methods", "first+lines")
    assert "First site + LiNeS, an example" in shown
    sites = make_sites(tmp_path, ["query", "value"])
    arguments = [
        argument
        for node in sites.nodes
        for argument in ("--site", f"{node['name']}={node['adapter']}:{node['data']}")
    ]
    output = tmp_path / "out"
    typed = ["--output", str(output), "--method", "first", "--set", "scaling=0.25"]
    run(checkout, "layerweld", "merge", str(sites.base), *arguments, *typed)
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["method"], manifest["settings"]["first"]) == ("first", {"scaling": 0.25})
    assert (output / "adapter").is_dir()
