"""Runs ghz, a load tester in Go, and reads its reports."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

VERSION = "v0.121.0"
MODULE = f"github.com/bojand/ghz/cmd/ghz@{VERSION}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `began` and `ended` are seconds of ghz's clock; `error` is "" if there was none."""

    began: float
    ended: float
    status: str
    error: str

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Report:
    """A run that took `seconds`."""

    calls: tuple[Call, ...]
    seconds: float

    @property
    def statuses(self) -> dict[str, int]:
        return dict(Counter(call.status for call in self.calls))

    def seconds_of(self, *statuses: str) -> list[float]:
        """How long the calls took that ended with one of these status codes, in order."""
        return sorted(call.seconds for call in self.calls if call.status in statuses)


def find_ghz() -> str:
    """The program. Exits with how to install it, if there is none."""
    if (path := shutil.which("ghz")) is None:
        sys.exit(f"error: ghz is not installed: go install {MODULE}")
    return path


def run(load: dict[str, Any], address: str, **changes: Any) -> Report:
    """Runs a load (see `ghz_files`) against an address. None as a change drops a setting.

    Raises:
        subprocess.CalledProcessError: nothing could be called; ghz has said why.
    """
    settings = {**load, **changes, "host": address}
    settings = {key: value for key, value in settings.items() if value is not None}
    with TemporaryDirectory() as folder:
        config, output = Path(folder) / "load.json", Path(folder) / "report.json"
        config.write_text(json.dumps(settings))
        command = [find_ghz(), f"--config={config}", "--format=json", f"--output={output}"]
        subprocess.run(command, check=True)
        return read_report(output.read_text())


def read_report(text: str) -> Report:
    """What ghz writes as `--format json`. Its time stamps are those of a call's end."""
    document = json.loads(text)
    calls = []
    for detail in document["details"] or []:
        ended = datetime.fromisoformat(detail["timestamp"]).timestamp()
        began = ended - detail["latency"] / 1e9
        calls.append(Call(began, ended, detail["status"], detail["error"]))
    return Report(tuple(calls), document["total"] / 1e9)


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Of values in order: the smallest that is not below `percent` of them; as ghz has it."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def milliseconds(seconds: float | None) -> float | None:
    """To a tenth."""
    return None if seconds is None else round(seconds * 1e3, 1)
