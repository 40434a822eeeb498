"""What a reply is about: one that answers something else is refused, whatever it says."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from client.app import app
from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.transport.block_gradients import BlockRequest, encode_block_request
from layerweld.transport.coefficients import CoefficientsRequest, encode_coefficients_request
from layerweld.transport.evaluation import EVALUATION
from layerweld.transport.fisher import FISHER
from layerweld.transport.identity import (
    Identity,
    encode_plain,
    identity_of,
    request_id,
    request_record,
    require_identity,
)
from layerweld.transport.model import ModelToMeasure, encode_model
from layerweld.transport.other_params import OTHER_PARAMS
from layerweld.transport.shift import SHIFT
from layerweld.transport.site_info import (
    FINE_TUNING,
    HANDSHAKE,
    SITE_INFO_BUDGET,
    SiteInfo,
    decode_site_info,
)
from layerweld.transport.statistics import StatisticsRequest, encode_statistics_request
from layerweld.transport.step_context import StepContext
from layerweld.transport.updates import UPDATES
from strategies.cohort import Cohort, Patience
from strategies.poll import poll
from tests.faulty_grid import Clock, Faults, FaultyGrid
from tests.honest_messages import SITE, requests
from tests.stub_sites import (
    FORM,
    NAMES,
    NODES,
    PLAN,
    RUN,
    StubApp,
    new_chain,
    reply_with,
    settings,
    updates_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _site_info(_node: str, content: RecordDict) -> SiteInfo:
    return decode_site_info(content)


def shake_hands(faults: Faults, clock: Clock) -> dict[Any, Any]:
    chosen = settings()
    nodes = Cohort({"node 1": 1, "node 2": 2}, {}, RUN, Patience.of_handshake(chosen))
    grid = FaultyGrid(StubApp(), NODES[:2], chosen, faults, clock)
    request = encode_plain(HANDSHAKE, RUN)
    budget = SITE_INFO_BUDGET
    return dict(
        poll(
            grid,
            nodes,
            HANDSHAKE,
            "handshake",
            request,
            _site_info,
            budget,
        )
    )


@pytest.mark.parametrize(("code", "says"), [(1, "another one installed"), (7, "refused the app")])
def test_a_site_that_must_be_mended_ends_the_handshake_at_once(
    code: int, says: str, clock: Clock
) -> None:
    with pytest.raises(LostSiteError, match=rf"node 1 failed at the handshake: .*{says}"):
        shake_hands(Faults(0, 1.0, most=1, kinds=(f"error {code}",)), clock)
    assert clock.now < 1


def test_a_site_that_dies_in_the_handshake_is_asked_again(clock: Clock) -> None:
    came = shake_hands(Faults(0, 1.0, most=1, kinds=("error 8",)), clock)
    assert came.keys() == {"node 1", "node 2"}


@pytest.mark.parametrize("seed", range(20))
def test_another_nodes_reply_in_the_handshake_is_asked_for_again(seed: int, clock: Clock) -> None:
    came = shake_hands(Faults(seed, 0.7, most=5, kinds=("another's", "replay", "twice")), clock)
    assert {node: site_info.site for node, site_info in came.items()} == {
        "node 1": "ash",
        "node 2": "birch",
    }


class EchoApp:
    """Its sites measure models: what they find is in the model's name."""

    def __call__(self, message: Message, context: Any) -> Message:
        number = message.content["about"]["model"]
        return reply_with(RecordDict({"score": ConfigRecord({"is": number})}), message, context)  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", ["evaluate.model", "query.shift", "train.other_params"])
def test_a_reply_about_an_earlier_model_is_refused_and_counted(kind: str, clock: Clock) -> None:
    """Scores carry nothing else that would tell them from those of another model."""
    ignored: Counter[str] = Counter()
    for seed in range(20):
        chosen = settings()
        cohort = new_chain(chosen).cohort
        faults = Faults(seed, 0.5, kinds=("another's", "replay", "foreign", "late", "twice"))
        grid = FaultyGrid(EchoApp(), NODES, chosen, faults, clock)
        for number in range(4):
            record = request_record(Identity(RUN, request_id(kind, number)), model=number)
            content = RecordDict({"about": record})
            label = "the same for all models"
            replies = dict(poll(grid, cohort, kind, label, content, _sent_number, SITE_INFO_BUDGET))
            assert replies == dict.fromkeys(NAMES, number), f"seed {seed}: {faults.met}"
        ignored.update(cohort.ignored)
    assert {"stale", "foreign", "duplicate"} <= ignored.keys()


def _sent_number(_site: Any, content: RecordDict) -> Any:
    return content["score"]["is"]


def test_every_request_has_an_id_of_its_own() -> None:
    contexts = [
        StepContext(RUN, method, step, layers, "plan", "digest", averaged)
        for method, step in (("com", 0), ("regmean++", 0), ("com", 1))
        for layers in (PLAN.layer_names, PLAN.layer_names[1:])
        for averaged in (True, False)
    ]
    updates = updates_of("ash")
    model = ModelToMeasure(RUN, "merged", PLAN.layer_names, updates)
    learnt = [
        CoefficientsRequest(RUN, "m", r, ("0.q",), NAMES, "p", "d", False, torch.full((3, 1), x))
        for r, x in ((1, 0.5), (2, 0.5), (1, 0.25))
    ]
    requests = [
        *(encode_statistics_request(StatisticsRequest(c, FORM)) for c in contexts),
        *(encode_block_request(BlockRequest(c, r, updates)) for c in contexts for r in (0, 1)),
        encode_block_request(BlockRequest(contexts[0], 0, updates_of("birch"))),
        *map(encode_coefficients_request, learnt),
        *(encode_model(kind, model) for kind in (EVALUATION, SHIFT, FISHER)),
        encode_model(EVALUATION, replace(model, updates=updates_of("birch"))),
        encode_model(EVALUATION, replace(model, kind="individual")),
        *(encode_plain(kind, RUN) for kind in (HANDSHAKE, FINE_TUNING, UPDATES, OTHER_PARAMS)),
        encode_plain(FINE_TUNING, RUN, "again"),
        encode_plain(HANDSHAKE, "another"),
    ]
    assert len({*map(identity_of, requests)}) == len(requests)


def test_what_a_site_may_lack_is_no_part_of_the_identity() -> None:
    context = StepContext(RUN, "com", 1, PLAN.layer_names, "plan", "digest", True)
    more = context.with_merged({"norm.weight": torch.ones(3)}, {0: updates_of("ash")})
    requests = [encode_statistics_request(StatisticsRequest(c, FORM)) for c in (context, more)]
    assert identity_of(requests[0]) == identity_of(requests[1])


@pytest.mark.parametrize("name", requests())
def test_a_request_that_is_not_what_its_id_stands_for_is_refused(name: Any) -> None:
    content, read, _ = requests()[name]
    if name == "asked: plain":
        return  # it has nothing else to say
    read(SITE, content)
    about = content["about"]
    for key, change in {"request": lambda t: t[::-1], "chain_digest": lambda t: f"{t}0"}.items():
        changed = ConfigRecord({**about, key: change(about[key])})
        if (name, key) in ALSO_DECODED:
            continue
        with pytest.raises(RefusedReplyError, match="other contents than its id"):
            read(SITE, RecordDict({**content, "about": changed}))


ALSO_DECODED = {  # the value has the digest, which is compared with what was merged
    (f"asked: {name}", "chain_digest") for name in ("chain", "block", "coefficients")
}


def test_messages_of_the_version_before_are_refused_with_a_sentence() -> None:
    subject = ConfigRecord({"run": RUN, "kind": HANDSHAKE, "question": "handshake", "node": "1"})
    old_reply = RecordDict({"subject": subject})
    with pytest.raises(RefusedReplyError, match="same version of layerweld installed"):
        require_identity(old_reply, Identity(RUN, "id"))
    old_request = RecordDict({"about": ConfigRecord({"run": RUN})})
    with pytest.raises(RefusedReplyError, match="same version of layerweld installed"):
        identity_of(old_request)


def test_flower_takes_every_type_of_message() -> None:
    """It refuses a type whose second half is not a Python identifier."""
    for kind in app._handlers:
        assert Message(RecordDict(), 1, kind).metadata.message_type == kind
