"""Whatever cohort the handshake admits, no method ends on it: what cannot work is said before."""

import random
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from layerweld.errors import CohortError
from layerweld.merging.method import UPDATES
from layerweld.merging.one_round import MergeMethod
from layerweld.merging.registry import METHODS
from layerweld.transport.site_info import SiteInfo
from layerweld.updates.shared_factor import digest_of_factors
from layerweld.updates.update import DenseUpdate, LowRankUpdate, Update
from server.handshake import check_layers
from server.requirements import problem_with
from tests.random_updates import side_by_side
from tests.stub_sites import NAMES, PLAN, settings, site_info_of

SHAPES = {s.name: (s.d_out, g.d_in) for g in PLAN.groups for s in g.layers}
FROM_UPDATES = [m for m in METHODS.values() if m.kind is UPDATES]


def claimed(draw: Random, name: str, usual: tuple[tuple[str, ...], tuple[int, ...]]) -> SiteInfo:
    """What a site may say: honest, or of a kind, layers and ranks that do not belong together."""
    kind = draw.choice(("lora", "lora", "lora", "full", "none"))
    layers, ranks = usual
    if draw.random() < 0.5:
        layers = tuple(draw.choices(tuple(SHAPES), k=draw.randint(0, len(SHAPES))))
        if draw.random() < 0.8:
            layers = tuple(dict.fromkeys(layers))
    if kind == "full" and draw.random() < 0.8:
        ranks = (0,) * len(layers)
    elif len(ranks) != len(layers) or draw.random() < 0.3:
        ranks = tuple(draw.randint(1, 4) for _ in layers)
        if draw.random() < 0.3:
            ranks = tuple(draw.choice((0, rank)) for rank in ranks)
    return replace(site_info_of(name), kind=kind, layers=layers, ranks=ranks)


def sent(draw: Random, site_info: SiteInfo, shared: bool) -> dict[str, Update]:
    """Updates of the shapes that the introduction leads the server to expect, zeros among them."""
    generator = torch.Generator().manual_seed(9 if shared else draw.randrange(2**32))
    own = torch.Generator().manual_seed(draw.randrange(2**32))
    size = draw.choice((0.0, 1e-20, 1.0, 1.0, 1.0))
    updates: dict[str, Update] = {}
    for layer, rank in zip(site_info.layers, site_info.ranks, strict=True):
        d_out, d_in = SHAPES[layer]
        if rank == 0:
            updates[layer] = DenseUpdate(size * torch.randn(d_out, d_in, generator=own))
        else:
            right = torch.randn(rank, d_in, generator=generator)
            left = size * torch.randn(d_out, rank, generator=own)
            if draw.random() < 0.2:  # a product of zero, of factors that are not
                left[:, 1:], right[0] = 0, 0
            updates[layer] = LowRankUpdate(left, right)
    return updates


def drawn_cohort(draw: Random) -> dict[str, tuple[Any, ...]]:
    """Those of the sites that the handshake admits, each with what it sends."""
    layers = tuple(draw.sample(tuple(SHAPES), draw.randint(1, len(SHAPES))))
    usual = layers, tuple(draw.randint(1, 4) for _ in layers)
    shared = draw.random() < 0.5
    cohort = {}
    for name in NAMES:
        site_info = claimed(draw, name, usual)
        try:
            check_layers(site_info, PLAN, "")
        except CohortError:
            continue
        updates = sent(draw, site_info, shared)
        cohort[name] = replace(site_info, factors=digest_of_factors(updates)), updates
    return cohort


@pytest.mark.parametrize("seed", range(60))
def test_no_method_that_the_handshake_lets_run_fails_on_what_the_sites_send(
    seed: int, one_thread: None
) -> None:
    draw = random.Random(seed)
    cohort = drawn_cohort(draw)
    if not cohort:
        return
    site_infos = tuple(one for one, _ in cohort.values())
    for method in FROM_UPDATES:
        if problem_with(method, settings(), site_infos):
            continue
        kernel = settings().of_method(method.table)
        assert isinstance(kernel, MergeMethod)
        merged = kernel.merge(
            side_by_side({name: updates for name, (_, updates) in cohort.items()})
        )
        for layer, update in merged.updates.items():
            assert tuple(update.shape) == SHAPES[layer]
            assert torch.isfinite(update.dense()).all(), method.name


def test_the_cohorts_above_are_of_every_kind_and_let_every_method_run(one_thread: None) -> None:
    runs: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for seed in range(60):
        cohort = drawn_cohort(random.Random(seed))
        site_infos = tuple(one for one, _ in cohort.values())
        kinds.update("/".join(sorted(one.kind for one in site_infos)).split("/"))
        for method in FROM_UPDATES:
            if site_infos and not problem_with(method, settings(), site_infos):
                runs[method.name] += 1
    assert {"lora", "full", "none"} <= kinds.keys()
    assert runs.keys() == {method.name for method in FROM_UPDATES}
