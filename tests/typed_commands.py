"""What a test types at a coordinator and at a site."""

from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from layerweld.cli import main as cli
from tests.tiny_sites import TinySites

runner = CliRunner()


def lw(*arguments: Any) -> Result:
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def init_coordinator(*options: Any) -> Result:
    return lw("coordinator", "init", "fed", "--host", "localhost", "--port", 18443, *options)


def things_of(sites: TinySites) -> tuple[Any, ...]:
    node = sites.nodes[0]
    return ("--model", sites.base, "--adapter", node["adapter"], "--data", node["data"])


def init_site(sites: TinySites, *options: Any) -> Result:
    return lw("site", "init", "hospital-a", *(options or things_of(sites)))


def is_private(file: Path) -> bool:
    return file.stat().st_mode & 0o077 == 0
