"""Which cohorts are refused before anything is computed, and what each refusal says."""

import random
from dataclasses import replace
from typing import Any

import pytest

from layerweld.errors import CohortError
from server.handshake import check_cohort, merged_layers
from tests.stub_sites import NAMES, PLAN, site_info_of

FIRST = PLAN.layer_names[0]
VERSIONS = ("layerweld=1.0", "torch=2.6.0", "transformers=5.0.0")
SAME_APP = "install the same version of the app everywhere"
REFUSED = {
    "base": ({"base": "other"}, "base: other instead of b; .*copy the same folder"),
    "no base": ({"base": ""}, "base: none instead of b; .*copy the same folder"),
    "tokenizer": ({"tokenizer": "u" * 64}, "tokenizer: u{12} instead of t; .*copy the whole base"),
    "plan": ({"plan": "other"}, "plan: other instead of .*install the same transformers version"),
    "settings": ({"settings": "other"}, f"settings: other instead of s; .*{SAME_APP}"),
    "kind": ({"kind": "prefix"}, f"kind: 'prefix' is unknown; {SAME_APP}"),
    "task": ({"task": "SEQ_CLS"}, f"task: 'SEQ_CLS' is unknown; {SAME_APP}"),
    "prefix": (
        {"name_prefix": "model.evil."},
        r"prefix: 'model\.evil\.' before its layers' names, and this base model has 'bert\.' or",
    ),
    "rank missing": ({"ranks": (1,)}, f"ranks: 1 for {len(PLAN.layer_names)} layers; {SAME_APP}"),
    "rank below": (
        {"layers": (FIRST,), "ranks": (-1,)},
        f"ranks: -1 for '{FIRST}', but there it is at most 4; give the site an adapter of a rank",
    ),
    "rank above": (
        {"layers": (FIRST,), "ranks": (5,)},
        f"ranks: 5 for '{FIRST}', but there it is at most 4; give the site an adapter of a rank",
    ),
    "lora of rank 0": (
        {"ranks": (0,) * len(PLAN.layer_names)},
        f"ranks: 0 for '{FIRST}', but there it is at most 4; give the site an adapter",
    ),
    "one of rank 0": (
        {"ranks": (1, 1, 0, 1, 1)},
        f"ranks: 0 for '{PLAN.layer_names[2]}', but there it is at most 4",
    ),
    "to be trained with rank 0": (
        {"kind": "none", "ranks": (0,) * len(PLAN.layer_names)},
        f"ranks: 0 for '{FIRST}', but there it is at most 4",
    ),
    "whole model with ranks": (
        {"kind": "full"},
        f"ranks: [12] for '{FIRST}', but a whole model has 0; {SAME_APP}",
    ),
    "no layers": ({"layers": (), "ranks": ()}, f"layers: none, but every .*; {SAME_APP}"),
    "a layer twice": ({"layers": (FIRST, FIRST), "ranks": (1, 1)}, "layers: one comes twice"),
    "layer": (
        {"layers": ("lm_head",), "ranks": (1,)},
        "layers: the model has no 'lm_head' .*`layerweld plan BASE` lists",
    ),
    "layerweld": (
        {"versions": ("layerweld=1.1", *VERSIONS[1:])},
        r"layerweld: version '1\.1' instead of '1\.0'; install the server's everywhere",
    ),
    "torch": (
        {"versions": (VERSIONS[0], "torch=2.7.0+cu128", VERSIONS[2])},
        r"torch: version '2\.7' instead of '2\.6'; install the server's everywhere",
    ),
    "transformers": (
        {"versions": VERSIONS[:2]},
        f"transformers: 0 versions instead of one; {SAME_APP}",
    ),
    "two of one": (
        {"versions": (*VERSIONS, "torch=2.7.0")},
        f"torch: 2 versions instead of one; {SAME_APP}",
    ),
    "no number": (
        {"versions": ("layerweld", *VERSIONS[1:])},
        r"layerweld: version '' instead of '1\.0'",
    ),
    "samples": (
        {"calibration_samples": 0},
        "claims 0 calibration samples of 3 and 20 tokens; give the site samples",
    ),
    "more samples than it has": (
        {"samples": 2},
        "claims 3 calibration samples of 2 and 20 tokens",
    ),
    "tokens": (
        {"tokens": -1},
        "claims 3 calibration samples of 3 and -1 tokens; give the site samples",
    ),
}


def sites(liar: str = "birch", **changes: Any) -> tuple[Any, ...]:
    """Three that belong together, but for what is changed at one."""
    honest = (replace(site_info_of(name), versions=VERSIONS) for name in NAMES)
    return tuple(replace(one, **changes) if one.site == liar else one for one in honest)


def check(site_infos: tuple[Any, ...] | list[Any]) -> None:
    check_cohort(
        site_infos,
        base="b",
        tokenizer="t",
        plan=PLAN,
        settings="s",
        prefix="bert.",
        versions=dict(entry.split("=") for entry in VERSIONS),
    )


@pytest.mark.parametrize("liar", NAMES)
@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_site_unlike_the_server_is_refused_by_name_and_with_a_way_out(
    changes: Any, message: Any, liar: Any
) -> None:
    with pytest.raises(CohortError, match=f"^site {liar}[, ].*{message}"):
        check(sites(liar, **changes))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_one_site_claims_of_itself_no_other_is_named(seed: int) -> None:
    draw = random.Random(seed)
    liar = draw.choice(NAMES)
    claims = [changes for changes, _ in REFUSED.values()]
    changes = {key: value for one in draw.sample(claims, 3) for key, value in one.items()}  # type: ignore[attr-defined]
    versions = draw.choices([*VERSIONS, "torch=9", "torch", "=", ""], k=draw.randrange(6))
    came = list(sites(liar, **{"versions": tuple(versions)} | changes))
    draw.shuffle(came)
    with pytest.raises(CohortError) as refused:
        check(came)
    assert f"site {liar}" in str(refused.value)
    assert not any(name in str(refused.value) for name in NAMES if name != liar)


@pytest.mark.parametrize("name", ["", "../birch", "birch tree", "-birch", "b" * 64, "birch\n"])
def test_a_name_that_is_no_folders_is_refused(name: Any) -> None:
    with pytest.raises(CohortError, match="cannot name a site: give it a `name` of at most 63"):
        check(sites(site=name))


def test_two_sites_of_one_name_are_refused() -> None:
    with pytest.raises(CohortError, match=r"call themselves 'ash'; .*change one `name`"):
        check(sites(site="ash"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "full", "ranks": (0,) * len(PLAN.layer_names)},
        {"kind": "none", "layers": (FIRST,), "ranks": (2,)},
        {"layers": (FIRST,), "ranks": (4,)},
        {"versions": ("layerweld=1.0.7", "torch=2.6.1+cpu", "transformers=5.0.0", "peft=0.18")},
        {"skipped": 7, "evaluates": True, "labelled": True, "factors": "f", "name_prefix": "bert."},
    ],
)
def test_sites_may_differ_in_what_they_bring(changes: Any) -> None:
    check(sites(**changes))


def test_only_what_some_site_fine_tuned_is_merged() -> None:
    layers = (("0.k",), (), ("0.o", "0.q"))
    trained = [replace(one, layers=own) for one, own in zip(sites(), layers, strict=True)]
    assert merged_layers(trained, PLAN).layer_names == ("0.q", "0.k", "0.o")
