"""Tables: of any JSON value, and of chosen figures."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table; `share` is the length of its bar, from 0 to 1, or None without one."""

    text: str
    is_number: bool = False
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the columns' headings (none for a list of names and values), and rows."""

    title: str
    headings: list[str]
    rows: list[list[Cell]]


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table of these values; texts that begin with a digit are numbers."""
    return Table(title, list(headings), [[_formatted(value) for value in row] for row in rows])


def _formatted(value: Any) -> Cell:
    if isinstance(value, str):
        return Cell(value, is_number=value[:1].isdigit())
    return _cell(value)


def tables(title: str, value: Any) -> Iterator[Table]:
    """Tables of any JSON value; nested values follow those that contain them."""
    if isinstance(value, Mapping):
        yield from _tables_of_mapping(title, value)
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        yield _records(title, value)
    elif value not in ([], {}, None):
        yield Table(title, [], [[_cell(value)]])


def _tables_of_mapping(title: str, value: Mapping[str, Any]) -> Iterator[Table]:
    if _are_records(value.values()):
        # A row for each; nested parts become another table of the same rows.
        plain = {name: _plain_part(record) for name, record in value.items()}
        yield _records(title, [{"": name, **record} for name, record in plain.items()])
        deeper = dict.fromkeys(
            field for name, record in value.items() for field in record if field not in plain[name]
        )
        for field in deeper:
            parts = {name: record[field] for name, record in value.items() if field in record}
            yield from tables(f"{title}: {_words(field)}", parts)
        return
    plain = _plain_part(value)
    if plain:
        yield _pairs(title, plain)
    for name, one in value.items():
        if name not in plain:
            yield from tables(f"{title}: {_words(name)}", one)


def _are_records(values: Collection[Any]) -> bool:
    """Whether several mappings share a field that fits a cell."""
    if len(values) < 2 or not all(isinstance(value, Mapping) for value in values):
        return False
    return bool(set.intersection(*(set(_plain_part(value)) for value in values)))


def _plain_part(value: Mapping[str, Any]) -> dict[str, Any]:
    """The values that fit a cell: neither mappings nor lists of lists or mappings."""
    return {
        name: one
        for name, one in value.items()
        if not isinstance(one, Mapping)
        and not (isinstance(one, list) and any(isinstance(each, list | Mapping) for each in one))
    }


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    """A row for each value, with bars if all are measurements; whole numbers are counts."""
    flat = _flat(values)
    are_measured = len(flat) > 1 and all(isinstance(v, float) and v >= 0 for v in flat.values())
    longest = max(flat.values()) if are_measured else 0.0
    rows = [
        [Cell(_words(name)), _cell(value, value / longest if longest else None)]
        for name, value in flat.items()
    ]
    return Table(title, [], rows)


def _records(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each record, a column for each field of any of them."""
    flat = [_flat(record) for record in records]
    columns = list(dict.fromkeys(name for record in flat for name in record))
    rows = [[_cell(record.get(name)) for name in columns] for record in flat]
    return Table(title, [_words(name) for name in columns], rows)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens mappings in mappings: {"a": {"b": 1}} becomes {"a b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name} {deeper}": one for deeper, one in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _cell(value: Any, share: float | None = None) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(_number(value), True, share)
    if value is None:
        return Cell("")
    if isinstance(value, list):
        return Cell(", ".join(_cell(one).text for one in value))
    return Cell(json.dumps(value) if isinstance(value, Mapping) else str(value))


def _number(value: float) -> str:
    """A number with four figures at most, since measurements are not more precise."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def _words(name: str) -> str:
    return name.replace("_", " ")
