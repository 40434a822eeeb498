"""Which layers the patterns of an adapter's configuration mean: PEFT's rules, in bounded time.

PEFT runs them with an engine that can take years on a line of text. :mod:`regex` has a time limit.
A pattern is compiled by ``re`` first, so that both engines read it in the same way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex
from peft import LoraConfig

from layerweld.errors import AdapterError
from layerweld.untrusted.files import reading
from layerweld.untrusted.text import quoted

LONGEST = 20_000
"""Characters of one pattern. Lists of layers are the way to name thousands."""

_MOST = 1_000_000  # characters of all patterns together
_SECONDS = 5.0
"""Computing time for all layers and patterns together; a thousand of each take less than one."""
_ANY_INDEX = r".*?\.[^.]*\.(?P<idx>\d+)\."


class LayerPatterns:
    """The patterns of one adapter.

    Args:
        file: the configuration, for messages.
        config: its values must be of the right kinds.

    Raises:
        AdapterError: a pattern is not a regular expression, or too long. Later: a pattern takes
            too much time on the model's layers.
    """

    def __init__(self, file: Path, config: LoraConfig) -> None:
        self._file = file
        self._config = config
        self._left = _SECONDS
        self._ranks = self._by_key(config.rank_pattern)
        self._alphas = self._by_key(config.alpha_pattern)
        self._targets = self._names_or_pattern(config.target_modules)
        self._excluded = self._names_or_pattern(config.exclude_modules)
        self._saved = [
            self._compiled(rf"(^|.*\.){name}($|\..*)", name)
            for name in config.modules_to_save or ()
        ]
        self._indices = self._index_patterns()
        patterns = (*(config.rank_pattern or ()), *(config.alpha_pattern or ()))
        if sum(map(len, patterns)) > _MOST:
            raise AdapterError(
                f"{file} has more than {_MOST} characters of patterns; save it again"
            )

    def targets(self, layer: str) -> bool:
        """Whether PEFT would adapt a layer (its full name in the wrapped model)."""
        if self._is_named(self._excluded, layer):
            return False
        if any(self._match(saved, layer) for saved in self._saved):
            return False
        if not self._is_named(self._targets, layer):
            return False
        by_suffix = isinstance(self._targets, frozenset) and layer not in self._targets
        return not by_suffix or self._has_index(layer)

    def rank(self, layer: str) -> int:
        """The rank that the configuration gives to a layer."""
        return int(self._first(self._ranks, layer, self._config.r))

    def alpha(self, layer: str) -> float:
        """The alpha that the configuration gives to a layer."""
        return float(self._first(self._alphas, layer, self._config.lora_alpha))

    def _by_key(self, values: dict[str, Any] | None) -> list[tuple[Any, Any]]:
        named = (values or {}).items()
        return [(self._compiled(rf"(.*\.)?({key})$", key), value) for key, value in named]

    def _first(self, values: Iterable[tuple[Any, Any]], layer: str, usual: Any) -> Any:
        return next((value for key, value in values if self._match(key, layer)), usual)

    def _names_or_pattern(self, named: str | Collection[str] | None) -> Any:
        if isinstance(named, str):
            return self._compiled(named, named)
        return frozenset(named or ())

    def _is_named(self, named: Any, layer: str) -> bool:
        if isinstance(named, frozenset):
            parts = layer.split(".")
            return any(".".join(parts[i:]) in named for i in range(len(parts)))
        return self._match(named, layer, whole=True) is not None

    def _index_patterns(self) -> list[Any]:
        named = self._config.layers_pattern or ()
        patterns: Sequence[str] = [named] if isinstance(named, str) else [*named]
        if not patterns:
            return [self._compiled(_ANY_INDEX, "")]
        return [self._compiled(rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\.", one) for one in patterns]

    def _has_index(self, layer: str) -> bool:
        """Whether the layer's block is among those that ``layers_to_transform`` names."""
        wanted = self._config.layers_to_transform
        if wanted is None or wanted == []:
            return True
        for pattern in self._indices:
            found = self._match(pattern, layer)
            if found:
                index = int(found["idx"])
                return index == wanted if isinstance(wanted, int) else index in wanted
        return False

    def _match(self, pattern: Any, layer: str, *, whole: bool = False) -> Any:
        started = time.monotonic()
        try:
            run = pattern.fullmatch if whole else pattern.match
            return run(layer, timeout=max(self._left, 1e-3))
        except TimeoutError:
            raise AdapterError(
                f"{self._file}: the pattern {quoted(pattern.pattern)} takes too long on the layers "
                f"of the base model; name the layers in a list instead"
            ) from None
        finally:
            self._left -= time.monotonic() - started

    def _compiled(self, pattern: str, own: str) -> Any:
        if len(own) > LONGEST:
            raise AdapterError(
                f"{self._file}: the pattern {quoted(own)} has more than {LONGEST} characters; name "
                f"the layers in a list instead"
            )
        problem = f"{self._file}: {quoted(own)} is not a regular expression"
        with reading(problem, "correct adapter_config.json", AdapterError):
            return _both(own, pattern)


@lru_cache(maxsize=512)
def _both(own: str, pattern: str) -> Any:
    re.compile(own)
    re.compile(pattern)
    return regex.compile(pattern, regex.VERSION0)
