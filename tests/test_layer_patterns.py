"""Patterns of adapters mean what they mean to PEFT, and may take only so long."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from layerweld.errors import AdapterError
from layerweld.formats import layer_patterns
from layerweld.formats.layer_patterns import LONGEST, LayerPatterns

FILE = Path("adapter_config.json")
LAYERS = [
    f"{start}{layers}.{i}.{part}"
    for start in ("", "model.")
    for layers in ("layers", "h")
    for i in (0, 1, 11)
    for part in ("attn.q_proj", "attn.k_proj", "mlp.experts.0.up", "q_proj")
]
names = st.sampled_from(
    ["q_proj", "attn.q_proj", "up", "layers.1.q_proj", "model.h.11.q_proj", "1"]
)
patterns = st.sampled_from([
    "q_proj", r".*\.q_proj", r".*(q|k)_proj", r"(?!.*experts).*", r"model\.layers\.(?=1)\d+\..*",
    r"^model\.h\.[01]\.attn\.q_proj$", r"(?:layers|h)\.\d+.*?proj", r"layers\.1\..*", r"[^.]+",
    r".*?(?:attn|mlp).*?(?:q_proj|up).*?", "(?i:Q_PROJ)", r"(.)_proj", r"(?P<a>.)\S*(?P=a)",
])  # fmt: skip
named = st.one_of(patterns, st.lists(names, min_size=1, max_size=3))


@given(
    target=named,
    excluded=st.none() | named,
    saved=st.none() | st.lists(st.sampled_from(["attn", "up", r"h\.0", "x"]), max_size=2),
    indices=st.none() | st.sampled_from([1, [1], [0, 11], []]),
    layers=st.none() | st.sampled_from(["layers", "h", r"(layers|h)", "experts"]),
    ranks=st.dictionaries(patterns | names, st.integers(1, 9), max_size=3),
)
def test_a_pattern_means_what_it_means_to_peft(
    target: Any, excluded: Any, saved: Any, indices: Any, layers: Any, ranks: Any
) -> None:
    by_index = {} if isinstance(target, str) else {"layers_to_transform": indices}
    if by_index and indices:
        by_index["layers_pattern"] = layers
    config = LoraConfig(
        r=10,
        target_modules=target,
        exclude_modules=excluded,
        modules_to_save=saved,
        rank_pattern=ranks,
        alpha_pattern=ranks,
        **by_index,
    )
    ours = LayerPatterns(FILE, config)
    for layer in LAYERS:
        assert ours.targets(layer) == bool(check_target_module_exists(config, layer)), layer
        assert ours.rank(layer) == ranks.get(get_pattern_key(ranks, layer), 10)
        assert ours.alpha(layer) == ranks.get(get_pattern_key(ranks, layer), config.lora_alpha)


SLOW = [r"(.|..)+[0-9]", r"((.|..)+)+(?<!j)\Z", r"(?:.|..)*?(?=!)", r"(.)(.|..)*\1z?"]


@pytest.mark.parametrize("slow", SLOW)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_pattern_that_never_ends_is_refused(
    slow: Any, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_patterns, "_SECONDS", 0.05)
    config = LoraConfig(**{"target_modules": ".*"} | {field: slow})
    ours = LayerPatterns(FILE, config)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: the pattern .* takes too long"):
        ours.targets("model.layers.0." + 8 * "mlp." + "q_proj")


@pytest.mark.parametrize(
    "pattern", ["(", "a{99999999999}", "(?P<a", "[", r"\p{L}", "(?R)", "a" * (LONGEST + 1)]
)
def test_what_python_would_not_compile_is_refused(pattern: Any) -> None:
    with pytest.raises(AdapterError, match=r"not a regular expression|has more than"):
        LayerPatterns(FILE, LoraConfig(target_modules=pattern))
    with pytest.raises(AdapterError, match=r"not a regular expression|has more than"):
        LayerPatterns(FILE, LoraConfig(target_modules=["a"], rank_pattern={pattern: 2}))
