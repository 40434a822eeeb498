"""Units that systemd itself reads."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from layerweld.deploy.units import unit


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
@pytest.mark.parametrize("folder", ["fed", "ours, 100 %here"])
def test_systemd_has_nothing_to_say_of_the_units(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    file = tmp_path / "layerweld-test.service"
    file.write_text(unit("layerweld test", ("coordinator", "up"), tmp_path / folder))
    done = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    places = re.findall(r"^(?:WorkingDirectory|ReadWritePaths)=(.*)$", file.read_text(), re.M)
    literal = str(tmp_path / folder).replace("%", "%%")  # %h alone is a home folder
    assert [place.strip('"') for place in places] == [literal, literal]
