"""Samples in parcels: what two draws of a run share, or do not, is never less than one."""

import random
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.parcels import in_parcels
from client.data.samples import Dataset, make_dataset


def made(total: int) -> Dataset:
    return make_dataset(
        [f"text {i:03}" for i in range(total)], [f"class {i % 3}" for i in range(total)]
    )


@given(total=st.integers(1, 30), samples=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_draw_of_single_samples_keeps_number_order_and_labels(
    total: int, samples: int, seed: int
) -> None:
    dataset = made(total)
    drawn = in_parcels(dataset, 1).draw(samples, seed).dataset
    assert len(drawn) == (min(samples, total) or total)
    assert list(drawn.inputs) == sorted(set(drawn.inputs))  # type: ignore[type-var]
    assert dataset.labels
    assert drawn.labels
    pairs = dict(zip(dataset.inputs, dataset.labels, strict=True))
    assert [pairs[text] for text in drawn.inputs] == list(drawn.labels)
    assert drawn.classes == dataset.classes
    assert drawn == in_parcels(dataset, 1).draw(samples, seed).dataset


@given(st.integers(1, 40), st.sampled_from([0.0, 0.2, 0.5]), st.integers(0, 3), st.integers(1, 7))
def test_setting_aside_splits_samples_without_loss_or_overlap(
    count: Any, share: Any, seed: Any, least: Any
) -> None:
    dataset = made(count)
    kept, aside = in_parcels(dataset, least).set_aside(share, seed)
    assert least > 1 or len(aside) == round(share * count)
    assert sorted([*kept.dataset.inputs, *aside.dataset.inputs]) == sorted(dataset.inputs)
    assert kept.dataset.classes == aside.dataset.classes == dataset.classes
    assert in_parcels(dataset, least).set_aside(share, seed) == (kept, aside)


@given(st.integers(1, 200), st.integers(1, 40))
def test_parcels_share_all_samples_evenly_and_none_is_too_small(total: Any, least: Any) -> None:
    parcels = in_parcels(made(total), least).places
    assert sorted(place for parcel in parcels for place in parcel) == list(range(total))
    sizes = {len(parcel) for parcel in parcels}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, total)


def test_a_draw_of_parcels_holds_about_as_many_samples_as_were_asked_for() -> None:
    parcels = in_parcels(made(205), 10)
    for samples in range(10, 205):
        assert -2 <= len(parcels.draw(samples, 0)) - samples <= 11


@pytest.mark.parametrize(("total", "least"), [(60, 10), (64, 7), (23, 10), (300, 25)])
def test_whatever_a_run_draws_two_sets_differ_by_nothing_or_by_a_parcel_and_more(
    total: int, least: int
) -> None:
    rng = random.Random(total)
    whole = in_parcels(made(total), least)
    chosen = [{*whole.dataset.inputs}]
    for _ in range(60):
        kept, aside = whole.set_aside(rng.choice([0, 0.01, 0.2, 0.5, 0.99]), rng.randrange(9))
        drawn = kept.draw(rng.randrange(total + 2), rng.randrange(9))
        again = drawn.draw(rng.randrange(total + 2), rng.randrange(9))
        batch = kept.together(rng.randrange(1, 40)) if kept.places else 0
        numbers = rng.sample(range(len(kept.places)), min(batch, len(kept.places)))
        chosen += [{*part.dataset.inputs} for part in (kept, aside, drawn, again)]
        chosen += [{kept.dataset.inputs[place] for place in kept.places_of(numbers)}]
    assert all(not samples or len(samples) >= least for samples in chosen)
    assert len({frozenset(samples) for samples in chosen}) > 10 or len(whole.places) < 4
    for one, other in combinations({frozenset(samples) for samples in chosen}, 2):
        for part in (one - other, other - one, one & other):
            assert not part or len(part) >= least
