"""Measures a pair, as `outrider up` runs it, with ghz.

    python -m benchmarks.ghz_figures [--parts latency,overload]

- latency: the target alone over the pair, by ghz with the files `latency-target-alone` and
  `latency`, and by the Python client with the same prompts, alternately
- overload: three times the calls that fit, alternating `--rounds` times with a closed loop of 16
  of the same calls: how many are answered and when, and how soon the rest is refused; and a
  deadline that cannot be met

Some 10 minutes on two cores that nothing else uses.
"""

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.ghz_files import UNLIMITED, loads
from benchmarks.support.ghz import VERSION, Report, milliseconds, percentile, run
from benchmarks.support.timing import timed_ms
from outrider.cli.local_pair import share_cores
from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider_bench.output.results_file import write_result

NUM_SESSIONS = 16
BOUND_SECONDS = 10.0
OVERLOAD = 3

# Each of four comes behind each of the others equally often.
_ORDERS = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))

# Of a loop, until it is as full as it gets.
_WARM_UP_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="latency,overload")
    parser.add_argument("--target", default="default", help="as for the target service")
    parser.add_argument("--draft", default="default", help="as for the draft service")
    parser.add_argument("--seconds", type=int, default=60, help="of each overload")
    parser.add_argument("--rounds", type=int, default=3, help="of the overload")
    parser.add_argument("--name", default="ghz", help="of the result's file")
    args = parser.parse_args()
    models = {"target": args.target, "draft": args.draft}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "latency": lambda: measure_latency(models),
        "overload": lambda: measure_overload(models, args.seconds, args.rounds),
    }
    figures = {}
    for name in args.parts.split(","):
        figures[name] = parts[name]()
        print(name, json.dumps(figures[name], indent=1), flush=True)
    print(write_result(args.name, {**vars(args), "ghz": VERSION}, figures=figures))


@contextmanager
def services(models: dict[str, str]) -> Iterator[str]:
    """The orchestrator's address of a pair with its cores as `outrider up` shares them."""
    common = {"port": 0, "slots": NUM_SESSIONS, "threads": None}
    target, draft = ({**common, "model": models[role]} for role in ("target", "draft"))
    share_cores(target, draft)
    orchestrator = {"port": 0, "max_queue_seconds": BOUND_SECONDS}
    with running_system(target, draft, orchestrator) as (address, _):
        yield address


def measure_latency(models: dict[str, str]) -> dict[str, Any]:
    """Each prompt by both clients with both files, alternately, so that a machine's drift cancels.

    The prompt is read beforehand, since it would be read for the first of the four only.
    """
    files = {way: loads()[way] for way in ("latency-target-alone", "latency")}
    ways = [(way, client) for way in files for client in ("ghz", "python")]
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    with services(models) as address, Client(address) as client:

        def measure(way: str, by: str, index: int) -> float:
            message = files[way]["data"][index]
            if by == "python":
                return timed(client, message)
            changes = {"data": [message], "total": 1, "concurrency": 1, "skipFirst": None}
            report = run(files[way], address, **changes)
            assert report.statuses == {"OK": 1}, report.statuses
            return report.calls[0].seconds

        for index, message in enumerate(files["latency"]["data"]):
            if index == 0:  # the first texts of a service are slower
                for way, by in 2 * ways:
                    measure(way, by, index)
            timed(client, {**message, "max_new_tokens": 1})
            for turn in _ORDERS[index % len(_ORDERS)]:
                seconds[ways[turn]].append(measure(*ways[turn], index))
    p50 = {way: percentile(sorted(values), 50) or 0.0 for way, values in seconds.items()}
    ratio = {by: p50["latency-target-alone", by] / p50["latency", by] for by in ("ghz", "python")}
    return {
        "calls_each": len(seconds["latency", "ghz"]),
        "p50_ms": {f"{way} by {by}": milliseconds(p50[way, by]) for way, by in sorted(p50)},
        "target_alone_over_pair": {by: round(value, 3) for by, value in ratio.items()},
        "ghz_over_python": round(ratio["ghz"] / ratio["python"], 3),
    }


def timed(client: Client, message: dict[str, Any]) -> float:
    """The seconds of a call with these fields of GenerateRequest."""
    fields = dict(message)
    prompt = fields.pop("messages")
    return timed_ms(lambda: client.generate(prompt, **fields)) / 1e3


def measure_overload(models: dict[str, str], seconds: int, num_rounds: int) -> dict[str, Any]:
    load = loads()["overload"]
    num_tokens = load["data"][0]["max_new_tokens"]
    with services(models) as address:

        def closed_loop() -> Report:
            # Without a deadline to speak of: a client that is refused at once calls again at once.
            changes: dict[str, Any] = {"async": None, "rps": None, "timeout": "300s"}
            changes["concurrency"] = NUM_SESSIONS
            changes |= {"duration": f"{seconds // 2}s", "duration-stop": "wait"}
            return run(load, address, total=UNLIMITED, **changes)

        closed_loop()
        closed, over = [closed_loop()], []
        # At least one: of none, ghz would make as many calls as it can.
        rate = max(1, math.ceil(OVERLOAD * answered_per_second(closed[0], seconds // 2)))
        for _ in range(num_rounds):
            over.append(run(load, address, rps=rate, total=rate * seconds))
            closed.append(closed_loop())
        late: dict[str, Any] = {"async": None, "rps": None, "concurrency": 1, "total": 7}
        late |= {"timeout": "1500ms"}
        long_texts = [{**message, "max_new_tokens": 512} for message in load["data"]]
        too_late = run(load, address, **late, data=long_texts)
    answered = [answered_per_second(report, seconds) for report in over]
    closed_answered = [answered_per_second(report, seconds // 2) for report in closed]
    calls = [call for report in over for call in report.calls]
    refused = seconds_of(over, "ResourceExhausted", "DeadlineExceeded")
    mean = statistics.mean(answered)
    return {
        "calls_per_second": {"offered": rate, "answered": [round(value, 2) for value in answered]},
        "closed_loop_calls_per_second": [round(value, 2) for value in closed_answered],
        "tokens_per_second": round(mean * num_tokens, 1),
        "of_a_closed_loop": round(mean / statistics.mean(closed_answered), 3),
        "statuses": dict(Counter(call.status for call in calls)),
        "errors": dict(Counter(call.error for call in calls if call.error)),
        "refused_after_ms": percentiles(refused),
        "refused_after_a_wait": sum(value > 1 for value in refused),
        "answered_after_ms": percentiles(seconds_of(over, "OK")),
        "call_in_a_full_batch_ms": percentiles(seconds_of(closed, "OK")),
        "max_queue_seconds": BOUND_SECONDS,
        "512_tokens_in_1500_ms": {
            "statuses": too_late.statuses,
            "refused_after_ms": percentiles(too_late.seconds_of("DeadlineExceeded")),
        },
    }


def seconds_of(reports: list[Report], *statuses: str) -> list[float]:
    """Of the calls of several runs that ended so, in order."""
    return sorted(value for report in reports for value in report.seconds_of(*statuses))


def answered_per_second(report: Report, seconds: float) -> float:
    """Of a run that began calls for so many seconds, without its beginning."""
    began = min(call.began for call in report.calls)
    window = began + _WARM_UP_SECONDS, began + seconds
    ended = [call.ended for call in report.calls if call.status == "OK"]
    return sum(window[0] <= end < window[1] for end in ended) / (window[1] - window[0])


def percentiles(ordered: list[float]) -> dict[str, float | None]:
    """Milliseconds, of seconds in order."""
    named = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: milliseconds(percentile(ordered, percent)) for name, percent in named.items()}


if __name__ == "__main__":
    main()
