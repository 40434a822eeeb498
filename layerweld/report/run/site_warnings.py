"""What a merge says about single sites that people should look into."""

from __future__ import annotations

from collections.abc import Iterator

from layerweld.report.results import MethodResult


def site_warnings(result: MethodResult) -> Iterator[str]:
    """One sentence each, by site, with the way out."""
    count = len(result.groups)
    for site, groups in sorted(result.outliers.items()):
        yield (
            f"{site} moves {len(groups)} of the {count} groups of {result.label} more than three "
            f"times as far as the median site; look at its data and adapter, or cap it with "
            f"merge.max-share"
        )
    for site, groups in sorted(result.opposed.items()):
        if 2 * len(groups) > count:
            yield (
                f"{site} does the opposite of what the others merge to in {len(groups)} of the "
                f"{count} groups of {result.label}; was it trained with other labels, or is the "
                f"sign of its update turned?"
            )
    for site in sorted({site for group in result.groups for site in group.capped}):
        capped = [group.capped[site] for group in result.groups if site in group.capped]
        yield (
            f"the weight of {site} was taken down in {len(capped)} of the {count} groups of "
            f"{result.label}, to {min(capped):.0%} at least, since it was far above the other "
            f"sites': has it few or very similar samples? merge.max-weight sets the bound"
        )
