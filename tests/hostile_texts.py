"""Text as somebody would send it who wants to be seen, believed or run; and what must be left."""

import random
import unicodedata
from typing import Any

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07", "\x9b31mred", "a\r\nlayerweld: run completed", "tab\there",
    "nul\0byte", "\u202egnp.exe", "\u2066\u2069", "zero\u200bwidth\u200d\ufeff", "\u2028\u2029",
    "half \ud83d pair", "a" + "\u0301" * 400, "x" * 200_000, "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>", "<!--", "&lt;b&gt;", "{{ 7*7 }}", "%x{customdata}",
    "[red]x[/red]", "[link=http://collector.example]here[/link]", "[bold", "] | [",
    "=cmd|' /C calc'!A1", "+1+1", "-2+3", "@SUM(A1)", " =1+1", "\t=1", "＝1+1", "a|b|c", "`code`",
    "```\n# heading\n", "![pixel](http://collector.example/p.png)", "[here](javascript:alert(1))",
    "https://collector.example/", "# heading", "---\nbase_model: other\n---", "- item: [a, b",
    '"); import os; os.system("true") #', "'; DROP TABLE sites; --", "..", "../../x", "C:\\x",
    "!!python/object/apply:os.system ['true']", "&anchor *alias", "\N{PILE OF POO}" * 3, "",
)  # fmt: skip
_PIECES = ["\x1b[", "m", "\r", "\n", "\0", "\u202e", "\u200b", "<", ">", '"', "'", "&", "|", "`",
           "=", "]", "[", "/", "\\", "\ud800", "\x85", "\x9d", "é", "漢", "a", " ", "{{", "}}",
           "https://x"]  # fmt: skip


def hostile_texts(count: int, seed: int = 0) -> list[Any]:
    """The known ones, and as many that are put together of what makes them so."""
    rng = random.Random(seed)
    made = ("".join(rng.choices(_PIECES, k=rng.randint(1, 40))) for _ in range(count))
    return [*HOSTILE, *made]


def hidden_in(text: str, but: str = "") -> set[Any]:
    """Characters that nobody sees and that do something."""
    bad = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in bad and c not in but}
