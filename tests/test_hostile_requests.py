"""What a site is asked by whoever took its coordinator over: a code and a number, and no more."""

from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from client.app import app as client_app
from client.guard import SiteApp
from layerweld.model.base_model import load_base
from layerweld.model.discover import discover_plan
from layerweld.plan import MergePlan
from layerweld.runtime.incidents import Code, parse_incident
from layerweld.statistics.group import ProductForm
from layerweld.transport.arrays import to_arrays
from layerweld.transport.block_gradients import BlockRequest, encode_block_request
from layerweld.transport.coefficients import CoefficientsRequest, encode_coefficients_request
from layerweld.transport.identity import Identity, request_record
from layerweld.transport.model import ModelToMeasure, encode_model
from layerweld.transport.statistics import StatisticsRequest, encode_statistics_request
from layerweld.transport.step_context import StepContext
from layerweld.updates.update import DenseUpdate, LowRankUpdate
from tests.mutations import NASTY_TEXTS, Mutator
from tests.tiny_sites import make_labelled_sites

RUN = "0" * 16
FORM = ProductForm(dense=False, with_updates=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiteApp, Context, MergePlan]:
    """One site's app, its context, and its merge plan."""
    folder = tmp_path_factory.mktemp("sites")
    made = make_labelled_sites(folder)
    own = {"base": str(made.base), "cache": str(folder / "own"), "min-samples": 1}
    context = Context(1, 1, dict(made.nodes[0]) | own, RecordDict(), dict(made.settings().flat()))
    base = load_base(made.base)
    plan = discover_plan(base.backbone)
    return client_app, context, plan


def asked(site: tuple[SiteApp, Context, MergePlan], kind: str, content: RecordDict) -> int | Code:
    """The code that a request ends in; 0 where it is answered."""
    app, context, _ = site
    reply = app(Message(content, 1, kind, ttl=60.0, group_id="hostile"), context)
    if not reply.has_error():
        return 0
    incident = parse_incident(reply.error.reason)
    assert incident is not None, reply.error.reason
    return incident.code


def requests(
    plan: MergePlan,
    updates: dict[Any, Any] | dict[str, DenseUpdate],
    other_params: dict[Any, Any],
    step: int = 0,
) -> dict[Any, Any]:
    """One of every kind that carries updates, about the same."""
    names = plan.layer_names
    learnt = CoefficientsRequest(
        RUN, "adamerging", 1, names, ("ash",), plan.digest, "h", False, torch.ones(1, len(names)),
        {"ash": updates}, other_params,
    )  # fmt: skip
    chain = StepContext(RUN, "com", step + 1, names, plan.digest, "x", False, other_params)
    block = StepContext(RUN, "prodistill", step, names, plan.digest, "x", False, other_params)
    chain = chain.with_merged(other_params, {step: updates})
    model = ModelToMeasure(RUN, "merged", names, updates, other_params)
    return {
        "train.statistics": encode_statistics_request(StatisticsRequest(chain, FORM)),
        "train.entropy": encode_coefficients_request(learnt),
        "train.distillation": encode_block_request(BlockRequest(block, 0, updates)),
        "evaluate.model": encode_model("evaluate.model", model),
        "query.shift": encode_model("query.shift", model),
    }


def misfits(plan: MergePlan) -> dict[Any, Any]:
    """Updates and other parameters that no model of this plan has."""
    group = plan.groups[0]
    layer, d_out, d_in = group.layers[0].name, group.layers[0].d_out, group.d_in
    huge = 20 * d_out * d_in // (d_out + d_in)
    return {
        "another layer": ({"lm_head": DenseUpdate(torch.ones(d_out, d_in))}, {}),
        "another shape": ({layer: DenseUpdate(torch.ones(d_out + 1, d_in))}, {}),
        "one dimension": ({layer: DenseUpdate(torch.ones(d_out))}, {}),
        "a rank without end": (
            {layer: LowRankUpdate(torch.ones(d_out, huge), torch.ones(huge, d_in))},
            {},
        ),
        "another parameter": ({}, {"norm.weight": torch.ones(3)}),
        "another parameter's shape": ({}, {f"{layer}.bias": torch.ones(d_out + 1)}),
    }


@pytest.mark.parametrize("name", ["another layer", "another shape", "one dimension",
                                  "a rank without end", "another parameter",
                                  "another parameter's shape"])  # fmt: skip
def test_what_does_not_fit_the_sites_model_is_not_taken(
    name: str, site: tuple[SiteApp, Context, MergePlan]
) -> None:
    updates, other_params = misfits(site[2])[name]
    for kind, content in requests(site[2], updates, other_params).items():
        assert asked(site, kind, content) is Code.REQUEST, kind


def test_a_step_that_the_chain_does_not_have_is_refused(
    site: tuple[SiteApp, Context, MergePlan],
) -> None:
    steps = len(site[2].groups)
    for step in (steps - 1, 2**16 - 1):
        content = requests(site[2], {}, {}, step)
        assert asked(site, "train.statistics", content["train.statistics"]) is Code.REQUEST


def test_coefficients_of_another_plan_are_refused_whatever_the_site_holds(
    site: tuple[SiteApp, Context, MergePlan],
) -> None:
    """The reply gives the plan back, and so says that the site has it."""
    own, names = site[2], site[2].layer_names
    for plan, code in ((own.digest, 0), ("0" * 64, Code.REQUEST)):
        learnt = CoefficientsRequest(
            RUN, "adamerging", 1, names, ("ash",), plan, "h", False, torch.ones(1, len(names))
        )
        assert asked(site, "train.entropy", encode_coefficients_request(learnt)) == code


@pytest.mark.parametrize("dtype", ["<M8[s/0]", "O", "float32\n", "float64"])
@pytest.mark.parametrize("stype", ["numpy.ndarray", "layerweld.raw", "torch"])
def test_no_array_of_a_request_is_parsed(
    dtype: str, stype: str, site: tuple[SiteApp, Context, MergePlan]
) -> None:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (4,), }}".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 16
    array = Array(dtype, (4,), stype, data)
    for kind, content in requests(site[2], {}, {}).items():
        for name in content.array_records:
            changed = RecordDict(dict(content) | {name: ArrayRecord({"x/left": array})})
            assert asked(site, kind, changed) is Code.REQUEST, (kind, name)


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_request_is_answered_or_is_an_incident(
    seed: int, site: tuple[SiteApp, Context, MergePlan]
) -> None:
    mutator, codes = Mutator(seed), set()
    layer = site[2].groups[0].layers[0].name
    updates = {layer: DenseUpdate(torch.ones(site[2].groups[0].layers[0].d_out, 3))}
    for kind, content in requests(site[2], updates, {}).items():
        for _ in range(20):
            changed = mutated(mutator, content)
            codes.add(asked(site, kind, changed))
    assert Code.REQUEST in codes
    assert Code.MEMORY not in codes


def mutated(mutator: Mutator, content: RecordDict) -> RecordDict:
    while True:
        try:
            return mutator.content(content)
        except (TypeError, ValueError, KeyError):
            continue  # Flower has no such record


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_a_run_whose_name_is_none_is_refused_and_what_it_says_is_cut(
    text: Any, site: tuple[SiteApp, Context, MergePlan]
) -> None:
    content = RecordDict({"about": request_record(Identity(f"{text}/", "id")), "x": to_arrays({})})
    assert asked(site, "query.handshake", content) is Code.REQUEST
