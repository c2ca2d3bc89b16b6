"""Increasing load by k6 and ghz, foreign clients: a table and a plot.

    python -m benchmarks.load [--users 1,4,16] [--rates 1,2,4] [--seconds 15]

Closed loops: each virtual user calls again as soon as it is answered; k6 calls Generate or
GenerateStream (`deploy/k6/generate.js`), ghz Generate. Open loops, by ghz: a number of calls a
second, answered or not. Throughput is tokens per second of all calls; latencies are of whole
calls as the client sees them; TTFT and TPOT are from the replies' latency reports, which ghz
does not read. Without ghz, k6 runs alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.ghz_files import UNLIMITED, closed_loop, open_loop
from benchmarks.support import ghz
from outrider.cli.html_report import write_page
from outrider.cli.processes import running_system
from outrider.errors import install_hint
from outrider_bench import RESULTS
from outrider_bench.harness.prompts import read_prompts
from outrider_bench.output.plots import write_plots
from outrider_bench.output.results_file import write_result

SCRIPT = Path(__file__).parent.parent / "deploy" / "k6" / "generate.js"
SLOTS = 16

COLUMNS = {
    "client": "client",
    "load": "load",
    "tokens_per_second": "tokens/s",
    "wall_p50_ms": "p50 ms",
    "wall_p95_ms": "p95 ms",
    "wall_p99_ms": "p99 ms",
    "ttft_p50_ms": "TTFT ms",
    "ttft_p95_ms": "TTFT p95",
    "tpot_p50_ms": "TPOT ms",
    "requests": "requests",
    "errors": "errors",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of an orchestrator; without it, services of its own")
    parser.add_argument("--draft", default="default", help="as for the draft service, or none")
    parser.add_argument("--threads", type=int, default=1, help="of each service")
    parser.add_argument("--users", default="1,2,4,8,16,32", help="virtual users, step by step")
    parser.add_argument("--rates", default="1,2,4", help="calls a second, step by step")
    parser.add_argument("--seconds", type=int, default=15, help="of each step")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--num-speculative-tokens", type=int, help="unset: the policy's choice")
    parser.add_argument("--name", default="load", help="of the result's files")
    args = parser.parse_args()
    k6 = find_k6()
    with address_of(args) as address:
        rows = [run_step(k6, address, users, args) for users in numbers(args.users)]
        if shutil.which("ghz"):
            loops = [closed_loop(users) for users in numbers(args.users)]
            loops += [open_loop(rate) for rate in numbers(args.rates)]
            rows += [run_ghz(address, loop, args) for loop in loops]
    show(rows)
    result = write_result(args.name, vars(args), figures=rows)
    plots = write_plots(result)
    page = RESULTS / f"{args.name}.html"
    write_page([result], page)
    print("wrote", *(result, *plots, page), sep="\n")
    if any(row["errors"] for row in rows):
        sys.exit("error: some requests failed")


def numbers(listed: str) -> list[int]:
    return [int(number) for number in listed.split(",")]


def find_k6() -> str:
    """The k6 of this environment, else of the system."""
    k6 = shutil.which("k6", path=str(Path(sys.executable).parent)) or shutil.which("k6")
    if k6 is None:
        sys.exit(f"error: k6 is not installed; {install_hint('load')}")
    return k6


@contextmanager
def address_of(args: argparse.Namespace) -> Iterator[str]:
    """The address of a system, which is started unless one is given."""
    if args.address:
        yield args.address
        return
    common = {"threads": args.threads, "slots": SLOTS, "port": 0}
    draft = None if args.draft == "none" else {**common, "model": args.draft}
    with running_system(common, draft, {"port": 0, "max_queue_seconds": 600}) as (address, _):
        yield address


def run_step(k6: str, address: str, users: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run of k6, as a row of the table."""
    with TemporaryDirectory() as folder:
        chats, summary = Path(folder) / "chats.json", Path(folder) / "summary.json"
        chats.write_text(json.dumps(read_prompts(None)))
        settings = {
            "ADDRESS": address,
            "MAX_NEW_TOKENS": args.max_new_tokens,
            "SUMMARY": summary,
            "NUM_SPECULATIVE_TOKENS": args.num_speculative_tokens,
            "CHATS": chats,
        }
        command = [k6, "run", "--quiet", "--no-usage-report", "--address", "127.0.0.1:0"]
        command += ["--vus", str(users), "--duration", f"{args.seconds}s"]
        command += [
            part
            for name, value in settings.items()
            if value is not None
            for part in ("-e", f"{name}={value}")
        ]
        subprocess.run([*command, str(SCRIPT)], check=False)
        return row_of(users, json.loads(summary.read_text()))


def row_of(users: int, summary: dict[str, Any]) -> dict[str, Any]:
    """A row of the table from k6's summary."""
    metrics = {name: metric["values"] for name, metric in summary["metrics"].items()}
    seconds = summary["state"]["testRunDurationMs"] / 1e3
    wall, ttft, tpot = (metrics.get(f"outrider_{name}", {}) for name in ("wall", "ttft", "tpot"))
    outcomes = metrics.get("outrider_errors", {"passes": 0, "fails": 0})  # a pass is an error
    return {
        "client": "k6",
        "load": f"{users} users",
        "users": users,
        "tokens_per_second": round(
            metrics.get("outrider_tokens", {"count": 0})["count"] / seconds, 1
        ),
        "wall_p50_ms": _rounded(wall, "med"),
        "wall_p95_ms": _rounded(wall, "p(95)"),
        "wall_p99_ms": _rounded(wall, "p(99)"),
        "ttft_p50_ms": _rounded(ttft, "med"),
        "ttft_p95_ms": _rounded(ttft, "p(95)"),
        "tpot_p50_ms": _rounded(tpot, "med"),
        "requests": outcomes["passes"] + outcomes["fails"],
        "errors": outcomes["passes"],
    }


def run_ghz(address: str, loop: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A loop by ghz (see `ghz_files`), as a row of the table."""
    fields = {"max_new_tokens": args.max_new_tokens}
    if args.num_speculative_tokens is not None:
        fields["num_speculative_tokens"] = args.num_speculative_tokens
    messages = [{**message, **fields} for message in loop["data"]]
    limits = {"total": UNLIMITED, "duration": f"{args.seconds}s", "duration-stop": "wait"}
    report = ghz.run(loop, address, data=messages, **limits)
    return row_of_report(loop, report, args.max_new_tokens)


def row_of_report(loop: dict[str, Any], report: ghz.Report, num_tokens: int) -> dict[str, Any]:
    """A row of the table from ghz's report of calls of `num_tokens`."""
    answered = report.seconds_of("OK")
    rate, users = loop.get("rps"), loop["concurrency"]
    load = {"load": f"{users} users", "users": users}
    if rate is not None:
        load = {"load": f"{rate} a second", "rate": rate}
    return {
        "client": "ghz",
        **load,
        "tokens_per_second": round(len(answered) * num_tokens / report.seconds, 1),
        **{
            f"wall_p{percent}_ms": ghz.milliseconds(ghz.percentile(answered, percent))
            for percent in (50, 95, 99)
        },
        **dict.fromkeys(("ttft_p50_ms", "ttft_p95_ms", "tpot_p50_ms")),
        "requests": len(report.calls),
        "errors": len(report.calls) - len(answered),
    }


def _rounded(values: dict[str, float], name: str) -> float | None:
    return round(values[name], 1) if name in values else None


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*("-" if row[key] is None else str(row[key]) for key in COLUMNS))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
