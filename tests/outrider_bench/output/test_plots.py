from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from outrider.errors import ConfigurationError
from outrider_bench.__main__ import main
from outrider_bench.output.plots import write_plots
from outrider_bench.output.step_plot import typical_step
from outrider_bench.output.style import card, legend_below

RESULTS = Path(__file__).parents[3] / "benchmarks/results"


def way(speedup: float, **stages: float) -> dict[str, Any]:
    return {
        "speedup": speedup,
        "critical_path_ms_per_token": stages,
        "num_tokens": 64,
        "num_prompts": 2,
    }


def texts_of(path: Path) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", path.read_text())


def test_bars_have_their_values_and_ways_their_names(tmp_path: Path) -> None:
    ways = {
        "target only": way(1.0, verify_compute=40.0, prefill_target=2.0),
        "pipelined": way(1.347, verify_compute=25.0, draft_compute=1.5, draft_queue=0.5),
        "another way": way(0.5),
    }
    result = tmp_path / "bench.json"
    result.write_text(json.dumps({"sections": {"modes": {"temperature 0": ways}}}))
    modes, stages = (texts_of(path) for path in write_plots(result))
    assert {"1.35x", "0.50x", "greedy", "pair, pipelined", "another way"} <= set(modes)
    assert "speed as a multiple of the target's alone; medians of 2 texts of 32 tokens" in modes
    assert {"42.0 ms", "27.0 ms"} <= set(stages)
    assert "target 25.0 · draft 2.0 · network 0.0 · orchestrator 0.0" in stages


def test_what_holds_nothing_to_draw_is_left_alone(tmp_path: Path) -> None:
    for number, document in enumerate(({}, {"figures": []}, {"sections": {}}, {"figures": {}}, [])):
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
        assert write_plots(tmp_path / f"{number}.json") == []


def test_a_legend_lies_on_nothing(tmp_path: Path) -> None:
    with card(tmp_path / "a.svg", "What?", "this", 2.5, ncols=2) as (figure, panels):
        for axes in panels:
            axes.barh(["a name", "another"], [1, 2], label="what is drawn")
            axes.set_xlabel("some unit")
        legend_below(figure, panels[0])
    [legend] = figure.legends
    assert not any(axes.get_tightbbox().overlaps(legend.get_window_extent()) for axes in panels)


def step(accepted: int, draft: int, ms: int, name: str = "drafted") -> dict[str, Any]:
    counts = {"accepted_tokens": accepted, "draft_tokens": draft}
    times = {"begin_ns": 0, "duration_ns": ms * 1_000_000}
    return {"lane": "steps", "name": name, "counts": counts, **times}


def test_the_step_that_is_drawn_is_of_median_length_among_its_like() -> None:
    steps = [step(0, 4, 1), step(1, 4, 60), step(2, 4, 50), step(1, 4, 90), step(1, 2, 55)]
    assert typical_step([{"lane": "session"}, *steps]) is steps[1]
    hit = step(1, 2, 70, "1 of 2 accepted, predrafted")
    assert typical_step([*steps, hit]) is hit
    assert typical_step([step(0, 0, 7)])["duration_ns"] == 7_000_000


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    finished = CliRunner().invoke(main, ["--redraw", "--output", str(tmp_path)])
    assert finished.exit_code == 2
    assert "no results to draw" in finished.stderr


def test_a_result_that_is_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"sections": {"mo')
    with pytest.raises(ConfigurationError, match=r"cannot read .*cut\.json"):
        write_plots(tmp_path / "cut.json")


@pytest.mark.slow
def test_all_drawings_that_are_kept_can_be_made_again(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    finished = CliRunner().invoke(main, ["--redraw", "--output", str(tmp_path)])
    assert finished.exit_code == 0, finished.output
    drawn = sorted(tmp_path.glob("*.svg"))
    assert [path.name for path in drawn] == sorted(path.name for path in RESULTS.glob("*.svg"))
    assert all(any(text.endswith("?") for text in texts_of(path)) for path in drawn)
