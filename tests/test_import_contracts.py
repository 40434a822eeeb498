"""The import contracts name every part of the library, and every import is one that they see."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENTRY = {"__init__", "__main__"}


def test_every_part_of_the_library_has_its_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    named = {name for layer in layers for name in re.findall(r"layerweld\.(\w+)", layer)}
    folder = ROOT / "layerweld"
    packages = {file.parent.name for file in folder.glob("*/__init__.py")}
    modules = {file.stem for file in folder.glob("*.py")}
    assert named == (packages | modules) - ENTRY


def test_no_module_of_ours_is_reached_by_a_string() -> None:
    by_string = re.compile(
        r"(_module|__import__)\(\s*f?['\"](layerweld|server|client|strategies)\b"
    )
    for folder in ("layerweld", "server", "client", "strategies", "experiments", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not by_string.search(file.read_text()), file
