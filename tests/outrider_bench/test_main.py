from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from outrider.errors import ConfigurationError
from outrider_bench.__main__ import main


def test_another_target_needs_a_draft() -> None:
    result = CliRunner().invoke(main, ["--target", "some/model"])
    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert line == "Error: another target than the embedded one needs its --draft"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    result = CliRunner().invoke(main, ["--name", "folder/name"])
    assert result.exit_code == 2
    assert "--name has no folder" in result.stderr
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["--output", str(tmp_path / "file" / "results")])
    assert isinstance(result.exception, ConfigurationError)
    assert "cannot write to" in result.exception.message
