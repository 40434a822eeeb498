"""Write a benchmark's samples and run file into the user's cache folder, for any command to use.

Example: layerweld compare $(python -m experiments.prepare text) --methods com,ties
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments import backbones
from experiments.tasks import images, texts
from layerweld.demo.federation import prepared
from layerweld.demo.texts import distinct, write_texts

Name = Literal["text", "vision", "language"]

_BENCHMARKS = Path(__file__).parent / "benchmarks"


def run_file(name: str, seed: int = 0) -> Path:
    """The run file of a benchmark: ``benchmarks/<name>.toml`` with its base model and a seed.

    Args:
        name: of the benchmark, one of :data:`Name`.
        seed: of fine-tuning, of the splits and of the calibration samples.

    Raises:
        DataError: a package is not installed.
    """
    tables = tomllib.loads((_BENCHMARKS / f"{name}.toml").read_text(encoding="utf-8"))
    tables = {"base": str(backbones.folder(name)), **tables}
    tables["calibration"] |= {"seed": seed}
    if name == "vision":
        return prepared(tables, lambda task: list(images.READERS[task]()), images.write_images)
    return prepared(tables, lambda task: distinct(texts.READERS[task]()), write_texts)


def main(
    name: Annotated[Name, typer.Argument()],
    seed: Annotated[
        int, typer.Option(help="Of the splits, and the file's `calibration.seed`.")
    ] = 0,
) -> None:
    """Write what is not there yet, and print the path of the run file."""
    typer.echo(run_file(name, seed))


if __name__ == "__main__":
    typer.run(main)
