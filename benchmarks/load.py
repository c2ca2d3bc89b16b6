"""Load by k6, a foreign client, with more and more virtual users: a table and a drawing.

    python -m benchmarks.load [--users 1,4,16] [--seconds 15] [--draft default] [--acceptance 0.8]

Each virtual user calls Generate or GenerateStream again as soon as it is answered
(`deploy/k6/generate.js`). Throughput is tokens per second of all of them; latencies are
of whole calls as k6 sees them; TTFT and TPOT are from the replies' latency reports.

With `--acceptance`, the draft runs for its cost, and says what the target is known to say, right
as often as that. Prompts repeat then, and are read once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.recorded import replaying_draft
from outrider.errors import install_hint
from outrider.html_report import write_page
from outrider.processes import running_system
from outrider_bench.__main__ import read_prompts
from outrider_bench.plots import import_pyplot
from outrider_bench.results_file import RESULTS, write_result

SCRIPT = Path(__file__).parent.parent / "deploy" / "k6" / "generate.js"
SLOTS = 16

COLUMNS = {
    "users": "users",
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
    parser.add_argument("--acceptance", type=float, help="chosen, of a draft at this one's cost")
    parser.add_argument("--threads", type=int, default=1, help="of each service")
    parser.add_argument("--users", default="1,2,4,8,16,32", help="virtual users, step by step")
    parser.add_argument("--seconds", type=int, default=15, help="of each step")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--num-speculative-tokens", type=int, help="unset: the policy's choice")
    parser.add_argument("--name", default="load", help="of the result's files")
    args = parser.parse_args()
    if args.acceptance is not None and (args.address or args.draft == "none"):
        parser.error("--acceptance is of a draft that is started here")
    k6 = find_k6()
    with TemporaryDirectory() as folder, address_of(args, Path(folder)) as address:
        prompts = Path(folder) / "prompts.json"
        rows = [run_step(k6, address, int(users), args, prompts) for users in args.users.split(",")]
    show(rows)
    result = write_result(args.name, vars(args), figures=rows)
    plot = draw(rows, RESULTS / f"{args.name}_users.svg")
    page = RESULTS / f"{args.name}.html"
    write_page([result], page)
    print(f"wrote {result}, {plot} and {page}")
    if any(row["errors"] for row in rows):
        sys.exit("error: some requests failed")


def find_k6() -> str:
    """The k6 of this environment, else of the system."""
    k6 = shutil.which("k6", path=str(Path(sys.executable).parent)) or shutil.which("k6")
    if k6 is None:
        sys.exit(f"error: k6 is not installed; {install_hint('load')}")
    return k6


@contextmanager
def address_of(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Services of our own, unless there is an address; `folder` is for what these need."""
    if args.address:
        yield args.address
        return
    common = {"threads": args.threads, "slots": SLOTS, "port": 0}
    model = args.draft
    if args.acceptance is not None:
        model = replaying_draft(
            read_prompts(None), common, model, args.acceptance, args.max_new_tokens, folder
        )
    draft = None if model == "none" else {**common, "model": model}
    with running_system(common, draft, {"port": 0, "max_queue_seconds": 600}) as (address, _):
        yield address


def run_step(
    k6: str, address: str, users: int, args: argparse.Namespace, prompts: Path
) -> dict[str, Any]:
    """One run of k6, as a row of the table. `prompts` are for it, if there is such a file."""
    with NamedTemporaryFile(suffix=".json") as file:
        settings = {
            "ADDRESS": address,
            "MAX_NEW_TOKENS": args.max_new_tokens,
            "SUMMARY": file.name,
            "NUM_SPECULATIVE_TOKENS": args.num_speculative_tokens,
            "PROMPTS": prompts if prompts.exists() else None,
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
        summary = json.loads(Path(file.name).read_text())
    return row_of(users, summary)


def row_of(users: int, summary: dict[str, Any]) -> dict[str, Any]:
    """What k6's summary says, in our terms."""
    metrics = {name: metric["values"] for name, metric in summary["metrics"].items()}
    seconds = summary["state"]["testRunDurationMs"] / 1e3
    wall, ttft, tpot = (metrics.get(f"outrider_{name}", {}) for name in ("wall", "ttft", "tpot"))
    outcomes = metrics.get("outrider_errors", {"passes": 0, "fails": 0})  # a pass is an error
    return {
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


def _rounded(values: dict[str, float], name: str) -> float | None:
    return round(values[name], 1) if name in values else None


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*("-" if row[key] is None else str(row[key]) for key in COLUMNS))
    Console(width=110).print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Throughput and latencies over the number of users. Returns `path`."""
    pyplot = import_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    users = [row["users"] for row in rows]
    left.plot(users, [row["tokens_per_second"] for row in rows], marker="o")
    left.set(title="throughput", ylabel="tokens/s", ylim=(0, None))
    for key in ("wall_p50_ms", "wall_p95_ms", "wall_p99_ms", "ttft_p50_ms", "tpot_p50_ms"):
        right.plot(users, [row[key] for row in rows], marker="o", label=COLUMNS[key].strip(" ms"))
    right.set(title="latency", ylabel="ms", yscale="log")
    right.legend()
    for axes in (left, right):
        axes.set(xlabel="virtual users", xscale="log", xticks=users, xticklabels=users)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    return path


if __name__ == "__main__":
    main()
