"""A run's conclusions and tables in the terminal: those of its page."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from outrider.cli.pages import tables
from outrider.cli.pages.bench import questions


def show(document: Mapping[str, Any], console: Console) -> None:
    """Prints what a result says."""
    for section in questions(json.loads(json.dumps(document))):  # as if read from its file
        console.print(Text(section.title, "bold"))
        for finding in section.findings:
            console.print(finding, markup=False)
        for table in (*section.tables, *section.details):
            console.print("", _rich(table))
        console.print()


def _rich(table: tables.Table) -> Table:
    first, *others = table.headings
    columns = [Column(first, no_wrap=True), *(Column(each, justify="right") for each in others)]
    look: Any = {"title_justify": "left", "box": None, "pad_edge": False, "header_style": "dim"}
    drawn = Table(*columns, title=table.title, **look)
    for row in table.rows:
        drawn.add_row(*(Text(cell.text) for cell in row))
    return drawn
