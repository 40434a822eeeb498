"""Text that somebody else wrote, made fit to be shown or kept: short, on one line, and plain.

Names, labels, reasons and file contents come from sites, coordinators and other people's files.
They may hold escape sequences that move a terminal's cursor, line breaks that forge lines of a log,
and characters that reverse the order of what is read. They may be of any length. No files here.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 300
"""Characters of one piece of text, unless a caller says otherwise."""

_CUT = "… (cut, {} characters)"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's controls, format characters (bidirectional overrides, zero-width ones), halves of
surrogate pairs, private and unassigned characters, and separators of lines and paragraphs."""
_MARKS = frozenset({"Mn", "Me"})
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_MARKDOWN = re.compile(r"[\\`*\[\]|]|(?<=[A-Za-z])://|^[-+=#]")
_NO_TAGS = {ord("<"): "&lt;", ord(">"): "&gt;", ord("&"): "&amp;"}
_MOST_MARKS = 3  # on one letter; more only hide the lines around it


def shown(text: object, longest: int = LONGEST) -> str:
    """One line of printable characters: others are escaped, and a text that is too long is cut.

    Text that is plain and short comes back as it is.

    Args:
        text: anything; ``str`` is applied to what is not text.
        longest: characters that are kept before anything is escaped.
    """
    return _escaped(_cut(str(text), longest), keep="")


def quoted(value: object, longest: int = 80) -> str:
    """As :func:`shown`, in quotes as Python writes it: what a file holds, within a sentence.

    Args:
        value: anything; of text and bytes only as much as is shown is looked at.
        longest: characters that are kept.
    """
    text = _escaped(
        repr(value[: longest + 1] if isinstance(value, str | bytes) else value), keep=""
    )
    return text if len(text) <= longest + 2 else f"{text[:longest]}…"


def shown_lines(text: object, longest: int = 100 * LONGEST) -> str:
    """As :func:`shown`, but lines and tabs stay: for tracebacks and whole messages."""
    return _escaped(_cut(str(text), longest), keep="\n\t")


def csv_cell(value: object) -> object:
    """A cell that a spreadsheet does not take for a formula; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    cell = shown(value)
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell


def markdown(text: object, longest: int = LONGEST) -> str:
    """As :func:`shown`, for Markdown: nothing in it is a link, a picture, a tag or a table."""
    return _MARKDOWN.sub(r"\\\g<0>", shown(text, longest)).translate(_NO_TAGS)


def markdown_code(text: object, longest: int = LONGEST) -> str:
    """As :func:`shown`, for text between two backticks of Markdown, in a table or not."""
    return shown(text, longest).replace("`", "'").replace("|", "¦").translate(_NO_TAGS)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + _CUT.format(len(text))


def _escaped(text: str, keep: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    marks, parts = 0, []
    for character in text:
        kind = unicodedata.category(character)
        marks = marks + 1 if kind in _MARKS else 0
        hidden = (kind in _INVISIBLE and character not in keep) or marks > _MOST_MARKS
        parts.append(_escape(character) if hidden else character)
    return "".join(parts)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
