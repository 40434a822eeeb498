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

_ALL = (
    *chain.METHODS,
    *fisher.METHODS,
    *adamerging.METHODS,
    *prodistill.METHODS,
    *sums.METHODS,
    *ties.METHODS,
    *dare.METHODS,
    *consensus.METHODS,
    *localize.METHODS,
    *pcb.METHODS,
    *tsv.METHODS,
    *isotropic.METHODS,
    *knots.METHODS,
    *core_space.METHODS,
    *wudi.METHODS,
    *dc.METHODS,
    *do_merging.METHODS,
    *opcm.METHODS,
    *lora_averaging.METHODS,
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""By name, in the order in which tables show them."""
