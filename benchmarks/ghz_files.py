"""The load tests for ghz: `python -m benchmarks.ghz_files` writes them to `deploy/ghz/`.

The files differ in little, and each has all prompts of `outrider bench`, which ghz sends one
after the other.
"""

import json
from pathlib import Path
from typing import Any

from outrider_bench.harness.prompts import read_prompts

FOLDER = Path(__file__).parent.parent / "deploy" / "ghz"

NUM_CLIENTS = (1, 2, 4, 8, 16, 32, 64)
CALLS_PER_SECOND = (1, 2, 4)

# More clients than sessions: some of them wait for longer than requests may by default.
_PATIENT_SERVICES = "OUTRIDER_ORCHESTRATOR_MAX_QUEUE_SECONDS=300 outrider up"
_MANY_CLIENTS = 32

# More than there can be: the time ends the run.
UNLIMITED = 1_000_000

_WARM_UP = 4


def loads() -> dict[str, dict[str, Any]]:
    """The settings of each file, by its name."""
    found: dict[str, dict[str, Any]] = {
        "smoke": {**_generation({"prompt": "hi"}), "total": 8, "concurrency": 2},
        "stream": {
            **_generation(_numbered(32), "GenerateStream"),
            "total": 20,
            "concurrency": 4,
        },
        "latency": _latency(),
        "latency-target-alone": _latency(num_speculative_tokens=0),
        **{f"closed-loop-{clients}": closed_loop(clients) for clients in NUM_CLIENTS},
        "closed-loop-steps": _closed_loop_steps(),
        **{f"open-loop-{rate}": open_loop(rate) for rate in CALLS_PER_SECOND},
        "open-loop-steps": _open_loop_steps(),
        "overload": {
            **open_loop(20),
            "total": 1200,
            "timeout": "20s",
            "count-errors": True,
        },
        "propose": _session(50052, "DraftService/Propose", _PROPOSALS),
        "verify": _session(50053, "TargetService/Verify", _VERIFICATIONS),
    }
    return {name: {"name": name, **load} for name, load in found.items()}


def _chats(max_new_tokens: int, number: str = "", **parameters: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": number + prompt}],
            "max_new_tokens": max_new_tokens,
            "ignore_eos": True,
            **parameters,
        }
        for prompt in read_prompts(None)
    ]


def _numbered(max_new_tokens: int) -> list[dict[str, Any]]:
    """Requests whose prompts all begin differently, so that each has to be read."""
    return _chats(max_new_tokens, number="{{.RequestNumber}}. ")


def _generation(data: Any, method: str = "Generate", timeout: str = "60s") -> dict[str, Any]:
    return {
        "insecure": True,
        "host": "127.0.0.1:50051",
        "call": f"outrider.v1.GenerationService/{method}",
        "timeout": timeout,
        "data": data,
    }


def _latency(**parameters: int) -> dict[str, Any]:
    """Calls of which each prompt counts once, after the first ones, which are left out."""
    chats = _chats(64, "", **parameters)
    total = _WARM_UP + len(chats)
    return {**_generation(chats), "total": total, "skipFirst": _WARM_UP, "concurrency": 1}


def closed_loop(clients: int) -> dict[str, Any]:
    """A number of clients, each of which calls again when it is answered."""
    load = {**_generation(_numbered(32), timeout="300s"), "total": max(8, 4 * clients)}
    load["concurrency"] = clients
    return load if clients < _MANY_CLIENTS else {**load, "tags": {"services": _PATIENT_SERVICES}}


def _closed_loop_steps() -> dict[str, Any]:
    """A closed loop in steps. ghz panics if its time ends before the last step: 100 s here."""
    return {
        **_generation(_numbered(32), timeout="300s"),
        "total": UNLIMITED,
        "duration": "110s",
        "duration-stop": "wait",
        "concurrency-schedule": "step",
        "concurrency-start": 1,
        "concurrency-step": 7,
        "concurrency-end": 64,
        "concurrency-step-duration": "10s",
        "tags": {"services": _PATIENT_SERVICES},
    }


def open_loop(rate: int) -> dict[str, Any]:
    """`rate` calls a second, for a minute."""
    return {
        **_generation(_numbered(16)),
        "async": True,
        "rps": rate,
        "total": 60 * rate,
        "concurrency": 64,
    }


def _open_loop_steps() -> dict[str, Any]:
    return {
        **_generation(_numbered(16)),
        "async": True,
        "total": UNLIMITED,
        "duration": "80s",
        "duration-stop": "wait",
        "concurrency": 64,
        "load-schedule": "step",
        "load-start": 1,
        "load-step": 1,
        "load-end": 8,
        "load-step-duration": "10s",
        "count-errors": True,
    }


_PROMPT = {"token_ids": [11, 12, 13, 14, "{{randomInt 100 4000}}"], "sampling": {"temperature": 0}}

_PROPOSALS: list[dict[str, Any]] = [
    {**_PROMPT, "num_speculative_tokens": 4},
    {"context_length": 5, "token_ids": [31], "num_speculative_tokens": 4},
]

_VERIFICATIONS: list[dict[str, Any]] = [
    {**_PROMPT, "draft_token_ids": [21, 22, 23]},
    {"context_length": 5, "token_ids": [31], "draft_token_ids": [41, 42]},
    {"context_length": 5, "token_ids": [31, 32]},
]


def _session(port: int, call: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A call is a session, whose messages are sent without waiting for answers."""
    load = _generation(messages)
    load |= {"host": f"127.0.0.1:{port}", "call": f"outrider.v1.{call}"}
    return {**load, "total": 50, "concurrency": 4}


def text_of(load: dict[str, Any]) -> str:
    """A file as JSON, with a line for each setting and for each message."""
    lines = [f"{json.dumps(key)}: {json.dumps(load[key])}" for key in load if key != "data"]
    data = load["data"]
    if isinstance(data, list):
        messages = ",\n".join(f"    {json.dumps(message)}" for message in data)
        lines.append(f'"data": [\n{messages}\n  ]')
    else:
        lines.append(f'"data": {json.dumps(data)}')
    return "{\n  " + ",\n  ".join(lines) + "\n}\n"


def main() -> None:
    for name, load in loads().items():
        (FOLDER / f"{name}.json").write_text(text_of(load), encoding="utf-8")


if __name__ == "__main__":
    main()
