"""Types of settings."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import click

from outrider.errors import OutriderError

PORT = click.IntRange(0, 65535)

# More than any machine has. With tens of thousands of threads the process would die silently.
THREADS = click.IntRange(1, 1024)


class FiniteRange(click.FloatRange):
    """A range that excludes infinity and NaN, which click accepts in any range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _WholeText(click.types.StringParamType):
    """The type of a repeatable option whose variable holds one value, spaces included."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [rv]


WHOLE_TEXT = _WholeText()


def checked(check: Callable[[str], str]) -> Callable[..., str | None]:
    """The callback of an option whose value, if there is one, goes through `check`."""

    def callback(
        context: click.Context, parameter: click.Parameter, value: str | None
    ) -> str | None:
        try:
            return None if value is None else check(value)
        except OutriderError as error:
            raise click.BadParameter(error.message) from error

    return callback
