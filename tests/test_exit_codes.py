"""Every error ends in a state of its own, and the document lists them all."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import click
import pytest
import typer

from layerweld import errors
from layerweld.cli import main as cli
from layerweld.runtime.incidents import Code

DOCUMENT = Path(__file__).parents[1] / "docs/exit-codes.md"


def kinds() -> list[Any]:
    found, ahead = [], [errors.LayerweldError]
    while ahead:
        kind = ahead.pop()
        found.append(kind)
        ahead += kind.__subclasses__()
    return [
        kind for kind in found if "exit_code" in vars(kind) and kind is not errors.LayerweldError
    ]


def test_every_kind_of_error_has_its_own_exit_code() -> None:
    codes = [kind.exit_code for kind in kinds()]
    assert len({*codes}) == len(codes) == 16
    assert not {*codes} & {0, errors.UNFORESEEN, 2, 129, 130, 141, 143}


def test_the_document_is_the_table_in_the_code() -> None:
    text = DOCUMENT.read_text()
    rows = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"\| (\d+) \| `(\w+)` \| (.+?) \| (.+?) \|", line):
            rows[match[2]] = (int(match[1]), match[3], match[4])
    assert rows == {
        kind.__name__: (kind.exit_code, kind.__doc__.splitlines()[0], kind.next_step)
        for kind in kinds()
    }
    for code in Code:
        assert f"| E{int(code)} | {code.meaning} |" in text


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_command_ends_with_the_cause_the_next_step_and_the_code(
    kind: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_options: Any) -> None:
        raise kind("what went wrong")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == kind.exit_code
    assert capsys.readouterr().err == f"layerweld: what went wrong\nnext: {kind.next_step}\n"


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("layerweld.model.base_model.load_base", interrupt)
    monkeypatch.setattr(sys, "argv", ["layerweld", "plan", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130


def commands(command: Any = None, *path: Path) -> Iterator[tuple[Any, ...]]:
    """All commands, by what is typed for them."""
    command = command or typer.main.get_command(cli.app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


def misuses() -> Iterator[Any]:
    """Every command line that cannot be meant: of each command, of each option and argument."""
    for path, command in commands():
        yield (*path, "--no-such-option")
        yield (*path, "--no-such\noption")
        if isinstance(command, click.Group):
            yield path
            yield (*path, "no-such-command")
            continue
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        yield (*path, *["x"] * (len(arguments) + 1))
        if any(p.required for p in command.params):
            yield path
        for option in command.params:
            if not isinstance(option, click.Option) or option.is_flag or "--help" in option.opts:
                continue
            yield (*path, *["x"] * len(arguments), option.opts[0])
            if not isinstance(option.type, click.types.StringParamType | click.types.Path):
                yield (*path, *["x"] * len(arguments), option.opts[0], "no\nsuch value")


def listed() -> set[Any]:
    """The codes of the document."""
    return {int(code) for code in re.findall(r"^\| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE)}


def end_of(
    typed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str | int | None, str, str]:
    """Exit code and the last two lines of a command line, which are checked for their form."""
    monkeypatch.setattr(sys, "argv", ["layerweld", *typed])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    *_, cause, step = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"layerweld: \S.*", cause), typed
    assert re.fullmatch(r"next: \S.*", step), typed
    assert stopped.value.code in listed()
    return stopped.value.code, cause, step


def test_every_command_line_that_cannot_be_meant_ends_with_2_and_says_where_help_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = 0
    for typed in misuses():
        code, _, step = end_of(typed, monkeypatch, capsys)
        assert code == 2, typed
        command = " ".join(["layerweld", *typed])
        assert re.fullmatch(r"next: look at `layerweld( \S+)* --help`", step), typed
        assert command.startswith(step.split("`")[1].removesuffix(" --help"))
        tried += 1
    print(tried, "command lines")
    assert tried > 100
    assert not list(tmp_path.iterdir())


def test_every_command_without_what_it_needs_ends_with_a_code_of_the_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, command in commands():
        if isinstance(command, click.Group) or path in [("methods",), ("demo",)]:
            continue
        needed = [p for p in command.params if p.required]
        typed = [a for p in needed if isinstance(p, click.Option) for a in (p.opts[0], "x=y:z")]
        typed += ["localhost:1" for p in needed if isinstance(p, click.Argument)]
        code = end_of((*path, *typed), monkeypatch, capsys)[0]
        assert code not in (0, errors.UNFORESEEN), (path, typed)


@pytest.mark.parametrize("error", [ValueError("a row\nof two lines"), RecursionError(), OSError(5)])
def test_an_error_nobody_foresaw_ends_with_its_traceback_a_cause_and_what_to_do(
    error: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_options: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == errors.UNFORESEEN
    assert said[0].startswith("Traceback")
    assert said[-2].startswith(f"layerweld: {type(error).__name__}: ")
    assert said[-1] == "next: report it, with the traceback"


def typed_in_a_shell(line: str, **options: Any) -> CompletedProcess[Any]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env=os.environ | {"LW": f"{sys.executable} -m layerweld"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("line", "code", "cause"),
    [
        ("$LW methods | true", 141, "nobody reads what it prints any more"),
        ("$LW --help | true", 141, "nobody reads what it prints any more"),
        ("$LW methods > /dev/full", 12, "standard output cannot be written"),
        ("$LW methods >&-", 0, ""),
        ("PYTHONIOENCODING=ascii $LW methods", 0, ""),
        ("$LW methods nix 2> /dev/full", 3, ""),
        ("$LW methods nix 2>&1 | true", 3, ""),
    ],
)
def test_where_nothing_can_be_printed_a_command_still_ends_in_order(
    line: str, code: int, cause: str
) -> None:
    done = typed_in_a_shell(line)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if cause:
        assert done.stderr.splitlines()[-2].startswith(f"layerweld: {cause}")
        assert done.stderr.splitlines()[-1].startswith("next: ")


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL])
def test_what_ends_at_once_says_nothing_and_has_128_and_the_signal(number: Any) -> None:
    assert 128 + number in (131, 137)
    assert f"{128 + number} {number.name}" in DOCUMENT.read_text()


def test_following_a_run_that_is_interrupted_says_that_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerweld.deploy import coordinator_commands, runs

    follow: Any = coordinator_commands._follow

    for stops, code in ((KeyboardInterrupt(), 130), (SystemExit(143), 143), (SystemExit(129), 129)):

        def stop(*_given: Any, stops: KeyboardInterrupt | SystemExit = stops) -> None:
            raise stops

        monkeypatch.setattr(runs, "follow_run", stop)
        monkeypatch.setattr(runs, "output_of", lambda *_: None)
        monkeypatch.setattr(cli, "app", lambda **_: follow(None, None, "1"))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code
        said = capsys.readouterr().err.splitlines()
        assert (
            said[-1] == "next: the run continues; `layerweld coordinator resume` follows it again"
        )
