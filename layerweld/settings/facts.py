"""Facts about each setting, read off the code: its key, default, values and meaning."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from layerweld.merging.method import CHAIN, Method
from layerweld.settings_table import Settings

_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
_KINDS = {bool: "`true` · `false`", int: "whole number", float: "number", str: "text"}


class SettingFacts(NamedTuple):
    """One setting.

    Attributes:
        key: as in TOML, without its table.
        default: as in TOML; empty if the setting is required.
        values: what it may be, code between backticks.
        meaning: its docstring on one line, code between backticks.
    """

    key: str
    default: str
    values: str
    meaning: str


def facts_of(table: type[Settings]) -> Iterator[SettingFacts]:
    """The settings of one table, in order, without the tables in it."""
    for field in table.model_fields.values():
        if not isinstance(field.default, Settings):
            default = "" if field.is_required() else json.dumps(field.default)
            meaning = _one_line(field.description or "")
            yield SettingFacts(str(field.alias), default, _values(field), meaning)


def defaults_of(method: Method) -> str:
    """A method's own settings with their defaults; for the chain after ``merge.*``."""
    shared = ["merge.*"] if method.kind is CHAIN else []
    own = facts_of(method.settings) if method.settings else ()
    pairs = (f"{one.key}={one.default}".replace('"', "") for one in own)
    return ", ".join([*shared, *pairs]) or "none"


def about(table: type[Settings]) -> str:
    """The table's docstring on one line, code between backticks."""
    return _one_line(inspect.getdoc(table) or "")


def _values(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return " · ".join(f"`{value}`" for value in get_args(kind))
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for bound, (name, sign) in _BOUNDS.items()
        if isinstance(limit, bound)
    ]
    return f"{_KINDS[kind]} {', '.join(bounds)}".strip()


def _one_line(docstring: str) -> str:
    plain = re.sub(r":\w+:`([^`]+)`", r"``\1``", docstring)
    return " ".join(plain.replace("``", "`").split())
