"""Signals from outside end a run in order: said, recorded, and nothing held."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_sites import make_sites


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "interrupted from the keyboard"),
        (signal.SIGTERM, 143, "told to end (SIGTERM)"),
        (signal.SIGHUP, 129, "its terminal is gone"),
    ],
)
def test_an_interrupted_run_says_why_and_how_to_go_on(
    tmp_path: Path, number: Any, code: int, says: str
) -> None:
    sites = make_sites(tmp_path / "sites", ["query", "value"])
    options = [f"--site={n['name']}={n['adapter']}:{n['data']}" for n in sites.nodes]
    output = tmp_path / "out"
    command = [sys.executable, "-m", "layerweld", "merge", str(sites.base), *options,
               f"--output={output}", "--set=calibration.threads=1"]  # fmt: skip
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (output / "state.json").is_file():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    run.send_signal(number)
    _, printed = run.communicate(timeout=60)
    assert run.returncode == code
    assert printed.splitlines()[-2:] == [
        f"layerweld: {says}", "next: type the same command: the run resumes"
    ]  # fmt: skip
    state = json.loads((output / "state.json").read_text())
    assert (state["status"], state["exit_code"], state["cause"]) == ("failed", code, says)
    assert not list(tmp_path.glob(".*.lock"))
