"""The commands that talk to an orchestrator, against a service that plays a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from outrider import __version__, errors
from outrider.cli import local_pair
from outrider.cli import main as cli
from outrider.cli.local_pair import share_cores
from tests.support.scripted_service import ScriptedService, response, serving


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedService]:
    """A running service, which the commands find by environment; an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUTRIDER_CONFIG", raising=False)
    with serving() as (scripted, address):
        monkeypatch.setenv("OUTRIDER_GENERATE_ADDRESS", address)
        monkeypatch.setenv("OUTRIDER_INFO_ADDRESS", address)
        yield scripted


def outrider(*arguments: str, input: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.cli, arguments, input=input)


def as_a_process(
    *arguments: str, input: bytes | None = None, closed: bool = False, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The command as a process, maybe with a closed standard input."""
    program = "from outrider.cli.main import main; main()"
    without_input = ["sh", "-c", 'exec "$@" <&-', "sh"] if closed else []
    return subprocess.run(
        [*without_input, sys.executable, "-c", program, *arguments],
        input=input,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_json_prints_one_object_and_nothing_else(service: ScriptedService) -> None:
    result = outrider("generate", "--json", "hi")
    assert result.stdout.count("\n") == 1
    document = json.loads(result.stdout)
    assert document["token_ids"] == list(response().token_ids)
    assert document["prompt"] == "hi"
    pieces = [(piece["text"], piece["source"]) for piece in document["pieces"]]
    assert pieces == [("Hello", "draft"), (" you", "target")]
    assert [interval["name"] for interval in document["trace"]] == ["verify"]


def test_an_error_in_the_middle_of_a_text_has_a_line_for_itself(service: ScriptedService) -> None:
    service.breaks = True
    result = outrider("generate", "hi")
    assert isinstance(result.exception, errors.ServiceUnavailable)
    assert result.stdout.strip()
    assert result.stdout.endswith("\n")


@pytest.mark.process
def test_text_and_report_without_colours_when_piped(service: ScriptedService) -> None:
    finished = as_a_process("generate", "hi")
    output = finished.stdout.decode()
    assert finished.returncode == 0, finished.stderr
    assert output.startswith("Hello you\n")
    assert "critical path" in output
    assert "\x1b" not in output


def test_flags_reach_the_request(service: ScriptedService) -> None:
    flags = "--max-new-tokens 9 --top-k 3 --top-p 0.5 --min-p 0.25 --seed 0 --ignore-eos"
    stops = ["--stop-strings", "END", "--stop-strings", "a b"]
    outrider("generate", "--json", *flags.split(), *stops, "--temperature", "2", "hi")
    request = service.requests[0]
    assert (request.max_new_tokens, request.top_k, request.top_p) == (9, 3, 0.5)
    assert (request.min_p, request.seed, request.temperature) == (0.25, 0, 2.0)
    assert request.HasField("seed")
    assert request.ignore_eos
    assert list(request.stop_strings) == ["END", "a b"]
    assert not request.HasField("num_speculative_tokens")


def test_no_speculation_asks_for_no_draft_tokens(service: ScriptedService) -> None:
    outrider("generate", "--json", "--no-speculation", "hi")
    assert service.requests[0].HasField("num_speculative_tokens")
    assert service.requests[0].num_speculative_tokens == 0


@pytest.mark.parametrize("has_chat_template", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_text_is_a_message_where_the_model_has_a_chat_template(
    raw: bool, has_chat_template: bool, service: ScriptedService
) -> None:
    service.has_chat_template = has_chat_template
    outrider("generate", "--json", "hi", *(["--raw"] if raw else []))
    [request] = service.requests
    assert bool(request.messages) == (has_chat_template and not raw)
    assert (request.messages[0].content if request.messages else request.prompt) == "hi"


def test_text_from_standard_input(service: ScriptedService) -> None:
    outrider("generate", "--json", "-", input="from a pipe")
    assert service.requests[0].prompt == "from a pipe"


def test_compare_repeats_the_request_without_draft_and_with_the_same_seed(
    service: ScriptedService,
) -> None:
    result = outrider("generate", "--compare", "--temperature", "1", "hi")
    first, *compared = service.requests
    assert not first.HasField("seed")
    assert [r.HasField("num_speculative_tokens") for r in compared] == [True, False] * 3
    assert {(r.seed, r.num_speculative_tokens) for r in compared} == {(response().seed, 0)}
    assert {r.temperature for r in service.requests} == {1.0}
    assert "speedup 1.00x · same text: yes" in result.stdout


@pytest.mark.parametrize("flags", [[], ["--json"], ["--compare"]])
def test_trace_writes_a_file_for_perfetto(service: ScriptedService, flags: list[str]) -> None:
    assert outrider("generate", "--trace", "trace.json", *flags, "hi").exit_code == 0
    assert [request.trace for request in service.requests] in ([True], [True, *[False] * 6])
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == ["verify"]


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_generated(
    service: ScriptedService,
) -> None:
    result = outrider("generate", "--trace", "nowhere/trace.json", "hi")
    assert result.exit_code != 0
    assert "nowhere/trace.json" in result.stderr
    assert service.requests == []


def test_a_trace_is_replaced_by_another_one_only(service: ScriptedService) -> None:
    Path("trace.json").write_text("the one before")
    service.error = errors.ContextTooLong("the prompt is too long")
    assert outrider("generate", "--trace", "trace.json", "hi").exit_code != 0
    assert Path("trace.json").read_text() == "the one before"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--min-p", "2"),
        ("--top-k", "4294967296"),
        ("--max-new-tokens", "4294967296"),
        ("--num-speculative-tokens", "65"),
        ("--num-predrafts", "65"),
    ],
)
def test_values_out_of_range_are_refused_before_services_are_started(flag: str, value: str) -> None:
    result = outrider("generate", flag, value, "hi")
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}'" in result.stderr


def test_a_target_that_loads_is_waited_for(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    service.loading = errors.ModelLoading("the target at a:1: the model is still being loaded")
    result = outrider("generate", "--json", "hi")
    assert result.stderr == f"waiting: {service.loading.message}\n"
    assert json.loads(result.stdout)["text"] == response().text


def test_what_concerns_services_of_its_own_is_refused_beside_an_address(
    service: ScriptedService,
) -> None:
    for flag in ("--target", "--draft", "--draft-threads"):
        result = outrider("generate", flag, "1", "hi")
        assert result.exit_code == 2
        assert f"{flag} is for services that this command starts" in result.stderr
    assert service.requests == []


def test_compare_and_json_exclude_each_other(service: ScriptedService) -> None:
    result = outrider("generate", "--compare", "--json", "hi")
    assert result.exit_code == 2
    assert service.requests == []


def test_info_shows_what_is_served(service: ScriptedService) -> None:
    assert "the-target" in outrider("info").stdout
    document = json.loads(outrider("info", "--json").stdout)
    assert (document["version"], document["draft"]) == ("9", None)
    assert document["target"]["model_id"] == "the-target"


def test_an_error_of_the_service_is_one_line(
    service: ScriptedService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.error = errors.ContextTooLong("the prompt is too long")
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", "hi"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: the prompt is too long\n"


@pytest.mark.process
def test_undecodable_input_is_an_error_not_a_traceback(service: ScriptedService) -> None:
    finished = as_a_process("generate", "-", input=b"\xff\xfe", PYTHONUTF8="1")
    assert finished.returncode == 1
    assert finished.stderr.startswith(b"error: ")
    assert b"Traceback" not in finished.stderr


@pytest.mark.process
def test_a_closed_standard_input_is_an_empty_one(service: ScriptedService) -> None:
    finished = as_a_process("generate", "-", closed=True)
    assert finished.stderr == b"error: there is no text to answer\n"


@pytest.mark.parametrize("flag", ["--port", "--draft-port", "--target-port"])
def test_up_refuses_an_impossible_port(flag: str, service: ScriptedService) -> None:
    result = outrider("up", flag, "70000")
    assert result.exit_code == 2
    assert flag in result.stderr


def test_up_refuses_one_port_for_two_services(service: ScriptedService) -> None:
    result = outrider("up", "--port", "50099", "--target-port", "50099")
    assert result.exit_code == 2
    assert "--port, --draft-port and --target-port must differ" in result.stderr


@pytest.mark.process
def test_services_of_up_find_the_file_that_config_names(service: ScriptedService) -> None:
    Path("mine.toml").write_text("[target]\nslots = 1\n")
    stand_in = "import os, sys\nsys.exit('error: told of ' + os.environ['OUTRIDER_CONFIG'])\n"
    Path("target_service.py").write_text(stand_in)
    ports = ("--port", "0", "--draft-port", "0", "--target-port", "0")
    arguments = ("--config", "mine.toml", "up", "--draft", "none", *ports)
    finished = as_a_process(*arguments, PYTHONPATH=str(Path.cwd()))
    assert finished.returncode == 1
    assert b"told of mine.toml" in finished.stderr


def test_version() -> None:
    assert __version__ in outrider("--version").stdout


@pytest.mark.parametrize(
    ("num_cores", "expected"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (3, 1)), (8, (6, 2))]
)
def test_models_on_one_machine_have_cores_of_their_own(
    num_cores: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_pair, "available_cores", lambda: num_cores)
    target: dict[str, object] = {"threads": None}
    draft: dict[str, object] = {"threads": None}
    share_cores(target, draft)
    assert (target["threads"], draft["threads"]) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((1, None), (1, 2)),
        ((5, None), (5, 2)),
        ((7, None), (7, 1)),
        ((None, 3), (5, 3)),
        ((9, 9),) * 2,
    ],
)
def test_threads_that_were_asked_for_stay_and_the_others_are_filled_in(
    asked: tuple[int | None, int | None],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_pair, "available_cores", lambda: 8)
    target: dict[str, object] = {"threads": asked[0]}
    draft: dict[str, object] = {"threads": asked[1]}
    share_cores(target, draft)
    assert (target["threads"], draft["threads"]) == expected
