"""Does the demo's adapter, loaded by PEFT alone, score what the report says?

Example: python -m experiments.check_demo_adapter demo-output
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from peft import PeftModel
from transformers import AutoModel

from layerweld.base_model import BaseModel
from layerweld.config import read_run_settings
from layerweld.demo import base_folder
from layerweld.launch import app_module


def main(
    output: Annotated[Path, typer.Argument(help="Folder that `layerweld demo` wrote.")],
) -> None:
    """Evaluate PEFT's model with every site's own head, and compare with results.json."""
    results = json.loads((output / "results.json").read_text())
    settings = read_run_settings(results["settings"])
    reported = next(m for m in results["methods"] if m["name"] == results["chosen"])["scores"]
    model = AutoModel.from_pretrained(base_folder(), add_pooling_layer=False)
    wrapped = PeftModel.from_pretrained(model, output / "adapter").eval()
    merged = BaseModel(base_folder(), wrapped.get_base_model(), "demo")
    for site in app_module("client.site").demo_sites():
        state = app_module("client.state").SiteState(site, settings, run="check")
        head = app_module("client.heads").load_head(state.head_file)
        accuracy, _ = app_module("client.evaluate").accuracy(
            merged, head, state.held_out, settings.evaluate
        )
        expected = reported[site.name]["accuracy"]
        verdict = "as reported" if accuracy == expected else f"but the report says {expected:.4f}"
        print(f"{site.name}: {accuracy:.4f}, {verdict}")


if __name__ == "__main__":
    typer.run(main)
