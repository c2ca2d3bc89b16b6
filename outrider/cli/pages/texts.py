"""What a result of `benchmarks/texts.py` says: speedups over many texts."""

from collections.abc import Mapping
from typing import Any

from outrider.cli.pages.section import Section
from outrider.cli.pages.tables import table, tables

_MEASURES = ("mean", "median", "least")


def text_by_text(document: Mapping[str, Any]) -> Section:
    texts = document["texts"]
    summary = dict(document["summary"])
    num_different = summary.pop("texts_that_differ")
    findings = [
        f"Over {len(texts)} texts the {way} is {found['mean']:.2f} times as fast as the target "
        f"alone in the mean (median {found['median']:.2f}, least {found['least']:.2f})."
        for way, found in summary.items()
    ]
    if num_different:
        findings.append(f"{num_different} of them DIFFER from the target's own.")
    rows = (
        (way, *(f"{found[measure]:.2f}x" for measure in _MEASURES))
        for way, found in summary.items()
    )
    return Section(
        "How fast, over many texts?",
        findings,
        [table("speed, target alone = 1", ["", *_MEASURES], rows)],
        list(tables("texts", texts)),
    )
