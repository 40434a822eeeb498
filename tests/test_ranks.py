"""No rank that sites claim, one or all together, makes another site refuse what it is sent."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from client.handlers.requests import require_updates_of
from layerweld.errors import CohortError, RefusedReplyError
from layerweld.plan import LayerGroup, LayerShape, MergePlan
from layerweld.updates.bounds import most_claimed, most_sent, within_ranks
from layerweld.updates.update import LowRankUpdate
from server.handshake import check_layers
from tests.stub_sites import site_info_of

WIDTHS = (1, 2, 3, 8, 16, 64, 100, 256, 1024)


def plan_of(d_out: int, d_in: int) -> MergePlan:
    return MergePlan(("0",), (LayerGroup("0.in", 0, d_in, (LayerShape("0.k", d_out),)),))


def zeros(d_out: int, d_in: int, rank: int) -> dict[Any, Any]:
    return {"0.k": LowRankUpdate(torch.zeros(d_out, rank), torch.zeros(rank, d_in))}


def admitted(plan: MergePlan, rank: int) -> bool:
    said = replace(site_info_of("ash"), layers=("0.k",), ranks=(rank,))
    try:
        check_layers(said, plan, "")
    except CohortError:
        return False
    return True


@pytest.mark.parametrize("d_out", WIDTHS)
def test_a_rank_that_the_handshake_admits_is_taken_by_every_site(d_out: Any) -> None:
    for d_in in WIDTHS:
        plan = plan_of(d_out, d_in)
        ranks = (min(d_out, d_in), 256, max(d_out, d_in), most_claimed(d_out, d_in))
        for rank in ranks:
            if admitted(plan, rank):
                require_updates_of(plan, zeros(d_out, d_in, rank))
        assert admitted(plan, min(d_out, d_in))
        assert admitted(plan, min(16, max(d_out, d_in)))  # one `r` is for all layers
        assert not admitted(plan, max(d_out, d_in) + 1)


@pytest.mark.parametrize("seed", range(40))
def test_the_merge_of_any_admitted_ranks_is_taken_by_every_site_and_is_the_same_update(
    seed: int,
) -> None:
    draw = random.Random(seed)
    d_out, d_in = draw.choice(WIDTHS[:-1]), draw.choice(WIDTHS[:-1])
    most = most_claimed(d_out, d_in)
    rank = sum(draw.choice((1, most, draw.randint(1, most))) for _ in range(draw.randint(1, 30)))
    torch.manual_seed(seed)
    stacked = LowRankUpdate(torch.randn(d_out, rank), torch.randn(rank, d_in))
    sent = within_ranks(stacked)
    require_updates_of(plan_of(d_out, d_in), {"0.k": sent})
    assert isinstance(sent, LowRankUpdate)
    if rank <= most_sent(d_out, d_in):
        assert sent is stacked  # the bytes of an honest merge stay what they were
    torch.testing.assert_close(
        sent.dense().double(), stacked.left.double() @ stacked.right.double(), rtol=1e-4, atol=1e-3
    )


def test_what_a_site_takes_is_a_small_multiple_of_its_layer() -> None:
    for d_out in WIDTHS:
        for d_in in WIDTHS:
            rank = most_sent(d_out, d_in)
            assert rank * (d_out + d_in) <= max(16 * d_out * d_in, 256 * (d_out + d_in))
            with pytest.raises(RefusedReplyError, match=f"of rank {rank + 1}"):
                require_updates_of(plan_of(d_out, d_in), zeros(d_out, d_in, rank + 1))
