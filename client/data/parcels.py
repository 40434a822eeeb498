"""A site's samples in parcels. A run gets whole parcels, so no two draws differ by fewer samples.

If one run saw a sample and another did not, their difference would be what that sample says. So
every set of samples that a run's settings can choose, for any purpose, is made of the same parcels,
each at least as large as the site says. Then so are intersections and differences of such sets.
Which samples share a parcel depends on nothing that a run says.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.data.samples import Dataset, subset

Places = Sequence[int]


@dataclass(frozen=True)
class Parcels:
    """Some samples, and which of them belong together.

    Attributes:
        dataset: all of them, in the order of their file.
        places: of each parcel's samples among them, in order; parcels by their first sample.
    """

    dataset: Dataset
    places: tuple[Places, ...]

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, samples: int, seed: int) -> Parcels:
        """A random subset without replacement. Parcels of one sample give exactly ``samples``.

        Args:
            samples: how many to keep, in as many parcels as hold that many on average; 0, or more
                than there are, keeps all.
            seed: the same seed draws the same parcels.
        """
        if not samples or samples >= len(self.dataset):
            return self
        wanted = -(-samples * len(self.places) // len(self.dataset))
        return self._of(random.Random(seed).sample(range(len(self.places)), wanted))

    def set_aside(self, share: float, seed: int) -> tuple[Parcels, Parcels]:
        """Split at random.

        Args:
            share: of the parcels that go to the second half, rounded to whole parcels.
            seed: the same seed sets the same parcels aside.
        """
        everything = range(len(self.places))
        aside = random.Random(seed).sample(everything, round(share * len(self.places)))
        kept = [number for number in everything if number not in {*aside}] if aside else everything
        return (self._of(kept) if aside else self), self._of(aside)

    def together(self, batch_size: int) -> int:
        """How many whole parcels make a batch of at most so many samples; at least one."""
        return max(1, batch_size * len(self.places) // len(self.dataset))

    def places_of(self, numbers: Iterable[int]) -> list[int]:
        """Places of the samples of some parcels, by the parcels' numbers."""
        return [place for number in numbers for place in self.places[number]]

    def _of(self, numbers: Places) -> Parcels:
        """Some of the parcels, with their samples in the order of the file."""
        kept = sorted(self.places_of(numbers))
        now_at = {place: i for i, place in enumerate(kept)}
        places = (tuple(now_at[p] for p in self.places[number]) for number in sorted(numbers))
        return Parcels(subset(self.dataset, kept), tuple(places))


def in_parcels(dataset: Dataset, at_least: int) -> Parcels:
    """Cut samples into parcels whose sizes differ by at most one.

    Files are often sorted by class or date, and a parcel should not be of one class. So samples are
    shuffled before they are cut, by a seed that is their number.

    Args:
        dataset: of one file; fewer than a parcel needs are one parcel.
        at_least: samples of a parcel.
    """
    count = max(1, len(dataset) // at_least)
    places = list(range(len(dataset)))
    if at_least > 1:
        random.Random(len(dataset)).shuffle(places)
    parcels = sorted(sorted(places[number::count]) for number in range(count))
    return Parcels(dataset, tuple(tuple(parcel) for parcel in parcels))
