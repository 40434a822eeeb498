"""The merge methods by name: a plain table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from layerweld.errors import ConfigError
from layerweld.settings.merge import Granularity
from layerweld.settings.run import RunSettings

Data = Literal["none", "unlabelled", "labelled"]
Need = Literal["lora", "equal ranks", "shared A", "labels", "head"]
Quantity = Literal["ΔW", "A", "B", "G", "ΔW·G", "n", "F", "F⊙ΔW", "H", "∂H/∂λ", "D", "∂D/∂W"]


@dataclass(frozen=True)
class Method:
    """One way to make one model of the sites' models.

    A method of one round is its settings table in :class:`layerweld.settings.run.RunSettings`,
    which also computes the merge.

    Attributes:
        name: on the command line, in settings and in files.
        label: for humans.
        source: the paper.
        sends: what leaves a site, in the order of its rounds; see :func:`sent_by`.
        sums: whether the server needs no more than sums over the sites, as secure aggregation
            would give them.
        data: what of a site's rows is used.
        granularity: of the chain that plays it; None for methods of one round.
        needs: what must hold for the sites' models; checked in the handshake.
        lines: whether LiNeS scales the result.
        learns: whether coefficients are learnt from rows, in as many rounds as its settings say.
        shares: whether every site is sent the updates of all others.
    """

    name: str
    label: str
    source: str
    sends: tuple[Quantity, ...] = ("ΔW",)
    sums: bool = False
    data: Data = "none"
    granularity: Granularity | None = None
    needs: tuple[Need, ...] = ()
    lines: bool = False
    learns: bool = False
    shares: bool = False

    @property
    def rounds(self) -> str:
        """How many: one, as many as there are layer groups or blocks, or what a setting says."""
        names = {"group": "groups", "block": "blocks", "jacobi": "setting"}
        return "setting" if self.learns else names.get(self.granularity or "", "1")

    @property
    def table(self) -> str:
        """The table of settings that the method reads."""
        if self.granularity:
            return "merge"
        return self.name.removesuffix(_LINES).removesuffix(_PLUS)

    @property
    def from_updates(self) -> bool:
        """Whether the server merges the updates themselves, once all sites have sent them."""
        return self.granularity is None and self.data == "none"


_LINES = "+lines"
_PLUS = "++"  # AdaMerging++ reads AdaMerging's settings: no TOML table has a plus in its name
_GRAM: tuple[Quantity, ...] = ("G", "ΔW·G", "n")
_FACTORS: tuple[Quantity, ...] = ("A", "B")
_ENTROPY: tuple[Quantity, ...] = ("ΔW", "H", "∂H/∂λ")

# fmt: off
_ALL = (
    Method("com", "Chain of Merges", "Buzzega et al. 2025, arXiv:2508.21421",
           _GRAM, True, "unlabelled", "group"),
    Method("regmean++", "RegMean++", "Nguyen et al. 2025, arXiv:2508.03121",
           _GRAM, True, "unlabelled", "block"),
    Method("regmean", "RegMean", "Jin et al. 2023, arXiv:2212.09849",
           _GRAM, True, "unlabelled", "model"),
    Method("jacobi", "Jacobi rounds", "Chen et al. 2025 (IterIS), arXiv:2411.15231",
           _GRAM, True, "unlabelled", "jacobi"),
    Method("mats", "MaTS", "Tam et al. 2024, arXiv:2312.04339",
           _GRAM, True, "unlabelled", "model"),
    Method("fisher", "Fisher averaging", "Matena and Raffel 2022, arXiv:2111.09832",
           ("F", "F⊙ΔW"), True, "labelled", needs=("labels",)),
    Method("adamerging", "AdaMerging", "Yang et al. 2024, arXiv:2310.02575",
           _ENTROPY, False, "unlabelled", needs=("head",), learns=True, shares=True),
    Method("adamerging++", "AdaMerging++", "Yang et al. 2024, arXiv:2310.02575",
           _ENTROPY, False, "unlabelled", needs=("head",), learns=True, shares=True),
    Method("prodistill", "ProDistill", "Xu et al. 2025, arXiv:2502.12706",
           ("ΔW", "D", "∂D/∂W"), False, "unlabelled", learns=True),
    Method("task-arithmetic", "Task arithmetic", "Ilharco et al. 2023, arXiv:2212.04089",
           sums=True),
    Method("mean", "Mean of the updates", "McMahan et al. 2017, arXiv:1602.05629", sums=True),
    Method("ties", "TIES", "Yadav et al. 2023, arXiv:2306.01708"),
    Method("dare", "DARE", "Yu et al. 2024, arXiv:2311.03099"),
    Method("dare-ties", "DARE-TIES", "Yu et al. 2024, arXiv:2311.03099"),
    Method("consensus", "Consensus TA", "Wang et al. 2024, arXiv:2405.07813"),
    Method("localize-and-stitch", "Localize-and-Stitch", "He et al. 2024, arXiv:2408.13656"),
    Method("pcb", "PCB-Merging", "Du et al. 2024, arXiv:2410.02396"),
    Method("tsv", "TSV-Merge", "Gargiulo et al. 2025, arXiv:2412.00081"),
    Method("iso-c", "Iso-C", "Marczak et al. 2025, arXiv:2502.04959", sums=True),
    Method("iso-cts", "Iso-CTS", "Marczak et al. 2025, arXiv:2502.04959"),
    Method("knots-ties", "KnOTS-TIES", "Stoica et al. 2025, arXiv:2410.19735"),
    Method("knots-dare-ties", "KnOTS-DARE-TIES", "Stoica et al. 2025, arXiv:2410.19735"),
    Method("core-space", "Core Space", "Panariello et al. 2025, arXiv:2509.17786",
           _FACTORS, needs=("lora",)),
    Method("wudi", "WUDI, closed form", "Cheng et al. 2025, arXiv:2503.08099"),
    Method("dc-merge", "DC-Merge", "CVPR 2026, github.com/Tobeginwith/DC-Merge"),
    Method("do-merging", "DO-Merging", "Zheng et al. 2025, arXiv:2505.15875",
           _FACTORS, needs=("lora",)),
    Method("opcm", "OPCM", "Tang et al. 2025, arXiv:2501.09522"),
    Method("fedit", "FedIT", "Zhang et al. 2024, arXiv:2305.05644",
           _FACTORS, sums=True, needs=("lora", "equal ranks")),
    Method("ffa-lora", "FFA-LoRA", "Sun et al. 2024, arXiv:2403.12313",
           _FACTORS, sums=True, needs=("lora", "shared A")),
    Method("flora", "FLoRA", "Wang et al. 2024, arXiv:2409.05976", _FACTORS, needs=("lora",)),
    Method("fedex-lora", "FedEx-LoRA", "Singhal et al. 2025, arXiv:2410.09432",
           _FACTORS, needs=("lora", "equal ranks")),
    Method("flexlora", "FlexLoRA", "Bai et al. 2024, arXiv:2402.11505",
           _FACTORS, needs=("lora",)),
)
# fmt: on

METHODS = MappingProxyType({method.name: method for method in _ALL})
"""Every method, by name, in the order in which tables show them."""


def method_named(name: str, settings: RunSettings) -> Method:
    """Look a method up.

    ``chain`` is the one of the run's ``merge.granularity``; ``ties+lines`` is TIES with LiNeS as a
    last step, and so for every method that merges the updates themselves.

    Raises:
        ConfigError: there is no such method, or LiNeS cannot follow it.
    """
    if name == "chain":
        return next(m for m in _ALL if m.granularity == settings.merge.granularity)
    plain = name.removesuffix(_LINES)
    if plain not in METHODS:
        raise ConfigError(f"unknown method {plain!r}; known: chain, {', '.join(METHODS)}")
    method = METHODS[plain]
    if plain == name:
        return method
    if not method.from_updates:
        raise ConfigError(
            f"{name!r}: LiNeS takes its scale from the sites' updates, which {plain} does not "
            f"send; put `+lines` after a method that needs no rows"
        )
    return replace(method, name=name, label=f"{method.label} + LiNeS", lines=True)


def methods_of(settings: RunSettings) -> tuple[Method, ...]:
    """The methods of a run, in order, each once."""
    names = [name.strip() for name in settings.methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("methods is empty: name at least one, or `chain`")
    return tuple(dict.fromkeys(method_named(name, settings) for name in names))


def settings_for(method: str, settings: RunSettings) -> RunSettings:
    """The run's settings with what the method stands for: its granularity, and MaTS its solver."""
    chosen = method_named(method, settings)
    if chosen.granularity is None:
        return settings
    stands_for: dict[str, object] = {"granularity": chosen.granularity}
    if chosen.name == "mats":
        stands_for |= {"solver": "gradients", "ridge": 0.0, "anchor": "mean"}
    merge = settings.merge.model_copy(update=stands_for)
    return settings.model_copy(update={"merge": merge})


def sent_by(method: Method, settings: RunSettings) -> tuple[Quantity, ...]:
    """What leaves a site in a run; for a ridge towards the mean of the updates these go as well."""
    if method.granularity and settings_for(method.name, settings).merge.anchor == "mean":
        return (*method.sends, "ΔW")
    return method.sends


def measuring_shift(settings: RunSettings) -> tuple[Method, ...]:
    """The methods of a run after whose merge every site measures eq. 8, by layer group."""
    last = {"off": 0, "first": 1, "all": None}[settings.merge.covariate_shift]
    return tuple(method for method in methods_of(settings)[:last] if method.granularity)


def tables_of(method: Method) -> tuple[str, ...]:
    """The tables of settings that a method reads beside those that every method does."""
    return (method.table, "lines") if method.lines else (method.table,)


def reads(method: Method, key: str, settings: RunSettings) -> bool:
    """Whether a setting has a say in what the method makes; every one outside of merging has.

    Args:
        method: as :func:`method_named` gives it.
        key: dotted, ``ties.density``.
        settings: all that the run has set.
    """
    table = key.partition(".")[0]
    if table not in {m.table for m in _ALL} | {"lines"} or key == "merge.rank":
        return True
    if table != method.table:
        return table == "lines" and method.lines
    if key == f"{table}.scaling" and method.lines:
        return False  # LiNeS takes its place
    played = settings_for(method.name, settings)
    if key == "merge.rounds":
        return played.merge.granularity == "jacobi"
    if key == "merge.iterations":
        return played.merge.solver == "gradients"
    return played.flat()[key] == settings.flat()[key]  # or the method stands for another value
