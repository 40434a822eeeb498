"""What a merge method is: its name and source, what it needs, and how its rounds go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from layerweld.settings_table import Granularity, Settings

Data = Literal["none", "unlabelled", "labelled"]
Need = Literal["LoRA", "equal ranks", "shared A", "labels", "head"]
Quantity = Literal["ΔW", "A", "B", "G", "ΔW·G", "n", "F", "F⊙ΔW", "H", "∂H/∂λ", "D", "∂D/∂W"]

SENT: Mapping[Quantity, str] = {
    "ΔW": "ΔW: the update of each layer, of a LoRA as A and B",
    "A": "A: of each layer",
    "B": "B: of each layer, scaled",
    "G": "G: the upper triangle of one Gram matrix a layer group",
    "ΔW·G": "ΔW·G: of each layer, of a LoRA as B and A·G",
    "n": "n: how many tokens were measured",
    "F": "F: the mean squared gradient by each weight",
    "F⊙ΔW": "F⊙ΔW: of each layer",
    "H": "H: the mean entropy of its head's predictions",
    "∂H/∂λ": "∂H/∂λ: one number for each site and layer",
    "D": "D: how far the merged block's output is from its own",
    "∂D/∂W": "∂D/∂W: of each layer of the block",
}
"""What leaves a site, in words."""


@dataclass(frozen=True)
class Kind:
    """How the rounds of a method go: one of the five below.

    Attributes:
        name: of the kind.
        data: what of a site's dataset is used.
        sends: what leaves a site, in the order of the rounds.
        learns: whether coefficients are learnt from samples, in as many rounds as settings say.
        shares: whether every site is sent the updates of all others.
    """

    name: str
    data: Data
    sends: tuple[Quantity, ...]
    learns: bool = False
    shares: bool = False


CHAIN = Kind("chain", "unlabelled", ("G", "ΔW·G", "n"))
"""Statistics of one step after the other; the sums are solved for the merge."""
UPDATES = Kind("updates", "none", ("ΔW",))
"""The updates themselves, in one round; the method's settings compute the merge."""
FISHER = Kind("fisher", "labelled", ("F", "F⊙ΔW"))
"""Squared gradients, in one round."""
ENTROPY = Kind("entropy", "unlabelled", ("ΔW", "H", "∂H/∂λ"), learns=True, shares=True)
"""The updates, then in every round the gradient of an entropy by a few coefficients."""
DISTILLATION = Kind("distillation", "unlabelled", ("ΔW", "D", "∂D/∂W"), learns=True)
"""The updates, then in every round the gradient of a distance by the weights of one block."""


@dataclass(frozen=True)
class Method:
    """One way to merge the sites' models.

    Attributes:
        name: on the command line, in settings and in files.
        label: for people.
        source: the paper.
        formula: what the merge is, as one line of Markdown.
        settings: the table of settings of its own, if it has one; of the kind ``UPDATES`` a
            :class:`layerweld.merging.one_round.MergeMethod`, which also computes the merge.
        kind: how its rounds go.
        sums: whether the server needs no more than sums over the sites, as secure aggregation
            would give them.
        needs: what must hold for the sites' models; checked in the handshake.
        dense: whether its merge of LoRAs is not a LoRA.
        table: name of its table of settings; its own name if empty.
        granularity: of a chain, else None.
        stands_for: settings of ``merge`` that are fixed by the name of a chain.
        tune: what ``layerweld compare --tune`` tries after the defaults, by key.
        lines: whether LiNeS scales the result.
    """

    name: str
    label: str
    source: str
    formula: str
    settings: type[Settings] | None = None
    kind: Kind = UPDATES
    sums: bool = False
    needs: tuple[Need, ...] = ()
    dense: bool = False
    table: str = ""
    granularity: Granularity | None = None
    stands_for: Mapping[str, float | str] = field(default_factory=dict, hash=False)
    tune: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False)
    lines: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table or self.name)

    @property
    def sends(self) -> tuple[Quantity, ...]:
        """What leaves a site; where only LoRAs will do, their factors by name."""
        return ("A", "B") if "LoRA" in self.needs else self.kind.sends

    @property
    def rounds(self) -> str:
        """How many: one, as many as there are layer groups or blocks, or what a setting says."""
        names = {"group": "groups", "block": "blocks", "jacobi": "setting"}
        return "setting" if self.kind.learns else names.get(self.granularity or "", "1")

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables of settings that only some methods read, and it does; own first."""
        own = (self.table,) if self.settings else ()
        chain = ("merge",) if self.kind is CHAIN else ()
        return (*own, *chain, "lines") if self.lines else (*own, *chain)
