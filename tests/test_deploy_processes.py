"""Programs that die are started again, and nothing outlives the supervisor."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from layerweld.deploy import processes
from layerweld.deploy.processes import Program, Supervisor

_SUPERVISE = """
import os, sys, pathlib
from layerweld.deploy.processes import Program, Supervisor
folder = pathlib.Path(sys.argv[1])
child = f"echo $$ >> {folder}/pids; sleep 600 & echo $! >> {folder}/grandchildren; wait"
Supervisor([Program("child", ["/bin/sh", "-c", child], os.environ)], folder, print).run()
"""


def pids(file: Path, count: int) -> list[int]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = file.read_text().split() if file.exists() else []
        if len(found) >= count:
            return [int(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError(f"{file} has fewer than {count} lines")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(*numbers: int) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not any(alive(pid) for pid in numbers):
            return True
        time.sleep(0.05)
    return False


def supervise(folder: Path) -> Popen[str]:
    command = [sys.executable, "-c", _SUPERVISE, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_program_is_started_again_without_its_old_children(tmp_path: Path) -> None:
    with supervise(tmp_path) as supervisor:
        first, child = pids(tmp_path / "pids", 1)[0], pids(tmp_path / "grandchildren", 1)[0]
        os.kill(first, signal.SIGKILL)
        second = pids(tmp_path / "pids", 2)[1]
        assert gone(first, child)
        assert alive(second)
        supervisor.terminate()
        said, _ = supervisor.communicate(timeout=30)
        assert supervisor.returncode == 0
        assert "child was killed by signal 9; restarting it in 1 s" in said
        assert gone(*pids(tmp_path / "pids", 2), *pids(tmp_path / "grandchildren", 2))


def test_programs_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with supervise(tmp_path) as supervisor:
        first = pids(tmp_path / "pids", 1)[0]
        grandchild = pids(tmp_path / "grandchildren", 1)[0]
        supervisor.kill()
        assert gone(first)
        os.kill(grandchild, signal.SIGKILL)  # Flower's own children watch their parents


def test_what_can_be_done_is_said_from_the_new_part_of_the_log(tmp_path: Path) -> None:
    said = []

    def say(line: str) -> None:
        said.append(line)
        if "ended" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "child.log").write_text("an old mistake\n")
    program = Program("child", ["/bin/sh", "-c", "echo a new one; exit 3"], os.environ, repr)
    Supervisor([program], tmp_path, say).run()
    assert said[1].startswith("child ended with exit code 3 ('a new one\\n')")


def test_a_log_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerweld.deploy.processes._LARGEST_LOG", 1000)

    def say(line: str) -> None:
        if "ended" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    script = "head -c 2000 /dev/zero; sleep 1; echo the end"
    Supervisor([Program("child", ["/bin/sh", "-c", script], os.environ)], tmp_path, say).run()
    assert (tmp_path / "child.log").read_text() == "the end\n"
    assert (tmp_path / "child.older.log").stat().st_size == 2000


def test_what_must_be_started_again_is_at_the_daily_look_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_DAY", 0.5)
    asked: list[Any] = []
    said: list[str] = []

    def tend() -> set[Any]:
        asked.append(len(asked))
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"a"} if len(asked) == 1 else set()

    programs = [Program(name, ["/bin/sleep", "600"], os.environ) for name in ("a", "b")]
    Supervisor(programs, tmp_path, said.append, tend).run()
    assert [line.split()[0] for line in said] == ["a", "b", "a"]
    assert gone(*(int(line.split("process ")[1].split(",")[0]) for line in said))
