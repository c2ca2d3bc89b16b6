"""The load tests' files: what ghz and k6 would send is what the services understand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from benchmarks.ghz_files import loads, text_of
from orchestrator.codec import request_from_wire
from outrider.v1 import draft_pb2, generation_pb2, target_pb2
from outrider_bench.harness.prompts import read_prompts

FOLDER = Path(__file__).parents[2] / "deploy" / "ghz"
FILES = sorted(FOLDER.glob("*.json"))

# ghz's settings (runner/config.go), as far as the files use them. It ignores unknown ones.
INTEGERS = {
    "total",
    "concurrency",
    "rps",
    "skipFirst",
    "concurrency-start",
    "concurrency-step",
    "concurrency-end",
    "load-start",
    "load-step",
    "load-end",
}
DURATIONS = {"timeout", "duration", "concurrency-step-duration", "load-step-duration"}
WORDS = {
    "name": None,
    "host": None,
    "call": None,
    "duration-stop": {"wait"},
    "concurrency-schedule": {"step"},
    "load-schedule": {"step"},
}
FLAGS = {"insecure", "async", "count-errors"}

PORTS = {"GenerationService": 50051, "DraftService": 50052, "TargetService": 50053}


def load(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def rendered(data: Any) -> Any:
    """The data as ghz's templates fill it in."""
    text = json.dumps(data).replace("{{.RequestNumber}}", "17")
    text = re.sub(r"\{\{randomInt (\d+) \d+\}\}", r"\1", text)
    assert "{{" not in text
    return json.loads(text)


def messages(config: dict[str, Any]) -> list[Message]:
    """The messages of one call. Raises ParseError, KeyError."""
    service, _, method = config["call"].partition("/")
    pool = descriptor_pool.Default()
    descriptor = pool.FindServiceByName(service).methods_by_name[method]
    data = rendered(config["data"])
    request_class = message_factory.GetMessageClass(descriptor.input_type)
    # Of a stream the list is one call; otherwise each call takes one of it.
    assert isinstance(data, list) or not descriptor.client_streaming
    return [
        json_format.ParseDict(one, request_class())
        for one in (data if isinstance(data, list) else [data])
    ]


def test_there_is_a_file_for_every_kind_of_load() -> None:
    names = {path.stem for path in FILES}
    assert {"smoke", "latency", "stream", "verify", "propose", "overload"} <= names
    assert {f"closed-loop-{c}" for c in (1, 2, 4, 8, 16, 32, 64)} <= names
    assert names == {load(path)["name"] for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_what_the_script_writes(path: Path) -> None:
    assert path.read_text() == text_of(loads()[path.stem]), "run python -m benchmarks.ghz_files"


def test_prompts_are_as_varied_as_those_of_the_bench() -> None:
    prompts = read_prompts(None)
    for name, load in loads().items():
        if name in ("smoke", "propose", "verify"):
            continue
        texts = [message["messages"][0]["content"] for message in load["data"]]
        assert [text.removeprefix("{{.RequestNumber}}. ") for text in texts] == prompts
    for name in ("latency", "latency-target-alone"):
        load = loads()[name]
        assert load["total"] - load["skipFirst"] == len(prompts)  # each of them counts once


def test_more_clients_than_sessions_say_how_long_they_may_wait() -> None:
    patient = {name for name, load in loads().items() if "tags" in load}
    assert patient == {"closed-loop-32", "closed-loop-64", "closed-loop-steps"}
    for name in patient:
        assert "MAX_QUEUE_SECONDS=300" in loads()[name]["tags"]["services"]


def test_the_steps_are_over_before_the_time_is() -> None:
    """Else ghz ends with a panic: it finds at a further step that none is left."""
    load = loads()["closed-loop-steps"]
    num_steps = (load["concurrency-end"] - load["concurrency-start"]) // load["concurrency-step"]
    seconds = {key: int(load[key][:-1]) for key in ("duration", "concurrency-step-duration")}
    assert seconds["duration"] > (num_steps + 1) * seconds["concurrency-step-duration"]


def test_the_table_says_how_to_read_each() -> None:
    """It has "`closed-loop-1` ... `-64`" for a series, and "`open-loop-1`, `-2`" for some."""
    rows = (FOLDER / "README.md").read_text().splitlines()
    listed = set()
    for row in rows:
        if not row.startswith("| `"):
            continue
        first, *others = re.findall("`([^`]+)`", row.split("|")[1])
        series = first.rpartition("-")[0]
        names = [first, *(series + other if other[0] == "-" else other for other in others)]
        if "..." in row.split("|")[1]:
            numbers = sorted(
                int(path.stem.rpartition("-")[2]) for path in FOLDER.glob(f"{series}-[0-9]*")
            )
            assert (names[0], names[-1]) == (f"{series}-{numbers[0]}", f"{series}-{numbers[-1]}")
            names = [f"{series}-{number}" for number in numbers]
        listed |= set(names)
    assert listed == {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_ghz_understands(path: Path) -> None:
    config = load(path)
    for key, value in config.items():
        if key in INTEGERS:
            assert type(value) is int, key
        elif key in DURATIONS:
            assert re.fullmatch(r"\d+s", value), key
        elif key == "tags":
            assert all(isinstance(text, str) for text in value.values())
        elif key in FLAGS:
            assert value is True, key
        elif key in WORDS:
            words = WORDS[key]
            assert isinstance(value, str), key
            assert words is None or value in words
        else:
            assert key == "data", key
    service = config["call"].partition("/")[0].rpartition(".")[2]
    assert config["host"] == f"127.0.0.1:{PORTS[service]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_calls_what_there_is_with_data_that_fits(path: Path) -> None:
    held = 0
    for message in messages(load(path)):
        if isinstance(message, generation_pb2.GenerateRequest):
            request_from_wire(message).check()
            continue
        assert isinstance(message, draft_pb2.ProposeRequest | target_pb2.VerifyRequest)
        assert message.context_length <= held  # whatever is accepted
        held = message.context_length + len(message.token_ids)


def test_data_that_does_not_fit_is_noticed() -> None:
    config = load(FOLDER / "smoke.json")
    with pytest.raises(json_format.ParseError):
        messages({**config, "data": {"promt": "hi"}})
    with pytest.raises(KeyError):
        messages({**config, "call": "outrider.v1.GenerationService/Genrate"})
