"""Writes results of measurements, with versions, hardware and settings."""

import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from outrider import __version__
from outrider.errors import ConfigurationError
from outrider_bench import RESULTS


def make_folder(folder: Path) -> None:
    """Makes a folder for results. Raises ConfigurationError if they cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigurationError(f"cannot write to {folder}: {error.strerror}") from error


def write_result(name: str, settings: dict[str, Any], folder: Path = RESULTS, **parts: Any) -> Path:
    """Writes `<folder>/<name>.json` with these parts and returns its path.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    # Takes seconds, which commands that compute nothing need not wait before they begin.
    import torch

    path = folder / f"{name}.json"
    document = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "versions": {
            "outrider": __version__,
            "commit": _commit(),
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "grpcio")},
        },
        "hardware": {
            "cpu": _cpu_model(),
            "instructions": _instructions(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "settings": settings,
        **parts,
    }
    make_folder(folder)
    try:
        text = json.dumps(document, indent=1)
        # Lists of numbers on a line each.
        text = re.sub(r'\[[^][{}"]*\]', lambda found: " ".join(found[0].split()), text)
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigurationError(f"cannot write the result: {error}") from error
    return path


def _command() -> str:
    """As it can be repeated: of a module, without the place of its file."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = (
        f"python -m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name
    )
    return shlex.join([*name.split(), *sys.argv[1:]])


def _instructions() -> str:
    import torch

    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.backends.cpu.get_cpu_capability() + (" and AMX" if has_amx else "")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
