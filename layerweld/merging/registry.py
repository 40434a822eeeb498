"""Every merge method, each listed once."""

from collections.abc import Mapping
from types import MappingProxyType

from layerweld.merging import (
    adamerging,
    chain,
    consensus,
    core_space,
    dare,
    dc,
    do_merging,
    fisher,
    isotropic,
    knots,
    localize,
    lora_averaging,
    opcm,
    pcb,
    prodistill,
    sums,
    ties,
    tsv,
    wudi,
)
from layerweld.merging.method import Method

_IN_ORDER = (
    chain, fisher, adamerging, prodistill, sums, ties, dare, consensus, localize, pcb, tsv,
    isotropic, knots, core_space, wudi, dc, do_merging, opcm, lora_averaging,
)  # fmt: skip
METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for module in _IN_ORDER for method in module.METHODS}
)
"""By name, in the order in which tables show them."""
