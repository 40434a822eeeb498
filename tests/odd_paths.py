"""Paths that nobody means and anybody may type, for every place where a path is typed."""

import os
from pathlib import Path
from typing import Any


def make_odd_paths(folder: Path) -> dict[Any, Any]:
    """What is odd about a path, and the path."""
    (folder / "loop").symlink_to("loop")
    (folder / "file").write_text("no folder")
    (folder / "folder").mkdir()
    (folder / "folder/foreign").write_text("somebody's")
    os.mkfifo(folder / "pipe")
    (folder / "nowhere").symlink_to("is-not-there")
    return {
        "300 characters": "a" * 300,
        "300 characters in a folder": f"{folder}/folder/{'a' * 300}/b",
        "5,000 characters": "a" * 5000,
        "5,000 characters in many parts": "a/" * 2500 + "b",
        "a loop": str(folder / "loop"),
        "below a loop": str(folder / "loop/x"),
        "leads nowhere": str(folder / "nowhere"),
        "a null byte": str(folder / "fo\0lder"),
        "nobody's home": "~nobody/x",
        "the home of no user": "~there-is-no-such-user/x",
        "a file": str(folder / "file"),
        "below a file": str(folder / "file/x"),
        "a folder": str(folder / "folder"),
        "a pipe": str(folder / "pipe"),
        "below a pipe": str(folder / "pipe/x"),
        "a device": "/dev/zero",
    }  # fmt: skip
