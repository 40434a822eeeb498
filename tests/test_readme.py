"""What README shows of the library runs, and prints what it says."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_in_python_prints_what_its_comment_says(capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 1
    exec(compile(examples[0], str(README), "exec"), {})
    said = examples[0].splitlines()[-1].partition("  # ")[2]
    assert capsys.readouterr().out.strip() == said
