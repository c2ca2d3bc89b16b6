"""`outrider bench` with tiny models, through all of its processes."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from orchestrator.servicer import GenerationServicer
from orchestrator.sessions.pair import Pair
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from outrider_bench.__main__ import main
from outrider_bench.harness import sections
from outrider_bench.harness.hosts import Hosts
from outrider_bench.harness.stand import Models, Stand
from outrider_bench.models.costs import cost_table
from outrider_bench.output.plots import write_plots
from outrider_bench.output.terminal import show
from outrider_bench.runs import Task
from tests.support.system import running_draft, running_target, serving

MODELS = ["--dtype", "float32", "--draft-dtype", "float32"]


def bench(*arguments: str) -> Result:
    """Runs the command in this process, which has torch already, and services in theirs."""
    return CliRunner().invoke(
        main, ["--quick", *MODELS, *arguments], catch_exceptions=False, standalone_mode=False
    )


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("the cat sat on\n\nthe dog sat on\n")
    return str(path)


class LocalService:
    """A service of `Stand`, on the loop of another thread instead of in a process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, serving: Any) -> None:
        self._loop = loop
        self._serving = serving
        self._entered = asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop)

    def wait_until_ready(self) -> str:
        return str(self._entered.result())

    def poll(self) -> int | None:
        return None

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(
            self._serving.__aexit__(None, None, None), self._loop
        ).result()


@asynccontextmanager
async def local_service(module: str, settings: Mapping[str, Any]) -> AsyncIterator[str]:
    async with AsyncExitStack() as stack:
        if module == "orchestrator":
            servicer = GenerationServicer()
            draft = None if settings["draft"] == "none" else settings["draft"]
            servicer.serve_pair(await Pair.connect(settings["target"], draft))
            stack.push_async_callback(servicer.pair.close)
            yield await stack.enter_async_context(
                serving(lambda s: add_GenerationServiceServicer_to_server(servicer, s))
            )
        else:
            run = running_target if module == "target_service" else running_draft
            address, _ = await stack.enter_async_context(run(settings["model"], slots=4))
            yield address


class LocalWorker:
    def __init__(self, load: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        load(*arguments)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class LocalStand(Stand):
    """Everything in this process: the same measurements, started in no time."""

    def __init__(self, models: Models) -> None:
        super().__init__(models, Hosts(None, None), lambda what: None)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def begin(self, stack: ExitStack, module: str, cores: object, settings: Any) -> Any:
        service = LocalService(self.loop, local_service(module, settings))
        stack.callback(service.stop)
        return service

    def begin_worker(self, name: str, load: Callable[..., None], *arguments: object) -> Any:
        return LocalWorker(load, arguments)

    def __exit__(self, *error: object) -> None:
        super().__exit__(None, None, None)
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture(scope="module")
def found(tiny_models: Callable[..., Path]) -> dict[str, Any]:
    """All sections with tiny models, one prompt and few points."""
    target, draft = str(tiny_models("llama")), str(tiny_models("llama", seed=3))
    tasks = [Task("the cat sat on", 12), Task("the dog sat on", 12)]
    plan = sections.Plan(tasks, tasks[:1], 2, True, (20.0,), (1, 2), (0.0, 0.9), (1, 2))
    with LocalStand(Models(target, draft, "cpu", "float32", "float32")) as stand:
        result, _ = sections.run(stand, plan, list(sections.SECTIONS))
    return result


def test_all_ways_of_a_prompt_give_the_same_text(found: dict[str, Any]) -> None:
    ways = {
        (*place, name): way
        for place, group in groups(found)
        for name, way in group.items()
        if isinstance(way, dict) and "num_different" in way
    }
    assert len(ways) == 2 * 8 + 4 * 3 + 5 + 5
    different = {name: way["num_different"] for name, way in ways.items() if way["num_different"]}
    assert not different
    assert all(way["ms_per_token"] > 0 for way in ways.values())


def groups(found: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every dictionary of ways in the sections, and where it stands."""

    def walk(place: tuple[str, ...], part: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        if isinstance(part, dict) and "ms_per_token" not in part:
            yield place, part
            for name, inner in part.items():
                yield from walk((*place, str(name)), inner)

    yield from walk((), found)


def test_a_longer_way_is_felt_where_somebody_waits_for_it(found: dict[str, Any]) -> None:
    """From token to token the target goes on alone."""
    for leg in ("target", "both"):
        assert found["rtt"][leg]["20"]["target only"]["first_token_ms"] >= 20
    assert found["rtt"]["draft"]["20"]["sequential"]["ms_per_token"] >= 20 / 3


def test_a_replaying_draft_is_right_as_often_as_it_was_told(found: dict[str, Any]) -> None:
    sequential = found["acceptance"]["sequential"]
    assert "0" not in sequential or sequential["0"]["ratios"]["draft_acceptance_rate"] == 0
    assert sequential["0.9"]["ratios"]["draft_acceptance_rate"] > 0.5
    # Random models agree on nothing.
    assert found["lengths"]["sequential"][2]["ratios"]["draft_acceptance_rate"] < 0.3


def test_everything_is_shown_and_drawn(found: dict[str, Any], tmp_path: Path) -> None:
    costs = cost_table(found["lengths"]["sequential"], found["lengths"]["target only"])
    document = {"sections": found, "costs": costs}
    console = Console(width=140, file=io.StringIO())
    show(document, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for title in ("all that was timed", "tokens a second", "costs of a sequential step"):
        assert title in shown
    names = ("modes", "rtt", "stages", "lengths", "acceptance", "capacity")
    result = tmp_path / "bench.json"
    result.write_text(json.dumps(document))
    assert [path.name for path in write_plots(result)] == [f"bench_{name}.svg" for name in names]


@pytest.mark.process
def test_processes_of_a_run_work_together(
    tiny_models: Callable[..., Path], prompts: str, tmp_path: Path
) -> None:
    models = ["--target", str(tiny_models("gpt2")), "--draft", str(tiny_models("gpt2", seed=3))]
    finished = bench(
        *models,
        *("--prompts", prompts, "--only", "lengths"),
        *("--num-prompts", "1", "--max-new-tokens", "8", "--output", str(tmp_path / "out")),
    )
    assert finished.exit_code == 0, finished.stderr
    document = json.loads((tmp_path / "out/bench.json").read_text())
    assert {"command", "versions", "hardware", "settings"} <= set(document)
    assert set(document["sections"]) == {"lengths"}
    assert "How many draft tokens a step?" in finished.stdout
    assert (tmp_path / "out/bench_lengths.svg").exists()
    page = (tmp_path / "out/bench.html").read_text()
    assert "data:image/svg+xml" in page
    assert "is fastest" in page
