"""The prompts of measured texts."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from outrider.errors import ConfigurationError


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a file that have text, or our own prompts. Raises ConfigurationError."""
    try:
        text = (path or files("outrider_bench") / "prompts.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read prompts: {error}") from error
    if not (lines := [line for line in text.splitlines() if line.strip()]):
        raise ConfigurationError(f"{path} has no prompts")
    return lines


def spread(lines: Sequence[str], count: int) -> list[str]:
    """`count` lines, spread evenly, or all if there are fewer."""
    count = min(count, len(lines))
    return [lines[i * len(lines) // count] for i in range(count)]
