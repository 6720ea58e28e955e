"""Findings in the labels of a KTO run."""

from collections.abc import Iterator

from trainers.configs.stages.kto import KtoConfig
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding
from trainers.rendering.examples.labelled import LabelledSet

# The paper's bounds of the weight of good completions over that of bad ones (arXiv:2402.01306, equation 8).
MIN_RATIO, MAX_RATIO = 1.0, 4 / 3
# TRL warns outside of the bounds; results suffer where one label has several times the weight of the other.
TOLERANCE = 3.0


def check_labels(config: KtoConfig, rows: LabelledSet) -> Iterator[Finding]:
    """Yield a finding if there is one label only, or if one has far more weight than the other."""
    good, bad = rows.desirable, rows.count - rows.desirable
    if not rows.count:
        return
    if not good or not bad:
        found, missing = ("true", "false") if good else ("false", "true")
        yield new_finding(
            FindingCode.labels_of_one_kind,
            FindingLevel.error,
            f"All {rows.count} trained completions have the label {found}: KTO learns from the "
            f"difference to those with the label {missing}.",
            "Add rows with the other label, or train on good completions alone with sft.",
            count=rows.count,
            rows=rows.rows,
        )
        return
    ratio = config.desirable_weight * good / (config.undesirable_weight * bad)
    if MIN_RATIO / TOLERANCE <= ratio <= MAX_RATIO * TOLERANCE:
        return
    weaker = "undesirable_weight" if ratio > 1 else "desirable_weight"
    factor = ratio / MAX_RATIO if ratio > 1 else MIN_RATIO / ratio
    value = getattr(config, weaker) * factor
    yield new_finding(
        FindingCode.labels_unbalanced,
        FindingLevel.warning,
        f"{good} good and {bad} bad completions with these weights give the good ones {ratio:.3g} times the "
        f"weight of the bad ones; the paper's range is {MIN_RATIO:g} to {MAX_RATIO:.2f}.",
        f"Set {weaker} to about {value:.2g}.",
        count=min(good, bad),
        rows=rows.count,
    )
