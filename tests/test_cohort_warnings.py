"""What the handshake lets pass is said all the same."""

from dataclasses import replace
from typing import Any

import pytest

from layerweld.plan import LayerGroup, LayerShape, MergePlan
from server.cohort_warnings import of_most, warnings_of
from tests.stub_sites import NAMES, PLAN, site_info_of

WIDE = MergePlan(("0",), (LayerGroup("0.in", 0, 50, (LayerShape("0.q", 3),)), *PLAN.groups))
ENOUGH = 10**4  # tokens, for any group here


def sites() -> list[Any]:
    return [replace(site_info_of(name), tokens=ENOUGH) for name in NAMES]


@pytest.mark.parametrize(("tokens", "warns"), [(1, True), (33, True), (34, False), (99, False)])
def test_fewer_tokens_than_twice_the_widest_groups_features_are_warned_of(
    tokens: int, warns: bool
) -> None:
    few = [replace(one, tokens=each) for one, each in zip(sites(), (33, 33, tokens), strict=True)]
    found = list(warnings_of(few, WIDE, {}))
    assert bool(found) == warns
    if warns:
        assert f"{66 + tokens} calibration tokens over all sites for 50 features" in found[0]
        assert "raise merge.ridge" in found[0]


def test_two_sites_with_one_adapter_are_named() -> None:
    one, other, third = sites()
    assert not list(
        warnings_of(sites(), PLAN, {})
    )  # none brings an adapter yet: nothing to compare
    same = [replace(one, adapter="a"), replace(other, adapter="b"), replace(third, adapter="a")]
    (found,) = warnings_of(same, PLAN, {})
    assert "ash and cedar bring the same adapter" in found


def test_samples_that_were_passed_over_are_counted() -> None:
    one, *others = sites()
    (found,) = warnings_of([replace(one, skipped=3), *others], PLAN, {})
    assert found.startswith("ash has 3 samples that cannot be read")


@pytest.mark.parametrize("field", ["name_prefix", "task"])
def test_one_site_alone_does_not_rename_the_merged_adapter_and_is_named(field: str) -> None:
    assert not list(warnings_of([replace(one, **{field: "same"}) for one in sites()], PLAN, {}))
    one, *others = (replace(one, **{field: "bert."}) for one in sites())
    cohort = [replace(one, **{field: ""}), *others]
    (found,) = warnings_of(cohort, PLAN, {})
    assert "(ash: none, birch: bert., cedar: bert.); the merged adapter has bert.." in found
    assert of_most(getattr(one, field) for one in cohort) == "bert."


def test_names_that_are_as_frequent_as_others_name_nothing() -> None:
    assert of_most(["", "bert."]) == of_most(["a", "b", "c"]) == ""
    assert of_most(["bert."] * 3) == of_most(["bert.", "bert.", "a"]) == "bert."


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ((), ""),
        (("cpu=A", "threads=2"), ""),
        (("cpu=B", "threads=2"), "another cpu than"),
        (("cpu=B", "threads=1"), "another cpu, threads than"),
        (("cpu=A", "threads=2", "$OMP_PLACES=\x1b[2J"), "another variables than"),
        (("cpu=A", "threads=2", "\x1b[2J=1"), "another variables than"),
        (("\x1b[2J",), "another cpu, threads, variables than"),
    ],
)
def test_a_site_of_another_kind_of_machine_is_named_with_what_differs(
    there: Any, says: str
) -> None:
    one, *others = sites()
    here = {"cpu": "A", "threads": "2"}
    found = list(warnings_of([replace(one, environment=there), *others], PLAN, here))
    assert len(found) == bool(says)
    if says:
        assert found[0].startswith(f"{one.site} computes with {says} the coordinator")
        assert "\x1b" not in found[0]
