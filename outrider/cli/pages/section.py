"""What a page consists of."""

from dataclasses import dataclass, field
from typing import Any

from outrider.cli.pages.tables import Table


@dataclass(slots=True)
class Section:
    """A question, and what a result says to it.

    `findings` are sentences, which also stand at the beginning of the page, and `tables` their
    figures; `details` are folded up. `plots` are names of drawings until the page is made, then
    data URLs. Of a single answer, `pieces` are the text that follows `prompt`, `shares` add up to
    1, and `timeline` is drawn.
    """

    title: str
    findings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    details: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    prompt: str = ""
    pieces: list[dict[str, Any]] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    timeline: Any = None
