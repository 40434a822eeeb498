"""Which cohorts are refused before anything is computed, and what each refusal says."""

from dataclasses import replace

import pytest

from layerweld.errors import CohortError
from layerweld.launch import app_module
from tests.stub_sites import NAMES, PLAN, introduction_of

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
        {"prefix": "model.evil."},
        r"prefix: 'model\.evil\.' before its layers' names, where this base model has 'bert\.' or",
    ),
    "rank missing": ({"ranks": (1,)}, f"ranks: 1 for {len(PLAN.layer_names)} layers; {SAME_APP}"),
    "rank below": (
        {"layers": (FIRST,), "ranks": (-1,)},
        f"ranks: -1 for '{FIRST}', which is 4 wide; give the site an adapter of a rank",
    ),
    "rank above": (
        {"layers": (FIRST,), "ranks": (5,)},
        f"ranks: 5 for '{FIRST}', which is 4 wide; give the site an adapter of a rank",
    ),
    "layer": (
        {"layers": ("lm_head",), "ranks": (1,)},
        "layers: the model has no 'lm_head' .*`layerweld plan BASE` lists",
    ),
    "layerweld": (
        {"versions": ("layerweld=1.1", *VERSIONS[1:])},
        r"layerweld: version 1\.1, but ash has 1\.0; install the same one everywhere",
    ),
    "torch": (
        {"versions": (VERSIONS[0], "torch=2.7.0+cu128", VERSIONS[2])},
        r"torch: version 2\.7, but ash has 2\.6; install the same one everywhere",
    ),
    "transformers": (
        {"versions": VERSIONS[:2]},
        r"transformers: version \?, but ash has 5\.0; install the same one everywhere",
    ),
    "rows": ({"samples": 0}, "claims 0 calibration rows of 3 and 20 tokens; give the site rows"),
    "more rows than it has": ({"rows": 2}, "claims 3 calibration rows of 2 and 20 tokens"),
    "tokens": ({"tokens": -1}, "claims 3 calibration rows of 3 and -1 tokens; give the site rows"),
}


def sites(**changes):
    """Three that belong together, but for what is changed at ``birch``."""
    ash, birch, cedar = (replace(introduction_of(name), versions=VERSIONS) for name in NAMES)
    return ash, replace(birch, **changes), cedar


def check(introductions):
    app_module("server.handshake").check_cohort(
        introductions, base="b", tokenizer="t", plan=PLAN, settings="s", prefix="bert."
    )


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_site_unlike_the_others_is_refused_by_name_and_with_a_way_out(changes, message):
    with pytest.raises(CohortError, match=f"^site birch[, ].*{message}"):
        check(sites(**changes))


@pytest.mark.parametrize("name", ["", "../birch", "birch tree", "-birch", "b" * 64, "birch\n"])
def test_a_name_that_is_no_folders_is_refused(name):
    with pytest.raises(CohortError, match="is no site's name: give it a `name` of at most 63"):
        check(sites(site=name))


def test_two_sites_of_one_name_are_refused():
    with pytest.raises(CohortError, match=r"call themselves 'ash'; .*change one's `name`"):
        check(sites(site="ash"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "full", "ranks": (0,) * len(PLAN.layer_names)},
        {"kind": "none", "layers": (), "ranks": ()},
        {"layers": (FIRST,), "ranks": (4,)},
        {"versions": ("layerweld=1.0.7", "torch=2.6.1+cpu", "transformers=5.0.0", "peft=0.18")},
        {"skipped": 7, "evaluates": True, "labelled": True, "factors": "f", "prefix": "bert."},
    ],
)
def test_sites_may_differ_in_what_they_bring(changes):
    check(sites(**changes))


def test_only_what_some_site_fine_tuned_is_merged():
    merged_layers = app_module("server.handshake").merged_layers
    layers = (("0.k",), (), ("0.o", "0.q"))
    trained = [replace(one, layers=own) for one, own in zip(sites(), layers, strict=True)]
    assert merged_layers(trained, PLAN).layer_names == ("0.q", "0.k", "0.o")
