"""Results of a run that never was, for what draws and tells them."""

from dataclasses import replace

from layerweld.report.results import GroupMetrics, MethodResult, RunResults, Score, SiteSummary

HOSTILE = '</script><img src="https://evil.example/x.png" onerror=alert(1)>'
SITES = ("amsterdam", "boston", "chengdu", "dakar", "edinburgh", HOSTILE)
ALONE = (0.90, 0.80, 1.00, 0.50, 0.80, 0.90)
KINDS = (
    ("attention.self", ("query", "key", "value")),
    ("attention.output.dense", ("dense",)),
    ("intermediate.dense", ("dense",)),
    ("output.dense", ("dense",)),
)
LABELS = {
    "base": "Base model",
    "individual": "Individual",
    "mean": "Mean",
    "task-arithmetic": "Task arithmetic",
    "regmean": "RegMean",
    "regmean++": "RegMean++",
    "com": "Chain of Merges",
}
SHARES = {"base": 0.5, "individual": 1.0, "mean": 0.6, "task-arithmetic": 0.7, "regmean": 0.8,
          "regmean++": 0.85, "com": 0.95}  # fmt: skip


def made_up_results(
    com: dict[str, float] | None = None,
    individual: dict[str, float] | None = None,
    samples: int = 400,
    shift: bool = True,
) -> RunResults:
    """Six sites and seven methods, each with the same share of individual accuracy at every site;
    the arguments replace accuracies of two methods.
    """
    other = {"com": com or {}, "individual": individual or {}}
    with_groups = {"regmean": 3.0, "regmean++": 2.0, "com": 1.0}
    methods = []
    for name, share in SHARES.items():
        accuracies = {s: share * a for s, a in zip(SITES, ALONE, strict=True)} | other.get(name, {})
        groups = _groups(with_groups[name] if shift else 0) if name in with_groups else ()
        scores = {site: Score(accuracy, samples) for site, accuracy in accuracies.items()}
        methods.append(
            MethodResult(name, LABELS[name], len(groups), 2.5, 10**6, 10**5, scores, groups)
        )
    return RunResults(
        name="six hospitals",
        base="tiny-encoder",
        sites=tuple(SiteSummary(s, 100, 1000, "lora", 4 + i) for i, s in enumerate(SITES)),
        methods=tuple(methods),
        chosen="com",
        form="adapter",
        settings={"merge.ridge": 0.01, "name": "six hospitals"},
        manifest_hash="0123456789abcdef" * 4,
        versions={"layerweld": "0.1.0"},
    )


def _groups(shift: float) -> tuple[GroupMetrics, ...]:
    """24 groups; ω of the six sites is 1 to 6, the fourth kind of group is the one of 4 MB."""
    return tuple(
        GroupMetrics(
            name=f"encoder.layer.{block}.{name}",
            step=4 * block + kind,
            layers=layers,
            d_in=128,
            tokens=dict.fromkeys(SITES, 1000),
            importance={s: float(i + 1) for i, s in enumerate(SITES)},
            condition=10.0 ** (3 + kind),
            ridge=0.01,
            residual=0.2,
            compression_error=0.0,
            bytes_up=dict.fromkeys(SITES, (kind + 1) * 10**6),
            covariate_shift=dict.fromkeys(SITES, shift * (4 * block + kind)) if shift else {},
        )
        for block in range(6)
        for kind, (name, layers) in enumerate(KINDS)
    )


def without_scores() -> RunResults:
    methods = tuple(replace(m, scores={}) for m in made_up_results().methods)
    return replace(made_up_results(), methods=methods)


def with_lost_sites() -> RunResults:
    """Boston is lost in the tenth round of the chain, and so missing in what was merged after it;
    Dakar is lost in the evaluation."""
    results = made_up_results()
    *others, com = (replace(m, lost={"boston": 1} if m.name == "mean" else {})
                    for m in results.methods)  # fmt: skip
    groups = tuple(replace(g, lost=("boston",) if g.step >= 9 else ()) for g in com.groups)
    return replace(
        results,
        methods=(*others, replace(com, groups=groups, lost={"boston": 10})),
        lost={"boston": "full disk", "dakar": "never answered"},
        settings={"lost-site": "continue"},
    )
