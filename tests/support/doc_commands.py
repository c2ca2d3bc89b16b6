"""The commands and the Python programs that the docs show.

A command is a line of a block that is indented by four spaces, or three or more words in backticks
(of make two), if it begins with one of the programs below.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "deploy/ghz/README.md",
    ROOT / "outrider/embedded/README.md",
]

NOT_RUN = {
    r"(make|pre-commit|go) install": "downloads packages",
    r"pip install --no-deps \.": "tests/repository/test_wheel.py installs the wheel",
    r"pip wheel": "tests/repository/test_wheel.py makes it",
    r"pip install": "downloads packages",
    r"make run": "tests/repository/test_deployment.py runs it",
    r"make proto": "tests/repository/test_generated_code.py does what it does",
    r"make test": "runs this test",
    r"make load": "takes minutes",
    r"pytest|buf": "a developer's tool",
    r"docker": "needs a container runtime",
    r"torchrun": "needs GPUs; tests/system/tools/test_tensor_parallel.py has ranks on a CPU",
    r"ghz": "tests/system/tools/test_ghz.py runs it",
    r"ssh": "needs another host",
    r"OTEL_": "needs a collector; tests/system/tools/test_telemetry.py has one",
    r"python -m benchmarks": "takes minutes",
    r"python -c": "makes the shipped draft; tests/outrider/embedded has its parts",
    r"outrider bench": "takes minutes; tests/system/tools/test_bench.py runs a short one",
    r"outrider distill": "takes hours; tests/system/tools/test_distill.py makes a tiny draft",
    r"head|tail": "prepares what `outrider distill` reads",
    r"outrider .*EleutherAI": "needs a model hub",
}
"""Commands that tests do not run as they are shown, by how they begin, and why."""

_PROGRAMS = (
    "outrider python pip make docker torchrun grpcurl ghz go ssh buf head tail pre-commit pytest"
)
_COMMAND = rf"(?:\w+=\S+ )*(?:\.venv/bin/)?(?:{_PROGRAMS.replace(' ', '|')}) "
_LINE = re.compile(rf"^ {{4,}}({_COMMAND}.*(?:(?<=\\)\n.*)*)$", re.MULTILINE)
_SPAN = re.compile(rf"`(make [^`]+|{_COMMAND}[^\s`]+\s[^`]+)`")
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command as a page shows it, without comments, and its parts."""

    text: str
    variables: dict[str, str]
    arguments: list[str]

    @classmethod
    def read(cls, shown: str) -> Command:
        """Leaves out what a shell would not hand on."""
        words = shlex.split(shown.replace("\\\n", " "), comments=True)
        words = words[: words.index(">")] if ">" in words else words
        is_variable = [bool(re.match(r"[A-Z_]+=", word)) for word in words]
        first = is_variable.index(False)
        words[first] = words[first].removeprefix(".venv/bin/")
        variables = dict(word.split("=", 1) for word in words[:first])
        return cls(" ".join(words), variables, words[first:])


def shown_commands() -> list[Command]:
    """All commands of all pages, each once."""
    texts = [_FENCED.sub("", page.read_text()) for page in PAGES]
    shown = [one for text in texts for one in (*_LINE.findall(text), *_SPAN.findall(text))]
    found = [Command.read(part) for one in shown for part in one.split(" && ")]
    return list({command.text: command for command in found}.values())


def shown_programs() -> dict[str, str]:
    """All programs in Python, by page and place."""
    return {
        f"{page.relative_to(ROOT)}:{number}": textwrap.dedent(program)
        for page in PAGES
        for number, (language, program) in enumerate(_FENCED.findall(page.read_text()), 1)
        if language == "python"
    }


COMMANDS = shown_commands()
PARSED = [command for command in COMMANDS if any(re.match(how, command.text) for how in NOT_RUN)]
RUN = [command for command in COMMANDS if command not in PARSED]
