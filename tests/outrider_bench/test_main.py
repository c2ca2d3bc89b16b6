from __future__ import annotations

from click.testing import CliRunner

from outrider_bench.__main__ import main


def test_another_target_needs_a_draft() -> None:
    result = CliRunner().invoke(main, ["--target", "some/model"])
    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert line == "Error: another target than the embedded one needs its --draft"
