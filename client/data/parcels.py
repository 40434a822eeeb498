"""A site's rows in parcels of which a run gets whole ones: no two draws differ by fewer rows.

What two runs are told of one row more and of one row less is what that row says. So every set of
rows that a run's settings can choose, for whatever purpose, is made of the same parcels, each of
them at least as large as the site says; then so is whatever sets have in common, and whatever one
has and another has not. Which rows share a parcel depends on nothing that a run says.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.data.samples import Rows, chosen_rows

Places = Sequence[int]


@dataclass(frozen=True)
class Parcels:
    """Some rows, and which of them belong together.

    Attributes:
        rows: all of them, in the order of their file.
        places: of each parcel's rows among them, in order; parcels in the order of their first row.
    """

    rows: Rows
    places: tuple[Places, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, samples: int, seed: int) -> Parcels:
        """A random subset without replacement; of parcels of one row, exactly so many rows.

        Args:
            samples: rows to keep, in so many parcels as hold that many on average; 0, or more than
                there are, keeps all.
            seed: the same seed draws the same parcels.
        """
        if not samples or samples >= len(self.rows):
            return self
        wanted = -(-samples * len(self.places) // len(self.rows))
        return self._of(random.Random(seed).sample(range(len(self.places)), wanted))

    def set_aside(self, share: float, seed: int) -> tuple[Parcels, Parcels]:
        """Split at random.

        Args:
            share: of the parcels that go to the second half, rounded to the nearest one.
            seed: the same seed sets the same parcels aside.
        """
        everything = range(len(self.places))
        aside = random.Random(seed).sample(everything, round(share * len(self.places)))
        kept = [number for number in everything if number not in {*aside}] if aside else everything
        return (self._of(kept) if aside else self), self._of(aside)

    def together(self, batch_size: int) -> int:
        """How many whole parcels make a batch of so many rows, or fewer; one at least."""
        return max(1, batch_size * len(self.places) // len(self.rows))

    def places_of(self, numbers: Iterable[int]) -> list[int]:
        """Places of the rows of some parcels, by their numbers."""
        return [place for number in numbers for place in self.places[number]]

    def _of(self, numbers: Places) -> Parcels:
        """Some of the parcels, their rows in the order of the file."""
        kept = sorted(self.places_of(numbers))
        now_at = {place: i for i, place in enumerate(kept)}
        places = (tuple(now_at[p] for p in self.places[number]) for number in sorted(numbers))
        return Parcels(chosen_rows(self.rows, kept), tuple(places))


def in_parcels(rows: Rows, at_least: int) -> Parcels:
    """Cut rows into parcels that differ by one row at most.

    Rows lie in their file by class or by date, and a parcel should not be of one class: so which
    ones share a parcel is shuffled, by nothing but their number.

    Args:
        rows: of one file; fewer than a parcel needs are one parcel.
        at_least: rows of a parcel.
    """
    count = max(1, len(rows) // at_least)
    places = list(range(len(rows)))
    if at_least > 1:
        random.Random(len(rows)).shuffle(places)
    parcels = sorted(sorted(places[number::count]) for number in range(count))
    return Parcels(rows, tuple(tuple(parcel) for parcel in parcels))
