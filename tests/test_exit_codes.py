"""Every error ends in a state of its own, and the document lists them all."""

import re
import sys
from pathlib import Path

import pytest

from layerweld import cli, errors
from layerweld.incidents import Code

DOCUMENT = Path(__file__).parents[1] / "docs/exit-codes.md"


def kinds():
    found, ahead = [], [errors.LayerweldError]
    while ahead:
        kind = ahead.pop()
        found.append(kind)
        ahead += kind.__subclasses__()
    return [
        kind for kind in found if "exit_code" in vars(kind) and kind is not errors.LayerweldError
    ]


def test_every_kind_of_error_has_its_own_exit_code():
    codes = [kind.exit_code for kind in kinds()]
    assert len({*codes}) == len(codes) == 15
    assert not {*codes} & {0, errors.UNFORESEEN, 2, 130}


def test_the_document_is_the_table_in_the_code():
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
def test_a_command_ends_with_the_cause_the_next_step_and_the_code(kind, monkeypatch, capsys):
    def fail():
        raise kind("what went wrong")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == kind.exit_code
    assert capsys.readouterr().err == f"layerweld: what went wrong\nnext: {kind.next_step}\n"


def test_an_interrupted_command_ends_with_130(monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("layerweld.base_model.load_base", interrupt)
    monkeypatch.setattr(sys, "argv", ["layerweld", "plan", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
