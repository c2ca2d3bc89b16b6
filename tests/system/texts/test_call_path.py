"""The way of one request through the orchestrator's files, recorded call by call."""

from __future__ import annotations

import graphlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import orchestrator
from tests.support.system import running_system

FOLDER = str(Path(orchestrator.__file__).parent) + "/"

RESUMABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

# What a request passes through once. All else is leaves, which these use.
ONCE = {"generation.py": 1, "decoding/decoder.py": 1}


@contextmanager
def recorded_calls(calls: list[tuple[str, str]]) -> Iterator[None]:
    """Appends (calling file, called file) of each call between files of the orchestrator.

    The resumption of a generator or coroutine is no call.
    """
    started: set[FrameType] = set()  # kept, so that none is taken for another

    def record(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(FOLDER) or frame in started:
            return
        if code.co_flags & RESUMABLE:
            started.add(frame)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(FOLDER):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != code.co_filename:
            files = caller.f_code.co_filename, code.co_filename
            calls.append((files[0].removeprefix(FOLDER), files[1].removeprefix(FOLDER)))

    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(None)


async def test_a_request_enters_no_file_from_one_behind_it(
    tiny_models: Callable[..., Path],
) -> None:
    calls: list[tuple[str, str]] = []
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        with recorded_calls(calls):
            await system.generate("the cat", max_new_tokens=12, ignore_eos=True)
    graph: dict[str, set[str]] = {}
    for caller, called in calls:
        graph.setdefault(caller, set()).add(called)
    assert "decoding/decoder.py" in graph
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files
    entries = Counter(called for _, called in calls)
    assert {name: entries[name] for name in ONCE} == ONCE
